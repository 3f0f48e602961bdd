"""The atmosphere at one time: the tensor that models step and writers write."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from jigsaw_forecast.fields import Field
from jigsaw_forecast.grid import Grid


@dataclass(frozen=True)
class State:
    """Fields on a grid at one valid time, whole or this rank's piece; checked when built.

    Attributes:
        data: Physical values in SI units, shape [F, Y, X], float; F and Y may be a piece.
        fields: The fields held here, in order, length F.
        grid: The whole grid.
        init_time: Start of the forecast, UTC, datetime64[s].
        lead_time: Time since the start, timedelta64[s].
        row_start: First grid row held here; 0 for a whole state.
    """

    data: torch.Tensor
    fields: tuple[Field, ...]
    grid: Grid
    init_time: np.datetime64
    lead_time: np.timedelta64
    row_start: int = 0

    def __post_init__(self) -> None:
        """Refuses tensors whose shape is not that of the fields, rows and columns."""
        if self.data.ndim != 3:
            raise ValueError(f"state has shape {tuple(self.data.shape)}, expected [F, Y, X]")
        num_fields, num_rows, num_lon = self.data.shape
        if num_fields != len(self.fields):
            raise ValueError(f"state has {num_fields} maps for {len(self.fields)} fields")
        if num_lon != self.grid.num_lon:
            raise ValueError(f"state has {num_lon} columns, grid {self.grid.name}")
        if not 0 <= self.row_start <= self.row_start + num_rows <= self.grid.num_lat:
            raise ValueError(
                f"rows {self.row_start} to {self.row_start + num_rows} are outside of grid "
                f"{self.grid.name}"
            )
        if not self.data.is_floating_point():
            raise ValueError(f"state has dtype {self.data.dtype}, expected floating point")
        object.__setattr__(self, "init_time", self.init_time.astype("datetime64[s]"))
        object.__setattr__(self, "lead_time", self.lead_time.astype("timedelta64[s]"))

    @property
    def valid_time(self) -> np.datetime64:
        """Initial time plus lead time."""
        return self.init_time + self.lead_time

    @property
    def lead_hours(self) -> int:
        """Lead time in whole hours."""
        return int(self.lead_time / np.timedelta64(1, "h"))

    def at(self, data: torch.Tensor, lead_time: np.timedelta64) -> "State":
        """The same fields and rows with other values at another lead time."""
        return replace(self, data=data, lead_time=lead_time)
