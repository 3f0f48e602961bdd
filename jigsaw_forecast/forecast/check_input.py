"""What an input holds of an initial state, field by field, headers and values."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jigsaw_forecast.data.acquisition import InputFile
from jigsaw_forecast.data.initial_state import InitialStatePlan, survey_initial_state
from jigsaw_forecast.data.records import Source
from jigsaw_forecast.data.selection import Choice
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.grid import Grid

FOUND, DERIVED, DUPLICATED, MISSING = "found", "derived", "duplicated", "missing"
_ONE_HOUR = np.timedelta64(1, "h")


@dataclass
class FieldRow:
    """One field of an initial state.

    Attributes:
        field: Short name: `z500`.
        status: `found`, `derived` from another quantity, `duplicated`, `missing`.
        variable: What is read: the field itself or what it is derived from.
        file: The file or store.
        messages: Numbers of the GRIB messages, or names of the arrays, that are read.
        level: As coded, hPa on pressure levels.
        units: As the file says them.
        value_units: Of `min`, `max` and `plausible`: the field's.
        grid: `regular_ll 721x1440`, rows x columns.
        valid_time: UTC.
        lead_hours: 0 for an analysis.
        min: Smallest value in the field's units, None where values were not read.
        max: Largest value.
        plausible: Lowest and highest value that can be real.
        why: What is wrong, otherwise empty.
    """

    field: str
    status: str
    variable: str = ""
    file: str = ""
    messages: tuple[int | str, ...] = ()
    level: float | None = None
    units: str = ""
    value_units: str = ""
    grid: str = ""
    valid_time: str = ""
    lead_hours: float = 0.0
    min: float | None = None
    max: float | None = None
    plausible: tuple[float, float] | None = None
    why: str = ""


@dataclass(frozen=True)
class InputCheck:
    """The fields of one initial state.

    Attributes:
        init_time: UTC.
        member: Ensemble member, None where the run is no ensemble.
        path: The file or store.
        origin: Where it came from.
        rows: One for each prognostic field.
        is_regridded: Whether the fields would be brought to the model's grid.
        problems: What would stop the run, whole sentences.
        read_seconds: That one process took to decode, convert and check all values; None where
            they were not read.
    """

    init_time: str
    member: int | None
    path: str
    origin: str
    rows: Sequence[FieldRow]
    is_regridded: bool
    problems: Sequence[str]
    read_seconds: float | None

    def counts(self) -> dict[str, int]:
        """Number of fields by status."""
        statuses = [row.status for row in self.rows]
        return {name: statuses.count(name) for name in (FOUND, DERIVED, DUPLICATED, MISSING)}

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "init_time": self.init_time,
            "member": self.member,
            "path": self.path,
            "origin": self.origin,
            "regridded": self.is_regridded,
            "counts": self.counts(),
            "fields": [vars(row) for row in self.rows],
            "problems": list(self.problems),
            "read_seconds": self.read_seconds,
        }


def check_initial_state(
    source: Source,
    file: InputFile,
    fields: Sequence[Field],
    grid: Grid,
    init_time: np.datetime64,
    plausible: Mapping[Field, tuple[float, float]],
    *,
    regrid: bool,
    with_values: bool,
) -> InputCheck:
    """Looks for every field, and at the values of those that are there; holds one map at a time.

    Args:
        source: The opened file.
        file: What it is and which member to take.
        fields: Prognostic fields.
        grid: The model's grid.
        init_time: Start of the forecast.
        plausible: Lowest and highest value of each field that can be real.
        regrid: Whether fields on another grid are regridded.
        with_values: Whether values are read.
    """
    survey = survey_initial_state(
        source, fields, grid, init_time, regrid=regrid, member=file.member
    )
    rows = {
        field: _describe(field, survey.choices[field], plausible)
        if field in survey.choices
        else FieldRow(str(field), MISSING, why=survey.absent[field])
        for field in fields
    }
    problems = [f"{survey.title}: {fault}" for fault in survey.faults]
    seconds = None
    is_regridded = False
    found = [field for field in fields if field in survey.choices]
    if found:
        axes = survey.choices[found[0]].record.axes
        assert axes is not None
        plan = InitialStatePlan(source, grid, axes, survey.choices, plausible)
        is_regridded = regrid and plan.is_regridded
        if with_values:
            start_s = time.perf_counter()
            problems += _check_values(plan, _readable(survey.choices, found), rows)
            seconds = time.perf_counter() - start_s
    return InputCheck(
        init_time=str(init_time.astype("datetime64[s]")),
        member=file.member,
        path=str(file.path),
        origin=file.origin,
        rows=list(rows.values()),
        is_regridded=is_regridded,
        problems=problems,
        read_seconds=seconds,
    )


def _describe(
    field: Field, choice: Choice, plausible: Mapping[Field, tuple[float, float]]
) -> FieldRow:
    record = choice.record
    read = choice.all_records
    status = FOUND if record.variable == field.variable else DERIVED
    return FieldRow(
        field=str(field),
        status=DUPLICATED if choice.duplicates else status,
        variable=" and ".join(dict.fromkeys(r.variable for r in read)),
        file=str(record.path),
        messages=tuple(r.message or r.short_name for r in read),
        level=record.level if field.level_hpa else None,
        units=", ".join(dict.fromkeys(r.units for r in read)),
        value_units=field.spec.units,
        grid=record.grid,
        valid_time=str(record.valid_time),
        lead_hours=float(record.lead_time / _ONE_HOUR),
        plausible=plausible.get(field),
    )


def _readable(choices: Mapping[Field, Choice], fields: Sequence[Field]) -> list[Field]:
    """Fields whose records lie on one grid: only those can be put together."""

    def is_on_one_grid(choice: Choice) -> bool:
        return len({record.grid for record in choice.all_records}) == 1

    return [field for field in fields if is_on_one_grid(choices[field])]


def _check_values(
    plan: InitialStatePlan, fields: Sequence[Field], rows: Mapping[Field, FieldRow]
) -> list[str]:
    """Fills in extremes; returns what is wrong with values."""
    problems: list[str] = []
    try:
        for field, values, faults in plan.examine(fields):
            row = rows[field]
            present = values[np.isfinite(values)]
            if present.size:
                row.min, row.max = float(present.min()), float(present.max())
            row.why = "; ".join(faults)
            problems += [f"{plan.source.path}: {fault}" for fault in faults]
    except DataError as fault:
        problems.append(str(fault))
    return problems
