"""What each rank of a mesh can do: its matrix rate and the rate of the link from its neighbour."""

import json
import platform
import time
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist

from jigsaw_forecast.parallel.collectives import all_reduce_sum, barrier, gather_texts
from jigsaw_forecast.parallel.mesh import Mesh

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
        link_bytes_per_second: Messages of 16 MiB from the rank before it, one rank at a time; 0
            on a mesh of one.
        sum_is_right: Whether an all-reduce over all ranks gave the sum of the ranks.
    """

    rank: int
    host: str
    device: str
    matrix_flops_per_second: float
    link_bytes_per_second: float
    sum_is_right: bool


def measure_rates(mesh: Mesh) -> list[RankRates]:
    """Rates of all ranks, in rank order, on every rank.

    Communication:
        One all-reduce of a float over each axis, then messages of 16 MiB from each rank to the
        next, one pair at a time.
    """
    total = all_reduce_sum(
        torch.full((1,), float(mesh.rank), device=mesh.device),
        (mesh.data, mesh.domain, mesh.tensor),
    )
    own = RankRates(
        rank=mesh.rank,
        host=platform.node(),
        device=str(mesh.device),
        matrix_flops_per_second=matrix_rate(mesh.device),
        link_bytes_per_second=_link_rate(mesh),
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
