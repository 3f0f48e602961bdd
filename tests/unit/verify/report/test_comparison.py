"""Claims about scorecards and summaries, against numbers worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from jigsaw_forecast.verify.report.comparison import compare, relative_difference
from jigsaw_forecast.verify.report.draw_scorecard import Card
from jigsaw_forecast.verify.report.quantities import Quantity
from jigsaw_forecast.verify.report.read import read_scoring
from jigsaw_forecast.verify.report.significance import paired_test
from jigsaw_forecast.verify.report.summary import crossing_hours
from jigsaw_forecast.verify.report.tables import headline_hours, spread_hours

HOURS = [0, 24]
TIMES = np.datetime64("2026-01-01", "ns") + np.arange(12) * np.timedelta64(1, "D")


def write(
    folder: Path, name: str, series: dict[str, np.ndarray], times: np.ndarray = TIMES
) -> None:
    """Scores and statistics of surface variables from mean square errors [times, 2]."""
    (folder / "statistics").mkdir(exist_ok=True)
    dims = ("statistic", "init_time", "region", "lead_time")
    xr.Dataset(
        {key: (dims, mse[None, :, None]) for key, mse in series.items()},
        {"statistic": ["mse"], "init_time": times, "region": ["global"], "lead_time": HOURS},
    ).to_netcdf(folder / "statistics" / f"{name}.nc")
    means = {key: mse.mean(0) for key, mse in series.items()}
    if "10m_u_component_of_wind" in means:
        means["10m_wind_vector"] = (
            means["10m_u_component_of_wind"] + means["10m_v_component_of_wind"]
        )
    xr.Dataset(
        {
            key: (("metric", "region", "lead_time"), np.sqrt(mean)[None, None])
            for key, mean in means.items()
        },
        {"metric": ["rmse"], "region": ["global"], "lead_time": HOURS},
    ).to_netcdf(folder / ("scores.nc" if name == "forecast" else f"scores_{name}.nc"))


def card_of(folder: Path) -> Card:
    scoring = read_scoring(folder)
    return compare(scoring, scoring.models[1], "global")


def errors(first: float, second: float, count: int = 12) -> np.ndarray:
    """Mean square errors about two means, with a little of an even wave."""
    wave = np.where(np.arange(count) % 2, 0.5, -0.5)[:, None]
    return np.array([first, second]) + wave * np.array([0.0, 1.0])


def test_difference_is_per_cent_of_the_others_rmse(tmp_path: Path) -> None:
    write(tmp_path, "forecast", {"2m_temperature": errors(4.0, 9.0)})
    write(tmp_path, "hres", {"2m_temperature": errors(16.0, 4.0)})
    card = card_of(tmp_path)
    assert card.percent[0] == pytest.approx([-50.0, 50.0], rel=1e-12)
    assert card.other == "hres"
    assert card.quantities == (Quantity("2m_temperature"),)


def test_significance_is_that_of_the_paired_differences(tmp_path: Path) -> None:
    noise = np.random.default_rng(5).normal(0.0, 3.0, (12, 2))
    main, other = errors(20.0, 20.0) + noise, errors(20.0, 28.0)
    write(tmp_path, "forecast", {"2m_temperature": main})
    write(tmp_path, "hres", {"2m_temperature": other})
    card = card_of(tmp_path)
    expected = paired_test(main - other, TIMES)
    assert card.is_significant[0].tolist() == expected.is_significant.tolist() == [False, True]
    assert card.is_tested.all()


def test_vector_wind_is_the_sum_of_its_components(tmp_path: Path) -> None:
    u, v = "10m_u_component_of_wind", "10m_v_component_of_wind"
    write(tmp_path, "forecast", {u: errors(3.0, 3.0), v: errors(6.0, 6.0)})
    write(tmp_path, "hres", {u: errors(30.0, 30.0), v: errors(6.0, 6.0)})
    card = card_of(tmp_path)
    row = card.quantities.index(Quantity("10m_wind_vector"))
    assert card.percent[row] == pytest.approx([-50.0, -50.0], rel=1e-12)
    assert card.is_significant[row].all()


def test_only_common_initial_times_are_compared(tmp_path: Path) -> None:
    """The other lacks the two days on which the forecast failed: they do not count."""
    failed = errors(4.0, 4.0)
    failed[:2] = 1e6
    write(tmp_path, "forecast", {"2m_temperature": failed})
    write(tmp_path, "hres", {"2m_temperature": errors(16.0, 16.0)[2:]}, TIMES[2:])
    card = card_of(tmp_path)
    assert card.percent[0] == pytest.approx([-50.0, -50.0], rel=1e-2)
    assert card.is_tested.all()


def test_nan_of_the_scores_stays(tmp_path: Path) -> None:
    broken = errors(4.0, 4.0)
    broken[3, 1] = np.nan
    write(tmp_path, "forecast", {"2m_temperature": broken})
    write(tmp_path, "hres", {"2m_temperature": errors(16.0, 16.0)})
    card = card_of(tmp_path)
    assert card.hours.tolist() == [0.0]
    assert card.percent.tolist() == [[pytest.approx(-50.0)]]


def test_without_statistics_nothing_is_tested(tmp_path: Path) -> None:
    write(tmp_path, "forecast", {"2m_temperature": errors(4.0, 4.0)})
    write(tmp_path, "hres", {"2m_temperature": errors(16.0, 16.0)})
    (tmp_path / "statistics" / "hres.nc").unlink()
    card = card_of(tmp_path)
    assert card.percent[0] == pytest.approx([-50.0, -50.0], rel=1e-12)
    assert not card.is_tested.any()


def test_broken_statistics_are_named(tmp_path: Path) -> None:
    write(tmp_path, "forecast", {"2m_temperature": errors(4.0, 4.0)})
    write(tmp_path, "hres", {"2m_temperature": errors(16.0, 16.0)})
    (tmp_path / "statistics" / "hres.nc").write_bytes(b"not a netCDF file")
    scoring = read_scoring(tmp_path)
    card = compare(scoring, scoring.models[1], "global")
    assert not card.is_tested.any()
    assert any("statistics/hres.nc cannot be read" in why for why in scoring.left_out)


def test_no_error_of_the_other_is_no_difference() -> None:
    found = relative_difference(np.array([1.0, 0.0, np.nan]), np.array([0.0, 0.0, 1.0]))
    assert np.isnan(found).all()


def test_crossing_is_linear_between_lead_times() -> None:
    hours, values = np.array([24.0, 48.0, 72.0]), np.array([0.9, 0.7, 0.5])
    limit = np.full(3, 0.6)
    assert crossing_hours(hours, values, limit) == pytest.approx(60.0)
    assert crossing_hours(hours, values, limit - 0.2) == float("inf")
    assert crossing_hours(hours, values, limit + 0.4) is None
    assert crossing_hours(hours, values * np.nan, limit) is None


def test_headline_columns_are_the_usual_days() -> None:
    assert headline_hours(np.arange(6.0, 246.0, 6.0)) == [24.0, 72.0, 120.0, 168.0, 240.0]
    assert headline_hours(np.arange(6.0, 126.0, 6.0)) == [24.0, 72.0, 120.0]


def test_few_lead_times_are_all_shown() -> None:
    assert headline_hours(np.array([0.0, 6.0, 24.0, 48.0, 120.0])) == [6.0, 24.0, 48.0, 120.0]


def test_short_forecasts_have_columns_too() -> None:
    assert headline_hours(np.array([0.0, 3.0, 6.0])) == [3.0, 6.0]
    assert headline_hours(np.array([0.0])) == [0.0]
    assert spread_hours(np.arange(0.0, 366.0, 6.0), 10)[-1] == 360.0
    assert len(spread_hours(np.arange(0.0, 366.0, 6.0), 10)) == 10
