"""A model that would not fit is refused before anything of it is allocated."""

from unittest.mock import patch

import pytest

from jigsaw_forecast.errors import MeshError
from jigsaw_forecast.forecast.rollout import one_step
from jigsaw_forecast.parallel.mesh import Mesh, single_rank_mesh
from jigsaw_forecast.plan import memory
from jigsaw_forecast.plan.meshes import Workload
from tests.parallel import cases


def workload(is_streamed: bool) -> Workload:
    return Workload(cases.CONFIG, "inference", "float32", is_streamed, lambda _: one_step)


def check(mesh: Mesh, available: int) -> None:
    with patch.object(memory, "available_bytes", lambda device: available):
        memory.check_memory(mesh, cases.CONFIG, workload, is_streamed=False)


def test_what_fits_is_accepted() -> None:
    needed = memory.needed_bytes(workload(False), {"data": 1, "domain": 1, "tensor": 1})
    assert needed > memory.parameter_bytes(cases.CONFIG)
    check(single_rank_mesh(), needed)


def test_what_does_not_fit_says_what_is_needed_and_there() -> None:
    needed = memory.needed_bytes(workload(False), {"data": 1, "domain": 1, "tensor": 1})
    with pytest.raises(MeshError, match=r"needs .* GB a rank, .* GB is available") as raised:
        check(single_rank_mesh(), needed - 1)
    assert "too little memory" in str(raised.value)


def test_on_gpus_the_smallest_mesh_that_fits_is_named() -> None:
    needed = memory.needed_bytes(workload(False), {"data": 1, "domain": 1, "tensor": 1})
    mesh = single_rank_mesh("cuda")
    with pytest.raises(MeshError, match="use --mesh (domain|tensor)=2, the smallest that fits"):
        check(mesh, int(0.8 * needed))
