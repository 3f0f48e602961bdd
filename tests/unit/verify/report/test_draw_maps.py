"""Claims about the maps of the mean error."""

import numpy as np
import pytest

from jigsaw_forecast.verify.report.draw_maps import draw_bias_map, round_bounds

LATITUDES = np.linspace(87.1875, -87.1875, 32)
LONGITUDES = np.arange(64) * 5.625


@pytest.mark.parametrize(
    ("most", "bounds"),
    [
        (7.0, [1, 3, 5, 7]),
        (11.0, [1, 3, 5, 7, 9, 11]),
        (12.0, [2, 6, 10, 14]),
        (0.03, [0.005, 0.015, 0.025, 0.035]),
        (440.0, [50, 150, 250, 350, 450]),
    ],
)
def test_bounds_are_round_about_zero_and_reach_the_largest(
    most: float, bounds: list[float]
) -> None:
    found = round_bounds(np.array([-most, most]))
    assert found == pytest.approx([*(-np.array(bounds[::-1])), *bounds])


def test_maps_of_nothing_and_of_zero_have_bounds() -> None:
    for values in (np.zeros((4, 8)), np.full((4, 8), np.nan)):
        bounds = round_bounds(values)
        assert (np.diff(bounds) > 0).all()


@pytest.mark.parametrize(
    "kind", ["whole", "with gaps", "across the seam", "a belt", "one column", "empty"]
)
def test_maps_of_all_shapes_are_drawn(kind: str) -> None:
    wave = np.cos(np.deg2rad(LATITUDES))[:, None] * np.sin(np.deg2rad(LONGITUDES))
    rows, columns = np.arange(32), np.arange(64)
    if kind == "with gaps":
        wave = np.where(np.arange(64) > 20, wave, np.nan)
    elif kind == "across the seam":
        rows, columns = rows[5:12], columns[(LONGITUDES > 145) & (LONGITUDES < 230)]
    elif kind == "a belt":
        rows = rows[10:22]
    elif kind == "one column":
        columns = columns[:1]
    elif kind == "empty":
        wave = wave * np.nan
    values = wave[np.ix_(rows, columns)]
    axes = (LATITUDES[rows], LONGITUDES[columns])
    words = ("bias", "500 hPa geopotential, 5 d", "m²/s²")
    picture = draw_bias_map(values, axes, round_bounds(values), words)
    assert picture.width > 800
    if kind == "whole":
        assert f"from {wave.min():.3g} to {wave.max():.3g} m²/s²" in picture.alt
    if kind == "empty":
        assert "no values" in picture.alt
