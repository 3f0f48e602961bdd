"""The parallel benchmarks at toy size: they run, count right and clean up."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import shaped_link
from tests.conftest import ROOT

TIMEOUT_S = 300
N, C, BLOCKS = 256, 64, 2
FLOAT_BYTES = 4
SIZE = [f"--tokens={N}", f"--channels={C}", "--token-hidden=192", "--channel-hidden=128"]


@pytest.fixture
def permitted() -> None:
    """Skips where this machine does not let us make namespaces with a shaped link."""
    try:
        with shaped_link.shaped_link():
            pass
    except shaped_link.NotPermittedError as error:
        pytest.skip(f"no network namespaces here: {error}")


def command(script: str, *arguments: str) -> list[str]:
    path = ROOT / "benchmarks" / f"{script}.py"
    return [sys.executable, str(path), *SIZE, f"--blocks={BLOCKS}", *arguments]


def run(folder: Path, script: str, *arguments: str) -> tuple[str, dict[str, Any]]:
    """What a script printed and the figures that it wrote."""
    done = subprocess.run(
        command(script, *arguments, "--json", str(folder / "figures.json")),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((folder / "figures.json").read_text())


@pytest.fixture(scope="module")
def scaling(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    return run(tmp_path_factory.mktemp("scaling"), "strong_scaling", "--rounds=2")


def test_strong_scaling_measures_every_contender(scaling: tuple[str, dict[str, Any]]) -> None:
    printed, figures = scaling
    names = {"independent", "jigsaw-domain", "jigsaw-tensor", "tensor-parallel", "fsdp"}
    for mode in ("forward", "training"):
        assert set(figures["results"][mode]) == {*names, "two-threads"}
        for name, own in figures["results"][mode].items():
            assert name in printed
            assert len(own["efficiency"]) == len(own["seconds_per_step"]) == 2
            assert min(own["samples_per_second"]) > 0


def test_contenders_receive_what_their_schemes_say(scaling: tuple[str, dict[str, Any]]) -> None:
    results = scaling[1]["results"]
    activation = FLOAT_BYTES * N * C
    # on two ranks an all-reduce receives its whole size; one for each MLP, twice with backward
    for mode, passes in (("forward", 1), ("training", 2)):
        for rank in results[mode]["tensor-parallel"]["received"]:
            assert rank == {"all-reduce": passes * BLOCKS * 2 * activation}
    halos = FLOAT_BYTES * 32 * (6 + 4)  # a row of 32 points of 6 maps in and 4 out
    for rank in results["forward"]["jigsaw-domain"]["received"]:
        # a gather and a reduce-scatter a block of half the activations
        assert rank["activations"] == BLOCKS * activation + halos
        assert rank["weights"] == 0
    assert results["training"]["independent"]["received"][0]["activations"] == 0


def test_jigsaw_holds_half_of_everything(scaling: tuple[str, dict[str, Any]]) -> None:
    figures = scaling[1]["results"]["training"]
    (whole, _) = figures["independent"]["state_bytes"]
    assert whole["moments"] == 2 * whole["gradients"] == 2 * whole["parameters"] > 0
    for name in ("jigsaw-domain", "jigsaw-tensor"):
        parts = figures[name]["state_bytes"]
        assert {key: sum(part[key] for part in parts) for key in whole} == whole
        assert max(part["parameters"] for part in parts) < 0.51 * whole["parameters"]


def test_another_model_is_refused_before_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import strong_scaling

    config = strong_scaling.body_config(strong_scaling.parse(["--tokens=4", "--channels=2"]))

    class Crew:
        def __init__(self, name: str, value: float, product: float) -> None:
            self.name, self.value, self.product = name, value, product

        def ask(self, _order: str) -> list[dict[str, Any]]:
            output = np.full((1, 4, 4, 4), self.value, np.float32)
            gradients = {"embed.bias": (self.product, 4.0)}
            return [{"output": output, "place": (slice(None),), "gradients": gradients}]

    def compare(*others: Crew) -> None:
        strong_scaling.compare([Crew("independent", 1.0, 3.0), *others], config, "training")

    compare(Crew("fsdp", 1.0, 3.0))
    for value, product in ((1.001, 3.0), (1.0, 3.01), (float("nan"), 3.0), (1.0, float("nan"))):
        with pytest.raises(RuntimeError, match="fsdp"):
            compare(Crew("fsdp", value, product))


def test_overlap_counts_what_the_interface_counts(permitted: None, tmp_path: Path) -> None:
    printed, figures = run(
        tmp_path, "overlap", "--rounds=3", "--modes", "streamed", "training", "--chunks", "2"
    )
    assert "two namespaces" in printed
    cases = {(row["axis"], row["mode"]) for row in figures["rows"]}
    assert cases == {(a, m) for a in ("domain", "tensor") for m in ("streamed", "training")}
    for row in figures["rows"]:
        received = row["received_per_step"]
        # TCP and IP add headers and acknowledgements
        assert 1.0 < received["interface"] / received["counted"] < 1.15
        assert len(row["hidden"]) == 3


def test_a_delay_stands_in_for_the_link_and_is_named(tmp_path: Path) -> None:
    printed, figures = run(
        tmp_path, "overlap", "--delay", "--rounds=2", "--axes=domain", "--chunks", "default", "2"
    )
    assert "NO LINK: a delay" in printed
    for row in figures["rows"]:
        least_s = row["received_per_step"]["counted"] / row["bytes_per_s"]
        assert min(row["seconds"]["communication"]) >= 0.99 * least_s
        assert row["received_per_step"]["interface"] == 0


def test_a_terminated_benchmark_leaves_no_namespace(permitted: None) -> None:
    with subprocess.Popen(
        command("overlap", "--rounds=1000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        names = [f"jigsaw-bench-{process.pid}-{side}" for side in (0, 1)]
        try:
            while "namespaces" not in process.stdout.readline():  # the ranks have been started
                assert process.poll() is None
            assert set(names) <= set(shaped_link.namespaces())
            for _ in range(2):  # as timeout(1) does
                process.send_signal(signal.SIGTERM)
                time.sleep(0.02)
            assert process.wait(60) == 128 + signal.SIGTERM
        finally:
            process.kill()
    assert not set(names) & set(shaped_link.namespaces())
