"""The field table: what each variable is called, measured in and found by.

Names are those of WeatherBench 2; GRIB parameters are ECMWF `paramId`s, which eccodes derives for
GRIB 1 and GRIB 2 alike (https://codes.ecmwf.int/grib/param-db/).
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from jigsaw_forecast.errors import ForecastError

GRAVITY_M_S2 = 9.80665  # WMO standard gravity, as geopotential height is defined
WEATHERBENCH_LEVELS_HPA = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)


class LevelType(Enum):
    """Where a variable lives."""

    PRESSURE = "pressure"
    SURFACE = "surface"


class Role(Enum):
    """How a forecast uses a variable."""

    PROGNOSTIC = "prognostic"  # predicted and fed back
    DIAGNOSTIC = "diagnostic"  # predicted only, never input
    STATIC = "static"  # fixed in time


@dataclass(frozen=True)
class Variable:
    """One physical quantity.

    Attributes:
        name: WeatherBench 2 name.
        short_name: ECMWF short name, also accepted on the command line.
        aliases: Other names accepted on the command line and in netCDF and zarr files.
        units: SI units as CF writes them.
        standard_name: CF standard name.
        level_type: Pressure levels or a single (surface) level.
        role: Prognostic, diagnostic or static.
        param_ids: ECMWF paramIds that hold exactly this quantity in these units, the first is
            the one written.
        plausible: Lowest and highest value on Earth with a margin, in `units`; for geopotential
            see `plausible_range`.
    """

    name: str
    short_name: str
    aliases: tuple[str, ...]
    units: str
    standard_name: str
    level_type: LevelType
    role: Role
    param_ids: tuple[int, ...]
    plausible: tuple[float, float]


_P, _S = LevelType.PRESSURE, LevelType.SURFACE
_PROGNOSTIC, _DIAGNOSTIC, _STATIC = Role.PROGNOSTIC, Role.DIAGNOSTIC, Role.STATIC

# fmt: off
_TABLE = (
    Variable("geopotential", "z", (), "m2 s-2", "geopotential", _P, _PROGNOSTIC, (129,), (-7e3, 3.5e5)),
    Variable("temperature", "t", (), "K", "air_temperature", _P, _PROGNOSTIC, (130,), (130.0, 350.0)),
    Variable("u_component_of_wind", "u", (), "m s-1", "eastward_wind", _P, _PROGNOSTIC, (131,), (-200.0, 200.0)),
    Variable("v_component_of_wind", "v", (), "m s-1", "northward_wind", _P, _PROGNOSTIC, (132,), (-200.0, 200.0)),
    Variable("specific_humidity", "q", (), "kg kg-1", "specific_humidity", _P, _PROGNOSTIC, (133,), (-1e-3, 0.05)),
    Variable("2m_temperature", "2t", ("t2m",), "K", "air_temperature", _S, _PROGNOSTIC, (167,), (160.0, 345.0)),
    Variable("10m_u_component_of_wind", "10u", ("u10",), "m s-1", "eastward_wind", _S, _PROGNOSTIC, (165,), (-100.0, 100.0)),
    Variable("10m_v_component_of_wind", "10v", ("v10",), "m s-1", "northward_wind", _S, _PROGNOSTIC, (166,), (-100.0, 100.0)),
    # 260074 is prmsl: the same field under NCEP's reduction
    Variable("mean_sea_level_pressure", "msl", ("prmsl", "mslp"), "Pa", "air_pressure_at_mean_sea_level", _S, _PROGNOSTIC, (151, 260074), (8.5e4, 1.12e5)),
    # paramId 228 is in metres; the GRIB 2 form 228228 (kg m-2) is converted where it is read
    Variable("total_precipitation_6hr", "tp", ("tp06", "tp_6hr"), "m", "lwe_thickness_of_precipitation_amount", _S, _DIAGNOSTIC, (228,), (-1e-4, 1.0)),
    Variable("land_sea_mask", "lsm", (), "1", "land_area_fraction", _S, _STATIC, (172,), (-0.01, 1.01)),
    Variable("geopotential_at_surface", "zs", ("orography_geopotential",), "m2 s-2", "surface_geopotential", _S, _STATIC, (129,), (-7e3, 9e4)),
)
# fmt: on

VARIABLES: dict[str, Variable] = {variable.name: variable for variable in _TABLE}
_BY_ANY_NAME = {
    alias: variable
    for variable in _TABLE
    for alias in (variable.name, variable.short_name, *variable.aliases)
}


@dataclass(frozen=True, order=True)
class Field:
    """One variable on one level: one map.

    Attributes:
        variable: WeatherBench 2 name, a key of `VARIABLES`.
        level_hpa: Pressure level in hPa, 0 for a surface variable.
    """

    variable: str
    level_hpa: int = 0

    def __post_init__(self) -> None:
        """Refuses unknown variables and levels that do not fit the variable."""
        if self.variable not in VARIABLES:
            raise ForecastError(
                f"unknown variable {self.variable!r}; known: {', '.join(VARIABLES)}"
            )
        is_pressure = self.spec.level_type is LevelType.PRESSURE
        if is_pressure != (self.level_hpa > 0):
            needs = "a pressure level in hPa" if is_pressure else "no level"
            raise ForecastError(f"variable {self.variable} takes {needs}, not {self.level_hpa}")

    @property
    def spec(self) -> Variable:
        """The variable's row of the field table."""
        return VARIABLES[self.variable]

    @property
    def short_name(self) -> str:
        """`z500`, `2t`: as forecasters write it."""
        return f"{self.spec.short_name}{self.level_hpa or ''}"

    def __str__(self) -> str:
        """`z500`, `2t`."""
        return self.short_name


def pressure_fields(variables: Iterable[str], levels_hpa: Iterable[int]) -> tuple[Field, ...]:
    """Fields of pressure-level variables, variable by variable, levels ascending."""
    levels = sorted(levels_hpa)
    return tuple(Field(variable, level) for variable in variables for level in levels)


PRESSURE_VARIABLES = tuple(
    v.name for v in _TABLE if v.level_type is LevelType.PRESSURE and v.role is Role.PROGNOSTIC
)
SURFACE_VARIABLES = tuple(
    v.name for v in _TABLE if v.level_type is LevelType.SURFACE and v.role is Role.PROGNOSTIC
)
WEATHERBENCH_FIELDS = (
    *pressure_fields(PRESSURE_VARIABLES, WEATHERBENCH_LEVELS_HPA),
    *(Field(name) for name in SURFACE_VARIABLES),
)
NATURE_RUN_LEVELS_HPA = (100, 200, 300, 400, 500, 700, 850, 925)
NATURE_RUN_FIELDS = (
    *pressure_fields(PRESSURE_VARIABLES, NATURE_RUN_LEVELS_HPA),
    *(Field(name) for name in SURFACE_VARIABLES),
)
assert len(WEATHERBENCH_FIELDS) == 69
# vectors along the meridian and the parallel, which turn about a pole
WIND_COMPONENTS = frozenset(
    {
        "u_component_of_wind",
        "v_component_of_wind",
        "10m_u_component_of_wind",
        "10m_v_component_of_wind",
    }
)


def standard_geopotential(level_hpa: float) -> float:
    """Geopotential of a pressure level in the ICAO standard atmosphere, m2 s-2.

    Source: ICAO Doc 7488; the layer below 11 km and the isothermal layer above it, which is
    close enough up to 20 hPa for range checks.
    """
    tropopause_hpa, tropopause_m = 226.32, 11000.0
    if level_hpa >= tropopause_hpa:
        height_m = 44330.77 * (1.0 - float((level_hpa / 1013.25) ** 0.190263))
    else:
        height_m = tropopause_m - 6341.62 * math.log(level_hpa / tropopause_hpa)
    return GRAVITY_M_S2 * height_m


def plausible_range(field: Field) -> tuple[float, float]:
    """Lowest and highest value of a field that can be real, in the field's units.

    Geopotential depends on the level: the standard atmosphere plus or minus 15 % and 8000 m2 s-2
    (800 m), which tells geopotential from geopotential height wherever the two differ by more.
    """
    if field.variable == "geopotential":
        standard = standard_geopotential(field.level_hpa)
        margin = 0.15 * abs(standard) + 8000.0
        return standard - margin, standard + margin
    return field.spec.plausible


def parse_fields(text: str, available: Sequence[Field]) -> tuple[Field, ...]:
    """Fields named by a comma list such as `z500,t_850,2t,u`; a bare variable means all its levels.

    Args:
        text: Names as users write them: `z500`, `z_500`, `geopotential_500`, `t2m`, `2t`, `z`.
        available: Fields to choose from; the result keeps their order.

    Raises:
        ForecastError: A name is unknown or names nothing available; all such names are listed.
    """
    chosen: set[Field] = set()
    unknown = []
    for raw in (part.strip() for part in text.split(",")):
        if not raw:
            continue
        matches = [field for field in available if _names(raw, field)]
        if not matches:
            unknown.append(raw)
        chosen.update(matches)
    if unknown or not chosen:
        raise ForecastError(
            f"no such fields: {', '.join(unknown) or repr(text)}; available: "
            f"{', '.join(field.short_name for field in available)}"
        )
    return tuple(field for field in available if field in chosen)


def find_variable(name: str) -> Variable | None:
    """The variable known by a WeatherBench, ECMWF or other usual name, or None."""
    return _BY_ANY_NAME.get(name)


def _names(raw: str, field: Field) -> bool:
    variable = find_variable(raw)
    if variable is not None:
        return variable.name == field.variable
    match = re.fullmatch(r"(.+?)_?(\d+)", raw)
    if match is None:
        return False
    variable = find_variable(match.group(1))
    return (
        variable is not None
        and variable.name == field.variable
        and int(match.group(2)) == field.level_hpa
    )
