"""The data axis: torch's DistributedDataParallel around the loss of one model group.

Each replica's ranks average their own pieces' gradients with the same pieces of the other
replicas, bucket by bucket while backward goes on.
"""

import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from jigsaw_forecast.data.training_set import Batch
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.collectives import average_in_future
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.train.loss import LossWeights, rollout_loss

BUCKET_MB = 32  # large enough for full bandwidth


class RolloutLoss(nn.Module):
    """The loss of a batch as a module, so that a whole rollout is one forward."""

    def __init__(self, model: WeatherMixer, weights: LossWeights, *, recompute: bool) -> None:
        """Takes what `rollout_loss` takes besides the batch."""
        super().__init__()
        self.model = model
        self.weights = weights
        self.recompute = recompute

    def forward(self, batch: Batch) -> torch.Tensor:
        """This rank's part of the loss."""
        return rollout_loss(self.model, batch, self.weights, recompute=self.recompute)


def over_replicas(loss: RolloutLoss, mesh: Mesh) -> Callable[[Batch], torch.Tensor]:
    """The loss, whose backward leaves gradients averaged over the data axis.

    Communication:
        At first the weights of replica 0 to the others. In each backward an all-reduce of every
        gradient over data, in buckets, each as soon as its gradients are there.
    """
    if mesh.data.size == 1:
        return loss
    with warnings.catch_warnings():
        # torch 2.13 prefers another name, which earlier versions do not know
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        wrapped = DistributedDataParallel(
            loss,
            process_group=mesh.data.group,
            broadcast_buffers=False,
            bucket_cap_mb=BUCKET_MB,
            gradient_as_bucket_view=True,
        )
    wrapped.register_comm_hook(
        mesh, lambda state, bucket: average_in_future(state, bucket.buffer())
    )
    return wrapped
