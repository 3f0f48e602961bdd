"""Replicas that share a batch get the gradients of the whole batch, in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from jigsaw_forecast.data.training_set import Batch
from jigsaw_forecast.parallel.mesh import Mesh, single_rank_mesh
from jigsaw_forecast.train.loss import LossWeights, loss_weights
from jigsaw_forecast.train.replicas import ReplicatedLoss, RolloutLoss
from jigsaw_forecast.train.weighting import LossWeighting
from tests.parallel import cases
from tests.parallel.ranks import RankPool

GLOBAL_BATCH, ROLLOUT_STEPS = 4, 2
RELATIVE_TOLERANCE = 1e-10


def gradients(mesh: Mesh, recompute: bool) -> tuple[dict[str, cases.Piece], int]:
    """Gradients after a backward over this replica's samples, and bytes received over data."""
    model = cases.make_model(mesh)
    config, pieces = model.config, model.pieces
    rows, columns = config.grid_object.num_lat, config.grid_object.num_lon
    generator = torch.Generator().manual_seed(5)
    maps = {
        "states": (ROLLOUT_STEPS + 1, len(config.fields), pieces.fields),
        "diagnostics": (ROLLOUT_STEPS, len(config.diagnostics), pieces.diagnostics),
        "forcings": (ROLLOUT_STEPS, len(config.forcings), pieces.forcings),
    }
    local = GLOBAL_BATCH // mesh.data.size
    own = slice(mesh.data.index * local, (mesh.data.index + 1) * local)
    parts = {}
    for name, (num_times, num_maps, group) in maps.items():
        shape = (GLOBAL_BATCH, num_times, num_maps, rows, columns)
        whole = torch.randn(shape, generator=generator, dtype=torch.float64)
        parts[name] = whole[own, :, group, pieces.rows]
    weights = loss_weights(config, pieces, LossWeighting(), mesh.device)
    weights = LossWeights(*(part.double() for part in weights))
    loss = ReplicatedLoss(RolloutLoss(model, weights, recompute=recompute), mesh)
    for _ in range(2):  # the second backward has the buckets of the first one's order
        model.zero_grad()
        mesh.traffic.reset()
        loss(Batch(**parts)).backward()
    layouts = model.layouts()
    found: dict[str, cases.Piece] = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        found[name] = (layouts[name].piece_slices(mesh), parameter.grad.numpy().copy())
    return found, mesh.traffic.received()["data"]["weights"]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("data", "domain", "tensor"), [(2, 1, 1), (2, 2, 1), (2, 1, 2), (2, 2, 2), (4, 2, 1)]
)
def test_replicas_average_to_the_gradient_of_the_whole_batch(
    ranks: Callable[[int], RankPool], data: int, domain: int, tensor: int, recompute: bool
) -> None:
    expected = cases.assemble([gradients(single_rank_mesh(), False)[0]])
    degrees = {"data": data, "domain": domain, "tensor": tensor}
    results = ranks(data * domain * tensor).run(degrees, gradients, recompute)
    size = domain * tensor
    for replica in range(data):
        own = [found for found, _ in results[replica * size : (replica + 1) * size]]
        for name, values in cases.assemble(own).items():
            error = np.abs(values - expected[name]).max() / np.abs(expected[name]).max()
            assert error <= RELATIVE_TOLERANCE, name
    for found, received in results:
        num_bytes = sum(values.nbytes for _, values in found.values())
        # a ring receives 2 (d - 1) / d; each bucket is rounded down by itself
        assert received == pytest.approx(2 * (data - 1) * num_bytes / data, abs=100)
