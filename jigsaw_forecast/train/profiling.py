"""`--profile`: a trace of a few train steps of every rank, and a table of what takes the time."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from jigsaw_forecast.parallel.mesh import Mesh

NUM_SKIPPED = 2  # the first steps set up memory and libraries
NUM_TRACED = 3
_NUM_ROWS = 40

_log = logging.getLogger(__name__)


@contextmanager
def profiled(folder: Path | None, mesh: Mesh) -> Iterator[Callable[[], None]]:
    """Yields what to call after each train step; traces nothing without a folder.

    Args:
        folder: Gets `rank-00000.json` (chrome://tracing, Perfetto) and `rank-00000.txt`.
        mesh: This rank's mesh.
    """
    if folder is None:
        yield lambda: None
        return
    is_gpu = mesh.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    order = "self_cuda_time_total" if is_gpu else "self_cpu_time_total"
    is_written = False

    def write(profiler: profile) -> None:
        nonlocal is_written
        is_written = True
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank-{mesh.rank:05d}.json"
        profiler.export_chrome_trace(str(path))
        table = profiler.key_averages().table(sort_by=order, row_limit=_NUM_ROWS)
        path.with_suffix(".txt").write_text(table, encoding="utf-8")
        if mesh.rank == 0:
            _log.info("profile of %d train steps: %s", NUM_TRACED, folder)

    with profile(
        activities=activities,
        schedule=schedule(wait=NUM_SKIPPED - 1, warmup=1, active=NUM_TRACED, repeat=1),
        on_trace_ready=write,
        profile_memory=True,
        acc_events=True,
    ) as profiler:
        yield profiler.step
    if is_gpu:
        torch.cuda.synchronize()
    if not is_written and mesh.rank == 0:
        _log.warning(
            "no profile: the run had fewer than %d train steps, of which %d are traced",
            NUM_SKIPPED + NUM_TRACED,
            NUM_TRACED,
        )
