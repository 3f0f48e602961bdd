"""What a plan foretells is what the ranks count."""

from collections.abc import Callable

import pytest
import torch

from jigsaw_forecast.forecast.rollout import one_step
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.plan.trace import described_mesh, make_traced_model, trace
from jigsaw_forecast.train.bench import training_step
from tests.parallel import cases
from tests.parallel.ranks import RankPool


def count(mesh: Mesh, training: bool) -> tuple[dict[str, dict[str, int]], int, int]:
    """What one step really received, its buffers, and the bytes of the parameters."""
    model = WeatherMixer(cases.CONFIG, mesh, seed=0)
    mesh.traffic.reset()
    if training:
        training_step(2)(model)
    else:
        with torch.no_grad():
            one_step(model)
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    return mesh.traffic.received(), mesh.traffic.peak_buffer_bytes, held


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("domain", "tensor"), [(1, 1), (3, 1), (1, 2), (2, 2), (2, 4)])
def test_bytes_are_foretold_exactly_for_every_rank(
    ranks: Callable[[int], RankPool], domain: int, tensor: int, training: bool
) -> None:
    degrees = {"domain": domain, "tensor": tensor}
    counted = ranks(domain * tensor).run(degrees, count, training)
    for rank, (received, buffers, held) in enumerate(counted):
        mesh = described_mesh(degrees, *divmod(rank, tensor))
        model = make_traced_model(cases.CONFIG, mesh, torch.float32, matrices_in_dtype=False)
        traced = trace(model, training_step(2) if training else one_step)
        assert traced.received == received
        assert (traced.buffer_bytes, traced.parameter_bytes) == (buffers, held)
