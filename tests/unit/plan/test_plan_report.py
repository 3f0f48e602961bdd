"""What `plan` prints: assumptions, the table, and training with model groups beside without."""

import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from jigsaw_forecast.cli.main import main
from jigsaw_forecast.cli.plan_report import compare
from jigsaw_forecast.plan.meshes import Workload
from jigsaw_forecast.train.bench import training_step
from tests.parallel import cases

A100 = ["--device-kind", "a100"]


Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """What the command prints, on stderr where it refuses."""

    def call(*arguments: str, exit_code: int = 0) -> str:
        assert main(["plan", "wm-9m-5.625", *arguments]) == exit_code
        printed = capsys.readouterr()
        return printed.err if exit_code else printed.out

    return call


def row(mesh: dict[str, int], seconds: float, samples: int, efficiency: float) -> dict[str, Any]:
    return {
        "mesh": mesh,
        "fits": True,
        "seconds_per_step": seconds,
        "samples_per_second": samples / seconds,
        "efficiency": efficiency,
        "per_rank": {"peak_bytes": 30e9},
    }


def describe(workload: Workload, meshes: Iterable[dict[str, int]]) -> list[dict[str, Any]]:
    """One rank alone takes 2 s a sample; whole models 4 s a step, groups 2.5 s."""
    meshes = list(meshes)
    if meshes == [{"data": 1, "domain": 1, "tensor": 1}]:
        assert (workload.batch_size, workload.global_batch_size) == (1, None)
        return [row(meshes[0], 2.0, 1, 1.0)]
    assert workload.global_batch_size == 256
    seconds = 4.0 if meshes == [{"data": 256, "domain": 1, "tensor": 1}] else 2.5
    return [row(mesh, seconds, 256, 1.0 / seconds) for mesh in meshes]


def test_256_ranks_stand_beside_the_papers_figures() -> None:
    workload = Workload(cases.CONFIG, "training", "float32", True, training_step)
    lines = compare(workload, 256, describe)
    assert lines[0].startswith("with and without Jigsaw: 256 ranks, 256 samples a step")
    # 256 samples in 2.5 s against 256 ranks that make a sample in 2 s each
    assert lines[2].split()[:2] == ["with", "Jigsaw"]
    assert lines[2].split()[3:] == ["0.400", "0.800", "2.5", "30.0", "fits"]
    whole = ["data=256,domain=1,tensor=1", "0.250", "0.500", "4", "30.0", "fits"]
    assert lines[3].split() == ["without", *whole]
    assert lines[4].split() == ["paper,", "with", "256", "A100", "0.72"]
    assert lines[5].split() == ["paper,", "without", "256", "A100", "0.51"]


def test_a_training_plan_prints_assumptions_and_both_ways(run: Run) -> None:
    printed = run("--ranks", "4", "--training", *A100, "--node-link-rate", "12.5", "--latency", "9")
    assert "249.6 TFLOP/s in bfloat16" in printed
    assert "12.5 GB/s from others" in printed
    assert "9 us a collective" in printed
    assert "given: --node-link-rate, --latency" in printed
    assert "4 ranks, 4 samples a step" in printed
    assert "without" in printed
    assert "paper" not in printed  # its figures are of 256


def test_rates_change_seconds_and_nothing_that_is_counted(run: Run) -> None:
    fast, slow = (
        json.loads(run("--ranks", "2", "--json", *A100, "--matrix-rate", rate))
        for rate in ("100", "1")
    )
    for quick, late in zip(fast, slow, strict=True):
        assert quick["per_rank"] == late["per_rank"]
        assert quick["seconds_per_step"] < late["seconds_per_step"]


def test_rates_that_cannot_be_are_refused_together(run: Run) -> None:
    wrong = ("--matrix-rate", "0", "--link-rate", "-1", "--memory", "nan")
    printed = run("--ranks", "2", *A100, *wrong, exit_code=2)
    assert printed == "error: --matrix-rate, --memory, --link-rate: must be positive and finite\n"


def test_a_plan_of_cpu_ranks_measures_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = json.loads(run("--ranks", "2", "--json"))
    assert {row["mesh"]["domain"] for row in rows} == {1, 2}
    assert all(row["seconds_per_step"] > 0 for row in rows)
