"""The climatology against hand calculation and a plain loop."""

import numpy as np

from jigsaw_forecast.verify.climatology import (
    DAYS,
    ClimatologyBuilder,
    day_of_year,
    hour_of_day,
    window_weights,
)

YEARS = np.arange(
    np.datetime64("2017-01-01T00", "h"), np.datetime64("2021-01-01T00", "h"), np.timedelta64(6, "h")
)


def test_the_window_falls_linearly_to_zero_at_its_ends() -> None:
    np.testing.assert_allclose(window_weights(5), [0.0, 0.5, 1.0, 0.5, 0.0])


def test_days_and_hours_are_counted_from_zero() -> None:
    times = np.array(["2020-12-31T18", "2021-01-01T00", "2021-03-01T06"], dtype="datetime64[h]")
    np.testing.assert_array_equal(day_of_year(times), [365, 0, 59])
    np.testing.assert_array_equal(hour_of_day(times), [18, 0, 6])


def test_a_constant_is_its_own_climatology() -> None:
    builder = ClimatologyBuilder((2,))
    builder.add(YEARS, np.full((len(YEARS), 2), 3.5))
    np.testing.assert_allclose(builder.finish().at(YEARS[:9]), 3.5)


def test_hours_do_not_mix() -> None:
    builder = ClimatologyBuilder(())
    builder.add(YEARS, hour_of_day(YEARS).astype(float))
    np.testing.assert_allclose(builder.finish().at(YEARS[:4]), [0.0, 6.0, 12.0, 18.0])


def test_the_window_reaches_across_the_new_year() -> None:
    values = (day_of_year(YEARS) == 364).astype(float)  # 31 December, 30 in leap years
    builder = ClimatologyBuilder(())
    builder.add(YEARS, values)
    first = np.array(["2019-01-01T00"], dtype="datetime64[h]")
    # within 2 days of day 0 on a circle of 366 at weight 1 - d / 3: days 364 (1/3), 365 (2/3),
    # 0 (1), 1 (2/3), 2 (1/3), each in 4 years; day 365 is day 364 again in the 3 common years
    expected = (4 * (1 / 3) + 3 * (2 / 3)) / (4 * (1 / 3 + 2 / 3 + 1 + 2 / 3 + 1 / 3))
    np.testing.assert_allclose(builder.finish(num_days=7).at(first), expected, rtol=1e-6)


def test_a_season_is_kept_and_noise_is_averaged_out() -> None:
    season = np.cos(2 * np.pi * day_of_year(YEARS) / 365.25)
    noise = np.random.default_rng(0).normal(size=len(YEARS))
    builder = ClimatologyBuilder(())
    builder.add(YEARS, season + noise)
    error = builder.finish().at(YEARS) - season
    # 4 years x 61 days under a triangle: 4 x 40 effective samples, so a deviation of 0.08; the
    # window flattens the season by less than 0.03
    assert np.sqrt(np.mean(error**2)) < 0.12


def test_parts_of_the_times_merge() -> None:
    values = np.random.default_rng(0).normal(size=(len(YEARS), 3))
    whole, first, second = (ClimatologyBuilder((3,)) for _ in range(3))
    whole.add(YEARS, values)
    first.add(YEARS[:1000], values[:1000])
    second.add(YEARS[1000:], values[1000:])
    first.merge(second)
    assert whole.finish().maps.shape == (4, DAYS, 3)
    np.testing.assert_allclose(first.finish().maps, whole.finish().maps, rtol=1e-5, atol=1e-6)
