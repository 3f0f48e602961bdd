"""The south pole row, which models with an even number of rows leave out."""

import math
from collections.abc import Sequence

import torch

from jigsaw_forecast.fields import WIND_COMPONENTS, Field


def restore_south_pole(data: torch.Tensor, fields: Sequence[Field]) -> torch.Tensor:
    """Appends the row at the south pole, see `south_pole_row`.

    Args:
        data: Maps without their last row, shape [F, Y - 1, X].
        fields: The field of each map, length F.

    Returns:
        Maps with the pole row, shape [F, Y, X], dtype and device of `data`.
    """
    return torch.cat([data, south_pole_row(data[:, -1], fields)[:, None]], dim=1)


def south_pole_row(last_row: torch.Tensor, fields: Sequence[Field]) -> torch.Tensor:
    """The row at the south pole, made from the last row before it.

    A scalar has one value at the pole: the zonal mean of the last row. A wind vector there, seen
    along the meridians, turns once around the circle: u and v take the zonal wavenumber 1 of
    the last row.

    Args:
        last_row: Of each map, shape [F, X].
        fields: The field of each map, length F.

    Returns:
        Shape [F, X], dtype and device of `last_row`.
    """
    num_fields, num_lon = last_row.shape
    assert num_fields == len(fields), f"{num_fields} maps for {len(fields)} fields"
    last = last_row.double()
    longitude = torch.arange(num_lon, device=last.device, dtype=torch.float64)
    longitude = longitude * (2 * math.pi / num_lon)
    waves = torch.stack([longitude.cos(), longitude.sin()])
    wavenumber_1 = (2 / num_lon) * (last @ waves.T) @ waves
    mean = last.mean(dim=1, keepdim=True).expand_as(last)
    is_wind = torch.tensor([f.variable in WIND_COMPONENTS for f in fields], device=last.device)
    return torch.where(is_wind[:, None], wavenumber_1, mean).to(last_row.dtype)
