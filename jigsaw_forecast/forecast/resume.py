"""What is there of a run's products, and from where each forecast goes on."""

import json
import logging
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jigsaw_forecast.errors import OutputError
from jigsaw_forecast.forecast.output import writer_kind
from jigsaw_forecast.forecast.product import ONE_HOUR, Mark, OutputSpec, Product, Slot
from jigsaw_forecast.forecast.record import (
    Fingerprint,
    Progress,
    StateDigests,
    check_record_name,
    describe_differences,
    read_progress,
    read_record,
    remove_progress,
    write_progress,
)
from jigsaw_forecast.forecast.restart import RestartFolder, restart_root
from jigsaw_forecast.forecast.schedule import Schedule, Start
from jigsaw_forecast.forecast.staging import (
    PARTIAL_SUFFIX,
    ProductLock,
    remove,
    remove_if_possible,
    reported,
)
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.together import gather_texts, together

_log = logging.getLogger(__name__)
OTHER_OPEN_FILES = 512  # sockets, shards, what is being written


@dataclass
class Standing:
    """How far a product is when a run begins.

    Attributes:
        is_whole: Whether it has its name and is this run's.
        marks: Lead times that are done and were found undamaged.
        states: Digests of the initial states that its forecasts were started from.
    """

    is_whole: bool = False
    marks: dict[Slot, Mark] = field(default_factory=dict)
    states: dict[Start, StateDigests] = field(default_factory=dict)

    def as_text(self) -> str:
        """For the other ranks."""
        return json.dumps(
            {
                "is_whole": self.is_whole,
                "marks": [
                    [str(slot.init_time), slot.lead_hours, slot.member, dict(mark)]
                    for slot, mark in self.marks.items()
                ],
                "states": [
                    [str(start.init_time), start.member, dict(digests)]
                    for start, digests in self.states.items()
                ],
            }
        )

    @classmethod
    def from_text(cls, text: str) -> "Standing":
        """What another rank found."""
        found: dict[str, Any] = json.loads(text)
        marks = {
            Slot.of(np.datetime64(init), hours * ONE_HOUR, member): mark
            for init, hours, member, mark in found["marks"]
        }
        states = {
            Start(np.datetime64(init, "s"), member): digests
            for init, member, digests in found["states"]
        }
        return cls(found["is_whole"], marks, states)


def take_up(
    product: Product, spec: OutputSpec, run: Fingerprint, *, resume: bool, overwrite: bool
) -> tuple[Standing, ProductLock | None]:
    """Locks a product and finds out how far it is; on the rank that makes it.

    Args:
        product: The product.
        spec: What it holds.
        run: Fingerprint of this run.
        resume: Whether to go on with what is there.
        overwrite: Whether what another run made may be replaced.

    Returns:
        How far it is, and the lock on it unless it is whole.

    Raises:
        OutputError: It is being written by another run, or is there and is another run's.
    """
    path = product.path
    check_record_name(path)
    with reported(path):
        lock = ProductLock(path, joins=False)
    try:
        standing = _find(product, spec, run, overwrite=overwrite) if resume else Standing()
        if not standing.is_whole:
            _prepare(path, run, standing)
    except BaseException:
        lock.release()
        raise
    if standing.is_whole:
        remove_if_possible(restart_root(path))  # left likewise
        lock.release()
        return standing, None
    return standing, lock


def _find(product: Product, spec: OutputSpec, run: Fingerprint, *, overwrite: bool) -> Standing:
    """How far a product is; refuses what another run has made.

    Raises:
        OutputError: Names what differs.
    """
    path = product.path
    if path.exists():
        record = read_record(path)
        different = describe_differences(record["run"], run) if record else []
        if record and not different:
            remove_progress(path)  # as `remove_leftovers`
            return Standing(is_whole=True)
        if not overwrite:
            why = "; ".join(different) if record else f"missing its record {path.name}.json"
            raise OutputError(
                f"--resume: {path} is of another run ({why}); add --overwrite to replace it, or "
                "choose another --output"
            )
    progress = read_progress(path)
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    if progress is None or not partial.exists():
        return Standing()
    if different := describe_differences(progress.run, run):
        if overwrite:
            return Standing()
        raise OutputError(
            f"--resume: {partial} was left by another run ({'; '.join(different)}); give the same "
            "options again, or add --overwrite to start afresh"
        )
    expected = {slot: mark for slot, mark in progress.marks.items() if slot in spec.slots}
    with reported(path):
        whole = writer_kind(path).recover(partial, spec, expected)
    if len(whole) < len(expected):
        _log.warning(
            "%s: %d lead times were marked as done, %d are undamaged: the others are made again",
            partial,
            len(expected),
            len(whole),
        )
    marks = {slot: expected[slot] for slot in whole}
    return Standing(False, marks, progress.states if marks else {})


def _prepare(path: Path, run: Fingerprint, standing: Standing) -> None:
    """Makes what is on disk agree with what this run goes on with."""
    with reported(path):
        if not standing.marks:
            remove(path.with_name(path.name + PARTIAL_SUFFIX))
            remove(restart_root(path))
        write_progress(path, Progress(run, standing.states, standing.marks))


def forget_product(path: Path) -> None:
    """Removes what `take_up` has made for a product of which nothing is done."""
    remove_progress(path)
    remove_if_possible(restart_root(path))


def remove_leftovers(path: Path) -> None:
    """Removes what a run that was killed just after the naming has left beside a product."""
    try:
        lock = ProductLock(path, joins=False)
    except (OutputError, OSError):
        return  # that run still lives, another rank does it, or the folder allows nothing
    remove_progress(path)
    remove_if_possible(restart_root(path))
    lock.release()


def first_product(products: Sequence[Product], start: Start, schedule: Schedule) -> Product:
    """The product beside which a forecast keeps its restart states."""
    for product in products:
        if any(start.at(lead) in product.slots for lead in schedule.lead_times):
            return product
    raise AssertionError(f"nothing is written of {start}")


def step_to_go_on_from(
    folder: RestartFolder,
    products: Sequence[Product],
    standings: Mapping[Path, Standing],
    schedule: Schedule,
) -> int | None:
    """The rollout step that a forecast goes on from: 0 at its start, None where all is written.

    Args:
        folder: Its restart states.
        products: All products of the run.
        standings: How far each product is.
        schedule: Of the run.
    """
    lacking = [
        lead
        for lead in schedule.lead_times
        for product in products
        if not standings[product.path].is_whole
        and folder.start.at(lead) in product.slots
        and folder.start.at(lead) not in standings[product.path].marks
    ]
    if not lacking:
        return None
    first_lacking = min(lacking)
    return next(
        (step for step in folder.whole_steps() if schedule.lead_time(step) < first_lacking), 0
    )


def take_up_all(
    mesh: Mesh,
    own: Sequence[Product],
    spec: OutputSpec,
    runs: Mapping[Path, Fingerprint],
    *,
    resume: bool,
    overwrite: bool,
) -> tuple[dict[Path, Standing], dict[Path, ProductLock]]:
    """Locks the products and finds out how far they are, each on the rank that makes it.

    Args:
        mesh: This rank's mesh.
        own: The products that this rank makes.
        spec: What the run writes.
        runs: Fingerprint of this run for each of them.
        resume: Whether to go on with what is there.
        overwrite: Whether what another run made may be replaced.

    Returns:
        How far every product is, and this rank's locks.

    Raises:
        OutputError: A product is being written by another run, or is another run's; all of them.

    Communication:
        Two gathers of texts over all ranks.
    """
    locks: dict[Path, ProductLock] = {}
    found: dict[str, str] = {}

    def look() -> None:
        _allow_open_files(len(own))
        problems = []
        for product in own:
            try:
                standing, lock = take_up(
                    product,
                    spec.narrowed(product),
                    runs[product.path],
                    resume=resume,
                    overwrite=overwrite,
                )
            except OutputError as error:
                problems.append(str(error))
                continue
            found[str(product.path)] = standing.as_text()
            if lock is not None:
                locks[product.path] = lock
        if problems:
            raise OutputError("\n".join(problems))

    try:
        together(mesh, look)
    except BaseException:
        for path, lock in locks.items():
            if not Standing.from_text(found[str(path)]).marks:
                forget_product(path)
            lock.release()
        raise
    standings: dict[Path, Standing] = {}
    for text in gather_texts(mesh, json.dumps(found)):
        standings |= {
            Path(path): Standing.from_text(standing) for path, standing in json.loads(text).items()
        }
    return standings, locks


def share_numbers(mesh: Mesh, own: Sequence[int | None]) -> list[int | None]:
    """The numbers that the first rank has found, on every rank.

    Communication:
        One gather of texts over all ranks.
    """
    numbers: list[int | None] = json.loads(gather_texts(mesh, json.dumps(list(own)))[0])
    return numbers


def describe_rest(products: Sequence[Product], num_done: Mapping[Path, int]) -> str:
    """What a run that stops leaves behind, for its last message; empty where it is nothing."""
    lines = [
        f"{product.path}{PARTIAL_SUFFIX} holds {num_done[product.path]} of "
        f"{len(product.slots)} lead times"
        for product in products
        if num_done.get(product.path)
    ]
    if not lines:
        return ""
    more = f" and {len(lines) - 3} more products" if len(lines) > 3 else ""
    return f"{'; '.join(lines[:3])}{more}; --resume goes on from there"


def _allow_open_files(num_locks: int) -> None:
    """Raises this process's limit of open files where a lock on each product needs it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = num_locks + OTHER_OPEN_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
