"""Scoring lead times as they come against scoring the same fields from disk."""

import io
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from jigsaw_forecast.cli.main import main
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.verify.archive import ArchiveGrid, ArchiveVariable
from jigsaw_forecast.verify.online import MadeMaps, OnlineScorer, join_pieces
from jigsaw_forecast.verify.pieces import Piece
from jigsaw_forecast.verify.plan_file import digest_of
from jigsaw_forecast.verify.request import ScoreRequest
from jigsaw_forecast.verify.score import write_scores
from tests.unit.verify.made_up import INITS, LEADS_H, LEVELS, Case, make_case, paired, write

VARIABLES = ("geopotential", "2m_temperature", "10m_u_component_of_wind",
             "10m_v_component_of_wind")  # fmt: skip
LEADS = np.array(LEADS_H, dtype="timedelta64[h]").astype("timedelta64[s]")


def scorer_of(case: Case, folder: Path, *, with_climatology: bool = True) -> OnlineScorer:
    latitudes = np.sort(case.truth["latitude"].values)[::-1]
    inits = INITS.astype("datetime64[s]")
    every = np.ones((inits.size, LEADS.size), dtype=bool)
    variables = {
        name: ArchiveVariable(
            name,
            tuple(map(float, LEVELS)) if name == "geopotential" else (),
            case.truth[name].attrs["units"],
            inits,
            LEADS,
            every,
        )
        for name in VARIABLES
    }
    made = MadeMaps(
        Path("run"), ArchiveGrid(latitudes, case.truth["longitude"].values), variables, {}
    )
    request = ScoreRequest(
        forecast=(Path("run"),),
        truth=(folder / "truth.nc",),
        output=folder / "online",
        climatology=folder / "climatology.nc" if with_climatology else None,
    )
    return OnlineScorer(request, made)


def maps_of(array: xr.DataArray, i: int, j: int) -> np.ndarray:
    one = array.isel(init=i, lead=j, latitude=slice(None, None, -1))
    one = one.expand_dims("level") if "level" not in one.dims else one
    return one.transpose("level", "latitude", "longitude").values


def pieces_of(case: Case, scorers: list[OnlineScorer]) -> list:
    """All lead times in any order, each variable by another scorer, as ranks do."""
    parts = []
    for number, name in enumerate(VARIABLES):
        forecast, _, _ = paired(case, name)
        for j in reversed(range(LEADS.size)):
            for i, init in enumerate(INITS.astype("datetime64[s]")):
                scorer = scorers[number % len(scorers)]
                piece = scorer.score(name, init, LEADS[j], maps_of(forecast, i, j))
                assert piece is not None
                parts.append((init, LEADS[j], piece))
    return parts


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_lead_times_give_the_scores_of_the_store(num_ranks: int, tmp_path: Path) -> None:
    case = make_case(variables=VARIABLES)
    case.forecast["2m_temperature"][1, 2, 3, 4] = np.nan
    options = [*write(case, tmp_path), "--no-report", "--quiet"]
    assert main(["score", *options, "--output", str(tmp_path / "offline")]) == 0
    scorers = [scorer_of(case, tmp_path) for _ in range(num_ranks)]
    plan = scorers[0].plan
    whole = join_pieces(plan, pieces_of(case, scorers))
    write_scores(tmp_path / "online", plan, whole, with_report=False)
    names = sorted(path.name for path in (tmp_path / "offline").glob("*.nc"))
    assert names == sorted(path.name for path in (tmp_path / "online").glob("*.nc"))
    assert {"scores.nc", "scores_persistence.nc", "maps_forecast.nc", "spectra.nc"} <= set(names)
    for name in names:
        with (
            xr.open_dataset(tmp_path / "offline" / name) as offline,
            xr.open_dataset(tmp_path / "online" / name) as online,
        ):
            for variable in offline.data_vars:
                np.testing.assert_allclose(
                    online[variable].values, offline[variable].values, rtol=1e-12, atol=1e-12,
                    err_msg=f"{name} {variable}",
                )  # fmt: skip


def test_a_piece_travels_between_ranks(tmp_path: Path) -> None:
    case = make_case(variables=VARIABLES)
    write(case, tmp_path)
    scorer = scorer_of(case, tmp_path)
    forecast, _, _ = paired(case, "geopotential")
    piece = scorer.score("geopotential", INITS[0], LEADS[1], maps_of(forecast, 0, 1))
    assert piece is not None
    file = io.BytesIO()
    piece.write(file, digest_of(scorer.plan))
    again = Piece.load(io.BytesIO(file.getvalue()), digest_of(scorer.plan))
    assert again is not None
    for key, values in piece.statistics.items():
        np.testing.assert_array_equal(again.statistics[key], values)
    assert Piece.load(io.BytesIO(file.getvalue()), "another") is None
    assert Piece.load(io.BytesIO(file.getvalue()[:-100]), digest_of(scorer.plan)) is None


def test_a_lead_time_that_never_came_is_not_counted(tmp_path: Path) -> None:
    case = make_case(variables=VARIABLES)
    write(case, tmp_path)
    scorer = scorer_of(case, tmp_path, with_climatology=False)
    forecast, _, _ = paired(case, "2m_temperature")
    piece = scorer.score("2m_temperature", INITS[0], LEADS[1], maps_of(forecast, 0, 1))
    assert piece is not None
    whole = join_pieces(scorer.plan, [(INITS[0], LEADS[1], piece)])
    write_scores(tmp_path / "out", scorer.plan, whole, with_report=False)
    with xr.open_dataset(tmp_path / "out" / "scores.nc") as found:
        mse = found["2m_temperature"].sel(metric="mse", region="global")
        assert mse.notnull().values.tolist() == [False, True, False, False]


def test_numbers_in_other_units_are_refused_at_the_first_maps(tmp_path: Path) -> None:
    case = make_case(variables=VARIABLES)
    write(case, tmp_path)
    scorer = scorer_of(case, tmp_path)
    forecast, _, _ = paired(case, "geopotential")
    with pytest.raises(DataError, match="units of geopotential differ"):
        scorer.score("geopotential", INITS[0], LEADS[1], maps_of(forecast / 9.80665, 0, 1))
