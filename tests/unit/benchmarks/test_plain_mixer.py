"""The baseline of the benchmarks is the project's model, written independently."""

import pytest
import torch

from benchmarks.plain_mixer import PlainMixer
from jigsaw_forecast.parallel.mesh import single_rank_mesh
from tests.parallel import cases


def loss_and_gradients(
    model: torch.nn.Module, maps: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    state, diagnostics = model(maps[0], maps[1])
    (state.square().sum() + (diagnostics * 1.5 - state[:, :1]).square().sum()).backward()
    return state.detach(), diagnostics.detach()


@pytest.mark.parametrize("overlap", [0, 1])
def test_outputs_and_gradients_equal_the_projects(overlap: int) -> None:
    config = cases.CONFIG.model_copy(update={"overlap": overlap})
    ours = cases.make_model(single_rank_mesh(), config)
    ours.tendency_scale.copy_(torch.linspace(0.5, 1.5, len(config.fields)))
    plain = PlainMixer(config).double()
    plain.copy_from(ours)
    rows, columns = config.grid_object.num_lat, config.grid_object.num_lon
    maps = tuple(
        cases.sample(seed, len(names), rows, columns)
        for seed, names in enumerate((config.fields, config.forcings))
    )
    expected = loss_and_gradients(ours, maps)
    found = loss_and_gradients(plain, maps)
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-12)
    gradients = plain.named_parts(lambda parameter: parameter.grad)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            gradients[name], parameter.grad, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )
