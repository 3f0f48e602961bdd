"""The rates of this machine's CPU, for a plan of ranks on it."""

import os
from dataclasses import replace

import torch

from jigsaw_forecast.log import count
from jigsaw_forecast.parallel.local_rates import (
    measure_local_ranks,
    measure_this_process,
    threads_of_a_rank,
)
from jigsaw_forecast.plan.devices import DeviceKind

# More ranks than twice the cores, or than this, are not started to be measured: what there is is
# shared among more.
_MOST_RANKS = 8
_LATENCY_S = 200e-6  # of a small Gloo collective on one machine, where it is not measured


def measure_cpu(
    dtype: str, num_ranks: int, link_bytes_per_second: float | None = None
) -> DeviceKind:
    """A device kind with what one of so many ranks of this machine can do, all working at once.

    Args:
        dtype: Of the products.
        num_ranks: Ranks that share the machine.
        link_bytes_per_second: Received by a rank; where it is given, no ranks are started, and
            this process alone is measured: the memory's rate is then not that of all at once.

    Raises:
        MeshError: The ranks could not be started for the measurement.
    """
    num_cores = os.cpu_count() or 1
    num_threads = threads_of_a_rank(num_ranks)
    if num_ranks == 1 or link_bytes_per_second is not None:
        num_measured = 1
        rates = measure_this_process(num_threads, getattr(torch, dtype))
        rates = replace(rates, link_bytes_per_second=link_bytes_per_second or 0.0)
        rates = replace(rates, latency_s=_LATENCY_S if num_ranks > 1 else 0.0)
        share, link_share = min(1.0, num_cores / (num_ranks * num_threads)), 1.0
    else:
        num_measured = min(num_ranks, max(2, 2 * num_cores), _MOST_RANKS)
        rates = measure_local_ranks(num_measured, num_threads, getattr(torch, dtype))
        # of the cores, which fewer ranks may not have kept busy
        share = min(1.0, num_cores / (num_ranks * num_threads))
        share /= min(1.0, num_cores / (num_measured * num_threads))
        link_share = num_measured / num_ranks
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return DeviceKind(
        name="cpu",
        matrix_flops_per_second={dtype: share * rates.matrix_flops_per_second},
        memory_bytes=memory / num_ranks,
        memory_bytes_per_second=share * rates.memory_bytes_per_second,
        link_bytes_per_second=link_share * rates.link_bytes_per_second,
        node_link_bytes_per_second=link_share * rates.link_bytes_per_second,
        latency_s=rates.latency_s,
        ranks_per_node=num_ranks,
        source=f"measured on this machine, {count(num_measured, 'rank')} of "
        f"{count(num_threads, 'thread')} at once",
    )
