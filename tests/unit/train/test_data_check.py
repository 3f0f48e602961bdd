"""Data that a recipe cannot train on are refused with all that is wrong, and nothing is made."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from jigsaw_forecast.data.statistics import Statistics, StatisticsOrigin, save_statistics
from jigsaw_forecast.data.stores import open_store
from jigsaw_forecast.errors import DataError, RecipeError
from jigsaw_forecast.model.config import field_from_name
from jigsaw_forecast.recipe import load_recipe
from jigsaw_forecast.train.data_check import check_data
from jigsaw_forecast.train.run import train_recipe
from jigsaw_forecast.train.schema import TrainRecipe
from tests.unit.train.made_up import write_recipe, write_store


@pytest.fixture(scope="module")
def weather(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    store = write_store(tmp_path_factory.mktemp("weather"))
    return xr.open_zarr(store, chunks=None, consolidated=False).load().drop_encoding()


Refusal = Callable[..., str]


@pytest.fixture
def refusal(tmp_path: Path) -> Refusal:
    """What `check_data` says of a store that holds this, with these settings."""

    def check(data: xr.Dataset, *settings: str) -> str:
        data.to_zarr(tmp_path / "store.zarr", zarr_format=3, consolidated=False)
        recipe = write_recipe(tmp_path, tmp_path / "store.zarr")
        with pytest.raises(DataError) as caught:
            check_data(load_recipe(recipe, TrainRecipe, settings), tmp_path / "made.safetensors")
        return str(caught.value)

    return check


def test_everything_is_told_at_once(weather: xr.Dataset, refusal: Refusal) -> None:
    data = weather.drop_vars(["2m_temperature", "land_sea_mask"])
    data = data.isel(time=[place for place in range(data.sizes["time"]) if place not in (5, 6, 90)])
    message = refusal(data, "model.grid=32x16")
    for text in (
        "missing fields: 2t",
        "missing static variable land_sea_mask; leave it out of model.forcings, or convert",
        "grid 16x8, but the recipe's model has 32x16",
        "2020-01-02T00:00:00 to 2020-01-02T18:00:00 (2 missing)",
        "2020-01-23T06:00:00 to 2020-01-23T18:00:00 (1 missing)",
    ):
        assert text in message
    assert message.count("store.zarr: ") == 1


def test_gaps_that_are_allowed_must_leave_a_whole_rollout(
    weather: xr.Dataset, refusal: Refusal
) -> None:
    every_other = weather.isel(time=[0, 1, *range(2, 124, 2)])  # 6 h apart twice, then 12 h
    message = refusal(every_other, "data.allow_gaps=true")
    assert "data.train 2020-01-01/2020-01-20 is shorter than one whole rollout of 3" in message
    assert "times are 12 h apart within 2020-01-21T00:00:00" in message


@pytest.mark.parametrize(
    ("units", "value", "expected"),
    [
        ("1", np.nan, "static land_sea_mask has missing or implausible values: missing values"),
        ("1", 70.0, "plausible -0.01 to 1.01 1; is it in %?"),
        ("acres", 1.0, "static land_sea_mask is in 'acres', expected 1"),
    ],
)
def test_a_static_map_that_cannot_be_is_refused(
    weather: xr.Dataset, refusal: Refusal, units: str, value: float, expected: str
) -> None:
    data = weather.copy(deep=True)
    data["land_sea_mask"].attrs["units"] = units
    data["land_sea_mask"][3, 3] = value
    assert expected in refusal(data)


def test_a_mask_in_percent_is_read_as_a_fraction(weather: xr.Dataset, tmp_path: Path) -> None:
    expected = weather["land_sea_mask"].values
    data = weather.assign(land_sea_mask=weather["land_sea_mask"] * 100)
    data["land_sea_mask"].attrs["units"] = "%"
    data.drop_encoding().to_zarr(tmp_path / "store.zarr", zarr_format=3, consolidated=False)
    found = open_store(tmp_path / "store.zarr", ()).static("land_sea_mask")
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("train.phases.1.rollout_steps=90", "data.train 2020-01-01/2020-01-20 is shorter than one"),
        ("train.validation_hours=[600]", "data.validation 2020-01-21/2020-01-31 is shorter than"),
        ("data.validation=2021-01-21/2021-01-31", "data.validation: no time within 2021-01-21"),
        ("data.statistics=none.safetensors", "missing none.safetensors"),
    ],
)
def test_a_period_or_a_file_that_is_not_there_is_named(
    weather: xr.Dataset, refusal: Refusal, setting: str, expected: str
) -> None:
    assert expected in refusal(weather, setting)


def test_statistics_that_take_a_diagnostic_for_a_field_are_refused(
    weather: xr.Dataset, tmp_path: Path, refusal: Refusal
) -> None:
    weather.to_zarr(tmp_path / "other.zarr", zarr_format=3, consolidated=False)
    names = ("z500", "t500", "2t", "tp")
    fields = tuple(field_from_name(name) for name in names)
    origin = StatisticsOrigin(
        open_store(tmp_path / "other.zarr", fields).digest, names, "", "16x8", 6
    )
    ones = np.ones(4, np.float32)
    none = np.empty(0, np.float32)
    statistics = Statistics(np.ones((4, 8, 16), np.float32), ones, ones, none, none)
    path = tmp_path / "statistics.safetensors"
    save_statistics(path, statistics, origin)
    message = refusal(weather, f"data.statistics={path}")
    assert "statistics with 0 diagnostic fields, expected 1" in message


def test_a_run_that_is_refused_while_it_reads_leaves_nothing(
    weather: xr.Dataset, tmp_path: Path
) -> None:
    data = weather.copy(deep=True)
    data["2m_temperature"][7, 1, 1] = np.nan
    data.to_zarr(tmp_path / "store.zarr", zarr_format=3, consolidated=False)
    recipe = write_recipe(tmp_path, tmp_path / "store.zarr")
    (tmp_path / "empty").mkdir()
    for output in (tmp_path / "new", tmp_path / "empty"):
        with pytest.raises(DataError, match="2t at 2020-01-02T18:00:00"):
            train_recipe(recipe, (), {}, output, False, None, "cpu")
        assert not output.exists()


@pytest.mark.parametrize("is_allowed", ["true", "false"])
def test_times_that_are_doubled_or_out_of_order_are_named_as_such(
    weather: xr.Dataset, refusal: Refusal, is_allowed: str
) -> None:
    places = [*range(10), 9, 11, 10, *range(12, 124)]
    message = refusal(weather.isel(time=places), f"data.allow_gaps={is_allowed}")
    assert "2020-01-03T06:00:00 to 2020-01-03T06:00:00 (doubled)" in message
    assert "2020-01-03T18:00:00 to 2020-01-03T12:00:00 (out of order)" in message
    assert "sort them and keep each once" in message
    assert "set data.allow_gaps" not in message


def test_all_that_a_recipe_names_wrongly_is_told_at_once(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tmp_path / "store.zarr")

    def refused(*settings: str) -> str:
        with pytest.raises(RecipeError) as caught:
            load_recipe(recipe, TrainRecipe, settings)
        return str(caught.value)

    found = refused(
        'model.fields=["z500", "foo", "bar", "z"]', "model.grid=16x", "train.log_every=0"
    )
    assert "key 'model.fields': no such fields: foo, bar; write them as z500" in found
    assert "z: variable geopotential takes a pressure level" in found
    assert "key 'model.grid': grid '16x' is not LONxLAT" in found
    assert "key 'train.log_every'" in found
    found = refused(
        'model.fields=["z500", "z500", "tp", "land_sea_mask"]',
        'model.forcings=["foo"]',
        "model.patch=[3, 4]",
    )
    assert "model.fields and model.diagnostics name more than once: z500, tp" in found
    assert "model.fields: no state to start from: tp (diagnostic), lsm (static)" in found
    assert "model.forcings: no such forcings: foo" in found
    assert "patch rows 3 do not divide 8 rows" in found
