"""Additive statistics of forecasts, from which metrics are made.

A statistic is summed over initial times, ranks and chunks; a metric is a function of its mean.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from jigsaw_forecast.parallel.collectives import all_reduce_sum
from jigsaw_forecast.parallel.mesh import Axis

Array64 = npt.NDArray[np.float64]


def spatial_mean_square(difference: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Area-weighted mean of squares, shape [...], float64.

    Over a latitude band it is the band's part of the mean: the bands' results add up.

    Args:
        difference: Shape [..., Y_i, X].
        weights: Area weight of each row over the number of rows of the whole grid, shape [Y_i].
    """
    by_row = difference.double().square().mean(-1)
    return (by_row * weights.double()).sum(-1)


@dataclass
class SquaredErrors:
    """Sums over initial times of the spatial mean square error, by lead time and field.

    Attributes:
        total: Sum of mean square errors, shape [leads, fields].
        count: Initial times in the sum, shape [leads].
    """

    total: Array64
    count: Array64

    @classmethod
    def empty(cls, num_leads: int, num_fields: int) -> "SquaredErrors":
        """No initial times yet."""
        return cls(np.zeros((num_leads, num_fields)), np.zeros(num_leads))

    def add(self, lead: int, mean_squares: torch.Tensor, place: slice = slice(None)) -> None:
        """Adds initial times at one lead time.

        Args:
            lead: Place on the lead dim.
            mean_squares: Of `spatial_mean_square`, shape [B, fields held].
            place: Which fields these are.
        """
        self.total[lead, place] += mean_squares.sum(0).cpu().numpy()
        self.count[lead] += mean_squares.shape[0]

    def merge(self, other: "SquaredErrors") -> None:
        """Adds another part of the initial times."""
        self.total += other.total
        self.count += other.count

    def reduce(self, model_axes: tuple[Axis, ...], data: Axis, device: torch.device) -> None:
        """Sums over ranks: pieces of maps over the model axes, initial times over data.

        Communication:
            One all-reduce of the totals over each axis.
        """
        for sums, axes in ((self.total, (*model_axes, data)), (self.count, (data,))):
            sums[...] = all_reduce_sum(torch.from_numpy(sums).to(device), axes).cpu().numpy()

    def rmse(self) -> Array64:
        """Root of the mean over initial times of the spatial mean square, [leads, fields]."""
        root: Array64 = np.sqrt(self.total / self.count[:, None])
        return root
