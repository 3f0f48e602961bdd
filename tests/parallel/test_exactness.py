"""Every mesh gives the one-rank result: output, loss, gradients, one optimizer step."""

from collections.abc import Callable

import numpy as np
import pytest

from jigsaw_forecast.parallel.mesh import single_rank_mesh
from tests.parallel import cases
from tests.parallel.ranks import RankPool

MESHES = [(1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (2, 2), (4, 1), (1, 4), (3, 2), (2, 4), (4, 2),
          (8, 1), (1, 8)]  # fmt: skip
RELATIVE_TOLERANCE = 1e-10


@pytest.fixture(scope="module")
def one_rank() -> dict[str, np.ndarray]:
    """The result of a mesh of one, with no process group."""
    return cases.assemble([cases.train_step(single_rank_mesh(), True)])


@pytest.mark.parametrize(("domain", "tensor"), MESHES)
def test_mesh_gives_the_one_rank_result(
    ranks: Callable[[int], RankPool], one_rank: dict[str, np.ndarray], domain: int, tensor: int
) -> None:
    degrees = {"domain": domain, "tensor": tensor}
    results = ranks(domain * tensor).run(degrees, cases.train_step, True)
    whole = cases.assemble(results)
    assert whole.keys() == one_rank.keys()
    wrong = {}
    for name, expected in one_rank.items():
        error = np.abs(whole[name] - expected).max() / np.abs(expected).max()
        if not error <= RELATIVE_TOLERANCE:
            wrong[name] = error
    assert not wrong


def test_world_sizes_1_2_3_4_and_8_are_among_the_meshes() -> None:
    assert {domain * tensor for domain, tensor in MESHES} >= {1, 2, 3, 4, 8}
