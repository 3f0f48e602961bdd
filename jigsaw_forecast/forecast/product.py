"""What a forecast product is: its specification and its writer.

A product is written as `NAME.partial` and takes its name only when it is whole. While it is open
a lock on `.NAME.lock` is held, so that a second run on the same name is refused.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from jigsaw_forecast.errors import OutputError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.forecast.staging import ProductLock, Staging, reported, sync
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.state import State

ONE_HOUR = np.timedelta64(1, "h")

Unit = tuple[Field, ...]
Maps = npt.NDArray[np.float32]
Payload = list[
    tuple[int, bytes | memoryview]
]  # numbers of fields in the specification, and what they become
Row = tuple[int, int, int]  # of a piece of a payload: its number, its bytes, its crc32c
Mark = Mapping[str, Any]  # what is noted of a lead time that is done, beyond its times


class Slot(NamedTuple):
    """One lead time of one forecast: what is written, and marked as done, as a whole.

    Attributes:
        init_time: UTC, datetime64[s].
        lead_time: timedelta64[s].
        member: Number of the ensemble member, None where the run is no ensemble.
    """

    init_time: np.datetime64
    lead_time: np.timedelta64
    member: int | None = None

    @classmethod
    def of(
        cls, init_time: np.datetime64, lead_time: np.timedelta64, member: int | None = None
    ) -> "Slot":
        """The slot of times in any unit: equal times of different units have different hashes."""
        return cls(init_time.astype("datetime64[s]"), lead_time.astype("timedelta64[s]"), member)

    @property
    def lead_hours(self) -> int:
        """Lead time in hours."""
        return int(self.lead_time / ONE_HOUR)

    def __str__(self) -> str:
        """`2026-06-24T00:00:00 +6 h`, and the member where there is one."""
        member = "" if self.member is None else f" member {self.member}"
        return f"{self.init_time} +{self.lead_hours} h{member}"


@dataclass(frozen=True)
class Product:
    """One file or store to be written, and the times that it holds.

    Attributes:
        path: Final name.
        init_times: Initial times in it, in order.
        lead_times: Lead times in it, in order.
        members: Ensemble members in it, in order; empty where the run is no ensemble.
    """

    path: Path
    init_times: tuple[np.datetime64, ...]
    lead_times: tuple[np.timedelta64, ...]
    members: tuple[int, ...] = ()

    def holds(
        self, init_time: np.datetime64, lead_time: np.timedelta64, member: int | None = None
    ) -> bool:
        """Whether a lead time of a forecast is part of this product."""
        return Slot.of(init_time, lead_time, member) in self.slots

    @cached_property
    def slots(self) -> dict[Slot, None]:
        """All that the product holds, in order: initial times, members, lead times."""
        return all_slots(self.init_times, self.lead_times, self.members)


@dataclass(frozen=True)
class Scoring:
    """What a run is scored against while it goes on.

    Attributes:
        name: Of the forecast in the scores.
        truth: File or store of analyses.
        climatology: File or store, None without one.
        allows_missing: Whether valid times that the truth lacks are left out instead of refused.
    """

    name: str
    truth: Path
    climatology: Path | None = None
    allows_missing: bool = False


@dataclass(frozen=True)
class OutputSpec:
    """Everything that a writer needs to know before the first state.

    Attributes:
        fields: Fields to write, in order; prognostic and diagnostic.
        grid: The whole grid, pole rows included.
        init_times: Initial times, UTC.
        lead_times: All lead times that will be written, whole hours; 0 where the initial state is.
        attributes: Provenance: title, source, checkpoint, notice and so on; no time of writing,
            so that a product that is made again is the same to the last bit.
        grib_keys: Keys of `--grib`, for GRIB2 products only.
        members: Ensemble members; empty where the run is no ensemble.
        num_members: Members of the whole ensemble, of which a product may hold some.
        scoring: For scores only: what the forecast is compared with.
    """

    fields: tuple[Field, ...]
    grid: Grid
    init_times: tuple[np.datetime64, ...]
    lead_times: tuple[np.timedelta64, ...]
    attributes: Mapping[str, str]
    grib_keys: Mapping[str, str]
    members: tuple[int, ...] = ()
    num_members: int = 0
    scoring: Scoring | None = None

    def __post_init__(self) -> None:
        """Refuses an empty or repeated selection and lead times that are not whole hours."""
        for name in ("fields", "init_times", "lead_times"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"output {name} are empty or repeat: {values}")
        if any(lead % ONE_HOUR for lead in self.lead_times):
            raise ValueError(f"lead times are not whole hours: {self.lead_times}")

    def narrowed(self, product: Product) -> "OutputSpec":
        """The same specification with only the times and members that a product holds."""
        return replace(
            self,
            init_times=product.init_times,
            lead_times=product.lead_times,
            members=product.members,
        )

    @property
    def variables(self) -> tuple[str, ...]:
        """Variable names in the order of the fields, each once."""
        return tuple(dict.fromkeys(field.variable for field in self.fields))

    @property
    def levels_hpa(self) -> tuple[int, ...]:
        """All pressure levels, ascending, each once."""
        return tuple(sorted({field.level_hpa for field in self.fields if field.level_hpa}))

    @property
    def lead_hours(self) -> tuple[int, ...]:
        """Lead times in hours."""
        return tuple(int(lead / ONE_HOUR) for lead in self.lead_times)

    @cached_property
    def slots(self) -> dict[Slot, None]:
        """Everything to be written, in order: initial times, members, lead times."""
        return all_slots(self.init_times, self.lead_times, self.members)

    def row(self, slot: Slot) -> tuple[int, ...]:
        """Place of a slot along `time`, `number` (where there are members) and lead time."""
        inits = [init.astype("datetime64[s]") for init in self.init_times]
        number = () if slot.member is None else (self.members.index(slot.member),)
        return inits.index(slot.init_time), *number, self.lead_hours.index(slot.lead_hours)


class Writer(ABC):
    """Writes one product, lead time by lead time; knows nothing of ranks but who creates.

    The creator makes the product, marks lead times as done and finishes it. Kinds that every rank
    writes into are opened by the other ranks after the creator, with `is_creator=False`. Of the
    other kinds, every rank makes its part of a lead time with `encode`, and the creator adds all
    parts with `append`; or, where `share` says that they see the same file, each rank puts its own
    there with `write_at`.

    Attributes:
        path: Final name of the product.
        spec: What it holds.
        is_creator: Whether this process creates and finishes the product.
        is_open_on_all_ranks: Whether every rank writes into products of this kind.
        bytes_written: Bytes that this process has written so far.
    """

    is_open_on_all_ranks: ClassVar[bool] = False
    bytes_written: int

    def __init__(
        self,
        path: Path,
        spec: OutputSpec,
        *,
        overwrite: bool,
        is_creator: bool,
        lock: ProductLock | None = None,
        finished: Mapping[Slot, Mark] | None = None,
    ) -> None:
        """Creates `NAME.partial`, or opens it; leaves nothing behind where that fails.

        Args:
            path: Final name.
            spec: What will be written.
            overwrite: Whether a product that exists is replaced when this one is finished.
            is_creator: Whether this process makes the product.
            lock: On the product, where it is held already; given up with the writer.
            finished: What is done of a product that goes on; None to start it. `recover` of the
                kind has put `NAME.partial` in order.

        Raises:
            OutputError: See `Staging`, and `_open` of each kind.
        """
        self.path = path
        self.spec = spec
        self.is_creator = is_creator
        self.goes_on = finished is not None
        self.bytes_written = 0
        self._done: dict[Slot, Mark] = dict(finished or {})
        self._is_whole = False
        self._staging: Staging | None = None
        if is_creator or self.is_open_on_all_ranks:
            self._staging = Staging(
                path,
                overwrite=overwrite,
                joins=not is_creator,
                lock=lock,
                keeps_partial=self.goes_on,
            )
        try:
            self._open()
        except BaseException:
            self.abort(keep=self.goes_on)
            raise

    @classmethod
    @abstractmethod
    def recover(cls, partial: Path, spec: OutputSpec, marks: Mapping[Slot, Mark]) -> list[Slot]:
        """Puts what a dead run left under `NAME.partial` in order, for a writer to go on with.

        Args:
            partial: What it left.
            spec: What the product holds.
            marks: What it had marked as done, in order.

        Returns:
            The lead times that are there and whole, the first of `marks` that are; what came
            after them is removed or will be written over.
        """

    @classmethod
    def side_paths(cls, path: Path) -> tuple[Path, ...]:
        """What a writer that is killed may leave beside `NAME.partial`; nothing of most kinds."""
        return ()

    def holds(
        self, init_time: np.datetime64, lead_time: np.timedelta64, member: int | None = None
    ) -> bool:
        """Whether a lead time of a forecast is part of this product."""
        return Slot.of(init_time, lead_time, member) in self.spec.slots

    def is_done(self, slot: Slot) -> bool:
        """Whether a lead time is marked as done."""
        return slot in self._done

    def is_whole(self) -> bool:
        """Whether every lead time is marked as done."""
        return len(self._done) == len(self.spec.slots)

    @classmethod
    def units_of(cls, spec: OutputSpec) -> list[Unit]:
        """Groups of fields that one rank encodes together; here all fields are one group."""
        return [spec.fields]

    def units(self) -> list[Unit]:
        """The same of this product."""
        return self.units_of(self.spec)

    def write(self, states: State, member: int | None = None) -> None:
        """Writes one or more whole units of one lead time; of all of them where one rank writes.

        Args:
            states: A whole-globe state (all rows) with the fields of the units.
            member: Ensemble member, None where the run is no ensemble.

        Raises:
            OutputError: The values or the disk do not allow it.
        """
        slot = Slot.of(states.init_time, states.lead_time, member)
        self.append(slot, self.encode(states, member))

    def encode(self, states: State, member: int | None = None) -> Payload:
        """Makes this rank's part of a lead time; kinds that every rank writes are written by it.

        Args:
            states: A whole-globe state (all rows) with the fields of whole units.
            member: Ensemble member, None where the run is no ensemble.

        Returns:
            What `append` takes, nothing where all is written.

        Raises:
            OutputError: The values or the disk do not allow it.
        """
        slot = Slot.of(states.init_time, states.lead_time, member)
        self._check(states, slot)
        return self._encode(states, states.data.detach().to("cpu").float().numpy(), slot)

    def append(self, slot: Slot, payload: Payload) -> None:
        """Writes what `encode` made on all ranks, in the order of the fields; creator only.

        Raises:
            OutputError: The disk does not allow it.
        """
        if payload:
            assert self.is_creator, "only the creator writes into a file"
            self._append(slot, payload)

    def share(self) -> str:
        """Lets this rank write into the creator's file itself, where the kind can do that.

        Called on every rank once the creator has opened the product.

        Returns:
            What names the file as this rank sees it, the same on all ranks that see the same file;
            empty where the creator alone may write.
        """
        return ""

    def write_at(self, slot: Slot, table: Sequence[Row], payload: Payload) -> None:
        """Writes pieces of a lead time at their places in a shared file; called on every rank.

        Args:
            slot: The lead time.
            table: Of the pieces of all ranks, in the order in which the file has them.
            payload: What this rank has to write of them, possibly nothing.

        Raises:
            OutputError: The disk does not allow it.
        """
        raise NotImplementedError  # of kinds that share their file

    def mark_done(
        self, init_time: np.datetime64, lead_time: np.timedelta64, member: int | None = None
    ) -> Mark:
        """Records that all units of a lead time are written by all ranks; creator only.

        Returns:
            What `recover` has to know of it.
        """
        assert self.is_creator, "only the creator marks lead times as done"
        slot = Slot.of(init_time, lead_time, member)
        assert slot in self.spec.slots, f"lead time {slot} is not part of {self.path}"
        self._done[slot] = mark = self._mark(slot)
        return mark

    def finish(self) -> None:
        """Closes the product and gives it its name; nothing happens on other ranks.

        Raises:
            OutputError: Lead times are not done, or the disk does not allow it.
        """
        self.seal()
        self.publish()

    def seal(self) -> None:
        """Completes and closes `NAME.partial`; other ranks close their share.

        Raises:
            OutputError: Lead times are not done, or the disk does not allow it.
        """
        if not self.is_creator:
            self._close()
            if self._staging is not None:
                self._sync()
                self._staging.release()
            return
        lacking = [slot for slot in self.spec.slots if slot not in self._done]
        if lacking:
            listed = ", ".join(map(str, lacking[:10]))
            more = f" and {len(lacking) - 10} more" if len(lacking) > 10 else ""
            raise OutputError(f"{self.path} is not whole; missing {listed}{more}")
        self._seal()
        self._close()
        self._sync()
        self._is_whole = True

    def publish(self) -> None:
        """Gives the sealed product its name; creator only, harmless on other ranks.

        Raises:
            OutputError: The name has been taken, or the disk does not allow it.
        """
        if self.is_creator:
            assert self._staging is not None
            self._staging.publish()

    def abort(self, *, keep: bool = False) -> None:
        """Closes and removes `NAME.partial`; what has the final name stays.

        A product that is whole and only failed to get its name is kept as `NAME.partial`.
        Harmless when repeated and after `finish`.

        Args:
            keep: Whether `NAME.partial` stays, for a run that goes on with it.
        """
        with suppress(OutputError):
            self._close()
        if self._staging is not None:
            if self._is_whole or keep:
                self._staging.release()
            else:
                self._staging.discard()

    def _check(self, states: State, slot: Slot) -> None:
        expected = (len(states.fields), self.spec.grid.num_lat, self.spec.grid.num_lon)
        if states.grid != self.spec.grid or tuple(states.data.shape) != expected:
            raise ValueError(
                f"writer of {self.spec.grid.name} maps got {states.grid.name} with shape "
                f"{tuple(states.data.shape)}"
            )
        if slot not in self.spec.slots:
            raise ValueError(f"{slot} is not part of {self.path}")
        held = set(states.fields)
        parts = [unit for unit in self.units() if held & set(unit)]
        if {field for unit in parts for field in unit} != held:
            raise ValueError(f"fields {', '.join(map(str, states.fields))} are not whole units")

    @abstractmethod
    def _open(self) -> None:
        """Creates `NAME.partial` (creator) or opens it (other ranks, where they write)."""

    @abstractmethod
    def _encode(self, states: State, maps: Maps, slot: Slot) -> Payload:
        """Writes checked values, shape [F, Y, X], or makes what `_append` writes of them."""

    def _append(self, slot: Slot, payload: Payload) -> None:  # noqa: B027 - for some kinds
        """Writes what `_encode` made."""

    @abstractmethod
    def _close(self) -> None:
        """Closes files; harmless when repeated; raises `OutputError` where that fails."""

    def _mark(self, slot: Slot) -> Mark:
        """Makes what is done durable as far as the kind can; returns what `recover` needs."""
        return {}

    def _seal(self) -> None:  # noqa: B027 - optional, not abstract
        """Completes metadata before closing."""

    def _sync(self) -> None:
        """Puts what this rank wrote on the disk: the name must not outlive a power cut alone."""
        assert self._staging is not None
        with reported(self.path):
            sync(self._staging.partial)


def describe(payload: Payload) -> list[Row]:
    """The table of a payload, in the order of its numbers."""
    return [
        (number, len(content), int(google_crc32c.value(bytes(content))))
        for number, content in sorted(payload, key=lambda piece: piece[0])
    ]


def all_slots(
    init_times: Sequence[np.datetime64],
    lead_times: Sequence[np.timedelta64],
    members: Sequence[int] = (),
) -> dict[Slot, None]:
    """Every initial time with every member and every lead time, in order."""
    return dict.fromkeys(
        Slot.of(init, lead, member)
        for init in init_times
        for member in (members or (None,))
        for lead in lead_times
    )
