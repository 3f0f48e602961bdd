"""The loss: weights, pieces and gradients, with a stand-in for the model."""

from typing import cast

import numpy as np
import pytest
import torch

from jigsaw_forecast.data.training_set import Batch
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.sample import sample_pieces
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.mesh import single_rank_mesh
from jigsaw_forecast.train.loss import LossWeights, loss_weights, rollout_loss
from jigsaw_forecast.train.weighting import LossWeighting, field_weights

CONFIG = ModelConfig(
    grid="8x4",
    fields=("z500", "t500", "2t"),
    diagnostics=("tp",),
    forcings=("insolation",),
    patch=(2, 2),
    overlap=1,
    channels=4,
    token_hidden=4,
    channel_hidden=4,
    num_blocks=1,
)


class _Growth(torch.nn.Module):
    """Multiplies the state by a number at each step; the diagnostic is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(2.0))
        self.tendency_scale = torch.tensor([1.0, 0.5, 1.0])

    def forward(self, state: torch.Tensor, forcing: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return state * self.factor, torch.zeros_like(forcing)


def _growth() -> WeatherMixer:
    return cast(WeatherMixer, _Growth())


def _batch(num_steps: int, batch: int = 2) -> Batch:
    shape = (4, 8)
    states = torch.zeros(batch, num_steps + 1, 3, *shape)
    states[:, 0] = 1.0
    return Batch(
        states=states,
        diagnostics=torch.full((batch, num_steps, 1, *shape), 3.0),
        forcings=torch.zeros(batch, num_steps, 1, *shape),
    )


def _weights(diagnostic_weight: float = 0.0, **field_weights: float) -> LossWeights:
    pieces = sample_pieces(CONFIG, single_rank_mesh())
    weighting = LossWeighting(fields=field_weights, diagnostics=diagnostic_weight)
    return loss_weights(CONFIG, pieces, weighting, torch.device("cpu"))


def test_weights_sum_to_one_over_fields_and_the_globe() -> None:
    weights = _weights(0.25, z500=3.0)
    assert float(weights.state.sum()) * 8 == pytest.approx(1.0)
    assert float(weights.diagnostic.sum()) * 8 == pytest.approx(0.25)


def test_rows_count_by_their_area() -> None:
    rows = _weights().state[0, :, 0].double().numpy()
    bounds = np.sin(np.deg2rad([90.0, 45.0, 0.0, -45.0, -90.0]))
    areas = -np.diff(bounds) / 2  # of the globe
    np.testing.assert_allclose(rows * 3 * 8, areas, rtol=1e-6)


def test_a_short_name_goes_before_its_variable() -> None:
    weights = _weights(temperature=5.0, t500=2.0, z500=1.0, **{"2t": 1.0}).state.sum((1, 2))
    np.testing.assert_allclose(weights / weights[0], [1.0, 2.0, 1.0], rtol=1e-6)


LEVELS = CONFIG.model_copy(update={"fields": ("z100", "z300", "z500", "t100", "t200", "2t")})


def test_a_level_counts_by_its_pressure_with_mean_1_over_its_variable() -> None:
    weights = field_weights(LEVELS, LossWeighting(by_pressure=True))
    expected = [1 / 3, 1, 5 / 3, 2 / 3, 4 / 3, 1]  # means of 300 and 150 hPa; the surface is 1
    np.testing.assert_allclose(weights, np.array(expected) / 6, rtol=1e-12)


def test_field_and_level_weights_multiply() -> None:
    weighting = LossWeighting(fields={"geopotential": 3.0}, levels={"100": 2.0})
    weights = field_weights(LEVELS, weighting)
    np.testing.assert_allclose(weights / weights[-1], [6, 3, 3, 2, 1, 1], rtol=1e-12)


def test_an_error_counts_in_units_of_its_tendency() -> None:
    # state 2 against 0: squares 4, 16 (scale 1/2) and 4, each a third
    loss = rollout_loss(_growth(), _batch(1), _weights())
    assert loss.item() == pytest.approx((4 + 16 + 4) / 3, rel=1e-6)


def test_a_rollout_feeds_back_and_means_over_its_steps() -> None:
    # 2, then 4: squares 4 and 16 for scale 1, four times as much for scale 1/2
    loss = rollout_loss(_growth(), _batch(2), _weights())
    assert loss.item() == pytest.approx((4 + 16) / 2 * (1 + 4 + 1) / 3, rel=1e-6)


def test_the_gradient_flows_through_all_steps() -> None:
    model = _growth()
    rollout_loss(model, _batch(2), _weights()).backward()  # type: ignore[no-untyped-call]
    # d/da of ((a)^2 + (a^2)^2) / 2 x 2 at a = 2: (2a + 4a^3) / 2 x 2
    assert float(model.factor.grad) == pytest.approx(2 * 2 + 4 * 8, rel=1e-6)  # type: ignore


def test_the_diagnostics_count_by_their_weight() -> None:
    without = rollout_loss(_growth(), _batch(1), _weights())
    with_diagnostic = rollout_loss(_growth(), _batch(1), _weights(0.25))
    assert (with_diagnostic - without).item() == pytest.approx(0.25 * 9, rel=1e-5)


def test_pieces_of_the_loss_add_up() -> None:
    whole = rollout_loss(_growth(), _batch(1), _weights(0.25))
    weights = _weights(0.25)
    total = 0.0
    for rows in (slice(0, 2), slice(2, 4)):
        part = Batch(*(array[..., rows, :] for array in vars(_batch(1)).values()))
        band = LossWeights(weights.state[:, rows], weights.diagnostic[:, rows])
        total += rollout_loss(_growth(), part, band).item()
    assert total == pytest.approx(whole.item(), rel=1e-6)


def test_recomputed_activations_give_the_same_gradient() -> None:
    mesh = single_rank_mesh()
    model = WeatherMixer(CONFIG, mesh, seed=1)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.1, generator=generator)
    states = torch.randn(2, 4, 3, 4, 8, generator=generator)
    batch = Batch(states, torch.zeros(2, 3, 1, 4, 8), torch.zeros(2, 3, 1, 4, 8))
    gradients = []
    for recompute in (False, True):
        model.zero_grad()
        loss = rollout_loss(model, batch, _weights(0.1), recompute=recompute)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients.append([parameter.grad for parameter in model.parameters()])
    for kept, recomputed in zip(*gradients, strict=True):
        assert kept is not None
        torch.testing.assert_close(recomputed, kept, rtol=0, atol=0)
