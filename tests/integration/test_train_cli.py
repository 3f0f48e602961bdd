"""`train` and `checkpoint export` from a shell: what they leave, refuse and exit with."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jigsaw_forecast.cli.main import main
from tests.conftest import ROOT
from tests.unit.train.made_up import write_recipe, write_store

TIMEOUT_S = 240
CLI = (sys.executable, "-m", "jigsaw_forecast.cli.main")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        cwd=folder,
        env=ENVIRONMENT,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    write_recipe(folder, write_store(folder))
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    done = run(folder, "train", "recipe.toml", "--output", "out", "--max-steps", 8, "--profile")
    assert done.returncode == 0, done.stderr
    return folder / "out"


def test_a_profile_has_a_trace_and_a_table(trained: Path) -> None:
    trace = json.loads((trained / "profile" / "rank-00000.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert "aten::mm" in names or "aten::addmm" in names
    assert "Self CPU" in (trained / "profile" / "rank-00000.txt").read_text()


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """A command in this process: its exit code, what it printed, its errors."""
    monkeypatch.chdir(folder)

    def run_here(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(arguments))
        return code, *capsys.readouterr()

    return run_here


def test_an_export_is_made_and_told_of(trained: Path, call: Call) -> None:
    source = "out/checkpoints/latest"
    code, printed, errors = call(
        "checkpoint", "export", source, "mine", "--dtype", "float32", "--json"
    )
    assert code == 0, errors
    assert json.loads(printed)["dtype"] == "float32"
    code, _, errors = call("checkpoint", "export", source, "mine")
    assert code == 2
    assert errors == "error: checkpoint mine exists already; choose another OUT\n"


@pytest.mark.parametrize(
    "command",
    [
        ("train", "recipe.toml", "--output", "out", "--resume"),
        ("checkpoint", "verify", "out/checkpoints/latest"),
        ("checkpoint", "export", "out/checkpoints/latest", "exported"),
    ],
)
def test_an_altered_file_is_named(trained: Path, call: Call, command: tuple[str, ...]) -> None:
    path = trained / "checkpoints" / "step-00000008" / "training" / "__0_0.distcp"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, _, errors = call(*command)
    path.write_bytes(content)
    assert code == 2, errors
    assert errors.count("error: ") == 1
    assert "__0_0.distcp: sha256" in errors
    assert "delete the folder to go on from the one before" in errors


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            ("seed=5", "model.channels=16"),
            ["model.channels is 8 there, 16 here", "seed is 4 there, 5 here"],
        ),
        (("train.betas=1", "train.clip_nrom=2"), ["train.betas", "did you mean 'clip_norm'?"]),
        (("train.level_weights.333=2",), ["names no level of the model: 333"]),
    ],
)
def test_what_is_wrong_is_listed_key_by_key(
    trained: Path, call: Call, settings: tuple[str, ...], expected: list[str]
) -> None:
    options = [text for setting in settings for text in ("--set", setting)]
    code, _, errors = call("train", "recipe.toml", "--output", "out", "--resume", *options)
    assert code == 2
    assert errors.count("error: ") == 1
    for text in expected:
        assert text in errors


def test_a_key_given_twice_is_refused(folder: Path, call: Call) -> None:
    text = (folder / "recipe.toml").read_text()
    (folder / "twice.toml").write_text(text.replace("seed = 4", "seed = 4\nseed = 5"))
    code, _, errors = call("train", "twice.toml", "--output", "twice")
    assert code == 2
    assert "twice.toml: not valid TOML" in errors
    assert not (folder / "twice").exists()


def test_sigterm_saves_and_exits_3(folder: Path) -> None:
    settings = ("train.phases.0.num_steps=100000", "train.log_every=1")
    options = [text for setting in settings for text in ("--set", setting)]
    command = [*CLI, "train", "recipe.toml", "--output", "stopped", "--mesh", "domain=2", *options]
    process = subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    metrics = folder / "stopped" / "metrics.jsonl"
    deadline_s = time.monotonic() + TIMEOUT_S
    while not metrics.is_file() and time.monotonic() < deadline_s:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 3, errors
    assert "go on with --resume" in errors
    assert (folder / "stopped" / "REQUEUE").is_file()
    manifest = folder / "stopped" / "checkpoints" / "latest" / "training" / "manifest.json"
    last_step = json.loads(metrics.read_text().splitlines()[-1])["train_step"]
    assert json.loads(manifest.read_text())["train_step"] == last_step


# Ends itself, as on a lost node, in the run's first attempt only.
DIES_ONCE = """
import os, sys, time
from jigsaw_forecast.cli.main import main
from jigsaw_forecast.train.reporting import Reporter

after_step = Reporter.after_step

def dies(self, report):
    after_step(self, report)
    if report.step == 6 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        for _ in range(600):  # what is saved beside computing is whole, however slow the machine
            if os.path.realpath("elastic/checkpoints/latest").endswith("step-00000004"):
                break
            time.sleep(0.05)
        os._exit(9)

Reporter.after_step = dies
sys.exit(main(sys.argv[1:]))
"""


def test_an_elastic_restart_goes_on_by_itself(folder: Path) -> None:
    (folder / "dies_once.py").write_text(DIES_ONCE)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1"]
    command += ["--max-restarts=1", "--standalone", "dies_once.py"]
    command += ["train", "recipe.toml", "--output", "elastic"]
    done = subprocess.run(
        command,
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = (folder / "elastic" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["train_step"] for line in lines if '"loss"' in line]
    assert steps == [2, 4, 6, 8, 10]
    assert "going on from elastic/checkpoints/step-00000004, on the same mesh" in done.stderr
