"""The products of a run while it goes on, as the output thread of each rank sees them."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.fields import Field
from jigsaw_forecast.forecast.exchange import assign_units
from jigsaw_forecast.forecast.output import open_writer, writer_kind
from jigsaw_forecast.forecast.product import (
    Mark,
    OutputSpec,
    Payload,
    Product,
    Slot,
    Writer,
    describe,
)
from jigsaw_forecast.forecast.record import (
    append_progress,
    done_line,
    implausible_line,
    remove_progress,
    write_record,
)
from jigsaw_forecast.forecast.restart import RestartFolder
from jigsaw_forecast.forecast.resume import Standing
from jigsaw_forecast.forecast.schedule import Start
from jigsaw_forecast.forecast.staging import ProductLock
from jigsaw_forecast.forecast.stopping import Implausible
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.side_channel import SideChannel
from jigsaw_forecast.state import State

_log = logging.getLogger(__name__)

Owners = tuple[tuple[Field, int], ...]  # the rank of the model group that encodes each field


@dataclass(frozen=True)
class Job:
    """What one step leaves to the output thread of a rank.

    Attributes:
        slots: Of every model group, None where it is idle; the same on all ranks.
        maps: This rank's whole maps, by who encodes what; none where its group is idle.
        restart: Where this rank's piece of the model's state is saved, None where it is not.
        rollout_step: The step.
        normalised: The piece, None where it is not saved.
        implausible: What left its plausible range since the job before; the same on all ranks.
    """

    slots: tuple[Slot | None, ...]
    maps: Mapping[Owners, State]
    rollout_step: int
    restart: RestartFolder | None = None
    normalised: npt.NDArray[np.float32] | None = None
    implausible: Sequence[Implausible] = ()


@dataclass
class OutputSeconds:
    """Where the time of an output thread goes."""

    join: float = 0.0  # bands to whole maps
    encode: float = 0.0  # the rank's own fields; written too, in zarr stores
    append: float = 0.0  # collecting and writing files of one writer
    mark: float = 0.0  # agreeing that a lead time is done, and saying so
    restart: float = 0.0


@dataclass(frozen=True)
class RunProducts:
    """The products of a run as all ranks know them before it starts.

    Attributes:
        products: With the times that each holds.
        spec: What they hold, for all times.
        standings: How far each is.
        creators: The rank that makes each.
        locks: This rank's, on those that it makes.
        overwrite: Whether products that exist are replaced when theirs are whole.
        restarts: Where each forecast keeps its restart states.
    """

    products: tuple[Product, ...]
    spec: OutputSpec
    standings: Mapping[Path, Standing]
    creators: Mapping[Path, int]
    locks: dict[Path, ProductLock] = field(default_factory=dict)
    overwrite: bool = False
    restarts: Mapping[Start, RestartFolder] = field(default_factory=dict)

    def lacks(self, product: Product, slot: Slot | None) -> bool:
        """Whether this run has to write a lead time into a product."""
        standing = self.standings[product.path]
        is_there = standing.is_whole or slot in standing.marks
        return slot is not None and slot in product.slots and not is_there

    def give_back(self) -> None:
        """Gives this rank's locks up, and removes what was made for products that hold nothing."""
        for path, lock in self.locks.items():
            if not self.standings[path].marks:
                remove_progress(path)
            lock.release()
        self.locks.clear()

    def owners(self, product: Product, group_size: int) -> Owners:
        """The rank of a model group that encodes each field of a product."""
        units = writer_kind(product.path).units_of(self.spec.narrowed(product))
        return tuple(assign_units(units, group_size).items())


class Products:
    """Opens each product at its first time, writes it with all ranks, names it when it is whole."""

    def __init__(
        self,
        mesh: Mesh,
        run: RunProducts,
        channel: SideChannel,
        record: Callable[[Product], dict[str, Any]],
    ) -> None:
        """Opens nothing yet.

        Args:
            mesh: This rank's mesh; its collectives are not used.
            run: The products.
            channel: Between the output threads.
            record: Makes the record of a product that is whole.
        """
        self.run = run
        self.num_bytes_written = 0
        self.seconds = OutputSeconds()
        self.waiting = tuple(p for p in run.products if not run.standings[p.path].is_whole)
        self._mesh = mesh
        self._channel = channel
        self._record = record
        self._done = {
            product.path: set(run.standings[product.path].marks) for product in self.waiting
        }
        self._open: dict[Path, Writer] = {}
        self._sharing: dict[Path, set[int]] = {}  # ranks that write into a product's file

    def write(self, job: Job) -> None:
        """Writes a lead time of every model group, marks it as done, names what is whole.

        Raises:
            StoppedError: Some rank could not write; on every rank.

        Communication:
            Over the side channel: for each file of one writer, one collection; two agreements; more
            where products are opened and finished.
        """
        own = job.slots[self._mesh.data.index]
        active = [
            (product, [slot for slot in job.slots if slot and self.run.lacks(product, slot)])
            for product in self.waiting
        ]
        active = [(product, slots) for product, slots in active if slots]
        self._open_writers([product for product, _ in active])
        failures: list[Exception] = []
        for product, slots in active:
            self._write_product(product, slots, own, job, failures)
        with self.timed("restart"):
            if job.restart is not None and job.normalised is not None:
                _attempt(failures, lambda: self._save_restart(job))
        with self.timed("mark"):
            self._channel.together(lambda: _raise_first(failures))
            self._channel.together(lambda: self._mark(active, job))
            for product, slots in active:
                self._done[product.path].update(slots)
            if job.restart is not None and self._mesh.model.index == 0:
                job.restart.forget_older(job.rollout_step)
            for product, _ in active:
                if len(self._done[product.path]) == len(product.slots):
                    self._finish(product)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to one of the seconds."""
        began = time.perf_counter()
        try:
            yield
        finally:
            before = getattr(self.seconds, name)
            setattr(self.seconds, name, before + time.perf_counter() - began)

    def num_done(self) -> dict[Path, int]:
        """Lead times that are done, by product that has no name yet."""
        return {path: len(done) for path, done in self._done.items()}

    def finish_rest(self) -> None:
        """Names products that are whole but were not named, as a run that was killed leaves them.

        Communication:
            As `write`.
        """
        for product in self.waiting:
            is_whole = len(self._done[product.path]) == len(product.slots)
            if is_whole and product.path in self._done:
                self._open_writers([product])
                self._finish(product)

    def close(self) -> None:
        """Gives up what is not whole; a product of which lead times are done stays as `.partial`.

        On each rank for itself, when its output thread has ended.
        """
        if self._mesh.rank == 0:
            self._forget_idle_restarts()
        for product in self.waiting:
            is_kept = bool(self._done[product.path])
            lock = self.run.locks.pop(product.path, None)
            if lock is not None and not is_kept:
                remove_progress(product.path)  # before the writer gives the lock up
            writer = self._open.pop(product.path, None)
            if writer is not None:
                writer.abort(keep=is_kept)
            if lock is not None:
                lock.release()

    def _forget_idle_restarts(self) -> None:
        """Removes states of forecasts of which nothing is done: no run goes on from them."""
        begun = {
            (slot.init_time, slot.member)
            for product in self.run.products
            for slot in self._done.get(product.path, product.slots)
        }
        for start, restart in self.run.restarts.items():
            if (start.init_time, start.member) not in begun:
                restart.forget()

    def _open_writers(self, products: Sequence[Product]) -> None:
        """Opens what is not open yet, on the rank that makes it first."""
        fresh = [product for product in products if product.path not in self._open]
        if fresh:
            self._channel.together(lambda: self._open_as(fresh, is_creator=True))
            self._channel.together(lambda: self._open_as(fresh, is_creator=False))
        for product in fresh:
            # a rank shares the file where it sees the one that the creator has made
            names = self._channel.texts(self._open[product.path].share())
            of_creator = names[self.run.creators[product.path]]
            sharing = [rank for rank, name in enumerate(names) if of_creator and name == of_creator]
            self._sharing[product.path] = set(sharing)

    def _open_as(self, products: Sequence[Product], *, is_creator: bool) -> None:
        for product in products:
            path = product.path
            if (self.run.creators[path] == self._mesh.rank) != is_creator:
                continue
            marks = self.run.standings[path].marks
            self._open[path] = open_writer(
                path,
                self.run.spec.narrowed(product),
                overwrite=self.run.overwrite,
                is_creator=is_creator,
                lock=self.run.locks.get(path),
                finished=marks or None,
            )

    def _write_product(
        self,
        product: Product,
        slots: Sequence[Slot],
        own: Slot | None,
        job: Job,
        failures: list[Exception],
    ) -> None:
        writer = self._open[product.path]
        payload: Payload = []
        with self.timed("encode"):
            if own in slots:
                owners = self.run.owners(product, self._mesh.model.size)
                maps = job.maps[owners]
                if maps.fields:
                    member = own.member if own is not None else None
                    made = _attempt(failures, lambda: writer.encode(maps, member))
                    payload = made or []
        if writer.is_open_on_all_ranks:
            return
        with self.timed("append"):
            for slot in slots:
                pieces = payload if slot == own else []
                self._append(product, slot, pieces, failures)

    def _append(
        self, product: Product, slot: Slot, pieces: Payload, failures: list[Exception]
    ) -> None:
        """Puts the pieces of all ranks into a file, in the order of the fields."""
        writer, creator = self._open[product.path], self.run.creators[product.path]
        sharing = self._sharing[product.path]
        if not sharing:
            whole = self._channel.collect(pieces, creator)
            _attempt(failures, lambda: writer.append(slot, whole))
            return
        tables = self._channel.texts(json.dumps(describe(pieces)))
        table = sorted(
            (number, size, crc) for text in tables for number, size, crc in json.loads(text)
        )
        own = pieces if self._channel.rank in sharing else []
        if len(sharing) < self._channel.size:
            others = [] if self._channel.rank in sharing else pieces
            own = own + self._channel.collect(others, creator)
        _attempt(failures, lambda: writer.write_at(slot, table, own))

    def _save_restart(self, job: Job) -> None:
        assert job.restart is not None
        assert job.normalised is not None
        job.restart.save(job.rollout_step, self._mesh.model.index, job.normalised)

    def _mark(self, active: Sequence[tuple[Product, Sequence[Slot]]], job: Job) -> None:
        found = [asdict(item) for item in job.implausible]
        for product, slots in active:
            writer = self._open[product.path]
            if not writer.is_creator:
                continue
            if found:
                append_progress(product.path, implausible_line(found))
            for slot in slots:
                mark: Mark = writer.mark_done(*slot)
                append_progress(product.path, done_line(slot, mark))

    def _finish(self, product: Product) -> None:
        """Closes a product on all ranks, then gives it its name on the rank that made it."""
        path = product.path
        writer = self._open[path]
        self._channel.together(lambda: None if writer.is_creator else writer.seal())
        self._channel.together(lambda: self._publish(product, writer))
        self.num_bytes_written += writer.bytes_written
        del self._open[path]
        del self._done[path]
        self.waiting = tuple(other for other in self.waiting if other is not product)
        self.run.locks.pop(path, None)
        if self._mesh.rank == 0:
            _log.info("wrote %s", path)

    def _publish(self, product: Product, writer: Writer) -> None:
        if writer.is_creator:
            writer.seal()
            write_record(product.path, self._record(product))
            writer.publish()
            remove_progress(product.path)


def _attempt(failures: list[Exception], action: Callable[[], Any]) -> Any:
    """Does something, unless something has failed before; what fails is raised when all agree."""
    if failures:
        return None
    try:
        return action()
    except Exception as error:  # noqa: BLE001  raised by `_raise_first`
        failures.append(error)
    return None


def _raise_first(failures: Sequence[Exception]) -> None:
    if failures:
        raise failures[0]
