"""Training that is killed goes on as if it had not been: twenty steps, bit for bit.

Trains twenty steps on made-up weather as a whole; then runs that are killed by SIGKILL after ten
steps, and others in the middle of a save, at many places of it: before and after each file that is
put on disk and each change of a name, and in the middle of writes of tensors, half of which are on
disk. Each goes on with `--resume`. Compared bit for bit: the loss and gradient norm of all steps,
and every tensor of the last checkpoint (weights, moments, average, random state).

    python benchmarks/train_resume.py [--places 40] [--mesh domain=2] [--json FILE]
"""

import argparse
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

# before torch: its C++ parts print a stack for each connection that a killed rank breaks
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
import numpy as np
import torch
from torch.distributed.checkpoint.filesystem import FileSystem

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from jigsaw_forecast.cli.parse import parse_mesh
from jigsaw_forecast.data.mock import write_mock_store
from jigsaw_forecast.errors import StoppedError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.train.checkpointing import _Write
from jigsaw_forecast.train.reporting import Reporter
from jigsaw_forecast.train.run import train_recipe

FIELDS = (Field("geopotential", 500), Field("temperature", 500), Field("2m_temperature"))
FIRST_SAVE, SECOND_SAVE, LAST_STEP = 5, 10, 20
NUM_LAST_EVENTS = 14  # manifest, names and links
RECIPE = """
seed = 4
[data]
path = "{store}"
train = "2020-01-01/2020-01-20"
validation = "2020-01-21/2020-01-31"
[model]
grid = "16x8"
fields = ["z500", "t500", "2t"]
forcings = ["land_sea_mask", "insolation"]
patch = [4, 4]
overlap = 1
channels = 8
token_hidden = 8
channel_hidden = 16
num_blocks = 1
[train]
global_batch_size = 4
precision = "float32"
warmup_steps = 2
log_every = 1
validate_every = 100
checkpoint_every = 5
num_validation_inits = 1
validation_hours = [6]
input_noise = 0.1
[[train.phases]]
rollout_steps = 1
num_steps = 12
learning_rate = 1e-2
[[train.phases]]
rollout_steps = 2
num_steps = 8
learning_rate = 1e-3
"""


class Events:
    """Counts what a save does to the disk and ends the process at one of them.

    Attributes:
        count: Of the save under way.
        limit: Event before which the process ends.
    """

    def __init__(self, record: Path) -> None:
        self.count, self.limit = 0, float("inf")
        self._record = record

    def happen(self) -> None:
        self.count += 1
        if self.count > self.limit:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, place: float | None) -> None:
        """Counts from now on; in the second save ends the process before event `place`."""
        write, create_stream = _Write.__call__, FileSystem.create_stream

        def write_counted(writer: _Write, pieces: Any) -> None:
            is_second = writer._facts.train_step == SECOND_SAVE
            self.count = 0
            self.limit = place if is_second and place is not None else float("inf")
            write(writer, pieces)
            if is_second:
                self._record.write_text(str(self.count))

        @contextmanager
        def created(*given: Any) -> Iterator[Any]:
            with create_stream(*given) as stream:
                yield _Halved(stream, self)

        _Write.__call__ = write_counted  # type: ignore[method-assign]
        FileSystem.create_stream = created  # type: ignore[method-assign]
        os.fsync, os.replace = self._watched(os.fsync), self._watched(os.replace)
        Path.rename = self._watched(Path.rename)  # type: ignore[method-assign]

    def _watched(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            self.happen()
            return act(*arguments, **options)

        return wrapped


class _Halved:
    """A file that is written in halves, between which an event happens."""

    def __init__(self, stream: Any, events: Events) -> None:
        self._stream = stream
        self._events = events

    def write(self, content: Any) -> None:
        view = memoryview(content)
        half = len(view) // 2
        self._stream.write(view[:half])
        self._stream.flush()  # what there is of a torn file is there to be found
        self._events.happen()
        self._stream.write(view[half:])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Runs:
    """Starts runs as forks of this process, which has imported everything."""

    def __init__(self, folder: Path, mesh: dict[str, int]) -> None:
        self.folder = folder
        self.mesh = mesh
        self.num_ranks = int(np.prod(list(mesh.values())))

    def run(
        self, name: str, *, resume: bool = False, place: float | None = None, dies_after: int = 0
    ) -> list[int]:
        """How each rank ended: 0, or minus the signal."""
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            port = listener.getsockname()[1]
        children = []
        for rank in range(self.num_ranks):
            child = os.fork()
            if child == 0:
                self._be_rank(name, rank, port, resume=resume, place=place, dies_after=dies_after)
            children.append(child)
        return [-os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

    def _be_rank(
        self, name: str, rank: int, port: int, *, resume: bool, place: float | None, dies_after: int
    ) -> NoReturn:
        torch.set_num_threads(1)
        if self.num_ranks > 1:
            places = {"RANK": rank, "WORLD_SIZE": self.num_ranks, "MASTER_PORT": port}
            os.environ.update({key: str(value) for key, value in places.items()})
            os.environ["MASTER_ADDR"] = "localhost"
        # the first rank names things; the others only write tensors
        Events(self.folder / f"events-{rank}").watch(place if rank == 0 else None)
        if dies_after:
            _die_after(dies_after)
        code = 0
        try:
            train_recipe(self.folder / "recipe.toml", [], self.mesh, self.folder / name, resume,
                         None, "cpu")  # fmt: skip
        except StoppedError:
            code = 3
        os._exit(code)


def _die_after(step: int) -> None:
    after_step = Reporter.after_step

    def dies(reporter: Reporter, report: Any) -> None:
        after_step(reporter, report)
        if report.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Reporter.after_step = dies  # type: ignore[method-assign]


def numbers(output: Path) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    names = ("train_step", "loss", "gradient_norm")
    return [tuple(line[name] for name in names) for line in lines if "loss" in line]


def digests(output: Path) -> dict[str, str]:
    """Of every rank's tensors in the last checkpoint."""
    manifest = output / "checkpoints" / f"step-{LAST_STEP:08d}" / "training" / "manifest.json"
    files = json.loads(manifest.read_text())["files"]
    return {name: found["sha256"] for name, found in files.items() if name.endswith("distcp")}


def make_recipe(folder: Path) -> None:
    hours = np.timedelta64(6, "h")
    times = np.arange(
        np.datetime64("2020-01-01T00", "h"), np.datetime64("2020-02-01T00", "h"), hours
    )
    write_mock_store(folder / "mock.zarr", FIELDS, Grid.parse("16x8"), times)
    (folder / "recipe.toml").write_text(RECIPE.format(store=folder / "mock.zarr"))


def places_of(num_events: int, num_places: int) -> list[int]:
    """Evenly spread, and all of the last, in which names change."""
    num_last = min(NUM_LAST_EVENTS, 2 * num_places // 3)
    last = num_events - num_last
    spread = np.linspace(0, last - 1, num_places - num_last).astype(int)
    return [*map(int, np.unique(spread)), *range(last, num_events)]


def sweep(runs: Runs, num_places: int) -> dict[str, Any]:
    folder = runs.folder
    assert runs.run("whole") == [0] * runs.num_ranks
    expected = numbers(folder / "whole"), digests(folder / "whole")
    num_events = int((folder / "events-0").read_text())
    went_on_from: Counter[str] = Counter()
    wrong = []
    kills: list[tuple[str, dict[str, Any]]] = [
        (f"after step {LAST_STEP // 2}", {"dies_after": LAST_STEP // 2}),
        *((f"event {place}", {"place": place}) for place in places_of(num_events, num_places)),
    ]
    for where, how in kills:
        ended = runs.run("killed", **how)
        output = folder / "killed"
        latest = output / "checkpoints" / "latest"
        # a save is slower than five of these steps: after step 10 that of step 5 may be under way
        went_on_from[os.readlink(latest) if latest.is_symlink() else "none"] += 1
        again = runs.run("killed", resume=True)
        found = numbers(output), digests(output)
        if signal.SIGKILL not in ended or any(again) or found != expected:
            wrong.append(where)
        shutil.rmtree(output)
    return {
        "mesh": runs.mesh,
        "events_of_a_save": num_events,
        "kills": len(kills),
        "latest_after_the_kill": dict(went_on_from),
        "not_equal": wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--places", type=int, default=40)
    parser.add_argument("--mesh", default="")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_recipe(folder)
        # imports all that a run does, so that the forks need not
        train_recipe(folder / "recipe.toml", [], {}, folder / "imports", False, 1, "cpu")
        figures = sweep(Runs(folder, parse_mesh(options.mesh)), options.places)
    print(
        f"mesh {figures['mesh']}: killed {figures['kills']} times, {figures['kills'] - 1} of them "
        f"in a save of {figures['events_of_a_save']} events; `latest` was then "
        f"{figures['latest_after_the_kill']}; went on to other numbers: "
        f"{', '.join(figures['not_equal']) or 'never'}"
    )
    if options.json:
        options.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
