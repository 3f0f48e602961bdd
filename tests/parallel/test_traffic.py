"""Received bytes equal the formulas of the parallel scheme, on every rank."""

from collections.abc import Callable

import pytest
import torch

from jigsaw_forecast.parallel.collectives import all_reduce_sum
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.train.optimizer import local_gradient_square
from tests.parallel import cases
from tests.parallel.ranks import RankPool

FLOAT64_BYTES = 8


def forward_traffic(mesh: Mesh) -> dict[str, object]:
    """What one forward with resident weights received, and what decides it."""
    model = cases.make_model(mesh)
    config, pieces = model.config, model.pieces
    model.make_resident()
    rows, columns = config.grid_object.num_lat, config.grid_object.num_lon
    state = cases.sample(0, len(config.fields), rows, columns)[:, pieces.fields, pieces.rows]
    forcing = cases.sample(1, len(config.forcings), rows, columns)[:, pieces.forcings, pieces.rows]
    mesh.traffic.reset()
    with torch.no_grad():
        _, diagnostics = model(state, forcing)
    return {
        "received": mesh.traffic.received(),
        "maps_in": state.shape[1] + forcing.shape[1],
        "maps_out": state.shape[1] + diagnostics.shape[1],
        "neighbours": int(mesh.domain.index > 0) + int(mesh.domain.index < mesh.domain.size - 1),
    }


@pytest.mark.parametrize(("domain", "tensor"), [(2, 1), (1, 2), (2, 2), (4, 2), (1, 8)])
def test_a_resident_forward_receives_what_the_formulas_say(
    ranks: Callable[[int], RankPool], domain: int, tensor: int
) -> None:
    config, batch = cases.CONFIG, cases.BATCH
    results = ranks(domain * tensor).run({"domain": domain, "tensor": tensor}, forward_traffic)
    size = domain * tensor
    activation = batch * config.num_tokens * config.channels // size
    num_lon = config.grid_object.num_lon
    for result in results:
        received = result["received"]
        # a gather and a reduce-scatter a block over each axis; embed and head one over tensor
        halo_rows = batch * config.overlap * result["neighbours"]
        padded = halo_rows * result["maps_in"] * num_lon
        added = halo_rows * result["maps_out"] * (num_lon)
        assert received["domain"]["activations"] == FLOAT64_BYTES * (
            2 * config.num_blocks * activation * (domain - 1) + padded + added
        )
        assert received["tensor"]["activations"] == FLOAT64_BYTES * (
            (2 * config.num_blocks + 2) * activation * (tensor - 1)
        )
        tokens = batch * config.num_tokens // domain
        assert received["tensor"]["statistics"] == FLOAT64_BYTES * (
            2 * config.num_blocks * tokens * (tensor - 1)
        )
        assert all(received[axis]["weights"] == 0 for axis in ("data", "domain", "tensor"))


def training_traffic(mesh: Mesh) -> dict[str, dict[str, int]]:
    mesh.traffic.reset()
    cases.train_step(mesh)
    return mesh.traffic.received()


def test_a_training_step_receives_five_halves_of_the_forward_activations(
    ranks: Callable[[int], RankPool],
) -> None:
    config = cases.CONFIG
    results = ranks(2).run({"tensor": 2}, training_traffic)
    activation = cases.BATCH * config.num_tokens * config.channels // 2
    num_model_steps = 2  # cases.train_step rolls out twice
    # a block: 2 forward + 3 backward; embed: 1 + 1; head: 1 + 2
    collectives = num_model_steps * (5 * config.num_blocks + 2 + 3)
    for received in results:
        assert received["tensor"]["activations"] == FLOAT64_BYTES * collectives * activation


def norm_of_a_split_vector(mesh: Mesh) -> float:
    full = torch.arange(1.0, 13.0, dtype=torch.float64)
    weight = torch.nn.Parameter(torch.zeros_like(full[mesh.model.index :: mesh.model.size]))
    weight.grad = full[mesh.model.index :: mesh.model.size]
    square = local_gradient_square([weight])
    return float(all_reduce_sum(square, (mesh.domain, mesh.tensor)).sqrt())


def test_gradient_norm_counts_each_piece_once(ranks: Callable[[int], RankPool]) -> None:
    found = ranks(4).run({"domain": 2, "tensor": 2}, norm_of_a_split_vector)
    assert found == pytest.approx([650.0**0.5] * 4)  # sum of squares of 1..12
