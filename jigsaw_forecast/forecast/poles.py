"""The south pole row, which models with an even number of rows leave out."""

import math
from collections.abc import Sequence

import torch

from jigsaw_forecast.fields import WIND_COMPONENTS, Field


def restore_south_pole(data: torch.Tensor, fields: Sequence[Field]) -> torch.Tensor:
    """Appends the row at the south pole, made from the last row before it.

    A scalar has one value at the pole: the zonal mean of the last row. A wind vector there, seen
    along the meridians, turns once around the circle: u and v take the zonal wavenumber 1 of
    the last row.

    Args:
        data: Maps without their last row, shape [F, Y - 1, X].
        fields: The field of each map, length F.

    Returns:
        Maps with the pole row, shape [F, Y, X], dtype and device of `data`.
    """
    num_fields, _, num_lon = data.shape
    assert num_fields == len(fields), f"{num_fields} maps for {len(fields)} fields"
    last = data[:, -1].double()
    longitude = torch.arange(num_lon, device=data.device, dtype=torch.float64)
    longitude = longitude * (2 * math.pi / num_lon)
    waves = torch.stack([longitude.cos(), longitude.sin()])
    wavenumber_1 = (2 / num_lon) * (last @ waves.T) @ waves
    mean = last.mean(dim=1, keepdim=True).expand_as(last)
    is_wind = torch.tensor([f.variable in WIND_COMPONENTS for f in fields], device=data.device)
    row = torch.where(is_wind[:, None], wavenumber_1, mean)
    return torch.cat([data, row[:, None].to(data.dtype)], dim=1)
