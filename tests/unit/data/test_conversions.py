"""Conversions against hand calculation and the definitions."""

import numpy as np
import pytest

from jigsaw_forecast.data.conversions import (
    geopotential_from_height,
    specific_humidity_from_relative,
    to_si,
)


def test_height_times_standard_gravity_is_geopotential() -> None:
    assert geopotential_from_height(np.array([5500.0])) == pytest.approx([5500 * 9.80665])


def test_saturated_air_at_freezing_has_the_saturation_humidity_over_water() -> None:
    # e = 611.21 Pa at 273.16 K; q = eps e / (p - (1 - eps) e), eps = 287.0597 / 461.5250
    eps = 287.0597 / 461.5250
    expected = eps * 611.21 / (85000 - (1 - eps) * 611.21)
    humidity = specific_humidity_from_relative(np.array([100.0]), np.array([273.16]), 850)
    assert humidity == pytest.approx([expected], rel=1e-5)


def test_cold_air_saturates_over_ice() -> None:
    # Buck-type formula of the IFS over ice at 240 K, 22.587 (T - 273.16) / (T + 0.7)
    eps = 287.0597 / 461.5250
    vapour = 0.5 * 611.21 * np.exp(22.587 * (240 - 273.16) / (240 + 0.7))
    expected = eps * vapour / (50000 - (1 - eps) * vapour)
    humidity = specific_humidity_from_relative(np.array([50.0]), np.array([240.0]), 500)
    assert humidity == pytest.approx([expected], rel=1e-5)


def test_negative_relative_humidity_is_dry() -> None:
    assert specific_humidity_from_relative(np.array([-1.0]), np.array([250.0]), 500) == [0.0]


@pytest.mark.parametrize(
    ("variable", "units", "expected"),
    [
        ("temperature", "K", (1.0, 0.0)),
        ("temperature", "degC", (1.0, 273.15)),
        ("mean_sea_level_pressure", "hPa", (100.0, 0.0)),
        ("geopotential", "m**2 s**-2", (1.0, 0.0)),
        ("geopotential", "m^2/s^2", (1.0, 0.0)),
        ("u_component_of_wind", "m s**-1", (1.0, 0.0)),
        ("specific_humidity", "g/kg", (1e-3, 0.0)),
        ("geopotential_height", "gpm", (1.0, 0.0)),
        ("relative_humidity", "%", (1.0, 0.0)),
        ("temperature", "", (1.0, 0.0)),
        ("temperature", "furlong", None),
        ("geopotential", "m", None),
    ],
)
def test_units_become_si(variable: str, units: str, expected: tuple[float, float] | None) -> None:
    assert to_si(variable, units) == expected
