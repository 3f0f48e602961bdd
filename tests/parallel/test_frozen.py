"""Frozen weights: all of a model's or none, and then nothing is sent for them in backward."""

from collections.abc import Callable

import pytest
import torch

from jigsaw_forecast.parallel.mesh import Mesh, single_rank_mesh
from tests.parallel import cases
from tests.parallel.ranks import RankPool


def sensitivity(mesh: Mesh, is_frozen: bool) -> tuple[list[float], int]:
    """Gradient of the output's square by this rank's state, and bytes of weights received."""
    model = cases.make_model(mesh).requires_grad_(not is_frozen)
    config, pieces = model.config, model.pieces
    rows, columns = config.grid_object.num_lat, config.grid_object.num_lon
    state, forcing = (
        cases.sample(seed, len(names), rows, columns)[:, group, pieces.rows]
        for seed, (names, group) in enumerate(
            ((config.fields, pieces.fields), (config.forcings, pieces.forcings))
        )
    )
    state.requires_grad_()
    before = received_weights(mesh)
    model(state, forcing)[0].square().sum().backward()
    assert state.grad is not None
    return state.grad.flatten().tolist(), received_weights(mesh) - before


def received_weights(mesh: Mesh) -> int:
    return sum(kinds.get("weights", 0) for kinds in mesh.traffic.received().values())


def test_a_frozen_model_is_differentiated_by_its_state_with_less_traffic(
    ranks: Callable[[int], RankPool],
) -> None:
    degrees = {"domain": 2, "tensor": 2}
    trained = ranks(4).run(degrees, sensitivity, False)
    frozen = ranks(4).run(degrees, sensitivity, True)
    for (expected, more), (found, less) in zip(trained, frozen, strict=True):
        assert found == expected
        assert less < more


def test_a_model_frozen_in_part_is_refused() -> None:
    model = cases.make_model(single_rank_mesh())
    model.embed.requires_grad_(False)
    state = torch.zeros(1, 7, 24, 48, dtype=torch.float64)
    with pytest.raises(ValueError, match="all weights of the model or none"):
        model(state, torch.zeros(1, 3, 24, 48, dtype=torch.float64))
