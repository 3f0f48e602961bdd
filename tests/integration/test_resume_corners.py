"""Runs that go on after a stop at an awkward moment: while naming, between products, at the end."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from jigsaw_forecast.cli.main import main
from jigsaw_forecast.forecast import rolling
from jigsaw_forecast.forecast import run as run_module
from jigsaw_forecast.forecast.staging import Staging
from tests.integration import inputs

FIELDS = inputs.CONFIG.prognostic_fields
START = "2026-06-24T00:00:00"
Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inputs.make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def run(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str | Path) -> tuple[int, str]:
        given = ["run", "--init", "2026-06-24T00", "--quiet", "--checkpoint", str(checkpoint)]
        return main([*given, *map(str, arguments)]), capfd.readouterr().err

    return call


@pytest.fixture
def stop_at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """SIGTERM when so many rollout steps have been made."""

    def arrange(step: int) -> None:
        original, seen = rolling.look_at, iter(range(1, 1000))

        def look(*arguments: object) -> object:
            if next(seen) == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(rolling, "look_at", look)

    return arrange


def fail_to_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(self: Staging) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Staging, "_rename", rename)


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the records, which hold times of the clock."""
    files = (path for path in folder.rglob("*") if path.is_file())
    named = {str(path.relative_to(folder)): path for path in files}
    return {
        name: path.read_bytes()
        for name, path in named.items()
        if not (path.suffix == ".json" and path.stem.startswith("f"))
    }


@pytest.mark.parametrize("name", ["f.grib2", "f.zarr"])
def test_a_new_product_that_could_not_replace_the_old_one_does_so_when_resumed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "new").mkdir()
    longer = ("--lead-time", "12h")
    assert run(*longer, "--output", tmp_path / "new" / name) == (0, "")
    expected = content(tmp_path / "new")
    folder = tmp_path / "f"
    folder.mkdir()
    output = ("--output", folder / name)
    assert run("--lead-time", "6h", *output) == (0, "")
    old = content(folder)
    with monkeypatch.context() as full:
        fail_to_name(full)
        for resume in ((), ("--resume",)):  # the same fault has the same code
            code, message = run(*longer, *output, "--overwrite", *resume)
            assert code == 3
            assert f"{name}.partial" in message
    assert {key: content(folder)[key] for key in old} == old
    code, message = run(*longer, *output, "--resume")
    assert code == 2
    assert f"its record may be that of {name}.partial" in message
    assert "add --overwrite" in message
    assert run(*longer, *output, "--resume", "--overwrite") == (0, "")
    assert content(folder) == expected
    record = json.loads((folder / f"{name}.json").read_text())
    assert record["initial_states"][0]["init_time"] == START


def test_the_product_of_a_run_stays_whole_while_another_is_to_replace_it(
    run: Run, tmp_path: Path, stop_at_step: Callable[[int], None]
) -> None:
    output = ("--lead-time", "12h", "--output", tmp_path / "f.grib2")
    assert run(*output) == (0, "")
    whole = content(tmp_path)
    stop_at_step(1)
    code, message = run(*output, "--overwrite", "--variables", "z500")
    assert code == 3
    assert "; --resume --overwrite goes on from there" in message
    stopped = content(tmp_path)
    assert run(*output, "--resume") == (0, "")
    assert content(tmp_path) == stopped  # what the other run goes on from included
    assert run(*output, "--overwrite", "--resume", "--variables", "z500") == (0, "")
    assert content(tmp_path).keys() == whole.keys()


def test_one_product_for_each_lead_time_goes_on_where_it_was_stopped(
    run: Run,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    stop_at_step: Callable[[int], None],
) -> None:
    source = tmp_path_factory.mktemp("input") / "in.grib2"
    values = inputs.maps(FIELDS, 12, 24)
    inputs.write_grib(source, values)
    where = ("--lead-time", "24h", "--input", source, "--output")
    undisturbed = tmp_path_factory.mktemp("undisturbed")
    assert run(*where, undisturbed / "f-{lead:03d}.grib2") == (0, "")
    stop_at_step(2)
    output = tmp_path / "f-{lead:03d}.grib2"
    assert run(*where, output)[0] == 3
    assert (tmp_path / "f-012.grib2").exists()
    for field, changed in ((FIELDS[0], 1.0), (FIELDS[0], -1.0)):
        values[field] += changed
        inputs.write_grib(source, values)
        if changed > 0:
            code, message = run(*where, output, "--resume")
            assert code == 2
            assert f"the initial state of {START} is another in {FIELDS[0]}" in message
    inputs.write_grib(source, inputs.maps(FIELDS, 12, 24))
    report = tmp_path / "r.json"
    assert run(*where, output, "--resume", "--report", report) == (0, "")
    assert json.loads(report.read_text())["resumed_from"] == {START: 2}
    report.unlink()
    assert content(tmp_path) == content(undisturbed)


def test_another_run_of_a_lead_time_that_is_whole_leaves_the_states_of_a_longer_one(
    run: Run, tmp_path: Path, stop_at_step: Callable[[int], None]
) -> None:
    output = ("--output", tmp_path / "f-{lead:03d}.grib2")
    stop_at_step(2)
    assert run("--lead-time", "24h", *output)[0] == 3
    before = content(tmp_path)
    assert any("rank-00000" in name for name in before)
    assert run("--lead-time", "12h", *output, "--resume") == (0, "")
    assert content(tmp_path) == before


def test_the_record_tells_what_was_found_before_the_stop(
    run: Run,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    stop_at_step: Callable[[int], None],
) -> None:
    wild = inputs.make_checkpoint(tmp_path_factory.mktemp("w") / "wild", tendency_factor=9.0)
    where = ("--checkpoint", wild, "--lead-time", "36h", "--output")
    assert run(*where, tmp_path / "whole.zarr")[0] == 0
    stop_at_step(5)
    assert run(*where, tmp_path / "f.zarr")[0] == 3
    assert run(*where, tmp_path / "f.zarr", "--resume", "--report", tmp_path / "r.json")[0] == 0
    own, other = (
        json.loads((tmp_path / f"{name}.zarr.json").read_text()) for name in ("f", "whole")
    )
    assert own["implausible"] == other["implausible"] != []
    assert own["initial_states"] == other["initial_states"]
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["implausible"] == other["implausible"]


def test_a_whole_product_still_gets_the_report_and_the_map_that_are_asked_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ("--lead-time", "6h", "--output", tmp_path / "f.zarr", "--resume")
    assert run(*where) == (0, "")
    drawn = []
    monkeypatch.setattr(run_module, "_draw", lambda request, _: drawn.append(request.plot))
    assert run(*where, "--report", tmp_path / "r.json", "--plot", tmp_path / "p.png") == (0, "")
    assert drawn == [tmp_path / "p.png"]
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["num_rollout_steps"] == 1
    assert report["ranks"][0]["output_bytes_written"] == 0


@pytest.mark.parametrize("of_first_rank", [0, 1])
def test_the_first_rank_decides_whether_all_is_whole(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_first_rank: int
) -> None:
    where = ("--lead-time", "6h", "--output", tmp_path / "f.zarr", "--resume")
    if of_first_rank == 0:
        assert run(*where) == (0, "")
    share, asked = run_module.share_numbers, []

    def answer(mesh: object, own: list[int | None]) -> list[int | None]:
        asked.append(own)
        return [of_first_rank] if len(asked) == 1 else share(mesh, own)  # type: ignore[arg-type]

    monkeypatch.setattr(run_module, "share_numbers", answer)
    before = content(tmp_path)
    assert run(*where) == (0, "")
    assert asked[0] == [1 - of_first_rank]
    assert content(tmp_path) == before


def test_what_a_killed_run_left_beside_its_product_goes(run: Run, tmp_path: Path) -> None:
    where = ("--lead-time", "6h", "--output", tmp_path / "f.nc", "--output", tmp_path / "f.zarr")
    (tmp_path / ".f.nc.partial.copy").write_bytes(b"left")
    (tmp_path / "f.nc.partial").write_bytes(b"left")
    assert run(*where) == (0, "")
    whole = content(tmp_path)
    assert not any("partial" in name for name in whole)
    (tmp_path / ".f.nc.partial.copy").write_bytes(b"left")
    (tmp_path / ".f.zarr.old").mkdir()
    (tmp_path / ".f.zarr.old" / "zarr.json").write_bytes(b"left")
    assert run(*where, "--resume") == (0, "")
    assert content(tmp_path) == whole


def test_a_store_that_was_moved_away_comes_back_and_is_not_replaced_unasked(
    run: Run, tmp_path: Path
) -> None:
    where = ("--lead-time", "6h", "--output", tmp_path / "f.zarr")
    assert run(*where) == (0, "")
    before = content(tmp_path)
    (tmp_path / "f.zarr").rename(tmp_path / ".f.zarr.old")
    code, message = run(*where)
    assert code == 2
    assert "f.zarr exists; add --overwrite" in message
    assert content(tmp_path) == before
