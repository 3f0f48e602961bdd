"""Specifications and states that the writer tests share; values are random, of real magnitude."""

from dataclasses import replace

import numpy as np
import torch

from jigsaw_forecast.fields import Field
from jigsaw_forecast.forecast.product import OutputSpec
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.state import State

INIT = np.datetime64("2026-06-24T00:00:00", "s")
PRECIPITATION = Field("total_precipitation_6hr")
FIELDS = (
    Field("geopotential", 500),
    Field("geopotential", 850),
    Field("specific_humidity", 500),
    Field("2m_temperature"),
    Field("10m_u_component_of_wind"),
    Field("mean_sea_level_pressure"),
    PRECIPITATION,
)
CENTRES = {
    "geopotential": 5e4,
    "specific_humidity": 5e-3,
    "2m_temperature": 280.0,
    "10m_u_component_of_wind": 0.0,
    "mean_sea_level_pressure": 1e5,
    "total_precipitation_6hr": 1e-3,
}
SPREADS = {**dict.fromkeys(CENTRES, 10.0), "specific_humidity": 1e-3}
SPREADS["total_precipitation_6hr"] = 1e-4


def hours(*counts: int) -> tuple[np.timedelta64, ...]:
    return tuple(np.timedelta64(count, "h") for count in counts)


def make_spec(**changes: object) -> OutputSpec:
    spec = OutputSpec(
        fields=FIELDS,
        grid=Grid(8, 16, has_poles=False),
        init_times=(INIT,),
        lead_times=hours(0, 6),
        attributes={"title": "test", "notice": "a simulated planet"},
        grib_keys={},
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


def make_state(spec: OutputSpec, lead_hours: int, fields: tuple[Field, ...] = ()) -> State:
    chosen = fields or spec.fields
    random = torch.Generator().manual_seed(lead_hours)
    data = torch.stack(
        [
            CENTRES[field.variable]
            + SPREADS[field.variable]
            * torch.randn(spec.grid.num_lat, spec.grid.num_lon, generator=random)
            for field in chosen
        ]
    )
    if lead_hours == 0 and PRECIPITATION in chosen:
        data[chosen.index(PRECIPITATION)] = torch.nan
    return State(data, chosen, spec.grid, INIT, np.timedelta64(lead_hours, "h"))
