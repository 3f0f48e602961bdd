"""Order of samples and reading ahead."""

import threading

import numpy as np
import pytest
import torch

from jigsaw_forecast.data.loading import Batch, ReadAhead, SampleOrder
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.parallel.mesh import Axis, Mesh, single_rank_mesh

ONE = single_rank_mesh()


def _replica(size: int, index: int) -> Mesh:
    axes = (Axis(name, 1, 0, None) for name in ("domain", "tensor", "model"))
    return Mesh(Axis("data", size, index, None), *axes, ONE.device)


def _batch(step: int) -> Batch:
    return Batch(*(torch.full((1,), step) for _ in range(3)))


def test_epochs_are_exact_where_batches_do_not_divide_them() -> None:
    order = SampleOrder(10, (3,))
    taken = np.concatenate([order.starts(step, 4, ONE) for step in range(5)])
    assert sorted(taken[:10]) == list(range(10))
    assert sorted(taken[10:]) == list(range(10))
    assert taken[:10].tolist() != taken[10:].tolist()


@pytest.mark.parametrize("size", [2, 4])
def test_the_order_is_the_same_on_any_number_of_replicas(size: int) -> None:
    whole = [SampleOrder(7, (3, 1)).starts(step, 4, ONE) for step in range(6)]
    for step, expected in enumerate(whole):
        parts = [
            SampleOrder(7, (3, 1)).starts(step, 4, _replica(size, index)) for index in range(size)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_an_order_goes_on_from_a_position_alone() -> None:
    steps = [SampleOrder(7, (3,)).starts(step, 2, ONE).tolist() for step in range(10)]
    fresh = SampleOrder(7, (3,))
    assert [fresh.starts_from(2 * step, 2, ONE).tolist() for step in range(6, 10)] == steps[6:]


def test_the_order_of_other_data_is_refused() -> None:
    state = SampleOrder(7, (3,)).state(12)
    assert state == {"position": 12, "num_samples": 7, "seed": [3]}
    SampleOrder(7, (3,)).check(state)
    with pytest.raises(DataError, match=r"num_samples 7, now 8; seed \[3\], now \[4\]"):
        SampleOrder(8, (4,)).check(state)


def test_no_samples_are_refused() -> None:
    with pytest.raises(DataError, match="shorter than one rollout"):
        SampleOrder(0, (1,))


def test_no_more_than_num_ahead_batches_are_made_before_they_are_taken() -> None:
    made: list[int] = []
    two_made = threading.Event()

    def make(step: int) -> Batch:
        made.append(step)
        if len(made) == 2:
            two_made.set()
        return _batch(step)

    batches = ReadAhead(make, 0, 10, num_ahead=2)
    try:
        assert two_made.wait(60)
        batches._pool.submit(lambda: None).result(60)  # what was asked for before it is done
        assert made == [0, 1]
        assert int(batches.take().states[0]) == 0
        batches._pool.submit(lambda: None).result(60)
        assert made == [0, 1, 2]
    finally:
        batches.close()


def test_waiting_is_counted() -> None:
    release = threading.Event()

    def make(step: int) -> Batch:
        assert release.wait(60)
        return _batch(step)

    batches = ReadAhead(make, 0, 2)
    timer = threading.Timer(0.05, release.set)
    try:
        timer.start()
        batches.take()
        assert batches.wait_seconds > 0
    finally:
        timer.join()
        batches.close()
