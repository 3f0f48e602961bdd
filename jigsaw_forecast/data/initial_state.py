"""Finds the fields of an initial state in a source, checks them all, then reads what is asked for.

Planning reads headers only and reports everything that is wrong with them at once; reading decodes
only the fields of this rank, each of their messages once, and checks their values.
"""

import logging
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.data.duplicates import agree
from jigsaw_forecast.data.records import Axes, FieldRecord, Float32Array, Source
from jigsaw_forecast.data.regrid import regrid as regrid_maps
from jigsaw_forecast.data.selection import Choice, choose, list_times
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import GRAVITY_M_S2, WIND_COMPONENTS, Field
from jigsaw_forecast.grid import Grid

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Check:
    """What read values must satisfy."""

    plausible: Mapping[Field, tuple[float, float]]

    def faults(self, field: Field, choice: Choice, values: Float32Array) -> list[str]:
        """What is wrong with the values of a field, before regridding."""
        where = f"{field} ({choice.record.where})"
        lowest, highest = float(values.min()), float(values.max())
        if not np.isfinite([lowest, highest]).all():  # min and max pass NaN on
            num_missing = int(np.count_nonzero(~np.isfinite(values)))
            return [
                f"{where}: {num_missing} of {values.size} points are missing or not finite; "
                "a model needs a value everywhere"
            ]
        if field not in self.plausible:
            return []
        low, high = self.plausible[field]
        if low <= lowest and highest <= high:
            return []
        text = (
            f"{where}: values {lowest:g} to {highest:g} {field.spec.units} are implausible, "
            f"expected {low:g} to {high:g}"
        )
        is_height = low <= lowest * GRAVITY_M_S2 and highest * GRAVITY_M_S2 <= high
        if field.variable.startswith("geopotential") and is_height:
            text += (
                "; they look like geopotential height in metres under the name of geopotential: "
                f"multiply by {GRAVITY_M_S2} or name it geopotential height (gh)"
            )
        return [text]


class InitialStatePlan:
    """Where each field of an initial state comes from; reads any of them.

    Attributes:
        source: The file or store; plans may share one.
        grid: The model's grid.
        source_axes: Axes of the source.
        is_regridded: Whether values are regridded.
        choices: Record and conversion of each field.
    """

    def __init__(
        self,
        source: Source,
        grid: Grid,
        source_axes: Axes,
        choices: Mapping[Field, Choice],
        plausible: Mapping[Field, tuple[float, float]],
    ) -> None:
        """Made by `plan_initial_state`, which has checked the arguments."""
        self.source = source
        self.grid = grid
        self.source_axes = source_axes
        self.choices = choices
        self.is_regridded = not source_axes.is_close(_axes_of(grid))
        self._check = _Check(plausible)

    def units(self, fields: Sequence[Field]) -> list[tuple[Field, ...]]:
        """Fields grouped so that no two groups need the same piece of the source.

        A rank that reads whole groups decodes nothing that another one decodes too: relative
        humidity takes the temperature of its level along, a chunk of a store all of its levels.

        Args:
            fields: Planned fields.

        Returns:
            The groups, each in the order of `fields`.
        """
        group_of: dict[Hashable, list[Field]] = {}
        for field in fields:
            pieces = {self.source.unit_of(record) for record in self.choices[field].all_records}
            joined = [field]
            for group in {id(group_of[p]): group_of[p] for p in pieces if p in group_of}.values():
                joined += group
                pieces |= {piece for piece, held in group_of.items() if held is group}
            group_of |= dict.fromkeys(pieces, joined)
        place = {field: index for index, field in enumerate(fields)}
        groups = {id(group): group for group in group_of.values()}.values()
        return [tuple(sorted(group, key=place.__getitem__)) for group in groups]

    def read(self, fields: Sequence[Field]) -> npt.NDArray[np.float32]:
        """Values of some of the planned fields.

        Args:
            fields: In the order wanted.

        Returns:
            Shape [len(fields), num_lat, num_lon] on `grid`, north to south, longitude from 0,
            SI units.

        Raises:
            DataError: Values are missing, not finite or implausible, or a field occurs twice with
                different values; all such fields are listed.
        """
        shape = (len(fields), self.grid.num_lat, self.grid.num_lon)
        out = np.empty(shape, dtype=np.float32)
        for index, values in enumerate(self.maps(fields)):
            if values is not None:
                out[index] = values
        return out

    def maps(self, fields: Sequence[Field]) -> Iterator[Float32Array | None]:
        """Decodes and checks planned fields one by one, so that no more than one is held.

        Yields:
            Values of each field [num_lat, num_lon] as `read` gives them; None where they are
            wrong, and an error follows the last one.

        Raises:
            DataError: As `read`, at the end.
        """
        faults: list[str] = []
        for field, values, new_faults in self.examine(fields):
            faults += new_faults
            yield None if new_faults else self._on_grid(field, values)
        if faults:
            raise DataError(_join(f"{self.source.path} holds values no forecast can use", faults))

    def examine(self, fields: Sequence[Field]) -> Iterator[tuple[Field, Float32Array, list[str]]]:
        """Decodes planned fields one by one and checks their values; each record once.

        Yields:
            The field, its values [Y, X] in its units on the source's grid, and what is wrong
            with them.
        """
        uses = Counter(r for field in fields for r in self.choices[field].all_records)
        values_of = self.source.read(list(uses))
        order = iter(list(uses))
        held: dict[FieldRecord, Float32Array] = {}
        for field in fields:
            choice = self.choices[field]
            while not all(record in held for record in choice.all_records):
                held[next(order)] = next(values_of)
            values = choice.convert([held[record] for record in choice.records_to_read], field)
            faults = self._check.faults(field, choice, values)
            faults += _duplicate_faults(field, choice, held)
            uses.subtract(choice.all_records)
            for record in choice.all_records:
                if not uses[record]:
                    held.pop(record, None)
            yield field, values, faults

    def _on_grid(self, field: Field, values: Float32Array) -> Float32Array:
        if not self.is_regridded:
            return values
        axes = self.source_axes
        is_vector = [field.variable in WIND_COMPONENTS]
        maps = regrid_maps(values[None], axes.latitudes, axes.longitudes, self.grid, is_vector)
        return np.asarray(maps[0])


@dataclass(frozen=True)
class Survey:
    """What a source holds of an initial state, from its headers.

    Attributes:
        title: What the faults are about.
        choices: Where each field comes from that was found.
        absent: Why each other field was not.
        faults: One line for each thing that is wrong; none where a plan can be made.
    """

    title: str
    choices: Mapping[Field, Choice]
    absent: Mapping[Field, str]
    faults: Sequence[str]


def survey_initial_state(
    source: Source,
    fields: Sequence[Field],
    grid: Grid,
    init_time: np.datetime64,
    *,
    regrid: bool,
    member: int | None = None,
) -> Survey:
    """Looks for every field of an initial state by parameter, level and valid time.

    Of several fields that match, analyses come before forecasts and short lead times before
    long ones.

    Args:
        source: An opened source.
        fields: The fields that the model starts from.
        grid: The model's grid.
        init_time: Start of the forecast: the valid time of the fields.
        regrid: Whether fields on another grid are regridded rather than refused.
        member: Ensemble member to take; needed where the source holds several.
    """
    init_time = init_time.astype("datetime64[s]")
    title = f"{source.path} gives no initial state for {_minutes(init_time)}"
    records = source.records_at(init_time)
    if not any(record.valid_time == init_time for record in records):
        faults = _why_nothing(source, records, init_time)
        return Survey(title, {}, dict.fromkeys(fields, "; ".join(faults)), faults)
    selection = choose(records, fields, member)
    faults = selection.faults + _grid_faults(selection.choices, grid, is_regridding=regrid)
    return Survey(title, selection.choices, selection.absent, faults)


def plan_initial_state(
    source: Source,
    fields: Sequence[Field],
    grid: Grid,
    init_time: np.datetime64,
    *,
    regrid: bool,
    plausible: Mapping[Field, tuple[float, float]],
    member: int | None = None,
) -> InitialStatePlan:
    """Finds every field of an initial state; see `survey_initial_state`. What is chosen is logged.

    Args:
        source: An opened source.
        fields: The fields that the model starts from.
        grid: The model's grid.
        init_time: Start of the forecast: the valid time of the fields.
        regrid: Whether fields on another grid are regridded rather than refused.
        plausible: Lowest and highest value of each field that can be real.
        member: Ensemble member to take; needed where the source holds several.

    Raises:
        DataError: Fields or levels are missing, at another time, on several grids, on a grid
            that cannot be used or is not the model's. Everything that is wrong is in the one
            message.
    """
    survey = survey_initial_state(source, fields, grid, init_time, regrid=regrid, member=member)
    if survey.faults:
        raise DataError(_join(survey.title, survey.faults))
    for note in _origins(survey.choices):
        _log.info("%s", note)
    axes = next(iter(survey.choices.values())).record.axes
    assert axes is not None
    return InitialStatePlan(source, grid, axes, survey.choices, plausible)


def _axes_of(grid: Grid) -> Axes:
    return Axes(grid.latitudes, grid.longitudes)


def _minutes(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]"))


def _join(title: str, faults: Sequence[str]) -> str:
    if len(faults) == 1:
        return f"{title}: {faults[0]}"
    return "\n".join([f"{title}:", *(f"  - {fault}" for fault in faults)])


def _why_nothing(
    source: Source, records: Sequence[FieldRecord], init_time: np.datetime64
) -> list[str]:
    """Why no field is valid at the initial time."""
    times = source.valid_times()
    if times.size:
        return [
            f"missing all fields at valid time {_minutes(init_time)}; the file has "
            f"{list_times(times)}; give one of these as --init or another file"
        ]
    reasons = sorted({record.why for record in records if record.why})
    return reasons or ["it holds no field with a time"]


def _grid_faults(choices: Mapping[Field, Choice], grid: Grid, is_regridding: bool) -> list[str]:
    """Fields on several grids, or on one that is not the model's."""
    groups: list[tuple[Axes, str, list[str]]] = []
    for field, choice in choices.items():
        for record in choice.records_to_read:
            assert record.axes is not None
            for axes, _, names in groups:
                if axes.is_close(record.axes):
                    names.append(str(field))
                    break
            else:
                groups.append((record.axes, record.grid, [str(field)]))
    if len(groups) > 1:
        described = (
            f"{name} ({axes}): {_shorten(list(dict.fromkeys(names)))}"
            for axes, name, names in groups
        )
        return [f"mixed grids, expected one: {'; '.join(described)}"]
    if groups and not is_regridding and not groups[0][0].is_close(_axes_of(grid)):
        axes, name, _ = groups[0]
        return [
            f"the fields are on grid {name} ({axes}), the model needs {grid.name} "
            f"({_axes_of(grid)}); add --regrid to regrid them"
        ]
    return []


def _duplicate_faults(
    field: Field, choice: Choice, values: Mapping[FieldRecord, Float32Array]
) -> list[str]:
    """Records of one field whose values differ."""
    first = choice.record
    return [
        f"{field} occurs twice with different values: {first.where} "
        + (
            f"has the time {_minutes(first.valid_time)} twice"
            if record.where == first.where
            else f"and {record.where}"
        )
        + "; remove one"
        for record in choice.duplicates
        if not agree(values[first], values[record])
    ]


def _origins(choices: Mapping[Field, Choice]) -> list[str]:
    """One line for each kind of field: analysis or lead time, and conversion."""
    origins: dict[str, list[str]] = {}
    for field, choice in choices.items():
        for note in choice.notes():
            origins.setdefault(note, []).append(str(field))
    return [f"{note}: {_shorten(names)}" for note, names in origins.items()]


def _shorten(names: Sequence[str], limit: int = 12) -> str:
    if len(names) <= limit:
        return ", ".join(names)
    return f"{', '.join(names[:limit])} and {len(names) - limit} more"
