"""The field table, the names that users may give, and plausible ranges."""

import pytest

from jigsaw_forecast.errors import ForecastError
from jigsaw_forecast.fields import (
    GRAVITY_M_S2,
    NATURE_RUN_FIELDS,
    VARIABLES,
    WEATHERBENCH_FIELDS,
    Field,
    LevelType,
    Role,
    find_variable,
    parse_fields,
    plausible_range,
    pressure_fields,
    standard_geopotential,
)


def test_there_are_69_weatherbench_fields() -> None:
    assert len(set(WEATHERBENCH_FIELDS)) == 5 * 13 + 4


def test_the_nature_run_has_5_variables_on_8_levels_and_4_at_the_surface() -> None:
    assert len(set(NATURE_RUN_FIELDS)) == 44
    assert set(NATURE_RUN_FIELDS) <= set(WEATHERBENCH_FIELDS)


def test_only_prognostic_fields_are_predicted_and_fed_back() -> None:
    assert {field.spec.role for field in WEATHERBENCH_FIELDS} == {Role.PROGNOSTIC}


# numbers from the parameter database, https://codes.ecmwf.int/grib/param-db/
@pytest.mark.parametrize(
    ("param_id", "name", "units"),
    [
        (129, "geopotential", "m2 s-2"),
        (130, "temperature", "K"),
        (131, "u_component_of_wind", "m s-1"),
        (132, "v_component_of_wind", "m s-1"),
        (133, "specific_humidity", "kg kg-1"),
        (151, "mean_sea_level_pressure", "Pa"),
        (260074, "mean_sea_level_pressure", "Pa"),
        (165, "10m_u_component_of_wind", "m s-1"),
        (166, "10m_v_component_of_wind", "m s-1"),
        (167, "2m_temperature", "K"),
        (172, "land_sea_mask", "1"),
        (228, "total_precipitation_6hr", "m"),
    ],
)
def test_param_ids_are_those_of_the_parameter_database(
    param_id: int, name: str, units: str
) -> None:
    assert param_id in VARIABLES[name].param_ids
    assert VARIABLES[name].units == units


def test_no_name_means_two_variables() -> None:
    names = [n for v in VARIABLES.values() for n in (v.name, v.short_name, *v.aliases)]
    assert len(names) == len(set(names))


def test_no_param_id_means_two_variables_on_one_kind_of_level() -> None:
    keys = [(p, v.level_type) for v in VARIABLES.values() for p in v.param_ids]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("name", ["2t", "t2m", "2m_temperature"])
def test_usual_names_find_the_variable(name: str) -> None:
    variable = find_variable(name)
    assert variable is not None
    assert variable.name == "2m_temperature"


@pytest.mark.parametrize(
    "text", ["z500", "z_500", "geopotential_500", "geopotential500", " z500 ", "z500,z_500"]
)
def test_spellings_of_a_field_mean_the_same(text: str) -> None:
    assert parse_fields(text, WEATHERBENCH_FIELDS) == (Field("geopotential", 500),)


def test_a_bare_variable_means_all_its_levels() -> None:
    expected = pressure_fields(["temperature"], [100, 200, 300, 400, 500, 700, 850, 925])
    assert parse_fields("t", NATURE_RUN_FIELDS) == expected


def test_parsed_fields_keep_the_order_of_the_available_ones() -> None:
    found = parse_fields("2t,z500,t850", WEATHERBENCH_FIELDS)
    assert [str(field) for field in found] == ["z500", "t850", "2t"]


def test_all_unknown_names_are_listed() -> None:
    with pytest.raises(ForecastError, match=r"no such fields: z501, foo; available: .*z500"):
        parse_fields("z501,2t,foo", WEATHERBENCH_FIELDS)


def test_an_empty_list_of_fields_is_refused() -> None:
    with pytest.raises(ForecastError, match="no such fields"):
        parse_fields(" , ", WEATHERBENCH_FIELDS)


def test_an_unknown_variable_is_refused() -> None:
    with pytest.raises(ForecastError, match="unknown variable 'vorticity'"):
        Field("vorticity", 500)


def test_a_pressure_variable_without_level_is_refused() -> None:
    with pytest.raises(ForecastError, match="takes a pressure level in hPa, not 0"):
        Field("geopotential")


def test_a_surface_variable_with_level_is_refused() -> None:
    with pytest.raises(ForecastError, match="takes no level, not 850"):
        Field("2m_temperature", 850)


# geopotential heights of the ICAO standard atmosphere, Doc 7488, in m
@pytest.mark.parametrize(
    ("level_hpa", "height_m"),
    [
        (1013.25, 0),
        (850, 1457),
        (500, 5574),
        (300, 9164),
        (226.32, 11000),
        (100, 16180),
        (50, 20576),
    ],
)
def test_standard_geopotential_is_that_of_the_icao_atmosphere(
    level_hpa: float, height_m: float
) -> None:
    assert standard_geopotential(level_hpa) / GRAVITY_M_S2 == pytest.approx(height_m, abs=15)


def test_geopotential_height_is_implausible_as_geopotential_from_700_hpa_up() -> None:
    for field in WEATHERBENCH_FIELDS:
        if field.variable == "geopotential" and field.level_hpa <= 700:
            lowest, highest = plausible_range(field)
            standard = standard_geopotential(field.level_hpa)
            assert lowest < standard < highest
            assert not lowest < standard / GRAVITY_M_S2 < highest


def test_plausible_ranges_hold_the_records_of_the_earth() -> None:
    # WMO archive of extremes: -89.2 and 56.7 degC, 870 and 1083.8 hPa
    temperature = plausible_range(Field("2m_temperature"))
    pressure = plausible_range(Field("mean_sea_level_pressure"))
    assert temperature[0] < 184.0
    assert temperature[1] > 329.9
    assert pressure[0] < 87_000
    assert pressure[1] > 108_380


def test_surface_variables_are_not_on_levels() -> None:
    assert all(
        (f.level_hpa == 0) == (f.spec.level_type is LevelType.SURFACE) for f in WEATHERBENCH_FIELDS
    )
