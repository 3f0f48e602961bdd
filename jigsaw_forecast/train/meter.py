"""What training measures between two lines of metrics."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from jigsaw_forecast.parallel.collectives import all_reduce_sum
from jigsaw_forecast.parallel.memory import peak_memory_bytes
from jigsaw_forecast.parallel.mesh import Mesh


class Meter:
    """What is measured between two lines of metrics, on this rank."""

    def __init__(self, mesh: Mesh) -> None:
        """Starts the first interval."""
        self._mesh = mesh
        self._flops: dict[tuple[int, ...], int] = {}  # of a train step of all ranks, by its kind
        self.restart()

    def restart(self) -> None:
        """Starts a new interval."""
        self.num_steps = 0
        self.samples = 0
        self.data_wait_s = 0.0
        self._num_flops = 0
        self._local = _Stopwatch(self._mesh.device)
        self._start_s = time.perf_counter()
        self._start_bytes = self._bytes()

    def count(self, samples: int) -> None:
        """Counts a train step."""
        self.num_steps += 1
        self.samples += samples

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Within, time counts as waiting for data."""
        start_s = time.perf_counter()
        yield
        self.data_wait_s += time.perf_counter() - start_s

    @contextmanager
    def local_work(self) -> Iterator[None]:
        """Within is work that is alike on all ranks and waits for none of them."""
        with self._local:
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, time and bytes count for no interval."""
        start_s, start_bytes = time.perf_counter(), self._bytes()
        yield
        self._start_s += time.perf_counter() - start_s
        self._start_bytes += self._bytes() - start_bytes

    @contextmanager
    def counting_flops(self, kind: tuple[int, ...]) -> Iterator[None]:
        """Counts the operations of the first train step of a kind, which all of the kind share.

        Communication:
            One all-reduce of a number over each axis, for the first step of a kind.
        """
        if kind not in self._flops:
            counter = FlopCounterMode(display=False)
            with counter:
                yield
            own = float(counter.get_total_flops())
            flops = torch.tensor(own, dtype=torch.float64, device=self._mesh.device)
            mesh = self._mesh
            all_reduce_sum(flops, (mesh.domain, mesh.tensor, mesh.data))
            self._flops[kind] = int(flops)
        else:
            yield
        self._num_flops += self._flops[kind]

    @property
    def seconds(self) -> float:
        """Of the interval so far."""
        return max(time.perf_counter() - self._start_s, 1e-9)

    @property
    def flops_per_second(self) -> float:
        """Of all ranks in the interval so far."""
        return self._num_flops / self.seconds

    def line(self) -> dict[str, Any]:
        """The measured part of a line of metrics."""
        seconds = self.seconds
        return {
            "seconds": round(seconds, 4),
            "data_wait_seconds": round(self.data_wait_s, 4),
            "samples_per_second": self.samples / seconds,
            "flops_per_second": self._num_flops / seconds,
            "peak_memory_bytes": peak_memory_bytes(self._mesh.device),
            "bytes_received": self._bytes() - self._start_bytes,
            "peak_buffer_bytes": self._mesh.traffic.peak_buffer_bytes,
        }

    def rank_seconds(self) -> dict[str, list[float]]:
        """Seconds of each rank, in rank order: of work that waits for nobody, and for data.

        Communication:
            One all-reduce of two numbers a rank over each axis.
        """
        mesh = self._mesh
        table = torch.zeros(mesh.size, 2, dtype=torch.float64, device=mesh.device)
        table[mesh.rank] = torch.tensor([self._local.seconds(), self.data_wait_s])
        all_reduce_sum(table, (mesh.domain, mesh.tensor, mesh.data))
        work, data_wait = table.cpu().mT.tolist()
        return {
            "work": [round(seconds, 6) for seconds in work],
            "data_wait": [round(seconds, 6) for seconds in data_wait],
        }

    def _bytes(self) -> int:
        received = self._mesh.traffic.received()
        return sum(sum(kinds.values()) for kinds in received.values())


class _Stopwatch:
    """Adds up the time within: the device's on a GPU, the clock's elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._is_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        self._start_s = time.perf_counter()
        if self._is_gpu:
            begin, end = (
                torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                for _ in range(2)
            )
            begin.record()
            self._events.append((begin, end))

    def __exit__(self, *_: object) -> None:
        self._seconds += time.perf_counter() - self._start_s
        if self._is_gpu:
            self._events[-1][1].record()

    def seconds(self) -> float:
        if not self._is_gpu:
            return self._seconds
        torch.cuda.synchronize()
        return float(sum(begin.elapsed_time(end) for begin, end in self._events)) / 1000.0
