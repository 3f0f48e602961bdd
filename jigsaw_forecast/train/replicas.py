"""The data axis: torch's DistributedDataParallel around the loss of one model group.

Each replica's ranks average their own pieces' gradients with the same pieces of the other
replicas, bucket by bucket while backward goes on.
"""

import warnings

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


class ReplicatedLoss:
    """The loss, whose backward leaves gradients averaged over the data axis."""

    def __init__(self, loss: RolloutLoss, mesh: Mesh) -> None:
        """Wraps the loss where there are replicas.

        Communication:
            The weights of replica 0 to the others.
        """
        self._loss = loss
        self._wrapped: DistributedDataParallel | None = None
        if mesh.data.size > 1:
            self._wrapped = _wrap(loss, mesh)

    def __call__(self, batch: Batch) -> torch.Tensor:
        """This rank's part of the loss."""
        result: torch.Tensor = (self._wrapped or self._loss)(batch)
        return result

    def backward(self, batches: list[Batch]) -> torch.Tensor:
        """Adds the gradients of the mean loss of batches of one size; returns that mean.

        Communication:
            The model's own for each batch. In the last backward an all-reduce of every gradient
            over data, in buckets, each as soon as its gradients are there.
        """
        total: torch.Tensor | None = None
        for batch in batches[:-1]:
            if self._wrapped is None:
                loss = self._backward(batch, len(batches))
            else:
                with self._wrapped.no_sync():
                    loss = self._backward(batch, len(batches))
            total = loss if total is None else total + loss
        loss = self._backward(batches[-1], len(batches))
        return loss if total is None else total + loss

    def settle_buckets(self, batch: Batch) -> None:
        """Brings the gradients' buckets into the order that they keep.

        DistributedDataParallel orders them by the first backward, and the sums of more than two
        replicas round by it: without this the first train step after a start would round otherwise
        than the same step of a run that has not stopped.

        Args:
            batch: Any one of the model's shapes; its gradients are dropped.

        Communication:
            That of two backwards.
        """
        if self._wrapped is None:
            return
        for _ in range(2):  # the new order is used from the second on
            self(batch).backward()  # type: ignore[no-untyped-call]
        for parameter in self._loss.parameters():
            parameter.grad = None

    def _backward(self, batch: Batch, num_batches: int) -> torch.Tensor:
        loss = self(batch)
        if num_batches > 1:
            loss = loss / num_batches
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


def _wrap(loss: RolloutLoss, mesh: Mesh) -> DistributedDataParallel:
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
