"""Every mesh gives the one-rank result: output, loss, gradients, one optimizer step."""

from collections.abc import Callable

import numpy as np
import pytest

from jigsaw_forecast.parallel.mesh import Mesh, single_rank_mesh
from tests.parallel import cases
from tests.parallel.ranks import RankPool

MESHES = [(1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (2, 2), (4, 1), (1, 4), (3, 2), (2, 4), (4, 2),
          (8, 1), (1, 8)]  # fmt: skip
RELATIVE_TOLERANCE = 1e-10


@pytest.fixture(scope="module")
def one_rank() -> dict[str, np.ndarray]:
    """The result of a mesh of one, with no process group."""
    return cases.assemble([cases.train_step(single_rank_mesh(), True)])


def _wrong(
    results: list[dict[str, cases.Piece]], one_rank: dict[str, np.ndarray]
) -> dict[str, float]:
    """The tensors that differ from the one-rank result, with their relative errors."""
    whole = cases.assemble(results)
    wrong = {}
    for name, expected in one_rank.items():
        if name == "resident output" and name not in whole:
            continue
        error = np.abs(whole[name] - expected).max() / np.abs(expected).max()
        if not error <= RELATIVE_TOLERANCE:
            wrong[name] = error
    return wrong


@pytest.mark.parametrize(("domain", "tensor"), MESHES)
def test_mesh_gives_the_one_rank_result(
    ranks: Callable[[int], RankPool], one_rank: dict[str, np.ndarray], domain: int, tensor: int
) -> None:
    degrees = {"domain": domain, "tensor": tensor}
    results = ranks(domain * tensor).run(degrees, cases.train_step, True)
    assert results[0].keys() == one_rank.keys()
    assert not _wrong(results, one_rank)


@pytest.mark.parametrize("recompute", ["nothing", "hidden", "steps"])
@pytest.mark.parametrize("num_chunks", [1, 5])
@pytest.mark.parametrize(("domain", "tensor"), [(1, 1), (2, 1), (1, 3), (2, 2), (2, 4)])
def test_chunks_and_recomputation_change_nothing(
    ranks: Callable[[int], RankPool],
    one_rank: dict[str, np.ndarray],
    domain: int,
    tensor: int,
    num_chunks: int,
    recompute: str,
) -> None:
    degrees = {"domain": domain, "tensor": tensor}
    pool = ranks(domain * tensor)
    results = pool.run(degrees, cases.train_step, True, num_chunks, recompute)
    assert not _wrong(results, one_rank)


def step_of_few_fields(mesh: Mesh) -> dict[str, cases.Piece]:
    return cases.train_step(mesh, config=cases.FEW_FIELDS)


@pytest.mark.parametrize(("domain", "tensor"), [(1, 4), (2, 4)])
def test_ranks_without_a_field_give_the_one_rank_result(
    ranks: Callable[[int], RankPool], domain: int, tensor: int
) -> None:
    whole = cases.assemble([step_of_few_fields(single_rank_mesh())])
    results = ranks(domain * tensor).run({"domain": domain, "tensor": tensor}, step_of_few_fields)
    assert not _wrong(results, {name: values for name, values in whole.items() if values.size})


def test_world_sizes_1_2_3_4_and_8_are_among_the_meshes() -> None:
    assert {domain * tensor for domain, tensor in MESHES} >= {1, 2, 3, 4, 8}
