"""What a forecast product is: its specification, its staging beside the final name, its writer.

A product is written as `NAME.partial` and takes its name only when it is whole. While a run
lives it holds a lock on `.NAME.lock`, so that a second run on the same name is refused.
"""

import errno
import fcntl
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.errors import OutputError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.state import State

PARTIAL_SUFFIX = ".partial"
ONE_HOUR = np.timedelta64(1, "h")

Unit = tuple[Field, ...]
Maps = npt.NDArray[np.float32]


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


def refusal(path: Path, *, overwrite: bool) -> str | None:
    """Why nothing may be written under a final name, or None; does not test the folder.

    Only what a run could have written is ever replaced: a file by a file, a zarr store by a
    zarr store.
    """
    if not os.path.lexists(path):
        return None
    is_store = path.suffix == ".zarr"
    if is_store and not any((path / name).exists() for name in ("zarr.json", ".zgroup")):
        return f"{path} exists and is not a zarr store; choose another name"
    if not is_store and path.is_dir():
        return f"{path} is a folder; choose another name"
    if not overwrite:
        return f"{path} exists; add --overwrite to replace it, or choose another name"
    return None


@contextmanager
def reported(path: Path, *also: type[Exception]) -> Iterator[None]:
    """Turns a failure of the file system into an `OutputError` that names file and reason.

    Args:
        path: The final name of the product.
        also: Further exceptions with which a library reports a failure to write.
    """
    failures: tuple[type[Exception], ...] = (OSError, *also)
    try:
        yield
    except failures as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reason += "; free some space or choose another --output"
        raise OutputError(f"cannot write {path}: {reason}") from error


class Staging:
    """The way of one product from `NAME.partial` to `NAME`, under a lock."""

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        """Takes the lock and clears what an earlier, dead run left under `NAME.partial`.

        Raises:
            OutputError: The name is taken, another run writes it, or the folder is not writable.
        """
        self.path = path
        self.partial = path.with_name(path.name + PARTIAL_SUFFIX)
        self.overwrite = overwrite
        self._lock_path = path.with_name(f".{path.name}.lock")
        self._old = path.with_name(f".{path.name}.old")
        self._lock_fd: int | None = None
        with reported(path):
            self._take_lock()
            reason = refusal(path, overwrite=overwrite)
            if reason is not None:
                self.release()
                raise OutputError(reason)
            if os.path.lexists(self._old) and not os.path.lexists(path):
                os.rename(self._old, path)  # a run died between the two renames of publish
            _remove(self.partial)

    def publish(self) -> None:
        """Gives the finished product its name; an old one is replaced only now.

        Raises:
            OutputError: The name has been taken in the meantime, or renaming fails.
        """
        reason = refusal(self.path, overwrite=self.overwrite)
        if reason is not None:
            raise OutputError(f"{reason}; the finished product is {self.partial}")
        with reported(self.path):
            if self.partial.is_dir() and os.path.lexists(self.path):
                _remove(self._old)
                os.rename(self.path, self._old)
                try:
                    os.rename(self.partial, self.path)
                except OSError:
                    os.rename(self._old, self.path)
                    raise
                _remove(self._old)
            else:
                os.replace(self.partial, self.path)
        self.release()

    def discard(self) -> None:
        """Removes `NAME.partial`; what has the final name stays."""
        with reported(self.path):
            _remove(self.partial)

    def release(self) -> None:
        """Gives the lock up; harmless when repeated."""
        if self._lock_fd is not None:
            with suppress(OSError):
                os.unlink(self._lock_path)
            os.close(self._lock_fd)
            self._lock_fd = None

    def _take_lock(self) -> None:
        while self._lock_fd is None:
            lock_fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock_fd)
                raise OutputError(
                    f"{self.path} is being written by another run; wait for it to end or choose "
                    "another --output"
                ) from None
            except OSError as error:
                # file systems without locks (some network mounts) leave runs unguarded
                if error.errno not in (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS):
                    os.close(lock_fd)
                    raise
            try:
                is_current = os.fstat(lock_fd).st_ino == os.stat(self._lock_path).st_ino
            except FileNotFoundError:
                is_current = False
            if is_current:
                self._lock_fd = lock_fd
            else:  # the previous owner removed the file after it was opened here
                os.close(lock_fd)


class Writer(ABC):
    """Writes one product, lead time by lead time; knows nothing of ranks but who creates.

    The creator makes the product, marks lead times as done and finishes it. Other ranks open the
    writer after the creator has, with `is_creator=False`, and only write whole units.

    Attributes:
        path: Final name of the product.
        spec: What it holds.
        bytes_written: Bytes that this process has written so far.
    """

    bytes_written: int

    def __init__(self, path: Path, spec: OutputSpec, *, overwrite: bool, is_creator: bool) -> None:
        """Takes the product's name (creator only); the children then create or open the file.

        Raises:
            OutputError: See `Staging`.
        """
        self.path = path
        self.spec = spec
        self.bytes_written = 0
        self._done: set[tuple[np.datetime64, np.timedelta64]] = set()
        self._staging = Staging(path, overwrite=overwrite) if is_creator else None

    @property
    def is_creator(self) -> bool:
        """Whether this process creates and finishes the product."""
        return self._staging is not None

    @property
    def is_complete(self) -> bool:
        """Whether all lead times of all initial times are marked as done."""
        return len(self._done) == len(self.spec.init_times) * len(self.spec.lead_times)

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
        key = (init_time.astype("datetime64[s]"), lead_time.astype("timedelta64[s]"))
        assert key in self._all_times(), f"lead time {key} is not part of {self.path}"
        self._done.add(key)
        self._record_done()

    def finish(self) -> None:
        """Closes the product and gives it its name; nothing happens on other ranks.

        Raises:
            OutputError: Lead times are not done, or the disk does not allow it.
        """
        if self._staging is None:
            self._close()
            return
        lacking = [key for key in self._all_times() if key not in self._done]
        if lacking:
            listed = ", ".join(f"{init} +{lead // ONE_HOUR} h" for init, lead in lacking[:10])
            more = f" and {len(lacking) - 10} more" if len(lacking) > 10 else ""
            raise OutputError(f"{self.path} is not whole; missing {listed}{more}")
        self._seal()
        self._close()
        self._staging.publish()

    def abort(self) -> None:
        """Closes without touching the final name; keeps `NAME.partial` if a lead time is done."""
        with suppress(OutputError):
            self._close()
        if self._staging is not None:
            if not self._done:
                with suppress(OutputError):
                    self._staging.discard()
            self._staging.release()

    def _all_times(self) -> list[tuple[np.datetime64, np.timedelta64]]:
        return [
            (init.astype("datetime64[s]"), lead.astype("timedelta64[s]"))
            for init in self.spec.init_times
            for lead in self.spec.lead_times
        ]

    def _check(self, states: State) -> None:
        expected = (len(states.fields), self.spec.grid.num_lat, self.spec.grid.num_lon)
        if states.grid != self.spec.grid or tuple(states.data.shape) != expected:
            raise ValueError(
                f"writer of {self.spec.grid.name} maps got {states.grid.name} with shape "
                f"{tuple(states.data.shape)}"
            )
        if (states.init_time, states.lead_time) not in self._all_times():
            raise ValueError(
                f"{states.init_time} +{states.lead_hours} h is not part of {self.path}"
            )
        held = set(states.fields)
        parts = [unit for unit in self.units() if held & set(unit)]
        if {field for unit in parts for field in unit} != held:
            raise ValueError(f"fields {', '.join(map(str, states.fields))} are not whole units")

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


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
