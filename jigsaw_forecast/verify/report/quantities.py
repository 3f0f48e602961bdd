"""What is scored: its name, units and place in tables, as forecasters say it."""

from collections.abc import Sequence
from dataclasses import dataclass

import xarray as xr

from jigsaw_forecast.fields import VARIABLES

# display units: (factor from SI, words)
_UNITS = {
    "geopotential": (1.0, "m²/s²"),
    "temperature": (1.0, "K"),
    "2m_temperature": (1.0, "K"),
    "specific_humidity": (1e3, "g/kg"),
    "mean_sea_level_pressure": (1.0, "Pa"),
    "surface_pressure": (1.0, "Pa"),
    "u_component_of_wind": (1.0, "m/s"),
    "v_component_of_wind": (1.0, "m/s"),
    "wind_vector": (1.0, "m/s"),
    "wind_speed": (1.0, "m/s"),
    "10m_u_component_of_wind": (1.0, "m/s"),
    "10m_v_component_of_wind": (1.0, "m/s"),
    "10m_wind_vector": (1.0, "m/s"),
    "10m_wind_speed": (1.0, "m/s"),
    "vertical_velocity": (1.0, "Pa/s"),
}
_WORDS = {
    "2m_temperature": "2 m temperature",
    "10m_wind_vector": "10 m wind vector",
    "10m_wind_speed": "10 m wind speed",
    "10m_u_component_of_wind": "10 m eastward wind",
    "10m_v_component_of_wind": "10 m northward wind",
    "u_component_of_wind": "eastward wind",
    "v_component_of_wind": "northward wind",
    "mean_sea_level_pressure": "sea-level pressure",
    "total_precipitation_6hr": "6 h precipitation",
    "total_precipitation_24hr": "24 h precipitation",
}
_SHORT = {
    "wind_vector": "wind",
    "10m_wind_vector": "10m wind",
    "wind_speed": "wind speed",
    "10m_wind_speed": "10m wind speed",
    "total_precipitation_24hr": "tp 24h",
    "total_precipitation_6hr": "tp 6h",
    "vertical_velocity": "w",
}
# the order of rows; others follow by name
_ORDER = (
    "geopotential",
    "temperature",
    "specific_humidity",
    "wind_vector",
    "u_component_of_wind",
    "v_component_of_wind",
    "2m_temperature",
    "10m_wind_vector",
    "10m_u_component_of_wind",
    "10m_v_component_of_wind",
    "mean_sea_level_pressure",
)
_DIMENSIONLESS = (
    "acc",
    "acc_pooled",
    "seeps",
    "seeps_24hr",
    "spread_skill_ratio",
    "unbiased_spread_skill_ratio",
)
_SQUARED = (
    "mse",
    "ensemble_variance",
    "ensemble_mean_mse",
    "debiased_ensemble_mean_mse",
)

HEADLINE_DAYS = (1, 3, 5, 7, 10)


@dataclass(frozen=True)
class Quantity:
    """One variable, on one level where it has levels.

    Attributes:
        variable: Name in the scores.
        level: Level in hPa, or None for what has no levels.
    """

    variable: str
    level: int | float | None = None

    @property
    def label(self) -> str:
        """`500 hPa geopotential`, `2 m temperature`."""
        words = variable_label(self.variable)
        return words if self.level is None else f"{self.level:g} hPa {words}"

    @property
    def short(self) -> str:
        """`z500`, `wind 850`, `2t`."""
        name = short_variable(self.variable)
        if self.level is None:
            return name
        return f"{name}{' ' if len(name) > 1 else ''}{self.level:g}"

    @property
    def scale(self) -> float:
        """Factor from the units of the scores to those shown."""
        if self.variable.startswith("total_precipitation"):
            return 1e3
        return _UNITS.get(self.variable, (1.0, ""))[0]

    @property
    def units(self) -> str:
        """Units shown, empty where they are not known."""
        if self.variable.startswith("total_precipitation"):
            return "mm"
        return _UNITS.get(self.variable, (1.0, ""))[1]

    @property
    def squared_units(self) -> str:
        """`K²`, `(m/s)²`."""
        return f"({self.units})²" if "/" in self.units else f"{self.units}²"

    def units_of(self, metric: str) -> str:
        """Units of a metric of this quantity; empty for a number without units."""
        if metric in _DIMENSIONLESS or not self.units:
            return ""
        return self.squared_units if metric in _SQUARED else self.units

    def scale_of(self, metric: str) -> float:
        """Factor from a metric in the scores to the one shown."""
        if metric in _DIMENSIONLESS:
            return 1.0
        return self.scale**2 if metric in _SQUARED else self.scale

    def place(self) -> dict[str, object]:
        """Where the quantity is on the dims of its variable."""
        return {} if self.level is None else {"level": self.level}


HEADLINE = (
    Quantity("geopotential", 500),
    Quantity("temperature", 850),
    Quantity("specific_humidity", 700),
    Quantity("wind_vector", 850),
    Quantity("2m_temperature"),
    Quantity("10m_wind_vector"),
    Quantity("mean_sea_level_pressure"),
)


def quantities_of(scores: xr.Dataset) -> list[Quantity]:
    """All that is scored, in the order of the tables; levels from the top down."""
    names = [str(name) for name in scores.data_vars if "lead_time" in scores[name].dims]
    names.sort(key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    found = []
    for name in names:
        if "level" in scores[name].dims:
            levels = sorted(level.item() for level in scores["level"].values)
            found += [Quantity(name, level) for level in levels]
        else:
            found.append(Quantity(name))
    return found


def headline_of(quantities: Sequence[Quantity]) -> list[Quantity]:
    """The headline quantities that are there; without any of them the first seven there are."""
    found = [one for one in HEADLINE if one in quantities]
    return found or list(quantities[: len(HEADLINE)])


def variable_label(variable: str) -> str:
    """`eastward wind`; a name that is not known without its underscores."""
    return _WORDS.get(variable, variable.replace("_", " "))


def short_variable(variable: str) -> str:
    """`z`, `2t`, `wind`."""
    if variable in _SHORT:
        return _SHORT[variable]
    return VARIABLES[variable].short_name if variable in VARIABLES else variable.replace("_", " ")


def lead_label(hours: float) -> str:
    """`6 h`, `1 d`, `10 d`, `1.5 d`."""
    if hours < 24 or hours % 12:
        return f"{hours:g} h"
    return f"{hours / 24:g} d"
