"""What a validation says of a model."""

import pytest

from jigsaw_forecast.train.validation import ValidationScores


def test_checkpoints_are_compared_by_rollouts_against_persistence() -> None:
    references = {"rmse_persistence": {"z500": {24: 400.0, 72: 800.0}, "2t": {24: 2.0, 72: 4.0}}}
    short = {"z500": {24: 100.0, 72: 600.0}, "2t": {24: 1.0, 72: 3.0}}
    long = {"z500": {24: 200.0, 72: 400.0}, "2t": {24: 1.0, 72: 2.0}}
    single_steps = ValidationScores(0.07, short, references)
    rollouts = ValidationScores(0.08, long, references)  # worse at one step, better at three days
    assert single_steps.error == pytest.approx((0.25 + 0.75 + 0.5 + 0.75) / 4)
    assert rollouts.error == pytest.approx(0.5)


def test_the_loss_compares_models_without_the_fields_of_the_scores() -> None:
    assert ValidationScores(0.07, {}).error == 0.07
