"""Which fields inputs of `data convert` hold, and which of them to take."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jigsaw_forecast.data.conversions import CONVERTIBLE_TO
from jigsaw_forecast.data.records import (
    DIAGNOSTIC_ONLY,
    NOT_A_TIME,
    RELATIVE_HUMIDITY,
    FieldRecord,
    Source,
)
from jigsaw_forecast.data.source import open_source
from jigsaw_forecast.data.store import shorten
from jigsaw_forecast.data.training_store import FORMAT, TrainingStore, read_attributes
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import VARIABLES, Field, LevelType, Role
from jigsaw_forecast.grid import Grid

MIN_KEPT = 16  # sources that each worker keeps: a GRIB file is scanned when it is opened again
MAX_KEPT = 512  # half of the files that a process may usually have open
_CONVERTED_TO = {source: variable for variable, source in CONVERTIBLE_TO.items()}


@dataclass(frozen=True)
class Selection:
    """What to take from inputs.

    Attributes:
        fields: Fields; empty for every prognostic field of the first time.
        grid: Grid to regrid to, None for the inputs' own.
        member: Ensemble member, None where there is only one.
    """

    fields: tuple[Field, ...] = ()
    grid: Grid | None = None
    member: int | None = None


class _Sources:
    """The sources opened last, as many as are read together at any time; threads share them."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Path, Source] = OrderedDict()
        self._num_kept = MIN_KEPT
        self._lock = threading.Lock()

    def open(self, path: Path) -> Source:
        with self._lock:
            source = self._kept.pop(path, None) or open_source(path)
            self._kept[path] = source
            if len(self._kept) > self._num_kept:
                self._kept.popitem(last=False)
            return source

    def keep(self, number: int) -> None:
        with self._lock:
            self._num_kept = max(self._num_kept, min(number, MAX_KEPT))


_sources = _Sources()


def opened(path: Path) -> Source:
    """The source at a path; those opened last stay open.

    Raises:
        DataError: It cannot be read.
    """
    return _sources.open(path)


def opened_together(paths: Sequence[Path]) -> list[Source]:
    """Sources that are read one after the other again and again, so that all of them stay open.

    Raises:
        DataError: One cannot be read.
    """
    _sources.keep(len(paths))
    return [opened(path) for path in paths]


def find_fields(*paths: Path) -> tuple[Field, ...]:
    """Every field that a model could predict at the first time of any input, in the table's order.

    Raises:
        DataError: One cannot be read, or none holds any; all that is wrong.
    """
    if len(paths) == 1 and (held := _fields_of_training_set(paths[0])):
        return held  # in its own order
    records: list[FieldRecord] = []
    found: set[Field] = set()
    faults = []
    for path in paths:
        try:
            held = _fields_of_training_set(path)
            found.update(held)
            records += () if held else _first_records(path)
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError("\n".join(faults))
    found |= _fields_among(records)
    if not found:
        names = shorten([str(path) for path in paths], 3)
        reasons = dict.fromkeys(f"{record.short_name}: {record.why}" for record in records)
        why = shorten(list(reasons), 3) or "no array lies on a map"
        raise DataError(f"{names}: missing fields: there is none to train on: {why}")
    order = list(VARIABLES)
    return tuple(sorted(found, key=lambda f: (order.index(f.variable), f.level_hpa)))


def as_trained_on(record: FieldRecord) -> FieldRecord:
    """A record as training takes it: also what a forecast never starts from."""
    is_wanted = record.why == DIAGNOSTIC_ONLY
    return replace(record, usable=True, why="") if is_wanted else record


def _fields_of_training_set(path: Path) -> tuple[Field, ...]:
    attributes = read_attributes(path)
    if attributes is None or attributes.get("format") != FORMAT:
        return ()
    return TrainingStore(path).header.fields


def _first_records(path: Path) -> list[FieldRecord]:
    source = opened(path)
    times = source.valid_times()
    return [as_trained_on(r) for r in source.records_at(times[0] if times.size else NOT_A_TIME)]


def _fields_among(records: Iterable[FieldRecord]) -> set[Field]:
    """The fields that records hold or are converted to."""
    found: set[Field] = set()
    humid: set[Field] = set()
    for record in records:
        field = _field(record)
        if record.usable and field is not None:
            (humid if record.variable == RELATIVE_HUMIDITY else found).add(field)
    warm = {field.level_hpa for field in found if field.variable == "temperature"}
    return found | {field for field in humid if field.level_hpa in warm}


def _field(record: FieldRecord) -> Field | None:
    """The predicted field that a record holds or is converted to, None where it is none."""
    spec = VARIABLES.get(_CONVERTED_TO.get(record.variable, record.variable))
    if spec is None or spec.role is Role.STATIC:
        return None
    if spec.level_type is LevelType.SURFACE:
        return Field(spec.name)
    level = record.level or 0
    return Field(spec.name, int(level)) if level == int(level) > 0 else None
