"""The full size on a small machine: a 3.2-billion-parameter checkpoint, made, loaded and stepped.

    python benchmarks/full_size.py FOLDER [--preset wm-3.2b] [--mesh domain=2,tensor=2] [--lead 6h]

Runs `checkpoint new` (skipped where FOLDER has the checkpoint), makes an initial state of mock
weather on the preset's grid, and runs a forecast with streamed weights in bfloat16 on ranks of
this machine. Prints one table of what each rank read and held, from the run's own report. The
ranks give back what they free (MALLOC_MMAP_THRESHOLD_), unless the variable is set otherwise.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from jigsaw_forecast.checkpoint.format import read_manifest
from jigsaw_forecast.data.mock import write_mock_store
from jigsaw_forecast.model.config import PRESETS

CLI = [sys.executable, "-m", "jigsaw_forecast.cli.main"]


def call(*arguments: str) -> tuple[float, float]:
    """Runs a command; its seconds and the largest resident memory of any child so far, bytes."""
    start_s = time.perf_counter()
    environment = {"MALLOC_MMAP_THRESHOLD_": str(2**20), **os.environ}  # mallopt(3)
    subprocess.run([*CLI, *arguments], check=True, env=environment)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return time.perf_counter() - start_s, peak


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="wm-3.2b", choices=sorted(PRESETS))
    parser.add_argument("--mesh", default="domain=2,tensor=2")
    parser.add_argument("--lead", default="6h")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = options.folder / options.preset
    if not checkpoint.exists():
        seconds, peak = call("checkpoint", "new", options.preset, str(checkpoint))
        print(f"checkpoint new: {seconds:.0f} s, largest resident memory {peak / 1e9:.2f} GB")
    config = PRESETS[options.preset]
    state = options.folder / f"{options.preset}-state.zarr"
    if not state.exists():
        times = np.array(["2026-06-24T00"], dtype="datetime64[h]")
        write_mock_store(state, config.prognostic_fields, config.grid_object, times)
    report_path = options.folder / f"{options.preset}-report.json"
    command = ["run", "--init", "2026-06-24T00", "--lead-time", options.lead, "--overwrite"]
    command += ["--checkpoint", str(checkpoint), "--input", str(state), "--mesh", options.mesh]
    command += ["--precision", "bfloat16", "--weights", "streamed", "--report", str(report_path)]
    call(*command, "--output", str(options.folder / f"{options.preset}-forecast.zarr"))
    report = json.loads(report_path.read_text())
    whole = sum(shard.num_bytes for shard in read_manifest(checkpoint).shards.values())
    print(f"checkpoint {whole / 1e9:.3f} GB, {report['parameters']:,} parameters")
    print(f"seconds {json.dumps({k: round(v, 1) for k, v in report['seconds'].items()})}")
    print(f"TFLOP a step {report['flops_per_step'] / 1e12:.2f}")
    print("rank  read GB  of whole  parameters GB  peak GB  buffers GB  received GB a step")
    for rank in report["ranks"]:
        received = sum(sum(kinds.values()) for kinds in rank["bytes_received_per_step"].values())
        print(
            f"{rank['rank']:4d}  {rank['checkpoint_bytes_read'] / 1e9:7.3f}  "
            f"{rank['checkpoint_bytes_read'] / whole:8.4f}  {rank['parameter_bytes'] / 1e9:13.3f}  "
            f"{rank['peak_memory_bytes'] / 1e9:7.3f}  {rank['peak_buffer_bytes'] / 1e9:10.3f}  "
            f"{received / 1e9:18.3f}"
        )


if __name__ == "__main__":
    main()
