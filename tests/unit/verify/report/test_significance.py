"""Claims about the paired test, against hand cases, scipy and autocovariances summed up."""

import math

import numpy as np
import pytest
from scipy import stats

from jigsaw_forecast.verify.report.significance import inflation_factor, paired_test


def times(count: int, step_hours: int = 12) -> np.ndarray:
    return np.datetime64("2026-01-01", "ns") + np.arange(count) * np.timedelta64(step_hours, "h")


def inflation(lag_1: float, lag_2: float) -> float:
    return float(inflation_factor(np.array(lag_1), np.array(lag_2)))


def test_series_without_autocorrelation_is_not_inflated() -> None:
    assert inflation(0.0, 0.0) == 1.0


@pytest.mark.parametrize("rho", [0.2, 0.5, 0.9])
def test_first_order_inflation_is_the_textbooks(rho: float) -> None:
    assert inflation(rho, rho**2) == pytest.approx(math.sqrt((1 + rho) / (1 - rho)), rel=1e-12)


@pytest.mark.parametrize(("first", "second"), [(0.5, 0.2), (0.9, -0.3), (0.3, 0.4)])
def test_second_order_inflation_is_the_sum_of_all_autocorrelations(
    first: float, second: float
) -> None:
    """Variance of a mean over that of independent values: 1 + 2 (rho_1 + rho_2 + ...)."""
    rho = [1.0, first / (1.0 - second)]
    for _ in range(2000):
        rho.append(first * rho[-1] + second * rho[-2])
    expected = math.sqrt(1.0 + 2.0 * sum(rho[1:]))
    assert inflation(rho[1], rho[2]) == pytest.approx(expected, rel=1e-9)


def test_negative_autocorrelation_does_not_make_a_test_bolder() -> None:
    assert inflation(-0.5, 0.25) == 1.0
    series = np.tile([1.0, -0.6], 12)
    found = paired_test(series, times(24))
    assert found.inflation == 1.0
    assert found.p_value == pytest.approx(stats.ttest_1samp(series, 0.0).pvalue, rel=1e-12)


def test_no_stationary_series_no_factor() -> None:
    assert math.isnan(inflation(1.0, 1.0))
    assert math.isnan(inflation(0.9, 0.5))


def test_hand_case_with_autocorrelation() -> None:
    """Six ones and six zeros: r1 = 9/12, r2 = 6/12, so p1 = 6/7, p2 = -1/7 and k^2 = 21/4."""
    series = np.array([1.0] * 6 + [0.0] * 6)
    found = paired_test(series, times(12))
    assert found.mean == 0.5
    assert found.num_pairs == 12
    assert found.inflation == pytest.approx(math.sqrt(5.25), rel=1e-12)
    error = math.sqrt(3.0 / 11.0 / 12.0) * math.sqrt(5.25)
    assert found.p_value == pytest.approx(2.0 * stats.t.sf(0.5 / error, 11), rel=1e-12)
    assert not found.is_significant
    # the same numbers taken as independent would be called a difference
    assert stats.ttest_1samp(series, 0.0).pvalue < 0.05


def test_sign_of_the_differences_does_not_matter() -> None:
    series = np.random.default_rng(3).normal(0.4, 1.0, 50)
    plus, minus = paired_test(series, times(50)), paired_test(-series, times(50))
    assert plus.mean == -minus.mean
    assert plus.p_value == minus.p_value


def test_missing_initial_time_is_no_pair_of_neighbours() -> None:
    """Ones, a gap, zeros: all six pairs of neighbours are alike, none spans the gap."""
    series = np.array([1.0] * 6 + [np.nan] * 2 + [0.0] * 6)
    with_nan = paired_test(series, times(14))
    kept = np.isfinite(series)
    without = paired_test(series[kept], times(14)[kept])
    # mean product over ten pairs is the variance; (1 - 1/12) as for a series without gaps
    lag_1, lag_2 = 11.0 / 12.0, 10.0 / 12.0
    expected = inflation(lag_1, lag_2)
    assert with_nan.inflation == pytest.approx(expected, rel=1e-12)
    assert without.inflation == pytest.approx(expected, rel=1e-12)
    assert with_nan.num_pairs == without.num_pairs == 12
    assert with_nan.p_value == pytest.approx(float(without.p_value), rel=1e-12)


def test_fewer_than_ten_pairs_are_not_tested() -> None:
    found = paired_test(np.arange(1.0, 10.0), times(9))
    assert math.isnan(found.p_value)
    assert found.mean == 5.0
    assert not found.is_significant


def test_uneven_times_are_not_tested() -> None:
    days = np.cumsum(np.arange(1, 21))
    uneven = np.datetime64("2026-01-01", "ns") + days * np.timedelta64(1, "D")
    assert math.isnan(paired_test(np.ones(20) + np.arange(20) % 3, uneven).p_value)


def test_equal_forecasts_do_not_differ_and_constant_differences_do() -> None:
    assert paired_test(np.zeros(20), times(20)).p_value == 1.0
    constant = paired_test(np.full(20, 0.1), times(20))
    assert constant.p_value == 0.0
    assert constant.inflation == 1.0


def test_columns_are_tested_each_by_itself() -> None:
    noise = np.random.default_rng(1).normal(0.2, 1.0, (40, 3, 2))
    noise[5, 1, 0] = np.nan
    found = paired_test(noise, times(40))
    assert found.p_value.shape == (3, 2)
    for place in np.ndindex(3, 2):
        alone = paired_test(noise[:, place[0], place[1]], times(40))
        assert found.p_value[place] == pytest.approx(float(alone.p_value), rel=1e-12)


def test_alike_days_are_called_different_about_as_rarely_as_they_should() -> None:
    """First-order series of mean zero, r1 = 0.7: 5 % wanted, a plain t-test gives 40 %."""
    noise = np.random.default_rng(7).normal(size=(260, 1000))
    series = np.zeros_like(noise)
    for step in range(1, 260):
        series[step] = 0.7 * series[step - 1] + noise[step]
    series = series[60:]
    rate = paired_test(series, times(200)).is_significant.mean()
    plain = (stats.ttest_1samp(series, 0.0).pvalue < 0.05).mean()
    assert plain > 0.3
    assert 0.02 < rate < 0.09
