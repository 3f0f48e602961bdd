"""`jigsaw-forecast check`: every reason why a run would fail, and what it would take otherwise."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jigsaw_forecast.cli.main import main
from jigsaw_forecast.fields import Field
from jigsaw_forecast.plan.devices import DeviceKind
from tests.integration import inputs
from tests.integration.open_data_server import GRAVITY, serving, state

FIELDS = inputs.CONFIG.prognostic_fields
Z500, T850, T2M = Field("geopotential", 500), Field("temperature", 850), Field("2m_temperature")

Check = Callable[..., tuple[int, dict, str]]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inputs.make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(autouse=True)
def rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of measuring for each call is saved; `plan`'s tests measure."""

    def given(dtype: str, num_ranks: int, link: float) -> DeviceKind:
        rate = {dtype: 1e10}
        return DeviceKind("cpu", rate, 1e10, 1e9, link, link, 1e-4, num_ranks, "given by the test")

    monkeypatch.setattr("jigsaw_forecast.forecast.check.measure_cpu", given)


@pytest.fixture
def check(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Check:
    """Runs the command with --json; returns the exit code, the report and the lines on stderr."""

    def call(*arguments: str | Path) -> tuple[int, dict, str]:
        command = ["check", str(checkpoint), "--json", "--quiet", "--lead-time", "12h"]
        command += ["--output", str(tmp_path / "forecast.zarr")]
        if "--init" not in arguments:
            command += ["--init", "2026-06-24T00"]
        code = main([*command, *map(str, arguments)])
        out, err = capfd.readouterr()
        return code, json.loads(out) if out else {}, err

    return call


def rows_of(report: dict) -> dict[str, dict]:
    return {row["field"]: row for row in report["inputs"][0]["fields"]}


def test_a_run_that_would_succeed_is_described(check: Check, tmp_path: Path) -> None:
    code, report, errors = check()
    assert (code, errors) == (0, "")
    assert report["fits"]
    assert report["problems"] == []
    assert report["inputs"][0]["counts"]["found"] == len(FIELDS)
    values = inputs.maps(FIELDS, 12, 24)
    for field, row in zip(FIELDS, rows_of(report).values(), strict=True):
        assert row["field"] == str(field)
        assert (row["min"], row["max"]) == (values[field].min(), values[field].max())
    # two lead times, ten fields of 12 x 24 float32 values
    assert report["disk"][0]["needed_bytes"] == 2 * 10 * 12 * 24 * 4
    assert report["disk"][0]["free_bytes"] > 0
    assert report["memory"]["peak_bytes"] > report["memory"]["parameter_bytes"] > 0
    assert report["seconds"]["total"] > 0
    assert report["statics"]["land_sea_mask"] == "checkpoint"
    assert list(tmp_path.iterdir()) == []  # nothing is started


def test_each_field_has_its_message_and_what_it_comes_from(check: Check, tmp_path: Path) -> None:
    values = inputs.maps(FIELDS, 12, 24)
    path = inputs.write_grib(
        tmp_path / "in.grib2",
        values | {Z500: values[Z500] / GRAVITY},
        param_ids={"z500": 156},
    )
    inputs.write_grib(path, {T850: values[T850]}, append=True)
    code, report, errors = check("--input", path)
    assert code == 0, errors
    rows = rows_of(report)
    assert (rows["z500"]["status"], rows["z500"]["messages"]) == ("derived", [1])
    assert rows["z500"]["variable"] == "geopotential_height"
    assert rows["z500"]["max"] == pytest.approx(values[Z500].max(), rel=1e-6)
    assert (rows["t850"]["status"], rows["t850"]["messages"]) == ("duplicated", [3, 10])
    assert (rows["2t"]["status"], rows["2t"]["messages"]) == ("found", [6])
    assert rows["2t"]["file"] == str(path)
    assert rows["2t"]["grid"] == "regular_ll 12x24"
    assert rows["2t"]["valid_time"] == "2026-06-24T00:00:00"


def test_all_that_is_wrong_comes_in_one_message(check: Check, tmp_path: Path) -> None:
    values = inputs.maps(FIELDS, 12, 24)
    del values[Z500]
    values[T2M] = values[T2M] + 500
    values[T850][3, 4] = np.nan
    path = inputs.write_grib(tmp_path / "in.grib2", values)
    code, report, errors = check(
        "--input", path, "--mesh", "domain=5", "--lead-time", "7h", "--variables", "nosuch"
    )
    assert code == 2
    assert not report["fits"]
    assert errors.count("error: ") == 1
    for says in (
        "missing z500",
        "2t (message 5): values",
        "implausible",
        "t850 (message 2): 1 of 288 points are missing",
        "domain=5 does not divide",
        "--lead-time 7 hours is not a positive multiple",
        "no such fields: nosuch",
    ):
        assert says in errors, says
    rows = rows_of(report)
    assert rows["z500"]["status"] == "missing"
    assert "the file has geopotential at 850 hPa" in rows["z500"]["why"]
    assert "implausible" in rows["2t"]["why"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--init", "2026-06-25T00"],
            "missing all fields at valid time 2026-06-25T00:00; the file",
        ),
        (["--input", "nothing.grib"], "cannot read nothing.grib: no such file"),
        (["--output", "nowhere/f.zarr"], "missing folder nowhere"),
        (["--mesh", "data=2"], "data=2: the run makes 1 forecast"),
        (["--device", "cuda", "--mesh", "domain=2"], "device cuda: 2 ranks, "),
        (["--device-kind", "abacus"], "--device-kind abacus: no such kind"),
    ],
)
def test_what_would_stop_the_run_is_told(
    check: Check, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code, report, errors = check(*arguments)
    assert code == 2
    assert says in errors
    assert any(says in problem for problem in report["problems"])


def test_duplicates_that_disagree_and_other_grids_are_told(check: Check, tmp_path: Path) -> None:
    values = inputs.maps(FIELDS, 37, 72)
    path = inputs.write_grib(tmp_path / "in.grib2", values)
    inputs.write_grib(path, {T850: values[T850] + 1}, append=True)
    code, report, errors = check("--input", path)
    assert code == 2
    assert "add --regrid to regrid them" in errors
    assert "t850 occurs twice with different values: message 3 and message 10" in errors
    code, report, errors = check("--input", path, "--regrid")
    assert "--regrid" not in errors
    assert report["inputs"][0]["regridded"]


def test_a_damaged_checkpoint_and_a_full_disk_are_told(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    damaged = Path(shutil.copytree(checkpoint, tmp_path / "damaged"))
    (shard,) = damaged.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    command = ["check", str(damaged), "--init", "2026-06-24T00", "--quiet"]
    assert main([*command, "--output", str(tmp_path / "x.nc")]) == 2
    errors = capfd.readouterr().err
    assert f"{damaged} is damaged: " in errors
    assert shard.name in errors
    # 40 lead times, ten fields of 12 x 24 float32 values
    assert (
        f"too little disk in {tmp_path}: products need up to 0.461 MB, 0.001 MB is free" in errors
    )


def test_headers_alone_are_read_where_asked(check: Check, tmp_path: Path) -> None:
    values = inputs.maps(FIELDS, 12, 24)
    values[T2M] = values[T2M] + 500
    path = inputs.write_grib(tmp_path / "in.grib2", values)
    code, report, _ = check("--input", path, "--headers-only")
    assert code == 0
    assert rows_of(report)["2t"]["max"] is None


def test_a_remote_input_is_fetched_and_described(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JIGSAW_CACHE", str(tmp_path / "cache"))
    with serving() as server:
        spec = f"open-data:url={server.url},deadline=20,stall=5,attempts=2,backoff=0.05"
        code, report, errors = check("--input", spec)
        assert code == 0, errors
        assert report["inputs"][0]["origin"].startswith(server.url)
        assert rows_of(report)["z850"]["status"] == "derived"
        assert rows_of(report)["z850"]["max"] == pytest.approx(
            state()[Field("geopotential", 850)].max(), rel=1e-6
        )
        server.lacking["2026062406"] = {"gh500"}
        code, report, errors = check("--input", spec, "--init", "2026-06-24T06")
    assert code == 2
    assert "missing z500" in errors


def test_the_table_fits_a_terminal_and_says_what_is_needed(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "forecast-{init:%H}.grib2")
    command = ["check", str(checkpoint), "--init", "2026-06-24T00", "--output", output]
    code = main([*command, "--mesh", "domain=2", "--quiet"])
    out, _ = capfd.readouterr()
    assert code == 0
    lines = out.splitlines()
    assert sum(line.startswith("  ") for line in lines) == len(FIELDS) + 1
    for begins in ("memory of the busiest rank: ", "time, estimated: ", "disk in "):
        assert any(line.startswith(begins) for line in lines), begins
    assert lines[-1] == "nothing would stop the run"


def test_a_model_with_a_notice_says_so_where_the_input_is_not_its_own(
    check: Check, checkpoint: Path, tmp_path: Path
) -> None:
    own = checkpoint / "initial.zarr"
    path = inputs.write_grib(tmp_path / "in.grib2", inputs.maps(FIELDS, 12, 24))
    notice = json.loads((checkpoint / "model.json").read_text())["notice"]
    assert notice
    assert check()[1]["notice"] == ""
    assert check("--input", own)[1]["notice"] == ""
    assert check("--input", path)[1]["notice"].endswith(f"which starts from {path}: {notice}")


def test_values_and_their_units_belong_together(
    check: Check, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    values = inputs.maps(FIELDS, 12, 24)
    path = inputs.write_grib(tmp_path / "in.grib2", values)
    row = rows_of(check("--input", path)[1])["z500"]
    assert row["value_units"] == "m2 s-2"
    command = ["check", str(checkpoint), "--init", "2026-06-24T00", "--quiet"]
    main([*command, "--input", str(path), "--output", str(tmp_path / "f.zarr")])
    (line,) = (one for one in capfd.readouterr().out.splitlines() if one.startswith("  z500"))
    assert line.split()[2:6] == ["geopotential", "1", "500", "m2"]


def test_a_run_is_told_of_its_missing_input_beside_what_is_wrong_with_its_output(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare, ignore=shutil.ignore_patterns("initial.zarr"))
    output = tmp_path / "forecast.nc"
    output.write_bytes(b"")
    command = ["run", "--checkpoint", str(bare), "--init", "2026-06-24T00", "--lead-time", "6h"]
    assert main([*command, "--output", str(output), "--quiet"]) == 2
    told = capfd.readouterr().err
    assert "forecast.nc" in told
    assert "has no initial conditions of its own: missing --input" in told
