"""Runs that are stopped and go on: signals, deadlines, locks, and what is refused."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jigsaw_forecast.cli.main import main
from jigsaw_forecast.fields import Field
from jigsaw_forecast.forecast import rolling
from jigsaw_forecast.forecast import run as run_module
from jigsaw_forecast.forecast.staging import ProductLock
from tests.integration import inputs

FIELDS = inputs.CONFIG.prognostic_fields
NAMES = ("f.zarr", "f.grib2", "f.nc")
Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inputs.make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command with three outputs; a later option replaces an earlier one."""

    def call(*arguments: str | Path) -> tuple[int, str]:
        given = ["run", "--init", "2026-06-24T00", "--lead-time", "36h", "--quiet"]
        given += ["--checkpoint", str(checkpoint)]
        if "--output" not in arguments:
            given += [f"--output={tmp_path / name}" for name in NAMES]
        return main([*given, *map(str, arguments)]), capfd.readouterr().err

    return call


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Does something when a rollout step has been made, counted from 1."""

    def arrange(step: int, action: Callable[[], None]) -> None:
        original, seen = rolling.look_at, iter(range(1, 1000))

        def look(*arguments: object) -> object:
            if next(seen) == step:
                action()
            return original(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(rolling, "look_at", look)

    return arrange


@pytest.fixture
def stopped(run: Run, at_step: Callable[[int, Callable[[], None]], None]) -> str:
    """A run of six steps that SIGTERM stops in the third; its message."""
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    code, message = run()
    assert code == 3, message
    return message


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    named = {str(path.relative_to(folder)): path for path in files}
    return {name: path.read_bytes() for name, path in named.items() if not name.endswith("2.json")}


def products(folder: Path) -> dict[str, bytes]:
    """Every file of the products, without the records, which hold times of the clock."""
    records = {f"{name}.json" for name in NAMES}
    return {name: data for name, data in content(folder).items() if name not in records}


@pytest.fixture(scope="module")
def undisturbed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    outputs = [f"--output={folder / name}" for name in NAMES]
    where = ["--init", "2026-06-24T00", "--checkpoint", str(checkpoint), "--lead-time", "36h"]
    assert main(["run", *where, *outputs, "--quiet"]) == 0
    return products(folder)


def test_a_signal_stops_after_the_step_and_says_what_is_there(stopped: str, tmp_path: Path) -> None:
    assert "stopped by SIGTERM after lead time 18 h" in stopped
    assert "f.zarr.partial holds 3 of 6 lead times" in stopped
    assert "--resume goes on from there" in stopped
    assert not any((tmp_path / name).exists() for name in NAMES)


def test_marks_name_the_lead_times_that_are_done(stopped: str, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (tmp_path / "f.grib2.progress").read_text().splitlines()]
    done = [line for line in lines if "done" in line]
    assert [line["done"] for line in done] == [
        ["2026-06-24T00:00:00", h, None] for h in (6, 12, 18)
    ]
    assert done[0]["valid_time"] == "2026-06-24T06:00:00"
    assert done[-1]["end_byte"] == (tmp_path / "f.grib2.partial").stat().st_size


def test_resume_ends_with_the_files_of_an_undisturbed_run(
    run: Run, stopped: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    assert run("--resume", "--report", tmp_path / "r.json") == (0, "")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["resumed_from"] == {"2026-06-24T00:00:00": 3}
    (tmp_path / "r.json").unlink()
    assert products(tmp_path) == undisturbed


def test_resume_with_the_outputs_in_another_order_leaves_nothing_beside_them(
    run: Run, stopped: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    outputs = [item for name in reversed(NAMES) for item in ("--output", tmp_path / name)]
    assert run("--resume", *outputs) == (0, "")
    assert products(tmp_path) == undisturbed


def test_resume_removes_what_a_run_killed_after_its_last_product_left(
    run: Run, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    assert run() == (0, "")
    state = tmp_path / ".f.zarr.restart" / "20260624T000000" / "step-00006"
    state.mkdir(parents=True)
    for name in (state / "rank-00000.safetensors", tmp_path / "f.nc.progress"):
        name.write_bytes(b"left")
    (tmp_path / ".f.nc.lock").touch()
    assert run("--resume") == (0, "")
    assert products(tmp_path) == undisturbed


def test_resume_starts_afresh_where_nothing_is(
    run: Run, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    assert run("--resume") == (0, "")
    assert products(tmp_path) == undisturbed


def test_resume_of_what_is_whole_computes_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run() == (0, "")
    before = content(tmp_path)
    monkeypatch.setattr("jigsaw_forecast.forecast.run.load_checkpoint", None)
    monkeypatch.setattr("jigsaw_forecast.forecast.run.find_input", None)
    assert run("--resume") == (0, "")
    assert content(tmp_path) == before


def test_a_run_without_resume_starts_afresh(
    run: Run, stopped: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    assert run() == (0, "")
    assert products(tmp_path) == undisturbed


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_lead_time_is_made_again(
    run: Run, stopped: str, undisturbed: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    partial = tmp_path / f"{name}.partial"
    damaged = partial / "2m_temperature/c/0/1/0/0" if partial.is_dir() else partial
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    code, message = run("--resume")
    assert code == 0, message
    assert products(tmp_path) == undisturbed


def test_a_damaged_restart_state_is_not_used(
    run: Run, stopped: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    states = list(tmp_path.glob(".f.zarr.restart/*/step-*/rank-00000.safetensors"))
    assert states
    for state in states:
        data = bytearray(state.read_bytes())
        data[-5] ^= 1
        state.write_bytes(data)
    assert run("--resume", "--report", tmp_path / "r.json") == (0, "")
    assert json.loads((tmp_path / "r.json").read_text())["resumed_from"] == {}
    (tmp_path / "r.json").unlink()
    assert products(tmp_path) == undisturbed


@pytest.mark.parametrize(
    ("option", "difference"),
    [
        (("--lead-time", "48h"), "lead times in hours: 6 12 18 24 30 36 there"),
        (("--variables", "z500"), "z500 here"),
        (("--precision", "bfloat16"), "precision: float32 there, bfloat16 here"),
        (("--weights", "streamed"), "weights: resident there, streamed here"),
        (("--grib", "centre=ecmf"), "GRIB keys: nothing there, centre=ecmf here"),
        (("--regrid",), "regridding: no there, yes here"),
    ],
)
def test_other_options_are_refused_by_name(
    run: Run, stopped: str, tmp_path: Path, option: tuple[str, ...], difference: str
) -> None:
    before = content(tmp_path)
    code, message = run("--resume", *option)
    assert code == 2
    assert difference in message
    assert "--overwrite" in message
    assert content(tmp_path) == before


def test_another_checkpoint_and_grid_are_refused_by_name(
    run: Run, stopped: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = inputs.CONFIG.model_copy(update={"grid": "48x24"})
    other = inputs.make_checkpoint(tmp_path_factory.mktemp("other") / "finer", config)
    code, message = run("--resume", "--checkpoint", other)
    assert code == 2
    assert "grid: 24x12 there, 48x24 here" in message
    assert "checkpoint: tiny" in message
    assert "finer" in message


def test_another_mesh_is_refused_by_name(run: Run, stopped: str, tmp_path: Path) -> None:
    path = tmp_path / "f.zarr.progress"
    path.write_text(path.read_text().replace('"mesh": "one rank"', '"mesh": "domain=2"'))
    code, message = run("--resume")
    assert code == 2
    assert "mesh: domain=2 there, one rank here" in message


def test_another_input_under_the_same_name_is_refused_by_field(
    run: Run,
    at_step: Callable[[int, Callable[[], None]], None],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    source = tmp_path_factory.mktemp("input") / "in.grib2"
    values = inputs.maps(FIELDS, 12, 24)
    inputs.write_grib(source, values)
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run("--input", source)[0] == 3
    values[Field("2m_temperature")] += 1
    inputs.write_grib(source, values)
    code, message = run("--input", source, "--resume")
    assert code == 2
    assert "the initial state of 2026-06-24T00:00:00 is another in 2t" in message
    assert (tmp_path / "f.zarr.partial").exists()


def test_a_product_of_another_run_is_refused_and_kept(run: Run, tmp_path: Path) -> None:
    assert run() == (0, "")
    before = content(tmp_path)
    code, message = run("--resume", "--lead-time", "12h")
    assert code == 2
    assert (
        "f.zarr is of another run (lead times in hours: 6 12 18 24 30 36 there, 6 12 here)"
        in message
    )
    assert content(tmp_path) == before
    assert run("--resume", "--overwrite", "--lead-time", "12h") == (0, "")


def test_a_second_run_is_refused_before_it_reads_anything(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = ProductLock(tmp_path / "f.nc", joins=False)
    monkeypatch.setattr("jigsaw_forecast.forecast.run.load_checkpoint", None)
    code, message = run("--resume")
    assert code == 2
    assert "f.nc is being written by another run" in message
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_would_be_late_stops_and_says_where(run: Run, tmp_path: Path) -> None:
    code, message = run("--deadline", "0.001")
    assert code == 3
    assert "stopped after lead time 6 h: " in message
    assert "beyond --deadline 0.001" in message
    assert "holds 1 of 6 lead times" in message
    assert run("--resume") == (0, "")


def test_a_deadline_counts_the_loading(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, load = time.perf_counter, run_module.load_checkpoint

    def load_slowly(*arguments: object) -> object:
        monkeypatch.setattr(time, "perf_counter", lambda: clock() + 2e6)
        return load(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(run_module, "load_checkpoint", load_slowly)
    code, message = run("--deadline", "1000000")
    assert code == 3
    assert "stopped after lead time 6 h: " in message


def test_implausible_fields_are_reported_by_lead_time(
    run: Run, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = inputs.make_checkpoint(tmp_path_factory.mktemp("w") / "wild", tendency_factor=9.0)
    zarr = ("--output", tmp_path / "f.zarr")
    code, message = run("--checkpoint", folder, *zarr, "--report", tmp_path / "r.json")
    assert code == 0
    assert "warning: outside of what is plausible: " in message
    found = json.loads((tmp_path / "r.json").read_text())["implausible"]
    assert {"forecast", "field", "lead_hours", "min", "max"} == set(found[0])
    assert found == json.loads((tmp_path / "f.zarr.json").read_text())["implausible"]
    code, message = run("--checkpoint", folder, *zarr, "--overwrite", "--stop-implausible")
    assert code == 3
    hours = min(item["lead_hours"] for item in found)
    assert f"stopped at lead time {hours} h as --stop-implausible asks: " in message


def test_the_record_says_where_a_product_came_from(run: Run, tmp_path: Path) -> None:
    assert run("--grib", "bits=12") == (0, "")
    record = json.loads((tmp_path / "f.grib2.json").read_text())
    assert record["command"][:2] == ["jigsaw-forecast", "run"]
    assert record["checkpoint"]["name"] == "tiny"
    assert len(record["checkpoint"]["digest"]) == 64
    assert record["initial_states"][0]["init_time"] == "2026-06-24T00:00:00"
    assert set(record["initial_states"][0]["sha256"]) >= {str(field) for field in FIELDS}
    assert record["input"][0]["path"].endswith("initial.zarr")
    assert {"torch", "zarr", "eccodes", "jigsaw-forecast"} <= set(record["versions"])
    assert record["run"]["GRIB keys"] == "bitsPerValue=12"
    assert len(record["hosts"]) == 1
    assert set(record["seconds"]) >= {"read", "rollout", "write"}


def test_somebody_elses_file_in_the_place_of_the_record_is_kept(run: Run, tmp_path: Path) -> None:
    (tmp_path / "f.nc.json").write_text("{}")
    code, message = run()
    assert code == 2
    assert "f.nc.json exists and is no record of a run" in message
    assert (tmp_path / "f.nc.json").read_text() == "{}"


def test_the_input_is_never_the_output(run: Run, tmp_path: Path) -> None:
    inputs.write_store(tmp_path / "in.zarr", inputs.maps(FIELDS, 12, 24))
    before = content(tmp_path)
    template = f"{tmp_path}/{{init:in}}.zarr"
    for spec, output, says in (
        (tmp_path / "in.zarr", tmp_path / "in.zarr", "in.zarr is the input"),
        (template, template, "in.zarr is the input"),
        (tmp_path / "in.zarr", tmp_path / "in.zarr" / "out.nc", "out.nc lies in the input"),
    ):
        code, message = run("--input", spec, "--output", output, "--overwrite")
        assert code == 2
        assert says in message
    assert content(tmp_path) == before


def test_a_link_to_itself_is_refused_as_input_and_output(run: Run, tmp_path: Path) -> None:
    (tmp_path / "loop.nc").symlink_to("loop.nc")
    code, message = run("--input", tmp_path / "loop.nc")
    assert (code, "cannot read" in message) == (2, True)
    code, message = run("--output", tmp_path / "loop.nc")
    assert (code, message.count("error: ")) == (2, 1)


def test_an_output_that_holds_the_input_is_refused(run: Run, tmp_path: Path) -> None:
    assert run("--output", tmp_path / "f.zarr") == (0, "")
    inputs.write_store(tmp_path / "f.zarr" / "analysis", inputs.maps(FIELDS, 12, 24))
    code, message = run("--input", tmp_path / "f.zarr" / "analysis", "--output",
                        tmp_path / "f.zarr", "--overwrite")  # fmt: skip
    assert code == 2
    assert "f.zarr holds the input" in message
    assert (tmp_path / "f.zarr" / "analysis").exists()


def test_a_template_may_not_leave_its_folder(run: Run, tmp_path: Path) -> None:
    for text in ("{init:../%Y}.nc", "{init.__class__}.nc", "{lead!r}.nc", "{member:02d}.nc"):
        code, message = run("--output", f"{tmp_path}/{text}")
        assert code == 2
        assert "is not a valid template" in message
    assert "leaves the folder" in run("--output", f"{tmp_path}/{{init:../%Y}}.nc")[1]
    np.testing.assert_equal(list(tmp_path.iterdir()), [])
