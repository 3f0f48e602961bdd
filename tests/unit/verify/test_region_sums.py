"""Compiled sums over regions against sums written point by point."""

from collections.abc import Iterator

import numpy as np
import pytest

from jigsaw_forecast.verify.kernels import Kernel
from jigsaw_forecast.verify.region_sums import sum_errors, sum_values
from jigsaw_forecast.verify.regions import REGIONS, RegionWeights

LATITUDES = np.linspace(90, -90, 19)
LONGITUDES = np.arange(24) * 15.0


@pytest.fixture(scope="module")
def regions() -> RegionWeights:
    land = np.random.default_rng(0).uniform(size=(19, 24))
    return RegionWeights(LATITUDES, LONGITUDES, tuple(REGIONS), land)


def maps(count: int, kind: type = np.float32) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(1)
    while True:
        yield rng.normal(280.0, 10.0, size=(count, 19, 24)).astype(kind)


def by_hand(values: np.ndarray) -> dict[str, float]:
    """Sums over points, one after the other, by the bounds of the regions."""
    land = np.random.default_rng(0).uniform(size=(19, 24))
    edges = np.deg2rad([90.0, *((LATITUDES[1:] + LATITUDES[:-1]) / 2), -90.0])
    area = np.sin(edges[:-1]) - np.sin(edges[1:])
    area /= area.mean()
    found = dict.fromkeys(REGIONS, 0.0)
    for name, region in REGIONS.items():
        for y, lat in enumerate(LATITUDES):
            for x, lon in enumerate(LONGITUDES):
                inside = any(a <= lat <= b for a, b in region.latitudes)
                inside &= any(a <= lon <= b for a, b in region.longitudes)
                weight = land[y, x] if region.is_land else 1.0
                found[name] += inside * area[y] * weight * values[y, x]
    return found


def test_sums_are_those_of_the_points_in_each_region(regions: RegionWeights) -> None:
    values = next(maps(1, np.float64))
    found = sum_values(values, 0, regions.table)[0]
    np.testing.assert_allclose(found, list(by_hand(values[0]).values()), rtol=1e-13)
    np.testing.assert_allclose(
        regions.totals, list(by_hand(np.ones((19, 24))).values()), rtol=1e-13
    )


def test_blocks_of_rows_add_up(regions: RegionWeights) -> None:
    values = next(maps(2, np.float64))
    parts = [sum_values(values[:, a:b], a, regions.table) for a, b in ((0, 5), (5, 19))]
    np.testing.assert_allclose(sum(parts), sum_values(values, 0, regions.table), rtol=1e-13)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_errors_in_one_pass_equal_statistics_one_by_one(regions: RegionWeights, kind: type) -> None:
    source = maps(3, kind)
    forecast, truth, climatology = (next(source) for _ in range(3))
    found = sum_errors(forecast, truth, climatology, regions.table)
    ours, theirs, mean = (one.astype(np.float64) for one in (forecast, truth, climatology))
    statistics = ((ours - theirs) ** 2, abs(ours - theirs), ours - theirs,
                  (ours - mean) * (theirs - mean), (ours - mean) ** 2)  # fmt: skip
    for number, values in enumerate(statistics):
        assert np.array_equal(found[:, number], sum_values(values, 0, regions.table))


def test_any_layout_of_the_maps_gives_the_same(regions: RegionWeights) -> None:
    source = maps(2)
    forecast, truth, climatology = (next(source) for _ in range(3))
    expected = sum_errors(forecast, truth, climatology, regions.table)
    flipped = np.ascontiguousarray(forecast[:, ::-1])[:, ::-1]
    mixed = climatology.astype(np.float64)
    truth.flags.writeable = False
    assert np.array_equal(sum_errors(flipped, truth, mixed, regions.table), expected)


@pytest.mark.parametrize("skipna", [False, True])
def test_a_missing_value_leaves_the_other_maps_as_they_are(
    regions: RegionWeights, skipna: bool
) -> None:
    source = maps(3)
    forecast, truth, climatology = (next(source) for _ in range(3))
    kernel = Kernel(regions, skipna)
    whole = kernel.means(kernel.errors(forecast, truth, climatology))
    forecast[1, 2, 3] = np.nan  # 70 degrees north, 45 degrees east: in no box of longitudes
    found = kernel.means(kernel.errors(forecast, truth, climatology))
    spoilt = ("global", "extra-tropics", "northern-hemisphere", "arctic",
              "global_land", "extra-tropics_land")  # fmt: skip
    for name, means in found.items():
        assert np.array_equal(means[[0, 2]], whole[name][[0, 2]])
        for place, region in enumerate(REGIONS):
            if region in spoilt:
                assert np.isnan(means[1, place]) == (not skipna)
            else:
                assert np.isclose(means[1, place], whole[name][1, place], rtol=1e-12)
