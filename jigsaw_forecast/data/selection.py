"""Chooses the record that each field of an initial state is read from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.data.conversions import (
    CONVERTIBLE_TO,
    geopotential_from_height,
    specific_humidity_from_relative,
    to_si,
)
from jigsaw_forecast.data.records import (
    PRESSURE_LEVEL,
    RELATIVE_HUMIDITY,
    FieldRecord,
    Float32Array,
)
from jigsaw_forecast.fields import Field, LevelType, Role

_LEVEL_TOLERANCE_HPA = 1e-4
_NUM_LISTED = 12
_NUM_REASONS = 3


@dataclass(frozen=True)
class Choice:
    """Where one field comes from.

    Attributes:
        record: What is read: the field itself or what it is converted from.
        duplicates: Other records of the same thing, which must agree.
        temperature: At the same level, where relative humidity is converted.
    """

    record: FieldRecord
    duplicates: tuple[FieldRecord, ...] = ()
    temperature: FieldRecord | None = None

    @property
    def records_to_read(self) -> tuple[FieldRecord, ...]:
        """Records in the order in which `convert` takes their values."""
        return (self.record,) if self.temperature is None else (self.record, self.temperature)

    @property
    def all_records(self) -> tuple[FieldRecord, ...]:
        """Records whose values are needed, duplicates included."""
        return tuple(dict.fromkeys((*self.records_to_read, *self.duplicates)))

    def convert(self, values: Sequence[Float32Array], field: Field) -> Float32Array:
        """Values in the field's units from those of `records_to_read` in file units."""
        main = _in_si(values[0], self.record)
        if self.record.variable == field.variable:
            return main
        if self.record.variable == RELATIVE_HUMIDITY:
            assert self.temperature is not None
            temperature = _in_si(values[1], self.temperature)
            return specific_humidity_from_relative(main, temperature, field.level_hpa)
        return geopotential_from_height(main)

    def notes(self) -> list[str]:
        """What a forecaster should know about the origin."""
        record = self.record
        notes = []
        if record.lead_time > np.timedelta64(0, "s"):
            hours = record.lead_time / np.timedelta64(1, "h")
            notes.append(f"forecast of {hours:g} h started {record.init_time}, no analysis")
        if record.variable in CONVERTIBLE_TO.values():
            notes.append(f"converted from {record.variable}")
        return notes


@dataclass(frozen=True)
class Selection:
    """What was found for the fields of an initial state.

    Attributes:
        choices: The fields that were found.
        absent: Why each of the others was not.
        faults: One line for each thing that is wrong, missing fields included.
    """

    choices: dict[Field, Choice]
    absent: dict[Field, str]
    faults: list[str]


@dataclass(frozen=True)
class _Absence:
    """Why a field has no choice; `verb` says whether it is missing or ambiguous."""

    verb: str
    reason: str


def choose(
    records: Sequence[FieldRecord], fields: Sequence[Field], member: int | None
) -> Selection:
    """The record of each field, and why there is none where there is none.

    Args:
        records: All records at the initial time.
        fields: What the model starts from.
        member: Ensemble member, None to take the only one.
    """
    by_variable: dict[str, list[FieldRecord]] = {}
    for record in records:
        by_variable.setdefault(record.variable, []).append(record)
    choices: dict[Field, Choice] = {}
    absent: dict[_Absence, list[Field]] = {}
    for field in fields:
        found = _choose_one(by_variable, field, member)
        if isinstance(found, Choice):
            choices[field] = found
        else:
            absent.setdefault(found, []).append(field)
    faults = [f"{why.verb} {list_fields(names)}: {why.reason}" for why, names in absent.items()]
    faults += _find_shared(choices, member)
    reasons = {
        field: f"{why.verb}: {why.reason}" for why, names in absent.items() for field in names
    }
    return Selection(choices, reasons, faults)


def _find_shared(choices: Mapping[Field, Choice], member: int | None) -> list[str]:
    """What a perturbed member would have in common with all others; fixed fields may be so."""
    shared = [
        field
        for field, choice in choices.items()
        if any(record.member is None for record in choice.records_to_read)
        and field.spec.role is not Role.STATIC
    ]
    if not member or not shared:
        return []
    if len(shared) == len(choices):
        return [
            f"missing member {member}: no field has an ensemble member, so that all members would "
            "be one forecast; give a file that holds members, or a template with {member}"
        ]
    return [
        f"missing {list_fields(shared)} of member {member}: the file holds them without a member, "
        "as an analysis does, and other fields of members; give a file that holds every member's"
    ]


def _choose_one(
    by_variable: Mapping[str, Sequence[FieldRecord]], field: Field, member: int | None
) -> Choice | _Absence:
    """The choice for a field, or why there is none."""
    substitute = CONVERTIBLE_TO.get(field.variable, "")
    own = _at_level(by_variable.get(field.variable, ()), field)
    instead = _at_level(by_variable.get(substitute, ()), field)
    matches = [r for r in own if r.usable] or [r for r in instead if r.usable]
    if not matches:
        reason = _why_none(by_variable, field, substitute, [*own, *instead])
        return _Absence("missing", reason)
    numbers = sorted({r.member for r in matches if r.member is not None})
    if member is None and len(numbers) > 1:
        reason = (
            f"the file holds ensemble members {_list_numbers(numbers)}; give --members N to "
            "forecast 0 to N-1 of them, or a file with one"
        )
        return _Absence("cannot choose", reason)
    if member is not None:
        # an analysis in the same file stands in for a member only where it has none
        own_number = [r for r in matches if r.member == member]
        matches = own_number or [r for r in matches if r.member is None]
        if not matches:
            word = "members" if len(numbers) > 1 else "member"
            held = f"the file holds ensemble {word} {_list_numbers(numbers)}, not {member}"
            return _Absence("missing", held)
    choice = _best(matches, field)
    if choice.record.variable != RELATIVE_HUMIDITY:
        return choice
    temperature = _choose_one(by_variable, Field("temperature", field.level_hpa), member)
    if isinstance(temperature, _Absence):
        reason = f"relative humidity needs its level's temperature, but {temperature.reason}"
        return _Absence("missing", reason)
    return Choice(choice.record, choice.duplicates, temperature.record)


def _best(matches: Sequence[FieldRecord], field: Field) -> Choice:
    """The analysis or shortest forecast, with its equals."""

    def rank(record: FieldRecord) -> tuple[int, bool, bool]:
        lead_s = int(record.lead_time.astype("timedelta64[s]").astype(np.int64))
        return lead_s, not record.is_analysis, record.short_name != field.spec.short_name

    first, *others = sorted(matches, key=rank)
    return Choice(first, tuple(record for record in others if rank(record) == rank(first)))


def _at_level(records: Sequence[FieldRecord], field: Field) -> list[FieldRecord]:
    if field.spec.level_type is LevelType.SURFACE:
        return list(records)
    return [
        record
        for record in records
        if record.level is not None
        and record.level_type == PRESSURE_LEVEL
        and abs(record.level - field.level_hpa) < _LEVEL_TOLERANCE_HPA
    ]


def _why_none(
    by_variable: Mapping[str, Sequence[FieldRecord]],
    field: Field,
    substitute: str,
    unusable: Sequence[FieldRecord],
) -> str:
    """What the file has instead of a field."""
    if unusable:
        reasons = dict.fromkeys(f"{r.variable} is unusable: {r.why}" for r in unusable)
        return "; ".join(reasons)
    described = []
    for name in (field.variable, substitute):
        levels = _pressure_levels(by_variable.get(name, ()))
        if levels:
            shown = ", ".join(f"{level:g}" for level in levels)
            described.append(f"the file has {name} at {shown} hPa")
            continue
        reasons = dict.fromkeys(f"{name} {r.why}" for r in by_variable.get(name, ()) if r.why)
        described += list(reasons)[:_NUM_REASONS]
    if described:
        return "; ".join(described)
    others = sorted({r.variable for records in by_variable.values() for r in records if r.usable})
    has = f"; it has {', '.join(others)}" if others else ""
    return f"the file has none{f' (nor {substitute})' if substitute else ''} at this time{has}"


def _pressure_levels(records: Sequence[FieldRecord]) -> list[float]:
    return sorted(
        {
            float(record.level)
            for record in records
            if record.usable and record.level_type == PRESSURE_LEVEL and record.level is not None
        }
    )


def _in_si(values: Float32Array, record: FieldRecord) -> Float32Array:
    conversion = to_si(record.variable, record.units)
    assert conversion is not None, "usable records have known units"
    scale, offset = conversion
    if (scale, offset) == (1.0, 0.0):
        return values
    return (values.astype(np.float64) * scale + offset).astype(np.float32)


def _list_numbers(numbers: Sequence[int]) -> str:
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(str(number) for number in numbers)


def list_times(times: npt.NDArray[np.datetime64]) -> str:
    """Times to the minute; the first and last few where there are many."""
    texts = [str(time) for time in times.astype("datetime64[m]")]
    if len(texts) <= _NUM_LISTED:
        return ", ".join(texts)
    return f"{', '.join(texts[:4])}, ... {', '.join(texts[-4:])} ({len(texts)} times)"


def list_fields(fields: Sequence[Field]) -> str:
    """Short names of fields: `z50, z100, 2t`."""
    return ", ".join(field.short_name for field in fields)
