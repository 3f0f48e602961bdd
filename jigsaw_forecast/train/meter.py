"""What training measures between two lines of metrics."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from jigsaw_forecast.parallel.collectives import all_reduce_sum
from jigsaw_forecast.parallel.mesh import Mesh


class Meter:
    """What is measured between two lines of metrics."""

    def __init__(self, mesh: Mesh) -> None:
        """Starts the first interval."""
        self._mesh = mesh
        self._flops_per_step = 0  # of all ranks
        self.last_loss = self.last_norm = 0.0
        self.restart()

    def restart(self) -> None:
        """Starts a new interval."""
        self.losses: list[float] = []
        self.samples = 0
        self.data_wait_s = 0.0
        self._start_s = time.perf_counter()
        self._start_bytes = self._bytes()

    def add(self, loss: float, norm: float) -> None:
        """Notes a train step."""
        self.losses.append(loss)
        self.last_loss, self.last_norm = loss, norm

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, time and bytes count for no interval."""
        start_s, start_bytes = time.perf_counter(), self._bytes()
        yield
        self._start_s += time.perf_counter() - start_s
        self._start_bytes += self._bytes() - start_bytes

    @contextmanager
    def counting_flops(self) -> Iterator[None]:
        """Counts the operations of a phase's first train step, which all its steps share."""
        if self._flops_per_step:
            yield
            return
        counter = FlopCounterMode(display=False)
        with counter:
            yield
        flops = torch.tensor(
            float(counter.get_total_flops()), dtype=torch.float64, device=self._mesh.device
        )
        mesh = self._mesh
        all_reduce_sum(flops, (mesh.domain, mesh.tensor, mesh.data))
        self._flops_per_step = int(flops)

    def line(self) -> dict[str, Any]:
        """The measured part of a line of metrics."""
        seconds = time.perf_counter() - self._start_s
        num_steps = len(self.losses)
        return {
            "loss": float(np.mean(self.losses)),
            "gradient_norm": self.last_norm,
            "seconds": round(seconds, 4),
            "data_wait_seconds": round(self.data_wait_s, 4),
            "samples_per_second": self.samples / seconds,
            "flops_per_second": self._flops_per_step * num_steps / seconds,
            "peak_memory_bytes": peak_memory_bytes(self._mesh.device),
            "bytes_received": self._bytes() - self._start_bytes,
            "peak_buffer_bytes": self._mesh.traffic.peak_buffer_bytes,
        }

    def _bytes(self) -> int:
        received = self._mesh.traffic.received()
        return sum(sum(kinds.values()) for kinds in received.values())


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory: the allocator's on a GPU, the high-water mark less mapped files on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        kilobytes = [int(lines[key].split()[0]) for key in ("VmHWM", "RssFile")]
        return 1024 * (kilobytes[0] - kilobytes[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes there, kilobytes elsewhere
