"""Scores forecasts: plans, computes in pieces, merges and writes the results."""

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jigsaw_forecast.errors import DataError, OutputError
from jigsaw_forecast.parallel.rank_environment import RankEnvironment, distributed_environment
from jigsaw_forecast.verify.memory import num_processes_that_fit
from jigsaw_forecast.verify.outputs import (
    Entries,
    make_maps,
    make_rank_histogram,
    make_scores,
    make_spectra,
    scores_name,
    write_csv,
    write_protocol,
)
from jigsaw_forecast.verify.pieces import Piece, Unit, split_work
from jigsaw_forecast.verify.plan_file import differences, digest_of, plan_to_json, read_plans
from jigsaw_forecast.verify.planning import plan_score
from jigsaw_forecast.verify.request import FORECAST, ScorePlan, ScoreRequest
from jigsaw_forecast.verify.statistics_file import FOLDER, StatisticsFile, StatisticsWriter
from jigsaw_forecast.verify.workers import do_units, is_done, piece_path

_log = logging.getLogger(__name__)

WORK_FOLDER = ".partial"
PLAN_NAME = "plan.json"
SUMS_NAME = "sums{}.npz"
_PROTOCOL = "protocol.json"
UNIT_BYTES = 1 << 30  # of forecasts: some ten seconds of work, lost when a run is stopped
_SMALL_BYTES = 256 << 20  # less is scored sooner in one process than others start
_POLL_PERIOD_S = 0.5
_MAX_WORKERS = 8
_INITS_A_READ = 16


def score(request: ScoreRequest) -> Path | None:
    """Scores what a request names and writes the results.

    Under torchrun and its like every rank scores a part of the work into the same folder and rank
    0 puts it together.

    Returns:
        The folder; None on other ranks than 0, which leave the results to it.

    Raises:
        ForecastError: Something is wrong with the request or its files; all of it is listed.
        StoppedError: The work was stopped and can be resumed.
    """
    environment = distributed_environment()
    rank, num_ranks = (environment.rank, environment.world_size) if environment else (0, 1)
    num_here = (environment.local_world_size or 1) if environment else 1
    plan, others, sources = plan_score(request)
    plans = [plan, *others]
    for warning in dict.fromkeys(w for one in plans for w in one.warnings):
        if rank == 0:
            _log.warning("%s", warning)
    digests = [digest_of(one) for one in plans]
    work = request.output / WORK_FOLDER
    if _is_whole(request, digests):
        _log.info("%s is whole already", request.output)
        return request.output
    _make_folder(work, request.resume, environment)
    pieces = []
    for one, digest in zip(plans, digests, strict=True):
        folder = work / digest[:16]
        folder.mkdir(exist_ok=True)
        workers = request.workers or _choose_workers(one, num_here)
        units = split_work(one, UNIT_BYTES, workers * num_ranks)
        mine = [u for u in units[rank::num_ranks] if not is_done(folder, u, digest)]
        if mine:
            opened = sources if one is plan else None
            do_units(one, opened, mine, folder, digest, workers, num_here)
        pieces.append([(unit, piece_path(folder, unit)) for unit in units])
    if rank != 0:
        return None
    _wait_for(path for some in pieces for _, path in some)
    _finish(request, plans, digests, pieces)
    return request.output


def _choose_workers(plan: ScorePlan, num_ranks_here: int) -> int:
    """Processes of a rank: no more than the machine has cores, and as its memory is bounded."""
    fields = sum(max(1, len(held)) for held in plan.levels.values())
    size = plan.latitudes.size * plan.longitudes.size * 4 * fields
    size *= int(plan.init_times.size * plan.lead_times.size)
    if size < _SMALL_BYTES:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    most = num_processes_that_fit(plan, min(cores or 1, _MAX_WORKERS))
    return max(1, most // num_ranks_here)


def _is_whole(request: ScoreRequest, digests: Sequence[str]) -> bool:
    """Whether the folder holds this very score.

    Raises:
        OutputError: It holds another one and may not be replaced.
    """
    protocol = request.output / _PROTOCOL
    if not protocol.exists():
        if request.output.exists() and not request.output.is_dir():
            raise OutputError(f"{request.output} is a file; --output names a folder")
        return False
    if request.overwrite:
        return False
    if not request.resume:
        raise OutputError(
            f"{request.output} holds a score; add --overwrite to replace it, or choose another "
            "--output"
        )
    stored = request.output / FOLDER / PLAN_NAME
    try:
        held = json.loads(stored.read_text(encoding="utf-8")).get("digests")
    except (OSError, ValueError):
        held = None
    if held != list(digests):
        raise OutputError(
            f"{request.output} holds the score of another request; add --overwrite to replace it, "
            "or choose another --output"
        )
    return True


def _make_folder(work: Path, resume: bool, environment: RankEnvironment | None) -> None:
    """Makes the folder of pieces; rank 0 first empties what an earlier run left, unless resumed."""
    ready = work / f"ready-{_launch_token(environment)}" if environment is not None else None
    if environment is not None and environment.rank != 0 and ready is not None:
        while not ready.exists():
            time.sleep(_POLL_PERIOD_S)
        return
    try:
        if not resume and work.exists():
            shutil.rmtree(work)
        work.mkdir(parents=True, exist_ok=True)
        if ready is not None:
            ready.touch()
    except OSError as fault:
        raise OutputError(f"cannot write {work.parent}: {fault.strerror or fault}") from None


def _launch_token(environment: RankEnvironment) -> str:
    """Tells this launch from earlier ones, the same on all its ranks."""
    names = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID")
    parts = [os.environ.get(name, "") for name in names]
    is_one_machine = environment.local_world_size == environment.world_size
    return "-".join([*parts, str(environment.master_port), str(os.getppid() * is_one_machine)])


def _wait_for(paths: Iterable[Path]) -> None:
    """Waits for the pieces of other ranks; a launcher ends this one where another dies."""
    for path in paths:
        while not path.exists():
            time.sleep(_POLL_PERIOD_S)


def _finish(
    request: ScoreRequest,
    plans: Sequence[ScorePlan],
    digests: Sequence[str],
    pieces: Sequence[Sequence[tuple[Unit, Path]]],
) -> None:
    """Merges the pieces into statistics and writes everything that is made of them."""
    fresh = _make_fresh(request.output)
    for number, (plan, digest, some) in enumerate(zip(plans, digests, pieces, strict=True)):
        loaded = (_load_piece(path, digest) for _, path in some)
        _write_statistics(fresh, number, plan, digest, loaded)
    _write_results(fresh, plans, digests, request.command)
    publish(fresh, request.output, request.with_report)


def write_scores(
    output: Path, plan: ScorePlan, piece: Piece, with_report: bool = True, overwrite: bool = False
) -> None:
    """Writes the scores of statistics that are in memory, as a run makes them.

    Args:
        output: Folder.
        plan: What the statistics belong to.
        piece: Statistics of all of its initial times.
        with_report: Whether the report is drawn.
        overwrite: Whether an earlier score in the folder is replaced.

    Raises:
        OutputError: The folder holds a score, or cannot be written.
    """
    if (output / _PROTOCOL).exists() and not overwrite:
        raise OutputError(f"{output} holds a score; add --overwrite to replace it")
    digest = digest_of(plan)
    fresh = _make_fresh(output)
    _write_statistics(fresh, 0, plan, digest, [piece])
    _write_results(fresh, [plan], [digest], ())
    publish(fresh, output, with_report)


def _make_fresh(output: Path) -> Path:
    """An empty folder in which results wait until all are whole."""
    fresh = output / WORK_FOLDER / "new"
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        (fresh / FOLDER).mkdir(parents=True)
    except OSError as fault:
        raise OutputError(f"cannot write {output}: {fault.strerror or fault}") from None
    return fresh


def _load_piece(path: Path, digest: str) -> Piece:
    piece = Piece.load(path, digest)
    if piece is None:
        raise DataError(f"{path} is damaged: missing a piece; score again")
    return piece


def _write_statistics(
    fresh: Path, number: int, plan: ScorePlan, digest: str, pieces: Iterable[Piece]
) -> None:
    """Writes the statistics of all models, and the sums that belong to no initial time."""
    total = Piece(())
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(StatisticsWriter(fresh / FOLDER / f"{model.name}.nc", plan, model))
            for model in plan.models
        ]
        for piece in pieces:
            for writer in writers:
                writer.add(piece, list(piece.inits))
            piece.statistics = {}
            total.add_sums(piece)
    total.save(fresh / FOLDER / SUMS_NAME.format(number), digest)


def publish(fresh: Path, output: Path, with_report: bool = True) -> None:
    """Gives the results their names, the protocol last, and draws the report."""
    (output / _PROTOCOL).unlink(missing_ok=True)
    for old in output.iterdir():
        if old.name.startswith(("scores", "maps_", "spectra", "rank_histogram")):
            old.unlink()
    if (output / FOLDER).exists():
        shutil.rmtree(output / FOLDER)
    for name in sorted(one.name for one in fresh.iterdir() if one.name != _PROTOCOL):
        os.replace(fresh / name, output / name)
    os.replace(fresh / _PROTOCOL, output / _PROTOCOL)
    shutil.rmtree(output / WORK_FOLDER, ignore_errors=True)
    if with_report:
        # the report is drawn with matplotlib, which workers and other ranks do without
        from jigsaw_forecast.verify.report import write_report

        write_report(output)
    report = ", report.html" if with_report else ""
    _log.info("wrote scores.nc, scores.csv%s into %s", report, output)


def _write_results(
    fresh: Path, plans: Sequence[ScorePlan], digests: Sequence[str], command: Sequence[str]
) -> None:
    """Makes tables, maps, spectra and histograms from the statistics in a folder."""
    tables = []
    entries: dict[str, Entries] = {}
    for number, plan in enumerate(plans):
        sums = Piece.load(fresh / FOLDER / SUMS_NAME.format(number), digests[number])
        assert sums is not None, "written just now"
        for model in plan.models:
            statistics = StatisticsFile(fresh / FOLDER / f"{model.name}.nc")
            scores, times = make_scores(plan, model, statistics)
            statistics.close()
            scores.to_netcdf(fresh / scores_name(model), engine="netcdf4")
            tables.append((model.name, scores))
            maps = make_maps(plan, model, sums)
            maps_name = f"maps_{model.name}.nc" if maps is not None else None
            if maps is not None:
                maps.to_netcdf(fresh / f"maps_{model.name}.nc", engine="netcdf4")
            entries[model.name] = {
                "init_times": [str(one) for one in times],
                "num_init_times": len(times),
                "maps": maps_name,
            }
            ranks = make_rank_histogram(plan, model, sums)
            if ranks is not None:
                suffix = "" if model.name == FORECAST else f"_{model.name}"
                ranks.to_netcdf(fresh / f"rank_histogram{suffix}.nc", engine="netcdf4")
        spectra = make_spectra(plan, sums) if number == 0 else None
        if spectra is not None:
            spectra.to_netcdf(fresh / "spectra.nc", engine="netcdf4")
    write_csv(fresh / "scores.csv", tables)
    stored = {"digests": list(digests), "plans": [plan_to_json(plan) for plan in plans]}
    (fresh / FOLDER / PLAN_NAME).write_text(json.dumps(stored), encoding="utf-8")
    write_protocol(fresh, plans, entries, command)


def merge_scores(
    folders: Sequence[Path],
    output: Path,
    overwrite: bool = False,
    with_report: bool = True,
    command: Sequence[str] = (),
) -> Path:
    """Puts scores of different initial times together as if they had been made in one run.

    Args:
        folders: Scores of the same forecasts, truth, grid, regions and lead times.
        output: Folder to write.
        overwrite: Whether an earlier score there is replaced.
        with_report: Whether the report is drawn.
        command: Of the user, for the protocol.

    Raises:
        DataError: The scores do not belong together or share initial times; all is listed.
        OutputError: The folder holds a score.
    """
    if (output / _PROTOCOL).exists() and not overwrite:
        raise OutputError(f"{output} holds a score; add --overwrite to replace it")
    stored = [read_plans(folder / FOLDER / PLAN_NAME) for folder in folders]
    problems = []
    for folder, plans in zip(folders[1:], stored[1:], strict=True):
        found = [
            line
            for first, other in zip(stored[0], plans, strict=False)
            for line in differences(first, other)
        ]
        if len(plans) != len(stored[0]):
            found.append(f"{len(plans)} groups of models against {len(stored[0])}")
        problems += [f"{folder} does not go with {folders[0]}: {line}" for line in found]
    all_times = np.concatenate([plans[0].init_times for plans in stored])
    unique, counts = np.unique(all_times, return_counts=True)
    if (counts > 1).any():
        twice = ", ".join(map(str, unique[counts > 1]))
        problems.append(f"initial times are in more than one of the scores: {twice}")
    if problems:
        raise DataError("\n".join(problems))
    merged = [_merge_plans([plans[number] for plans in stored]) for number in range(len(stored[0]))]
    digests = [digest_of(plan) for plan in merged]
    fresh = _make_fresh(output)
    for number, plan in enumerate(merged):
        _merge_statistics(folders, [plans[number] for plans in stored], plan, fresh)
        total = Piece(())
        for folder in folders:
            total.add_sums(_load_sums(folder, number))
        total.save(fresh / FOLDER / SUMS_NAME.format(number), digests[number])
    _write_results(fresh, merged, digests, command)
    publish(fresh, output, with_report)
    return output


def _load_sums(folder: Path, number: int) -> Piece:
    stored = json.loads((folder / FOLDER / PLAN_NAME).read_text(encoding="utf-8"))
    sums = Piece.load(folder / FOLDER / SUMS_NAME.format(number), stored["digests"][number])
    if sums is None:
        raise DataError(f"{folder / FOLDER / SUMS_NAME.format(number)} is missing or damaged")
    return sums


def _merge_plans(plans: Sequence[ScorePlan]) -> ScorePlan:
    first = plans[0]
    models = tuple(
        replace(
            model,
            missing=tuple(one for plan in plans for one in plan.models[place].missing),
            notes=tuple(dict.fromkeys(n for plan in plans for n in plan.models[place].notes)),
        )
        for place, model in enumerate(first.models)
    )
    return replace(
        first,
        models=models,
        init_times=np.sort(np.concatenate([plan.init_times for plan in plans])),
        warnings=tuple(dict.fromkeys(w for plan in plans for w in plan.warnings)),
    )


def _merge_statistics(
    folders: Sequence[Path], parts: Sequence[ScorePlan], plan: ScorePlan, fresh: Path
) -> None:
    for model in plan.models:
        path = fresh / FOLDER / f"{model.name}.nc"
        with StatisticsWriter(path, plan, model) as writer:
            for folder, part in zip(folders, parts, strict=True):
                stored = StatisticsFile(folder / FOLDER / f"{model.name}.nc")
                places = np.searchsorted(plan.init_times, part.init_times).tolist()
                for variable in plan.variables:
                    _copy(stored, writer, plan, model.name, variable, places)
                stored.close()


def _copy(
    stored: StatisticsFile,
    writer: StatisticsWriter,
    plan: ScorePlan,
    model: str,
    variable: str,
    places: list[int],
) -> None:
    levels = [stored.levels.index(level) for level in plan.levels[variable]] or [0]
    for start in range(0, len(places), _INITS_A_READ):
        some = slice(start, start + _INITS_A_READ)
        tables = [stored.read(variable, name, some) for name in stored.names]
        table = np.stack([one for one in tables if one is not None])[..., levels]
        piece = Piece((), statistics={(model, variable): table})
        writer.add(piece, places[some])
