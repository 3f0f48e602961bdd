"""The rates of this machine's CPU, for a plan of ranks on it."""

import os
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from jigsaw_forecast.plan.devices import DeviceKind

_MATRIX_SIZE = 2048
_VECTOR_LENGTH = 1 << 23  # 32 MB of float32: beyond any cache
_NUM_REPEATS = 5
_CPU_LATENCY_S = 200e-6  # of a small Gloo collective on one machine


def measure_cpu(dtype: str, num_ranks: int, link_bytes_per_second: float) -> DeviceKind:
    """A device kind with this machine's rates for one rank of so many.

    The matrix rate is that of a product of 2048 x 2048 matrices with this process's threads shared
    among the ranks; the memory rate that of a GELU, the slowest of what is between the products.

    Args:
        dtype: Of the products.
        num_ranks: Ranks that share the machine.
        link_bytes_per_second: Measured between two ranks.
    """
    threads = torch.get_num_threads()
    num_cores = os.cpu_count() or 1
    torch.set_num_threads(max(1, num_cores // num_ranks))
    try:
        matrix = torch.full((_MATRIX_SIZE, _MATRIX_SIZE), 0.5, dtype=getattr(torch, dtype))
        product_s = _fastest(lambda: torch.mm(matrix, matrix))
        vector = torch.linspace(-3.0, 3.0, _VECTOR_LENGTH).to(getattr(torch, dtype))
        vector_s = _fastest(lambda: F.gelu(vector))
    finally:
        torch.set_num_threads(threads)
    share = min(1.0, num_cores / num_ranks)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return DeviceKind(
        name="cpu",
        matrix_flops_per_second={dtype: share * 2.0 * _MATRIX_SIZE**3 / product_s},
        memory_bytes=memory / num_ranks,
        memory_bytes_per_second=share * 2 * vector.numel() * vector.element_size() / vector_s,
        link_bytes_per_second=link_bytes_per_second,
        node_link_bytes_per_second=link_bytes_per_second,
        latency_s=_CPU_LATENCY_S,
        ranks_per_node=num_ranks,
        source="measured on this machine",
    )


def _fastest(action: Callable[[], object]) -> float:
    action()
    seconds = []
    for _ in range(_NUM_REPEATS):
        start_s = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start_s)
    return min(seconds)
