"""Claims about the queue between computing and writing, with a writer that a test holds back."""

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pytest
import torch

from jigsaw_forecast.errors import OutputError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.forecast.exchange import Bands
from jigsaw_forecast.forecast.pipeline import DEPTH, OutputPipeline
from jigsaw_forecast.forecast.product import Product, Slot
from jigsaw_forecast.forecast.writing import Job, Products
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.parallel.mesh import single_rank_mesh
from jigsaw_forecast.state import State
from tests.unit.forecast.made_up import INIT, hours

FIELDS = (Field("temperature", 850), Field("10m_u_component_of_wind"), Field("geopotential", 500))
CONFIG = ModelConfig(
    grid="8x5",  # 5 rows with both poles: the model leaves the last one out
    fields=tuple(field.short_name for field in FIELDS),
    forcings=("sin_year",),
    patch=(1, 1),
    overlap=0,
    channels=4,
    token_hidden=4,
    channel_hidden=4,
    num_blocks=1,
)
PATIENCE_S = 60.0


class HeldProducts:
    """Takes what `Products` takes, and writes it when it is let."""

    def __init__(self) -> None:
        self.run = self
        self.products = (cast(Product, None),)
        self.may_write = threading.Semaphore(0)
        self.written: list[tuple[int, np.ndarray[Any, Any]]] = []
        self.failure: Exception | None = None

    def owners(self, product: Product, size: int) -> tuple[tuple[Field, int], ...]:
        return tuple((field, 0) for field in FIELDS)

    def lacks(self, product: Product, slot: Slot) -> bool:
        return True

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        yield

    def write(self, job: Job) -> None:
        assert self.may_write.acquire(timeout=PATIENCE_S)
        if self.failure is not None:
            raise self.failure
        ((_, state),) = job.maps.items()
        self.written.append((job.rollout_step, state.data.numpy().copy()))


@pytest.fixture
def products() -> HeldProducts:
    return HeldProducts()


@pytest.fixture
def pipeline(products: HeldProducts) -> Iterator[OutputPipeline]:
    made = OutputPipeline(single_rank_mesh(), CONFIG, cast(Products, products))
    yield made
    for _ in range(10):
        products.may_write.release()
    assert made.close()


def make_state(step: int) -> State:
    grid = CONFIG.grid_object
    values = torch.full((len(FIELDS), grid.num_model_lat, grid.num_lon), float(step))
    return State(values, CONFIG.prognostic_fields, grid, INIT, hours(6 * step)[0])


def submit(pipeline: OutputPipeline, state: State, step: int) -> None:
    pipeline.submit([Slot.of(INIT, state.lead_time)], state, step, None)


def test_computing_waits_where_writing_is_behind_and_the_report_says_so(
    pipeline: OutputPipeline, products: HeldProducts
) -> None:
    for step in range(1, DEPTH + 1):
        submit(pipeline, make_state(step), step)
    assert pipeline.seconds.wait < PATIENCE_S
    late = threading.Thread(target=submit, args=(pipeline, make_state(9), 9))
    late.start()
    late.join(0.2)
    assert late.is_alive()
    products.may_write.release()
    late.join(PATIENCE_S)
    assert not late.is_alive()
    assert pipeline.seconds.wait > 0
    for _ in range(DEPTH):
        products.may_write.release()
    pipeline.drain()
    assert [step for step, _ in products.written] == [*range(1, DEPTH + 1), 9]


def test_the_queue_holds_no_more_states_than_its_depth(
    pipeline: OutputPipeline, products: HeldProducts
) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    for step in range(1, 8):
        state = make_state(step)
        alive.append(weakref.ref(state.data))
        products.may_write.release()
        submit(pipeline, state, step)
        del state
        gc.collect()
        assert sum(ref() is not None for ref in alive) <= DEPTH
    pipeline.drain()
    gc.collect()
    assert all(ref() is None for ref in alive)
    for step, values in products.written:  # each as it was, though their memory is one
        assert (values[0] == step).all()


def test_maps_are_whole_with_the_pole_row(pipeline: OutputPipeline, products: HeldProducts) -> None:
    products.may_write.release()
    submit(pipeline, make_state(3), 3)
    pipeline.drain()
    ((_, values),) = products.written
    assert values.shape == (len(FIELDS), CONFIG.grid_object.num_lat, CONFIG.grid_object.num_lon)
    place = [FIELDS.index(field) for field in CONFIG.prognostic_fields]
    wind = place.index(1)
    scalars = [index for index in range(len(FIELDS)) if index != wind]
    assert (values[scalars] == 3).all()
    assert (values[wind, :-1] == 3).all()
    # a wind that blows east on the whole last row has no vector at the pole: no wavenumber 1
    np.testing.assert_allclose(values[wind, -1], 0, atol=1e-6)


def test_what_fails_is_told_and_ends_the_writing(
    pipeline: OutputPipeline, products: HeldProducts
) -> None:
    products.failure = OutputError("the disk is full")
    products.may_write.release()
    submit(pipeline, make_state(1), 1)
    pipeline.drain()
    assert pipeline.failure() == "the disk is full"
    submit(pipeline, make_state(2), 2)
    pipeline.drain()
    assert products.written == []


def test_bands_of_several_ranks_join_to_whole_maps() -> None:
    grid = Grid(4, 8, has_poles=False)
    expected = torch.arange(2 * 4 * 8, dtype=torch.float32).reshape(2, 4, 8)
    parts = (
        ((FIELDS[1], FIELDS[0]), slice(0, 1), expected[[1, 0], :1]),
        ((FIELDS[0],), slice(1, 4), expected[:1, 1:]),
        ((FIELDS[1],), slice(1, 4), expected[1:, 1:]),
    )
    whole = Bands(FIELDS[:2], parts, grid, INIT, hours(6)[0]).join()
    assert whole.fields == FIELDS[:2]
    torch.testing.assert_close(whole.data, expected, rtol=0, atol=0)
