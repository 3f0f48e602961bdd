"""Collectives: what they move, and how ranks fail together."""

from collections.abc import Callable

import pytest
import torch

from jigsaw_forecast import errors
from jigsaw_forecast.parallel.collectives import all_gather, all_to_all, exchange, reduce_scatter
from jigsaw_forecast.parallel.mesh import Mesh, single_rank_mesh
from jigsaw_forecast.parallel.together import gather_texts, together
from tests.parallel.ranks import RankPool


def gather_uneven(mesh: Mesh) -> list[list[float]]:
    sizes = [2, 1, 0]
    own = torch.full((2, sizes[mesh.tensor.index]), float(mesh.tensor.index))
    return all_gather(mesh, own, "tensor", 1, "weights", sizes).tolist()


def test_uneven_and_empty_parts_are_joined_in_order(ranks: Callable[[int], RankPool]) -> None:
    found = ranks(3).run({"tensor": 3}, gather_uneven)
    assert found == [[[0.0, 0.0, 1.0]] * 2] * 3


def scatter_bfloat16(mesh: Mesh) -> tuple[list[float], int]:
    mesh.traffic.reset()
    # 256 + 1 + 1 + 1 is 259 in float32 and rounds to 260; in bfloat16 each 256 + 1 is 256
    value = 256.0 if mesh.domain.index == 0 else 1.0
    terms = torch.full((4, 2), value, dtype=torch.bfloat16)
    own = reduce_scatter(mesh, terms, "domain", "activations")
    return own.flatten().tolist(), mesh.traffic.received()["domain"]["activations"]


def test_bfloat16_is_summed_in_float32_and_only_the_part_travels(
    ranks: Callable[[int], RankPool],
) -> None:
    for values, num_bytes in ranks(4).run({"domain": 4}, scatter_bfloat16):
        assert values == [260.0, 260.0]
        assert num_bytes == 3 * 2 * 2  # from 3 peers 2 values of 2 bytes


def swap(mesh: Mesh) -> list[list[int]]:
    me = mesh.model.index
    outgoing = [torch.full((peer,), me) for peer in range(mesh.model.size)]
    shapes = [(me,)] * mesh.model.size
    return [part.tolist() for part in all_to_all(mesh, outgoing, shapes, "model")]


def test_all_to_all_delivers_unequal_parts(ranks: Callable[[int], RankPool]) -> None:
    found = ranks(4).run({"domain": 2, "tensor": 2}, swap)
    assert found == [[[sender] * me for sender in range(4)] for me in range(4)]


def fill(mesh: Mesh) -> list[list[int]]:
    me, size = mesh.model.index, mesh.model.size
    outgoing = [[torch.full((2,), 10 * me + number) for number in range(peer)] for peer in range(4)]
    kept = torch.zeros(size, me, 2, dtype=torch.long)
    exchange(mesh, outgoing, [list(kept[peer]) for peer in range(size)], "model")
    return [part[:, 0].tolist() for part in kept]


def test_exchange_fills_tensors_in_the_order_in_which_they_were_sent(
    ranks: Callable[[int], RankPool],
) -> None:
    found = ranks(4).run({"domain": 2, "tensor": 2}, fill)
    for me, rows in enumerate(found):
        for sender, values in enumerate(rows):
            is_own = sender == me
            assert values == [0 if is_own else 10 * sender + number for number in range(me)]


def test_texts_of_any_length_and_script_arrive(ranks: Callable[[int], RankPool]) -> None:
    assert ranks(3).run({"domain": 3}, own_text) == [["", "°" * 7, "°" * 14]] * 3
    assert gather_texts(single_rank_mesh(), "alone") == ["alone"]


def own_text(mesh: Mesh) -> list[str]:
    return gather_texts(mesh, "°" * 7 * mesh.rank)


class Terminated(errors.StoppedError):
    """A kind of error that only one rank knows."""


def fail_on_rank_1(mesh: Mesh, kind: str) -> tuple[str, str]:
    def action() -> int:
        if mesh.rank == 1:
            kinds = {"data": errors.DataError, "stop": Terminated, "bug": KeyError}
            raise kinds[kind]("z500 is missing")
        return 7

    try:
        return "none", str(together(mesh, action))
    except Exception as error:  # noqa: BLE001  the test looks at its kind
        return type(error).__name__, str(error)


@pytest.mark.parametrize(("kind", "name"), [("data", "DataError"), ("stop", "StoppedError")])
def test_what_one_rank_refuses_all_ranks_raise(
    ranks: Callable[[int], RankPool], kind: str, name: str
) -> None:
    assert ranks(3).run({"domain": 3}, fail_on_rank_1, kind) == [(name, "z500 is missing")] * 3


def test_a_bug_on_one_rank_ends_the_others_by_name(ranks: Callable[[int], RankPool]) -> None:
    first, second = ranks(2).run({"domain": 2}, fail_on_rank_1, "bug")
    assert second == ("KeyError", "'z500 is missing'")
    assert first[0] == "RuntimeError"
    assert "rank 1 failed: KeyError" in first[1]


def test_an_action_that_works_gives_its_result() -> None:
    assert together(single_rank_mesh(), lambda: 3) == 3
