"""Does units of work in this process or in several, each unit's piece a file of its own."""

import logging
import multiprocessing
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from jigsaw_forecast import log
from jigsaw_forecast.errors import StoppedError
from jigsaw_forecast.parallel.workers import end_with_parent
from jigsaw_forecast.verify.pieces import Piece, Unit
from jigsaw_forecast.verify.request import ScorePlan
from jigsaw_forecast.verify.scoring import Scorer
from jigsaw_forecast.verify.sources import Sources

_log = logging.getLogger(__name__)
PIECE_SUFFIX = ".npz"
_worker: "_Worker | None" = None


@dataclass
class _Worker:
    scorer: Scorer
    num_leads: int
    folder: Path
    digest: str

    def do(self, unit: Unit, progress: log.Progress | None = None) -> int:
        """Scores a unit and writes its piece; its initial times by lead times by variables."""

        def advance(count: int) -> None:
            if progress is not None:
                progress.advance(count)

        piece = self.scorer.score(unit, advance)
        piece.save(piece_path(self.folder, unit), self.digest)
        return len(unit.inits) * len(unit.variables) * self.num_leads


def piece_path(folder: Path, unit: Unit) -> Path:
    """Where the piece of a unit lies."""
    return folder / f"{unit.name}{PIECE_SUFFIX}"


def is_done(folder: Path, unit: Unit, digest: str) -> bool:
    """Whether an earlier run has left the piece of this unit of this plan."""
    path = piece_path(folder, unit)
    return path.exists() and Piece.load(path, digest) is not None


def do_units(
    plan: ScorePlan,
    sources: Sources | None,
    units: Sequence[Unit],
    folder: Path,
    digest: str,
    num_workers: int,
    num_ranks_here: int = 1,
) -> None:
    """Scores units and writes their pieces.

    Args:
        plan: What they belong to.
        sources: Its open files, for work in this process.
        units: Those to do.
        folder: For the pieces.
        digest: Of the plan.
        num_workers: Processes; one works here.
        num_ranks_here: Ranks on this machine, each with as many, which share its memory.

    Raises:
        StoppedError: A worker process was killed.
    """
    num_leads = int(plan.lead_times.size)
    total = sum(len(unit.inits) * len(unit.variables) for unit in units) * num_leads
    label = "scoring"
    with log.Progress(label, total, "initial x lead times x variables") as progress:
        if num_workers == 1 or len(units) == 1:
            scorer = Scorer(plan, sources, num_ranks_here)
            worker = _Worker(scorer, num_leads, folder, digest)
            for unit in units:
                worker.do(unit, progress)
            return
        start = (plan, folder, digest, min(num_workers, len(units)) * num_ranks_here)
        _in_processes(units, min(num_workers, len(units)), start, progress)


def _in_processes(
    units: Sequence[Unit],
    number: int,
    start: tuple[ScorePlan, Path, str, int],
    progress: log.Progress,
) -> None:
    executor = ProcessPoolExecutor(
        number,
        mp_context=multiprocessing.get_context("spawn"),  # zarr keeps threads, which fork breaks
        initializer=_start,
        initargs=start,
    )
    before = set(multiprocessing.active_children())
    try:
        for future in as_completed([executor.submit(_do, unit) for unit in units]):
            progress.advance(future.result())
        executor.shutdown()
    except BrokenProcessPool as fault:
        raise StoppedError(
            "a worker process was ended from outside, perhaps for want of memory; go on with "
            "--resume, perhaps with fewer --workers"
        ) from fault
    finally:
        # an error or a signal must not wait for units of minutes
        executor.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()


def _start(plan: ScorePlan, folder: Path, digest: str, num_processes: int) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers
    end_with_parent()
    scorer = Scorer(plan, num_processes=num_processes)
    _worker = _Worker(scorer, int(plan.lead_times.size), folder, digest)


def _do(unit: Unit) -> int:
    assert _worker is not None, "started by _start"
    return _worker.do(unit)
