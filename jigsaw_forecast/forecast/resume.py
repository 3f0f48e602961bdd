"""What is there of a run's products, and from where each forecast goes on."""

import json
import logging
import resource
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jigsaw_forecast.errors import OutputError
from jigsaw_forecast.forecast.output import writer_kind
from jigsaw_forecast.forecast.product import ONE_HOUR, Mark, OutputSpec, Product, Slot
from jigsaw_forecast.forecast.record import (
    Finding,
    Fingerprint,
    Progress,
    StateDigests,
    check_record_name,
    describe_differences,
    read_progress,
    read_record,
    recorded_states,
    remove_progress,
    write_progress,
)
from jigsaw_forecast.forecast.restart import RestartFolder, keep_only
from jigsaw_forecast.forecast.schedule import Schedule, Start
from jigsaw_forecast.forecast.staging import (
    PARTIAL_SUFFIX,
    ProductLock,
    old_path,
    put_back,
    refusal,
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
        implausible: What left its plausible range so far.
    """

    is_whole: bool = False
    marks: dict[Slot, Mark] = field(default_factory=dict)
    states: dict[Start, StateDigests] = field(default_factory=dict)
    implausible: list[Finding] = field(default_factory=list)

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
                "implausible": [dict(item) for item in self.implausible],
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
        return cls(found["is_whole"], marks, states, found["implausible"])


def find_whole(product: Product, run: Fingerprint, *, overwrite: bool) -> Standing | None:
    """A product that is there, whole, and this run's; None where it is not.

    A record is written just before its product takes the name. So where `NAME.partial` is this
    run's too, and has all that it needs to take the name, `NAME` may be an older product that it
    is to replace. It also counts before that where it may replace `NAME`.

    Args:
        product: The product.
        run: Fingerprint of this run.
        overwrite: Whether a product that exists may be replaced.
    """
    path = product.path
    record = read_record(path) if path.exists() else None
    if record is None or describe_differences(record.get("run", {}), run):
        return None
    progress = read_progress(path) if _partial(path).exists() else None
    if progress is not None and not describe_differences(progress.run, run):
        num_marks = sum(slot in product.slots for slot in progress.marks)
        if overwrite or num_marks == len(product.slots):
            return None
    states, implausible = recorded_states(record), record.get("implausible", [])
    return Standing(is_whole=True, states=states, implausible=implausible)


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
        with reported(path):
            put_back(path)
        if not resume and (reason := refusal(path, overwrite=overwrite)) is not None:
            raise OutputError(reason)
        standing = _find(product, spec, run, overwrite=overwrite) if resume else Standing()
        if not standing.is_whole:
            _prepare(path, run, standing)
    except BaseException:
        lock.release()
        raise
    if standing.is_whole:
        _remove_sides(path)
        lock.release()
        return standing, None
    return standing, lock


def _find(product: Product, spec: OutputSpec, run: Fingerprint, *, overwrite: bool) -> Standing:
    """How far a product is; refuses what another run has made.

    Raises:
        OutputError: Names what differs.
    """
    path, partial = product.path, _partial(product.path)
    there = find_whole(product, run, overwrite=overwrite)
    if there is not None:
        return there
    if path.exists() and not overwrite:
        record = read_record(path)
        why = f"missing its record {path.name}.json"
        if record is not None:
            different = describe_differences(record.get("run", {}), run)
            why = "; ".join(different) or f"its record may be that of {partial.name}, which is done"
        raise OutputError(
            f"--resume: {path} is of another run ({why}); add --overwrite to replace it, or "
            "choose another --output"
        )
    progress = read_progress(path)
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
    return Standing(False, marks, progress.states, progress.implausible) if marks else Standing()


def _prepare(path: Path, run: Fingerprint, standing: Standing) -> None:
    """Makes what is on disk agree with what this run goes on with."""
    with reported(path):
        if not standing.marks:
            remove(_partial(path))
            for side in writer_kind(path).side_paths(path):
                remove(side)
        progress = Progress(run, standing.states, standing.marks, standing.implausible)
        write_progress(path, progress)


def remove_leftovers(products: Sequence[Product]) -> None:
    """Removes what a run that was killed just after the naming has left beside its products."""
    for product in products:
        try:
            lock = ProductLock(product.path, joins=False)
        except (OutputError, OSError):
            continue  # that run still lives, or the folder allows nothing
        _remove_sides(product.path)
        if not _partial(product.path).exists():
            keep_only([product], [])
        lock.release()


def _remove_sides(path: Path) -> None:
    """Removes what the making of a product that has its name has left, but no other product."""
    if _partial(path).exists():
        return  # of a run that is to replace it
    remove_progress(path)
    for side in (old_path(path), *writer_kind(path).side_paths(path)):
        remove_if_possible(side)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL_SUFFIX)


def find_steps(
    folders: Sequence[RestartFolder],
    products: Sequence[Product],
    standings: Mapping[Path, Standing],
    schedule: Schedule,
) -> list[int | None]:
    """The rollout step that each forecast goes on from; removes the states that none goes on from.

    On one rank, when all products are locked. Arguments and results: see `step_to_go_on_from`.
    """
    begun = {
        Start(slot.init_time, slot.member)
        for product in products
        for slot in _slots_there(product, standings[product.path])
    }
    steps = [
        # without anything done, nothing tells whether the states that are there are this run's
        step_to_go_on_from(folder, products, standings, schedule, is_begun=folder.start in begun)
        for folder in folders
    ]
    # beside what is whole there may be the states of a run that is to replace it
    own = [p for p in products if not (standings[p.path].is_whole and _partial(p.path).exists())]
    keep_only(own, [folder for folder, step in zip(folders, steps, strict=True) if step])
    return steps


def step_to_go_on_from(
    folder: RestartFolder,
    products: Sequence[Product],
    standings: Mapping[Path, Standing],
    schedule: Schedule,
    *,
    is_begun: bool,
) -> int | None:
    """The rollout step that a forecast goes on from: 0 at its start, None where all is written.

    Args:
        folder: Its restart states.
        products: All products of the run.
        standings: How far each product is.
        schedule: Of the run.
        is_begun: Whether anything of it is done.
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
    if not is_begun:
        return 0
    first_lacking = min(lacking)
    return next(
        (step for step in folder.whole_steps() if schedule.lead_time(step) < first_lacking), 0
    )


def _slots_there(product: Product, standing: Standing) -> Collection[Slot]:
    return product.slots if standing.is_whole else standing.marks


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
                remove_progress(path)
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
    begun = [product for product in products if num_done.get(product.path)]
    lines = [
        f"{product.path}{PARTIAL_SUFFIX} holds {num_done[product.path]} of "
        f"{len(product.slots)} lead times"
        for product in begun
    ]
    if not lines:
        return ""
    more = f" and {len(lines) - 3} more products" if len(lines) > 3 else ""
    replaces = any(product.path.exists() for product in begun)
    options = "--resume --overwrite" if replaces else "--resume"
    return f"{'; '.join(lines[:3])}{more}; {options} goes on from there"


def _allow_open_files(num_locks: int) -> None:
    """Raises this process's limit of open files where a lock on each product needs it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = num_locks + OTHER_OPEN_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
