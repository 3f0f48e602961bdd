"""The peak memory of this process or of its GPU."""

import contextlib
import gc
import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def peak_memory_bytes(device: torch.device) -> int:
    """The allocator's peak on a GPU; on a CPU the process's high-water mark less mapped files."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.is_file():
        return _status_bytes("VmHWM") - _status_bytes("RssFile")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes there, kilobytes elsewhere


def restart_peak_memory(device: torch.device) -> int:
    """Forgets the peak so far, where the system allows it; returns the peak from here, in bytes."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # proc_pid_clear_refs(5)
    return peak_memory_bytes(device)


def _status_bytes(name: str) -> int:
    """A line of proc_pid_status(5)."""
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return 1024 * int(lines[name].split()[0])
