"""Memory of a score as it is planned."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jigsaw_forecast.grid import Grid
from jigsaw_forecast.verify.memory import (
    LIMIT_BYTES,
    cache_bytes,
    group_lead_times,
    num_processes_that_fit,
    sum_bytes,
)
from jigsaw_forecast.verify.pieces import split_work
from jigsaw_forecast.verify.request import ModelPlan, ScorePlan

MB = 1 << 20


def plan_of(grid: str, num_inits: int, levels: dict[str, tuple[float, ...]]) -> ScorePlan:
    axes = Grid.parse(grid)
    inits = np.arange(num_inits).astype("datetime64[h]").astype("datetime64[s]")
    leads = (np.arange(1, 41) * 6).astype("timedelta64[h]").astype("timedelta64[s]")
    model = ModelPlan("forecast", "forecast", (Path("forecast.zarr"),), pairs={})
    return ScorePlan(
        models=(model,), truth=(Path("truth.zarr"),), climatology=Path("climatology.zarr"),
        resolution=None, grid_name=grid, latitudes=axes.latitudes, longitudes=axes.longitudes,
        land=None, levels=levels, units=dict.fromkeys(levels, "K"), init_times=inits,
        lead_times=leads, regions=("global",), with_acc=tuple(levels), with_seeps=(),
        spectra_leads=(), map_leads=(), map_levels={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def fine() -> ScorePlan:
    return plan_of("1440x721", 20, dict.fromkeys("abcde", ()))


def test_sums_are_two_float64_a_point(fine: ScorePlan) -> None:
    with_maps = replace(fine, map_leads=(0, 1), map_levels={"a": 0})
    assert sum_bytes(with_maps, ["a", "b"]) == 721 * 1440 * 2 * 16
    with_spectra = replace(fine, spectra_leads=(0,))
    assert sum_bytes(with_spectra, ["a"]) == 2 * 721 * 721 * 16  # the truth's too


def test_processes_share_the_cache(fine: ScorePlan) -> None:
    assert cache_bytes(fine, 1) == 2 * cache_bytes(fine, 2) == 704 * MB


def test_coarse_maps_need_little_of_it() -> None:
    coarse = plan_of("64x32", 1460, {"a": (500.0, 850.0)})
    assert cache_bytes(coarse, 1) == 32 * MB


def test_as_many_processes_as_fit_are_started(fine: ScorePlan) -> None:
    count = num_processes_that_fit(fine, 64)
    assert 2 <= count < 8
    assert count * cache_bytes(fine, count) < LIMIT_BYTES
    assert num_processes_that_fit(fine, 1) == 1
    large = replace(fine, map_leads=(0, 1, 2, 3) * 8, map_levels={"a": 0})
    assert num_processes_that_fit(large, 64) == 1


def test_variables_with_large_sums_are_units_of_their_own(fine: ScorePlan) -> None:
    with_maps = replace(fine, map_leads=(0, 1, 2, 3), map_levels=dict.fromkeys("abcde", 0))
    few = replace(with_maps, init_times=fine.init_times[:1])
    assert [unit.variables for unit in split_work(few, 1 << 30, 1)] == [
        ("a",), ("b",), ("c",), ("d",), ("e",),
    ]  # fmt: skip
    without = replace(fine, init_times=fine.init_times[:1])
    assert [unit.variables for unit in split_work(without, 1 << 30, 1)] == [tuple("abcde")]


@pytest.mark.parametrize(
    ("most", "in_chunk", "sizes"),
    [(40, 1, [40]), (27, 1, [20, 20]), (0, 1, [1] * 40), (13, 4, [12, 12, 12, 4]), (5, 40, [40])],
)
def test_groups_of_lead_times_are_even_and_cut_no_chunk(
    most: int, in_chunk: int, sizes: list[int]
) -> None:
    groups = group_lead_times(40, most, in_chunk)
    assert [len(group) for group in groups] == sizes
    assert np.concatenate(groups).tolist() == list(range(40))
