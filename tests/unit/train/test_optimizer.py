"""Schedule, decay groups, averaged weights."""

import pytest
import torch

from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.mesh import single_rank_mesh
from jigsaw_forecast.train.optimizer import (
    AveragedWeights,
    learning_rate,
    local_gradient_square,
    make_optimizer,
    phase_at,
)
from jigsaw_forecast.train.schema import Phase, TrainSection

PHASES = (
    Phase(rollout_steps=1, num_steps=10, learning_rate=1.0),
    Phase(rollout_steps=4, num_steps=5, learning_rate=0.5, global_batch_size=2, warmup_steps=0),
)
TRAIN = TrainSection(
    global_batch_size=8, precision="float32", warmup_steps=4, log_every=1, phases=PHASES
)


def test_steps_belong_to_their_phase() -> None:
    assert [phase_at(TRAIN, step) for step in (0, 9, 10, 14)] == [(0, 0), (0, 9), (1, 0), (1, 4)]


def test_a_phase_may_have_its_own_batch_and_warm_up() -> None:
    assert [TRAIN.batch_size(phase) for phase in PHASES] == [8, 2]
    assert [TRAIN.warmup(phase) for phase in PHASES] == [4, 0]


def test_the_rate_warms_up_linearly_to_its_peak() -> None:
    rates = [learning_rate(PHASES[0], 4, step) for step in range(5)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_the_rate_falls_as_a_cosine_to_nearly_nothing() -> None:
    rates = [learning_rate(PHASES[0], 4, step) for step in (4, 7, 9)]
    # 6 steps of descent: at 0, 1/2 and 5/6 of the half circle
    assert rates == pytest.approx([1.0, 0.5, 0.5 * (1 - 3**0.5 / 2)])


def test_the_rate_may_end_above_nothing_or_stay() -> None:
    falling = PHASES[0].model_copy(update={"final_learning_rate": 0.2})
    assert learning_rate(falling, 4, 7) == pytest.approx(0.2 + 0.8 * 0.5)
    constant = PHASES[0].model_copy(update={"final_learning_rate": 1.0})
    assert [learning_rate(constant, 0, step) for step in (0, 5, 9)] == [1.0, 1.0, 1.0]


def test_only_matrices_decay() -> None:
    model = torch.nn.Linear(3, 2)
    groups = make_optimizer(model, TRAIN).param_groups
    decays = {tuple(group["params"][0].shape): group["weight_decay"] for group in groups}
    assert decays == {(2, 3): TRAIN.weight_decay, (2,): 0.0}


def test_positions_decay_as_matrices_do() -> None:
    config = ModelConfig(
        grid="8x4",
        fields=("z500",),
        diagnostics=(),
        forcings=("insolation",),
        patch=(2, 2),
        overlap=1,
        channels=4,
        token_hidden=4,
        channel_hidden=4,
        num_blocks=1,
    )
    model = WeatherMixer(config, single_rank_mesh())
    (group,) = (
        group
        for group in make_optimizer(model, TRAIN).param_groups
        if any(parameter is model.embed.position for parameter in group["params"])
    )
    assert group["weight_decay"] == TRAIN.weight_decay


def test_the_gradient_square_is_summed_over_parameters() -> None:
    model = torch.nn.Linear(2, 1)
    model.weight.grad = torch.tensor([[1.0, 2.0]])
    model.bias.grad = torch.tensor([3.0])
    assert float(local_gradient_square(list(model.parameters()))) == pytest.approx(14.0)


def test_the_average_starts_fast_and_ends_at_its_decay() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = AveragedWeights(model, decay=0.9)
    model.weight.data.fill_(1.0)
    average.update(1)  # decay 2 / 11
    assert float(average.values[0]) == pytest.approx(9 / 11)
    average.update(10**6)  # decay 0.9
    assert float(average.values[0]) == pytest.approx(1 - 0.9 * 2 / 11)


def test_applied_averages_give_the_own_weights_back() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.1)
    average = AveragedWeights(model, decay=0.9)
    model.weight.data.fill_(0.7)
    own = model.weight.detach().clone()
    with average.applied():
        assert model.weight.item() == pytest.approx(0.1)
    assert torch.equal(model.weight, own)
