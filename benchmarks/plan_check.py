"""What `plan` foretells beside what ranks of this machine measure: seconds and peak memory.

    python benchmarks/plan_check.py [PRESET] [--meshes domain=1 domain=2 tensor=2] [--steps 5]

For each mesh and kind of step `bench` times real ranks, one thread each, and `plan` gives its
prediction from this machine's matrix, memory and link rates, measured in the same run. Memory is
the process's peak, for which the plan's figure is set beside a process that holds no model.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from typing import Any

CLI = [sys.executable, "-m", "jigsaw_forecast.cli.main"]


def ask(*arguments: str) -> Any:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
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
        "mesh      step      seconds  foretold  ratio   peak GB  foretold GB (without the process)"
    )
    for mesh in options.meshes:
        degrees = {key: int(n) for key, n in (part.split("=") for part in mesh.split(","))}
        num_ranks = math.prod(degrees.values())
        bench = ["bench", options.preset, "--device", "cpu", "--precision", "float32"]
        bench += ["--mesh", mesh, "--steps", options.steps]
        measured = {row["step"]: row for row in ask(*bench)["rows"]}
        for step, row in measured.items():
            plan = ["plan", options.preset, "--ranks", str(num_ranks), "--device-kind", "cpu"]
            foretold = ask(*plan, *(["--training"] if step == "training" else []))
            full = {"data": 1, "domain": 1, "tensor": 1} | degrees
            (own,) = [each for each in foretold if each["mesh"] == full]
            seconds, guess = row["seconds"], own["seconds_per_step"]
            print(
                f"{mesh:9s} {step:8s} {seconds:8.3f}  {guess:8.3f}  {guess / seconds:5.2f}  "
                f"{row['peak_memory_bytes'] / 1e9:8.3f}  {own['per_rank']['peak_bytes'] / 1e9:8.3f}"
            )


if __name__ == "__main__":
    main()
