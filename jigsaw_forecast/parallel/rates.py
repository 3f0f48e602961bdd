"""What the ranks of a mesh can do: matrix rates, and the rates of the links between them."""

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
import torch.distributed as dist

from jigsaw_forecast.parallel.accounting import Traffic
from jigsaw_forecast.parallel.collectives import all_gather, all_reduce_sum
from jigsaw_forecast.parallel.mesh import AXIS_NAMES, Mesh
from jigsaw_forecast.parallel.together import barrier, gather_texts
from jigsaw_forecast.parallel.watch import note, waiting

_MATRIX_SIZE = 2048
_GPU_MATRIX_SIZE = 8192
_SHORTEST_MEASUREMENT_S = 0.5
_NUM_PRODUCTS = 4
_MESSAGE_BYTES = 2**24
_NUM_MESSAGES = 4


@dataclass(frozen=True)
class RankRates:
    """The measured rates of one rank.

    Attributes:
        rank: The rank.
        host: Name of its machine.
        device: Where it computes.
        matrix_flops_per_second: float32 products of large matrices, all ranks at once.
        matrix_flops_per_second_alone: The same, one rank of each machine at a time.
        link_bytes_per_second: Messages of 16 MiB from the rank before it, one rank at a time; 0
            on a mesh of one.
        axis_bytes_per_second: Received in all-gathers over each axis of more than one rank, all
            ranks at once, each giving 16 MiB.
        sum_is_right: Whether an all-reduce over all ranks gave the sum of the ranks.
    """

    rank: int
    host: str
    device: str
    matrix_flops_per_second: float
    matrix_flops_per_second_alone: float
    link_bytes_per_second: float
    axis_bytes_per_second: dict[str, float]
    sum_is_right: bool


def measure_rates(mesh: Mesh) -> list[RankRates]:
    """Rates of all ranks, in rank order, on every rank.

    Communication:
        An all-reduce of a float over each axis, messages of 16 MiB from each rank to the next, one
        pair at a time, and the all-gathers of `axis_rates`.
    """
    total = all_reduce_sum(
        torch.full((1,), float(mesh.rank), device=mesh.device),
        (mesh.data, mesh.domain, mesh.tensor),
    )
    hosts = gather_texts(mesh, platform.node())
    note("the measurement of matrix rates")
    barrier(mesh)
    together = matrix_rate(mesh.device)
    alone = _in_turn(mesh, hosts, lambda: matrix_rate(mesh.device))
    note("the measurement of links")
    own = RankRates(
        rank=mesh.rank,
        host=hosts[mesh.rank],
        device=str(mesh.device),
        matrix_flops_per_second=together,
        matrix_flops_per_second_alone=alone,
        link_bytes_per_second=_link_rate(mesh),
        axis_bytes_per_second=axis_rates(mesh),
        sum_is_right=float(total) == mesh.size * (mesh.size - 1) / 2,
    )
    return [RankRates(**json.loads(text)) for text in gather_texts(mesh, json.dumps(asdict(own)))]


def available_backends() -> list[str]:
    """The communication backends that this torch was built with."""
    found = []
    if dist.is_available():
        if dist.is_gloo_available():
            found.append("gloo")
        if dist.is_nccl_available():
            found.append("nccl")
    return found


def matrix_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Operations per second of products of large square matrices; larger ones on a GPU."""
    size = _GPU_MATRIX_SIZE if device.type == "cuda" else _MATRIX_SIZE
    matrix = torch.full((size, size), 0.5, device=device, dtype=dtype)
    product = matrix @ matrix  # the first product sets up threads and libraries
    seconds, num_products = 0.0, 0
    while seconds < _SHORTEST_MEASUREMENT_S:
        _synchronize(device)
        start_s = time.perf_counter()
        for _ in range(_NUM_PRODUCTS):
            torch.matmul(matrix, matrix, out=product)
        _synchronize(device)
        seconds += time.perf_counter() - start_s
        num_products += _NUM_PRODUCTS
    return num_products * 2.0 * size**3 / seconds


def axis_rates(
    mesh: Mesh, num_bytes: int = _MESSAGE_BYTES, num_messages: int = _NUM_MESSAGES
) -> dict[str, float]:
    """Bytes per second that this rank receives in an all-gather over each axis.

    Args:
        mesh: This rank's mesh; its counts of traffic stay as they are.
        num_bytes: What each rank gives.
        num_messages: All-gathers that are timed.

    Returns:
        By name of the axis; axes of one rank are left out.

    Communication:
        One all-gather more than is timed over each axis, all ranks at once: links that the groups
        of an axis share are shared here too. Receives (size - 1) * num_bytes in each.
    """
    uncounted = replace(mesh, traffic=Traffic())
    piece = torch.zeros(num_bytes, dtype=torch.uint8, device=mesh.device)
    found = {}
    for name in AXIS_NAMES:
        size = mesh.axis(name).size
        if size == 1:
            continue
        all_gather(uncounted, piece, name, 0, "activations")  # opens the connections
        barrier(mesh)
        _synchronize(mesh.device)
        start_s = time.perf_counter()
        for _ in range(num_messages):
            all_gather(uncounted, piece, name, 0, "activations")
        _synchronize(mesh.device)
        seconds = time.perf_counter() - start_s
        found[name] = num_messages * (size - 1) * num_bytes / seconds
    return found


def _in_turn(mesh: Mesh, hosts: list[str], measure: Callable[[], float]) -> float:
    """A measurement that the ranks of one machine make one after the other."""
    place = hosts[: mesh.rank].count(hosts[mesh.rank])
    found = 0.0
    for turn in range(max(hosts.count(host) for host in hosts)):
        barrier(mesh)
        if turn == place:
            found = measure()
    barrier(mesh)
    return found


def _link_rate(mesh: Mesh) -> float:
    if mesh.size == 1:
        return 0.0
    message = torch.zeros(_MESSAGE_BYTES, dtype=torch.uint8, device=mesh.device)
    seconds = 0.0
    for source in range(mesh.size):
        target = (source + 1) % mesh.size
        barrier(mesh)
        for count in range(_NUM_MESSAGES + 1):
            if count == 1:  # the first message opens the connection
                _synchronize(mesh.device)
                start_s = time.perf_counter()
            with waiting(f"a message from rank {source} to rank {target}"):
                if mesh.rank == source:
                    dist.send(message, target)
                elif mesh.rank == target:
                    dist.recv(message, source)
        _synchronize(mesh.device)
        if mesh.rank == target:
            seconds = time.perf_counter() - start_s
    return _NUM_MESSAGES * _MESSAGE_BYTES / seconds


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
