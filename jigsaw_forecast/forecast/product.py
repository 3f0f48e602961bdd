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
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.errors import OutputError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.forecast.staging import Staging
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.state import State

ONE_HOUR = np.timedelta64(1, "h")

Unit = tuple[Field, ...]
Maps = npt.NDArray[np.float32]
Times = tuple[np.datetime64, np.timedelta64]


@dataclass(frozen=True)
class Product:
    """One file or store to be written, and the times that it holds.

    Attributes:
        path: Final name.
        init_times: Initial times in it, in order.
        lead_times: Lead times in it, in order.
    """

    path: Path
    init_times: tuple[np.datetime64, ...]
    lead_times: tuple[np.timedelta64, ...]

    def holds(self, init_time: np.datetime64, lead_time: np.timedelta64) -> bool:
        """Whether a lead time of an initial time is part of this product."""
        return _in_seconds(init_time, lead_time) in self._times

    @cached_property
    def _times(self) -> dict[Times, None]:
        return _all_times(self.init_times, self.lead_times)


@dataclass(frozen=True)
class OutputSpec:
    """Everything that a writer needs to know before the first state.

    Attributes:
        fields: Fields to write, in order; prognostic and diagnostic.
        grid: The whole grid, pole rows included.
        init_times: Initial times, UTC.
        lead_times: All lead times that will be written, whole hours; 0 where the initial state is.
        attributes: Provenance: title, source, checkpoint, history, notice and so on.
        grib_keys: Keys of `--grib`, for GRIB2 products only.
    """

    fields: tuple[Field, ...]
    grid: Grid
    init_times: tuple[np.datetime64, ...]
    lead_times: tuple[np.timedelta64, ...]
    attributes: Mapping[str, str]
    grib_keys: Mapping[str, str]

    def __post_init__(self) -> None:
        """Refuses an empty or repeated selection and lead times that are not whole hours."""
        for name in ("fields", "init_times", "lead_times"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"output {name} are empty or repeat: {values}")
        if any(lead % ONE_HOUR for lead in self.lead_times):
            raise ValueError(f"lead times are not whole hours: {self.lead_times}")

    def narrowed(self, product: Product) -> "OutputSpec":
        """The same specification with only the times that a product holds."""
        return replace(self, init_times=product.init_times, lead_times=product.lead_times)

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


class Writer(ABC):
    """Writes one product, lead time by lead time; knows nothing of ranks but who creates.

    The creator makes the product, marks lead times as done and finishes it. Other ranks open the
    writer after the creator has, with `is_creator=False`, and only write whole units.

    Attributes:
        path: Final name of the product.
        spec: What it holds.
        is_creator: Whether this process creates and finishes the product.
        is_open_on_all_ranks: Whether every rank writes into products of this kind.
        bytes_written: Bytes that this process has written so far.
    """

    is_open_on_all_ranks: ClassVar[bool] = False
    bytes_written: int

    def __init__(self, path: Path, spec: OutputSpec, *, overwrite: bool, is_creator: bool) -> None:
        """Creates `NAME.partial`, or opens it; leaves nothing behind where that fails.

        Raises:
            OutputError: See `Staging`, and `_open` of each kind.
        """
        self.path = path
        self.spec = spec
        self.is_creator = is_creator
        self.bytes_written = 0
        self._times = _all_times(spec.init_times, spec.lead_times)
        self._done: set[Times] = set()
        self._is_whole = False
        self._staging: Staging | None = None
        if is_creator or self.is_open_on_all_ranks:
            self._staging = Staging(path, overwrite=overwrite, joins=not is_creator)
        try:
            self._open()
        except BaseException:
            self.abort()
            raise

    def holds(self, init_time: np.datetime64, lead_time: np.timedelta64) -> bool:
        """Whether a lead time of an initial time is part of this product."""
        return _in_seconds(init_time, lead_time) in self._times

    def units(self) -> list[Unit]:
        """Groups of fields that one rank writes together; here all fields are one group."""
        return [self.spec.fields]

    def write(self, states: State) -> None:
        """Writes one or more whole units of one lead time.

        Args:
            states: A whole-globe state (all rows) with the fields of the units.

        Raises:
            OutputError: The values or the disk do not allow it.
        """
        self._check(states)
        self._write(states, states.data.detach().to("cpu").float().numpy())

    def mark_done(self, init_time: np.datetime64, lead_time: np.timedelta64) -> None:
        """Records that all units of a lead time are written by all ranks; creator only."""
        assert self.is_creator, "only the creator marks lead times as done"
        key = _in_seconds(init_time, lead_time)
        assert key in self._times, f"lead time {key} is not part of {self.path}"
        self._done.add(key)
        self._record_done()

    def finish(self) -> None:
        """Closes the product and gives it its name; nothing happens on other ranks.

        Raises:
            OutputError: Lead times are not done, or the disk does not allow it.
        """
        if not self.is_creator:
            self._close()
            if self._staging is not None:
                self._staging.release()
            return
        lacking = [key for key in self._times if key not in self._done]
        if lacking:
            listed = ", ".join(f"{init} +{lead // ONE_HOUR} h" for init, lead in lacking[:10])
            more = f" and {len(lacking) - 10} more" if len(lacking) > 10 else ""
            raise OutputError(f"{self.path} is not whole; missing {listed}{more}")
        self._seal()
        self._close()
        self._is_whole = True
        assert self._staging is not None
        self._staging.publish()

    def abort(self) -> None:
        """Closes and removes `NAME.partial`; what has the final name stays.

        A product that is whole and only failed to get its name is kept as `NAME.partial`.
        Harmless when repeated and after `finish`.
        """
        with suppress(OutputError):
            self._close()
        if self._staging is not None:
            if self._is_whole:
                self._staging.release()
            else:
                self._staging.discard()

    def _check(self, states: State) -> None:
        expected = (len(states.fields), self.spec.grid.num_lat, self.spec.grid.num_lon)
        if states.grid != self.spec.grid or tuple(states.data.shape) != expected:
            raise ValueError(
                f"writer of {self.spec.grid.name} maps got {states.grid.name} with shape "
                f"{tuple(states.data.shape)}"
            )
        if not self.holds(states.init_time, states.lead_time):
            raise ValueError(
                f"{states.init_time} +{states.lead_hours} h is not part of {self.path}"
            )
        held = set(states.fields)
        parts = [unit for unit in self.units() if held & set(unit)]
        if {field for unit in parts for field in unit} != held:
            raise ValueError(f"fields {', '.join(map(str, states.fields))} are not whole units")

    @abstractmethod
    def _open(self) -> None:
        """Creates `NAME.partial` (creator) or opens it (other ranks, where they write)."""

    @abstractmethod
    def _write(self, states: State, maps: Maps) -> None:
        """Writes checked values, shape [F, Y, X]."""

    @abstractmethod
    def _close(self) -> None:
        """Closes files; harmless when repeated; raises `OutputError` where that fails."""

    def _record_done(self) -> None:  # noqa: B027 - optional, not abstract
        """Makes what is done visible to readers of the partial product, where it can."""

    def _seal(self) -> None:  # noqa: B027 - optional, not abstract
        """Completes metadata before closing."""


def _in_seconds(init_time: np.datetime64, lead_time: np.timedelta64) -> Times:
    # equal times of different units have different hashes
    return init_time.astype("datetime64[s]"), lead_time.astype("timedelta64[s]")


def _all_times(
    init_times: Sequence[np.datetime64], lead_times: Sequence[np.timedelta64]
) -> dict[Times, None]:
    """Every initial time with every lead time, in order."""
    return dict.fromkeys(_in_seconds(init, lead) for init in init_times for lead in lead_times)
