"""What ranks of this machine can do together, measured on ranks started for it."""

import multiprocessing
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait

import torch
import torch.distributed as dist
from torch.nn import functional as F

from jigsaw_forecast.errors import MeshError
from jigsaw_forecast.parallel.mesh import Mesh, close_mesh, make_mesh, single_rank_mesh
from jigsaw_forecast.parallel.rates import axis_rates, matrix_rate
from jigsaw_forecast.parallel.together import barrier

_NUM_SMALL_MESSAGES = 20
_VECTOR_LENGTH = 1 << 23  # 32 MB of float32: beyond any cache
_SHORTEST_S = 0.5
_TIMEOUT_S = 120.0  # of a measurement, which takes seconds


@dataclass(frozen=True)
class LocalRates:
    """What each of several ranks of this machine can do while the others do the same.

    Attributes:
        matrix_flops_per_second: Products of large matrices.
        memory_bytes_per_second: Read and written by a GELU, the slowest of what is between
            products.
        link_bytes_per_second: Received in all-gathers; 0 for one rank.
        latency_s: Of a small all-gather; 0 for one rank.
    """

    matrix_flops_per_second: float
    memory_bytes_per_second: float
    link_bytes_per_second: float = 0.0
    latency_s: float = 0.0


def threads_of_a_rank(num_ranks: int) -> int:
    """Threads that a run gives each of so many ranks: OMP_NUM_THREADS, or a share of the cores."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() else max(1, (os.cpu_count() or 1) // num_ranks)


def measure_this_process(num_threads: int, dtype: torch.dtype) -> LocalRates:
    """Rates of this process with so many threads, nobody else at work."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        return _own_rates(single_rank_mesh(), dtype)
    finally:
        torch.set_num_threads(before)


def measure_local_ranks(num_ranks: int, num_threads: int, dtype: torch.dtype) -> LocalRates:
    """Rates of the slowest of so many CPU ranks, started on this machine for the measurement.

    Raises:
        MeshError: The ranks could not be started or did not end.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ranks = []
        for rank in range(num_ranks):
            ours, theirs = context.Pipe(duplex=False)
            arguments = (theirs, f"{folder}/store", rank, num_ranks, num_threads, dtype)
            process = context.Process(target=_serve_rates, args=arguments, daemon=True)
            process.start()
            theirs.close()
            ranks.append((process, ours))
        try:
            found = _receive([ours for _, ours in ranks])
        finally:
            for process, ours in ranks:
                ours.close()
                process.kill()
                process.join()
    return LocalRates(
        min(rates.matrix_flops_per_second for rates in found),
        min(rates.memory_bytes_per_second for rates in found),
        min(rates.link_bytes_per_second for rates in found),
        max(rates.latency_s for rates in found),
    )


def _receive(pipes: list[Connection]) -> list[LocalRates]:
    """What every rank measured, waiting for all of them only so long."""
    found: list[LocalRates] = []
    waiting_for = list(pipes)
    deadline_s = time.monotonic() + _TIMEOUT_S
    while waiting_for:
        ready = wait(waiting_for, deadline_s - time.monotonic())
        if not ready:
            raise MeshError(
                f"ranks of this machine did not measure their rates within {_TIMEOUT_S:g} s"
            )
        for pipe in ready:
            assert isinstance(pipe, Connection)
            try:
                found.append(LocalRates(**pipe.recv()))
            except EOFError as error:
                raise MeshError("a rank of this machine ended before it had measured") from error
            waiting_for.remove(pipe)
    return found


def _serve_rates(
    pipe: Connection,
    store: str,
    rank: int,
    num_ranks: int,
    num_threads: int,
    dtype: torch.dtype,
) -> None:
    """What one of the ranks does."""
    torch.set_num_threads(num_threads)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks)
    try:
        rates = _own_rates(make_mesh({"domain": num_ranks}), dtype)
        pipe.send(asdict(rates))
    finally:
        close_mesh()


def _own_rates(mesh: Mesh, dtype: torch.dtype) -> LocalRates:
    """Each measured by all ranks at the same time."""
    barrier(mesh)
    flops = matrix_rate(mesh.device, dtype)
    barrier(mesh)
    memory = memory_rate(dtype)
    if mesh.size == 1:
        return LocalRates(flops, memory)
    link = axis_rates(mesh)["domain"]
    small = axis_rates(mesh, 1, _NUM_SMALL_MESSAGES)["domain"]
    return LocalRates(flops, memory, link, (mesh.size - 1) / small)


def memory_rate(dtype: torch.dtype) -> float:
    """Bytes per second that a GELU of a long vector on the CPU reads and writes."""
    vector = torch.linspace(-3.0, 3.0, _VECTOR_LENGTH).to(dtype)
    result = F.gelu(vector)  # kept, as the system clears the pages of a new one each time
    seconds, num_done = 0.0, 0
    while seconds < _SHORTEST_S:
        start_s = time.perf_counter()
        torch.ops.aten.gelu.out(vector, out=result)
        seconds += time.perf_counter() - start_s
        num_done += 1
    return num_done * 2.0 * vector.numel() * vector.element_size() / seconds
