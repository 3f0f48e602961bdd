"""What `plan` foretells beside what ranks of this machine measure: seconds and peak memory.

    python benchmarks/plan_check.py [PRESET] [--meshes domain=1 domain=2 tensor=2] [--steps 5]

For each mesh and kind of step `bench` times real ranks, one thread each, and `plan` gives its
prediction from this machine's matrix, memory and link rates, measured in the same run. Memory is
the process's peak less what it held before there was a model, from ranks of their own that give
back what they free (MALLOC_MMAP_THRESHOLD_): otherwise glibc keeps some of it, which is shown too.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

CLI = [sys.executable, "-m", "jigsaw_forecast.cli.main"]


GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}  # mallopt(3)


def ask(*arguments: str, environment: Mapping[str, str] | None = None) -> Any:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    done = subprocess.run(
        [*CLI, *arguments, "--json"], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset", nargs="?", default="wm-70m-1.5")
    parser.add_argument("--meshes", nargs="+", default=["domain=1", "domain=2", "tensor=2"])
    parser.add_argument("--steps", default="5")
    options = parser.parse_args()
    print(
        "mesh      step      seconds  foretold  ratio   peak GB  foretold  ratio  with glibc's own"
    )
    for mesh in options.meshes:
        degrees = {key: int(n) for key, n in (part.split("=") for part in mesh.split(","))}
        num_ranks = math.prod(degrees.values())
        bench = ["bench", options.preset, "--device", "cpu", "--precision", "float32"]
        bench += ["--mesh", mesh, "--steps"]
        measured = {row["step"]: row for row in ask(*bench, options.steps)["rows"]}
        lean = {row["step"]: row for row in ask(*bench, "2", environment=GIVE_BACK)["rows"]}
        for step, row in measured.items():
            plan = ["plan", options.preset, "--ranks", str(num_ranks), "--device-kind", "cpu"]
            foretold = ask(*plan, *(["--training"] if step == "training" else []))
            full = {"data": 1, "domain": 1, "tensor": 1} | degrees
            (own,) = [each for each in foretold if each["mesh"] == full]
            seconds, guess = row["seconds"], own["seconds_per_step"]
            peak, kept = (
                each["peak_memory_bytes"] - each["memory_before_bytes"]
                for each in (lean[step], row)
            )
            peak_guess = own["per_rank"]["peak_bytes"]
            print(
                f"{mesh:9s} {step:8s} {seconds:8.3f}  {guess:8.3f}  {guess / seconds:5.2f}  "
                f"{peak / 1e9:8.3f}  {peak_guess / 1e9:8.3f}  {peak_guess / peak:5.2f}  "
                f"{kept / 1e9:8.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
