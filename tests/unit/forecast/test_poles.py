"""Claims about the restored south pole row."""

import math

import pytest
import torch

from jigsaw_forecast.fields import Field
from jigsaw_forecast.forecast.poles import restore_south_pole

WIND = (Field("u_component_of_wind", 850), Field("10m_v_component_of_wind"))
LONGITUDES = torch.arange(16, dtype=torch.float64) * (2 * math.pi / 16)


def test_scalar_at_the_pole_is_the_zonal_mean_of_the_last_row() -> None:
    data = torch.arange(12, dtype=torch.float32).reshape(1, 3, 4)
    restored = restore_south_pole(data, [Field("2m_temperature")])
    assert restored.shape == (1, 4, 4)
    assert restored[0, 3].tolist() == [9.5] * 4


def test_rows_before_the_pole_are_untouched() -> None:
    data = torch.randn(2, 3, 16)
    assert torch.equal(restore_south_pole(data, WIND)[:, :3], data)


@pytest.mark.parametrize(("east", "north"), [(3.0, 0.0), (0.0, -7.0), (3.0, 4.0)])
def test_constant_wind_across_the_pole_is_reproduced(east: float, north: float) -> None:
    # the plane tangent at the pole: a vector (a, b) seen from meridian lambda has the
    # components u = -a sin(lambda) + b cos(lambda), v = a cos(lambda) + b sin(lambda)
    u = -east * LONGITUDES.sin() + north * LONGITUDES.cos()
    v = east * LONGITUDES.cos() + north * LONGITUDES.sin()
    data = torch.stack([u, v])[:, None].expand(2, 5, 16)
    restored = restore_south_pole(data, WIND)
    assert torch.allclose(restored[:, 5], torch.stack([u, v]), atol=1e-14)


def test_wind_at_the_pole_has_no_other_wavenumber() -> None:
    others = 5.0 + (2 * LONGITUDES).cos() + (3 * LONGITUDES).sin()
    data = others.expand(2, 3, 16)
    assert restore_south_pole(data, WIND)[:, 3].abs().max() < 1e-14


def test_dtype_is_kept() -> None:
    assert restore_south_pole(torch.zeros(2, 3, 16), WIND).dtype == torch.float32
