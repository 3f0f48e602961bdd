"""Missing and implausible maps are told field by field, none left out."""

import numpy as np

from jigsaw_forecast.data.bad_maps import describe_bad_maps
from jigsaw_forecast.fields import Field

Z500, T2M = Field("geopotential", 500), Field("2m_temperature")
TIMES = np.datetime64("2020-01-01T00:00:00") + np.arange(20) * np.timedelta64(6, "h")


def _described(z500: tuple[float, float], t2m: tuple[float, float]) -> str:
    extremes = np.array([z500, t2m])
    lowest, highest = (np.tile(extremes[:, kind], (20, 1)) for kind in (0, 1))
    return describe_bad_maps((Z500, T2M), TIMES, lowest, highest)


def test_good_maps_are_not_told() -> None:
    assert _described((50000.0, 58000.0), (230.0, 310.0)) == ""


def test_a_field_that_is_wrong_at_all_times_hides_no_other() -> None:
    message = _described((5200.0, 5800.0), (-40.0, 30.0))
    assert "z500 at 20 of 20 times read, 2020-01-01T00:00:00 to 2020-01-05T18:00:00" in message
    assert "2t at 20 of 20 times read" in message


def test_units_that_are_often_forgotten_are_asked_for() -> None:
    message = _described((5200.0, 5800.0), (-40.0, 30.0))
    assert "5200 to 5800, plausible" in message
    assert "is it geopotential height in m?" in message
    assert "is it in degC?" in message
    assert "degC" not in _described((50000.0, 58000.0), (900.0, 950.0))


def test_a_missing_value_is_told_as_such_with_its_time() -> None:
    lowest = np.full((20, 1), 230.0)
    highest = np.full((20, 1), 310.0)
    lowest[7], highest[7] = np.nan, np.nan
    message = describe_bad_maps((T2M,), TIMES, lowest, highest)
    assert "2t at 2020-01-02T18:00:00 (missing values, plausible" in message
