"""Scoring on the ranks, from bands, against scoring the same fields from disk."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from jigsaw_forecast.cli.main import main
from jigsaw_forecast.verify.online import OnlineScorer, OnlineSetting
from jigsaw_forecast.verify.score import write_scores
from tests.unit.verify.made_up import INITS, LEADS_H, LEVELS, Case, make_case, paired, write

VARIABLES = ("geopotential", "2m_temperature", "10m_u_component_of_wind",
             "10m_v_component_of_wind")  # fmt: skip


def setting_of(case: Case, with_climatology: bool) -> OnlineSetting:
    north_first = case.truth.isel(latitude=slice(None, None, -1))
    leads = np.array(LEADS_H, dtype="timedelta64[h]").astype("timedelta64[s]")
    return OnlineSetting(
        latitudes=north_first["latitude"].values,
        longitudes=north_first["longitude"].values,
        levels={name: LEVELS if name == "geopotential" else () for name in VARIABLES},
        units={name: case.truth[name].attrs["units"] for name in VARIABLES},
        init_times=list(INITS.astype("datetime64[s]")),
        lead_times=list(leads),
        truth=Path("truth.nc"),
        forecast=Path("forecast.nc"),
        land=north_first["land_sea_mask"].transpose("latitude", "longitude").values.astype(float),
        climatology=Path("climatology.nc") if with_climatology else None,
    )


def maps_of(array: xr.DataArray, i: int, j: int, rows: slice) -> np.ndarray:
    one = array.isel(init=i, lead=j, latitude=slice(None, None, -1))
    one = one.expand_dims("level") if "level" not in one.dims else one
    return one.transpose("level", "latitude", "longitude").values[:, rows]


def run_on(case: Case, setting: OnlineSetting, bands: list[slice]) -> OnlineScorer:
    """Feeds a scorer for each band and adds them up, as ranks do."""
    scorers = [OnlineScorer(setting, rows) for rows in bands]
    for name in VARIABLES:
        forecast, truth, climatology = paired(case, name)
        for i, init in enumerate(setting.init_times):
            for j, lead in enumerate(setting.lead_times):
                for scorer, rows in zip(scorers, bands, strict=True):
                    scorer.add(
                        name,
                        init,
                        lead,
                        maps_of(forecast, i, j, rows),
                        maps_of(truth, i, j, rows),
                        maps_of(climatology, i, j, rows) if setting.climatology else None,
                    )
    order = [list(scorer._tables.items()) for scorer in scorers]
    calls: list[list[np.ndarray]] = [
        [one for _, table in tables for one in (table.values, table.weights, table.count)]
        for tables in order
    ]
    totals = iter([sum(parts) for parts in zip(*calls, strict=True)])
    scorers[0].reduce(lambda _: next(totals))
    return scorers[0]


@pytest.mark.parametrize("bands", [1, 3])
def test_bands_give_the_scores_of_the_store(bands: int, tmp_path: Path) -> None:
    case = make_case(variables=VARIABLES)
    case.forecast["2m_temperature"][1, 2, 3, 4] = np.nan
    options = [*write(case, tmp_path), "--no-report", "--quiet", "--baselines", "none"]
    assert main(["score", *options, "--output", str(tmp_path / "offline")]) == 0
    bounds = np.linspace(0, case.truth.sizes["latitude"], bands + 1).astype(int)
    rows = [slice(int(a), int(b)) for a, b in pairwise(bounds)]
    scorer = run_on(case, setting_of(case, with_climatology=True), rows)
    write_scores(tmp_path / "online", scorer.final_plan(), scorer.piece(), with_report=False)
    with (
        xr.open_dataset(tmp_path / "offline" / "scores.nc") as offline,
        xr.open_dataset(tmp_path / "online" / "scores.nc") as online,
    ):
        for name in offline.data_vars:
            np.testing.assert_allclose(
                online[name].values, offline[name].values, rtol=1e-9, atol=1e-10, err_msg=str(name)
            )
        assert "10m_wind_vector" in online


def test_a_pair_that_was_not_added_is_missing(tmp_path: Path) -> None:
    case = make_case(variables=VARIABLES)
    setting = setting_of(case, with_climatology=False)
    scorer = OnlineScorer(setting)
    forecast, truth, _ = paired(case, "2m_temperature")
    every = slice(None)
    scorer.add("2m_temperature", setting.init_times[0], setting.lead_times[1],
               maps_of(forecast, 0, 1, every), maps_of(truth, 0, 1, every))  # fmt: skip
    write_scores(tmp_path / "out", scorer.final_plan(), scorer.piece(), with_report=False)
    with xr.open_dataset(tmp_path / "out" / "scores.nc") as found:
        mse = found["2m_temperature"].sel(metric="mse", region="global")
        assert mse.notnull().values.tolist() == [False, True, False, False]
        assert found.attrs["num_missing_pairs"] == 4 * len(INITS) * len(LEADS_H) - 1
