"""Kills forecasts at random moments and resumes them: do they end as if nothing had happened?

`python benchmarks/kill_sweep.py [CHECKPOINT] --kills 50`: one run writes zarr, GRIB2 and netCDF
undisturbed. Then, for each kill, a new run of the same is ended by SIGKILL at a moment drawn
uniformly from its length, a third of them once more while they resume; `--resume` ends it. Every
file must be the undisturbed run's to the last byte, and a final name must never show anything else.
Runs are forked from this process, so that imports are not what is killed. Ends with exit code 1
where a file differs.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch._dynamo  # noqa: F401  torch imports it at a model's first step: 2 s of each fork

from jigsaw_forecast.cli.main import main as jigsaw_forecast
from jigsaw_forecast.forecast import run  # noqa: F401  imported before the forks

PRODUCTS = ("f.zarr", "f.grib2", "f.nc")
AGAIN = 1 / 3  # of the runs are killed a second time
RECORDS = tuple(f"{name}.json" for name in PRODUCTS)  # hold times of the clock


@dataclass
class Tally:
    """What was seen."""

    done: list[int] = field(default_factory=list)  # lead times marked when killed
    num_too_late: int = 0  # the run had ended before its kill
    num_again: int = 0
    problems: list[str] = field(default_factory=list)


def start(folder: Path, options: argparse.Namespace, *extra: str) -> int:
    """Forks a run; returns its process id."""
    folder.mkdir(exist_ok=True)
    pid = os.fork()
    if pid:
        return pid
    with (folder.parent / f"{folder.name}.log").open("ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    arguments = ["run", "--init", options.init, "--lead-time", options.lead_time, "--quiet"]
    arguments += ["--checkpoint", options.checkpoint, "--write-initial-state"]
    for name in PRODUCTS:
        arguments += ["--output", str(folder / name)]
    os._exit(jigsaw_forecast([*arguments, *extra]))


def end(pid: int) -> int:
    """Waits for a run; its exit code, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_after(pid: int, seconds: float) -> int:
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return end(pid)


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the records, by name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = {str(path.relative_to(folder)): path for path in files}
    return {name: path.read_bytes() for name, path in named.items() if name not in RECORDS}


def differences(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    names = sorted(found.keys() | expected.keys())
    return [name for name in names if found.get(name) != expected.get(name)]


def num_marked(folder: Path) -> int:
    path = folder / f"{PRODUCTS[0]}.progress"
    return path.read_text().count('{"done"') if path.exists() else 0


def disturb(
    folder: Path,
    options: argparse.Namespace,
    duration_s: float,
    expected: dict[str, bytes],
    tally: Tally,
) -> None:
    """One run, killed once or twice, resumed, and compared."""
    code = kill_after(start(folder, options), random.uniform(0, duration_s))
    tally.num_too_late += code == 0
    tally.done.append(num_marked(folder))
    if random.random() < AGAIN:
        tally.num_again += 1
        kill_after(start(folder, options, "--resume"), random.uniform(0, duration_s))
    named = [name for name in content(folder) if name.split("/")[0] in PRODUCTS]
    early = [name for name in named if content(folder)[name] != expected[name]]
    tally.problems += [f"{folder.name}: {name} under its final name is not whole" for name in early]
    code = end(start(folder, options, "--resume"))
    if code:
        tally.problems.append(f"{folder.name}: --resume ended with exit code {code}")
    tally.problems += [f"{folder.name}: {name}" for name in differences(content(folder), expected)]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", nargs="?", default="nature-run")
    parser.add_argument("--init", default="2026-06-24T00")
    parser.add_argument("--lead-time", default="5d")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="kill-sweep-") as name:
        whole = Path(name) / "whole"
        began = time.perf_counter()
        if end(start(whole, options)):
            sys.exit((Path(name) / "whole.log").read_text())
        duration_s = time.perf_counter() - began
        expected = content(whole)
        for index in range(options.kills):
            disturb(Path(name) / f"run-{index}", options, duration_s, expected, tally)
            if tally.problems:
                log = Path(name) / f"run-{index}.log"
                tally.problems.append(log.read_text()[-3000:])
                break
    print(f"one run: {duration_s:.2f} s, {len(expected)} files")
    print(
        f"{len(tally.done)} kills, {tally.num_again} runs killed twice, {tally.num_too_late} late"
    )
    print(f"lead times done when killed: {json.dumps(sorted(tally.done))}")
    print("\n".join(tally.problems) or "all files are those of the undisturbed run")
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
