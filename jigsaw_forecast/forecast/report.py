"""What a run cost: seconds, bytes, memory and operations, measured where they happen."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from jigsaw_forecast.errors import OutputError
from jigsaw_forecast.parallel.memory import peak_memory_bytes
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.together import gather_texts, together

PHASES = ("start", "load", "read", "rollout", "write")


@dataclass
class RankReport:
    """What one rank measured."""

    rank: int
    parameter_bytes: int = 0
    peak_memory_bytes: int = 0
    checkpoint_bytes_read: int = 0
    input_bytes_read: int = 0
    output_bytes_written: int = 0
    bytes_received_per_step: dict[str, dict[str, float]] = field(default_factory=dict)
    collectives_per_step: dict[str, dict[str, float]] = field(default_factory=dict)
    peak_buffer_bytes: int = 0  # most bytes held at once by collectives under way
    flops_per_step: int = 0
    # main thread: exchange, wait (back-pressure), drain; output thread: join, encode, append,
    # mark, restart
    output_seconds: dict[str, float] = field(default_factory=dict)


class RunMeter:
    """Collects one rank's measurements of a run."""

    def __init__(self, mesh: Mesh) -> None:
        """Starts the clock; the time since the process started counts as `start`."""
        self.mesh = mesh
        self.ranks = RankReport(rank=mesh.rank)
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._age_at_start_s = self.seconds["start"] = _process_age_s()
        self._began = time.perf_counter()
        self.num_steps = 0
        self._received: dict[str, dict[str, int]] = {}
        self._collectives: dict[str, dict[str, int]] = {}

    @property
    def age_s(self) -> float:
        """Seconds since the process started."""
        return self._age_at_start_s + time.perf_counter() - self._began

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to a phase."""
        began = time.perf_counter()
        yield
        if self.mesh.device.type == "cuda":
            torch.cuda.synchronize(self.mesh.device)
        self.seconds[name] += time.perf_counter() - began

    @contextmanager
    def step(self) -> Iterator[None]:
        """Counts one rollout step: its time, what it received and, the first time, operations."""
        traffic = self.mesh.traffic
        received, collectives = traffic.received(), traffic.collectives()
        with self.phase("rollout"):
            if self.num_steps == 0:
                with FlopCounterMode(display=False) as counter:
                    yield
                self.ranks.flops_per_step = counter.get_total_flops()
            else:
                yield
        _add_difference(self._received, traffic.received(), received)
        _add_difference(self._collectives, traffic.collectives(), collectives)
        self.num_steps += 1

    def write(self, path: Path, header: dict[str, Any]) -> None:
        """Gathers all ranks' figures and writes the report on rank 0.

        Raises:
            OutputError: The file cannot be written.

        Communication:
            One gather of texts over all ranks.
        """
        own = self.ranks
        own.peak_memory_bytes = peak_memory_bytes(self.mesh.device)
        own.peak_buffer_bytes = self.mesh.traffic.peak_buffer_bytes
        own.bytes_received_per_step = _divided(self._received, max(self.num_steps, 1))
        own.collectives_per_step = _divided(self._collectives, max(self.num_steps, 1))
        ranks = [json.loads(text) for text in gather_texts(self.mesh, json.dumps(asdict(own)))]
        together(self.mesh, lambda: self._save(path, header, ranks))

    def _save(self, path: Path, header: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
        if self.mesh.rank != 0:
            return
        steps = max(self.num_steps, 1)
        report = header | {
            "flops_per_step": sum(rank.pop("flops_per_step") for rank in ranks),
            "seconds": self.seconds | {"total": self.age_s},
            "seconds_per_step": self.seconds["rollout"] / steps,
            "ranks": ranks,
        }
        try:
            path.write_text(json.dumps(report, indent=1) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write the report {path}: {error.strerror}") from error


Counts = dict[str, dict[str, int]]  # axis -> kind or name -> count


def _add_difference(total: Counts, after: Counts, before: Counts) -> None:
    for axis, counts in after.items():
        own = total.setdefault(axis, {})
        for name, count in counts.items():
            own[name] = own.get(name, 0) + count - before[axis].get(name, 0)


def _divided(total: Counts, number: int) -> dict[str, dict[str, float]]:
    return {
        axis: {name: count / number for name, count in counts.items()}
        for axis, counts in total.items()
    }


def _process_age_s() -> float:
    """Seconds since this process started, from proc(5) field 22."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
