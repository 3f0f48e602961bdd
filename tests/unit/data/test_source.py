"""plan_initial_state: what it finds, what it refuses, and that the message says all of it."""

import logging
from pathlib import Path

import numpy as np
import pytest

from jigsaw_forecast.data.source import open_source, plan_initial_state
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import Field, plausible_range
from jigsaw_forecast.grid import Grid
from tests.unit.data.grib_files import message, temperature_map, write

GRID = Grid(8, 16, has_poles=False)
INIT = np.datetime64("2026-06-24T00:00")
T500, T850, Z500, Q500 = (
    Field("temperature", 500),
    Field("temperature", 850),
    Field("geopotential", 500),
    Field("specific_humidity", 500),
)
MSL, T2M = Field("mean_sea_level_pressure"), Field("2m_temperature")
HEIGHT = 5000.0 + temperature_map()  # m
STEP = 128 / 65536


def plan(path: Path, *fields: Field, **options: object) -> object:
    plausible = {field: plausible_range(field) for field in fields}
    arguments: dict[str, object] = {"regrid": False, "plausible": plausible} | options
    return plan_initial_state(open_source(path), fields, GRID, INIT, **arguments)  # type: ignore[arg-type]


def read(path: Path, *fields: Field, **options: object) -> np.ndarray:
    return plan(path, *fields, **options).read(fields)  # type: ignore[attr-defined,no-any-return]


def refusal(path: Path, *fields: Field, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read(path, *fields, **options)
    return str(caught.value)


def test_fields_come_in_the_order_asked_for(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a", message(temperature_map()), message(temperature_map() + 9, level=850)
    )
    values = read(path, T850, T500)
    np.testing.assert_allclose(values[0], temperature_map() + 9, atol=STEP)
    np.testing.assert_allclose(values[1], temperature_map(), atol=STEP)
    assert values.dtype == np.float32


def test_a_subset_of_the_plan_reads_only_its_bytes(tmp_path: Path) -> None:
    messages = message(temperature_map()), message(temperature_map(), level=850)
    planned = plan(write(tmp_path / "a", *messages), T500, T850)
    before = planned.source.bytes_read  # type: ignore[attr-defined]
    planned.read([T850])  # type: ignore[attr-defined]
    assert planned.source.bytes_read - before == len(messages[1])  # type: ignore[attr-defined]


def test_all_missing_fields_are_listed_with_what_the_file_has(tmp_path: Path) -> None:
    path = write(tmp_path / "a", message(temperature_map()), message(HEIGHT * 9.8, paramId=129))
    text = refusal(path, T500, T850, Field("geopotential", 50), Q500, MSL)
    assert "missing t850: the file has temperature at 500 hPa" in text
    assert "missing z50: the file has geopotential at 500 hPa" in text
    assert "missing q500: the file has none (nor relative_humidity) at this time" in text
    assert "missing msl: the file has none" in text


def test_a_cut_at_a_message_boundary_shows_as_missing_fields(tmp_path: Path) -> None:
    whole = [message(temperature_map(), level=level) for level in (500, 850)]
    assert "missing t850" in refusal(write(tmp_path / "a", *whole[:1]), T500, T850)


def test_a_wrong_valid_time_lists_the_times_of_the_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a",
        message(temperature_map(), dataDate=20260623),
        message(temperature_map(), dataDate=20260623, dataTime=1200),
    )
    text = refusal(path, T500)
    assert "valid time 2026-06-24T00:00" in text
    assert "the file has 2026-06-23T00:00, 2026-06-23T12:00" in text


def test_a_forecast_valid_at_the_initial_time_is_taken_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = message(temperature_map(), dataDate=20260621, forecastTime=72)
    with caplog.at_level(logging.INFO):
        values = read(write(tmp_path / "a", data), T500)
    np.testing.assert_allclose(values[0], temperature_map(), atol=STEP)
    assert "forecast of 72 h started 2026-06-21T00:00:00" in caplog.text


def test_the_shortest_lead_time_is_preferred(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a",
        message(temperature_map() + 20, dataDate=20260623, forecastTime=24),
        message(temperature_map()),
        message(temperature_map() + 10, dataDate=20260623, dataTime=1200, forecastTime=12),
    )
    np.testing.assert_allclose(read(path, T500)[0], temperature_map(), atol=STEP)


def test_equal_duplicates_are_one_field(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a", message(temperature_map()), message(temperature_map(), bitsPerValue=24)
    )
    np.testing.assert_allclose(read(path, T500)[0], temperature_map(), atol=STEP)


def test_duplicates_that_disagree_are_refused_by_message(tmp_path: Path) -> None:
    path = write(tmp_path / "a", message(temperature_map()), message(temperature_map() + 1), b"")
    text = refusal(path, T500)
    assert "t500 occurs twice with different values: message 1 and message 2" in text


def test_mixed_grids_are_refused_and_named(tmp_path: Path) -> None:
    shifted = message(
        temperature_map(),
        level=850,
        longitudeOfFirstGridPointInDegrees=11.25,
        longitudeOfLastGridPointInDegrees=348.75,
    )
    text = refusal(write(tmp_path / "a", message(temperature_map()), shifted), T500, T850)
    assert "mixed grids" in text
    assert "11.25" in text


def test_another_grid_than_the_models_asks_for_regrid(tmp_path: Path) -> None:
    path = write(tmp_path / "a", message(temperature_map()))
    arguments = {"regrid": False, "plausible": {}}
    with pytest.raises(DataError, match="regular_ll 8x16 .* the model needs 8x4 .* --regrid"):
        plan_initial_state(open_source(path), [T500], Grid(4, 8, False), INIT, **arguments)


def test_with_regrid_the_values_come_on_the_models_grid(tmp_path: Path) -> None:
    path = write(tmp_path / "a", message(np.full((8, 16), 273.0)))
    planned = plan_initial_state(
        open_source(path), [T500], Grid(4, 8, False), INIT, regrid=True, plausible={}
    )
    np.testing.assert_array_equal(planned.read([T500]), np.full((1, 4, 8), 273.0))


def test_a_regional_grid_is_refused(tmp_path: Path) -> None:
    data = message(temperature_map(), longitudeOfLastGridPointInDegrees=150.0)
    assert "regional grid" in refusal(write(tmp_path / "a", data), T500, regrid=True)


def test_height_becomes_geopotential(tmp_path: Path) -> None:
    path = write(tmp_path / "a", message(HEIGHT, paramId=156))
    np.testing.assert_allclose(read(path, Z500)[0], HEIGHT * 9.80665, atol=STEP * 9.8)


def test_height_under_the_name_of_geopotential_is_told(tmp_path: Path) -> None:
    text = refusal(write(tmp_path / "a", message(HEIGHT, paramId=129)), Z500)
    assert "implausible" in text
    assert "look like geopotential height" in text


def test_relative_humidity_is_converted_with_the_temperature_of_its_level(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a",
        message(np.full((8, 16), 100.0), paramId=157),
        message(np.full((8, 16), 273.16), paramId=130),
    )
    # e = 611.21 Pa, q = 0.62198 e / (p - 0.37802 e)
    expected = 0.62198 * 611.21 / (50000 - 0.37802 * 611.21)
    np.testing.assert_allclose(read(path, Q500), expected, rtol=1e-4)


def test_relative_humidity_without_temperature_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "a", message(np.full((8, 16), 50.0), paramId=157))
    text = refusal(path, Q500)
    assert "missing q500: relative humidity needs its level's temperature" in text


def test_prmsl_and_msl_are_the_same_field(tmp_path: Path) -> None:
    for edition, param in ((1, 151), (2, 260074)):
        keys = {"typeOfLevel": "meanSea", "level": 0, "paramId": param}
        data = message(1e5 + temperature_map(), edition, **keys)
        np.testing.assert_allclose(
            read(write(tmp_path / "a", data), MSL)[0], 1e5 + temperature_map(), atol=STEP + 0.01
        )


def test_2t_is_found_at_the_surface_and_at_2_m(tmp_path: Path) -> None:
    forms = (
        (1, {"paramId": 167, "typeOfLevel": "surface", "level": 0}),
        (2, {"paramId": 167, "typeOfLevel": "heightAboveGround", "level": 2}),
    )
    for edition, keys in forms:
        data = message(temperature_map(), edition, **keys)
        np.testing.assert_allclose(
            read(write(tmp_path / "a", data), T2M)[0], temperature_map(), atol=STEP
        )


def test_missing_values_are_refused_for_every_field_at_once(tmp_path: Path) -> None:
    holed = temperature_map()
    holed[0, :3] = np.nan
    path = write(tmp_path / "a", message(holed), message(holed, level=850))
    text = refusal(path, T500, T850)
    assert "t500 (message 1): 3 of 128 points are missing" in text
    assert "t850 (message 2): 3 of 128 points are missing" in text


def test_implausible_values_are_refused_with_the_range(tmp_path: Path) -> None:
    text = refusal(write(tmp_path / "a", message(temperature_map() - 273.15)), T500)
    assert "t500 (message 1): values -73.15" in text
    assert "expected 130 to 350" in text


def test_an_average_is_no_state(tmp_path: Path) -> None:
    keys = {"dataDate": 20260623, "dataTime": 1800, "timeRangeIndicator": 3, "P1": 0, "P2": 6}
    data = message(temperature_map(), edition=1, **keys)
    text = refusal(write(tmp_path / "a", data), T500)
    assert "not a value at a point in time" in text


def test_members_must_be_chosen(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a",
        *[
            message(
                temperature_map() + number,
                productDefinitionTemplateNumber=1,
                perturbationNumber=number,
            )
            for number in range(3)
        ],
    )
    assert "ensemble members 0 to 2; give --members N" in refusal(path, T500)
    np.testing.assert_allclose(read(path, T500, member=2)[0], temperature_map() + 2, atol=STEP)
    assert "missing t500" in refusal(path, T500, member=5)


def of_member(number: int, **keys: object) -> bytes:
    keys = {"productDefinitionTemplateNumber": 1, "perturbationNumber": number, **keys}
    return message(temperature_map() + number, **keys)


def test_a_member_starts_from_its_own_fields_where_an_analysis_lies_beside_them(
    tmp_path: Path,
) -> None:
    analysis = message(temperature_map() + 9)
    numbered = [of_member(number, level=level) for number in (0, 1) for level in (500, 850)]
    path = write(tmp_path / "a", analysis, *numbered)
    for member in (0, 1):
        values = read(path, T500, T850, member=member)
        np.testing.assert_allclose(values, [temperature_map() + member] * 2, atol=STEP)


def test_a_member_of_which_a_field_is_an_analysis_is_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a", message(temperature_map()), of_member(0, level=850), of_member(1, level=850)
    )
    assert "missing t500 of member 1: the file holds them without a member" in refusal(
        path, T500, T850, member=1
    )


@pytest.mark.parametrize("name", ["nothing", "folder/nothing.grib"])
def test_a_path_that_does_not_exist_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot read"):
        open_source(tmp_path / name)


def test_fields_that_need_one_message_are_read_together(tmp_path: Path) -> None:
    humidity = np.full((8, 16), 50.0)
    path = write(
        tmp_path / "in.grib",
        message(temperature_map()),
        message(humidity, paramId=157),
        message(temperature_map(), level=850),
    )
    fields = [T500, T850, Q500]
    groups = plan(path, *fields).units(fields)  # type: ignore[attr-defined]
    assert sorted(groups, key=len) == [(T850,), (T500, Q500)]
