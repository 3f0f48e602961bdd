"""Forcings against closed forms."""

import numpy as np
import pytest

from jigsaw_forecast.data.forcings import FORCINGS, ForcingMaps
from jigsaw_forecast.errors import RecipeError
from jigsaw_forecast.grid import Grid

GRID = Grid.parse("24x12")
STATICS = {
    "land_sea_mask": np.full((12, 24), 0.25),
    "geopotential_at_surface": np.full((12, 24), 5000.0),
}


def at(name: str, time: str) -> np.ndarray:
    return ForcingMaps([name], GRID, STATICS).at(np.datetime64(time))[0]


def test_equinox_insolation_is_cosine_of_latitude_over_pi() -> None:
    # declination is within 0.2 degrees of zero on this day
    expected = 4 * np.cos(np.deg2rad(GRID.latitudes)) / np.pi - 1
    np.testing.assert_allclose(at("insolation", "2026-03-20T12")[:, 0], expected, atol=0.02)


def test_polar_night_has_no_insolation() -> None:
    assert at("insolation", "2026-06-21T12")[-1, 0] == pytest.approx(-1.0)


def test_sun_stands_over_the_meridian_of_noon() -> None:
    # at 12 UTC the sun stands near longitude 0, at 00 UTC near 180
    for time, longitude in (("2026-03-20T12", 0.0), ("2026-03-20T00", 180.0)):
        row = at("cos_solar_zenith", time)[GRID.num_lat // 2]
        assert GRID.longitudes[row.argmax()] == longitude
        assert row.min() == 0.0


def test_year_and_day_are_circles() -> None:
    for name in ("year", "day"):
        sine, cosine = (at(f"{part}_{name}", "2026-04-11T07")[0, 0] for part in ("sin", "cos"))
        assert sine**2 + cosine**2 == pytest.approx(1.0)
    assert at("sin_day", "2026-01-01T06")[0, 0] == pytest.approx(1.0)
    assert at("cos_year", "2026-07-02T15")[0, 0] == pytest.approx(-1.0, abs=1e-3)


def test_static_fields_are_scaled_to_about_one() -> None:
    maps = ForcingMaps(["land_sea_mask", "geopotential_at_surface"], GRID, STATICS)
    found = maps.at(np.datetime64("2026-01-01"))
    assert found[:, 3, 4].tolist() == [0.25, 0.5]


def test_a_band_is_the_same_rows_of_the_whole() -> None:
    time = np.datetime64("2026-08-09T18")
    whole = ForcingMaps(FORCINGS, GRID, STATICS).at(time)
    band = ForcingMaps(FORCINGS, GRID, STATICS, rows=slice(3, 7)).at(time)
    np.testing.assert_array_equal(band, whole[:, 3:7])


def test_unknown_forcings_and_missing_statics_come_in_one_message() -> None:
    with pytest.raises(RecipeError) as caught:
        ForcingMaps(["moon", "land_sea_mask"], GRID, {})
    assert "unknown moon" in str(caught.value)
    assert "missing static fields land_sea_mask" in str(caught.value)
