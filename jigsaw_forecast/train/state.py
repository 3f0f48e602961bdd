"""What a train step changes: weights, moments, averaged weights, counters, random numbers."""

from dataclasses import dataclass, field

import torch

from jigsaw_forecast.checkpoint.pieces import Piece
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.layout import Layout
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.train.optimizer import AveragedWeights

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class TrainState:
    """What a checkpoint holds and what it takes to go on.

    Attributes:
        model: With this rank's pieces of the weights, float32 or float64.
        optimizer: With their moments.
        average: Their exponential moving average.
        step: Train steps done.
        num_updates: Of the optimizer: steps less those skipped.
        losses: Of the steps since the last line of metrics.
    """

    model: WeatherMixer
    optimizer: torch.optim.AdamW
    average: AveragedWeights
    step: int = 0
    num_updates: int = 0
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Makes the moments, which the optimizer would make at its first step."""
        for parameter in self.model.parameters():
            count = torch.zeros((), dtype=torch.float32, device=parameter.device)
            moments = {name: torch.zeros_like(parameter) for name in MOMENTS}
            self.optimizer.state[parameter] = {"step": count, **moments}

    def pieces(self, *, with_random_state: bool = True) -> dict[str, Piece]:
        """This rank's pieces of all tensors, not copied; the random state is.

        Args:
            with_random_state: Fits only as many ranks as saved it.
        """
        layouts, mesh = self.model.layouts(), self.model.mesh
        pieces = {}
        for (name, parameter), average in zip(
            self.model.named_parameters(), self.average.values, strict=True
        ):
            tensors = {"weight": parameter.detach(), "average": average}
            tensors |= {kind: self.optimizer.state[parameter][kind] for kind in MOMENTS}
            for kind, values in tensors.items():
                pieces[f"{kind}.{name}"] = parameter_piece(values, layouts[name], mesh)
        if with_random_state:
            pieces["random.cpu"] = _row(torch.get_rng_state(), mesh)
            if mesh.device.type == "cuda":
                pieces["random.cuda"] = _row(torch.cuda.get_rng_state(mesh.device), mesh)
        return pieces

    def take_up(
        self, pieces: dict[str, Piece], step: int, num_updates: int, losses: list[float]
    ) -> None:
        """Goes on after `load` has filled the pieces.

        Args:
            pieces: Of `pieces`.
            step: Train steps done.
            num_updates: Of the optimizer.
            losses: Of the steps since the last line of metrics.
        """
        self.step, self.num_updates, self.losses = step, num_updates, losses
        for parameter in self.model.parameters():
            self.optimizer.state[parameter]["step"].fill_(num_updates)
        if "random.cpu" in pieces:
            torch.set_rng_state(pieces["random.cpu"].values[0])
        if "random.cuda" in pieces:
            torch.cuda.set_rng_state(pieces["random.cuda"].values[0], self.model.mesh.device)


def parameter_piece(values: torch.Tensor, layout: Layout, mesh: Mesh) -> Piece:
    """This rank's piece of a tensor that lies as a parameter does."""
    cut_dims = tuple(dict.fromkeys(cut.dim for cut in (*layout.compute, *layout.storage)))
    return Piece(values, layout.full_shape, layout.piece_slices(mesh), cut_dims)


def _row(values: torch.Tensor, mesh: Mesh) -> Piece:
    """A tensor of every rank's own values, one row each."""
    shape = (mesh.size, values.numel())
    part = (slice(mesh.rank, mesh.rank + 1), slice(0, values.numel()))
    return Piece(values[None].clone(), shape, part, is_replicated=False)
