"""`inspect` of data files, from a shell."""

import json
import subprocess
import sys
from pathlib import Path

import eccodes
import pytest

KEYS = ["variable", "level", "valid_time", "init_time", "member", "grid"]
FIGURES = ["min", "max", "mean", "missing", "usable", "why"]


def inspect(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jigsaw_forecast.cli.main", "inspect", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def gfs(real_data: Path) -> list[dict[str, object]]:
    """What `inspect --json` says about a complete GFS state with u and v in one message."""
    done = inspect(str(real_data / "gfs-full" / "gfs.grb"), "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows: list[dict[str, object]] = json.loads(done.stdout)
    return rows


def read_with_eccodes(path: Path) -> list[dict[str, object]]:
    """All fields of a file, those of multi-field messages included, by eccodes alone."""
    found = []
    eccodes.codes_grib_multi_support_on()
    try:
        with path.open("rb") as file:
            while (handle := eccodes.codes_grib_new_from_file(file)) is not None:
                names = ("shortName", "level", "typeOfLevel", "min", "max", "average")
                found.append({name: eccodes.codes_get(handle, name) for name in names})
                eccodes.codes_release(handle)
    finally:
        eccodes.codes_grib_multi_support_off()
    return found


def test_every_field_has_the_keys_of_the_contract(gfs: list[dict[str, object]]) -> None:
    assert all(list(row)[: len(KEYS + FIGURES)] == KEYS + FIGURES for row in gfs)


def test_every_field_of_multi_field_messages_is_there(
    gfs: list[dict[str, object]], real_data: Path
) -> None:
    expected = read_with_eccodes(real_data / "gfs-full" / "gfs.grb")
    assert len(gfs) == len(expected)
    num_v = sum(row["shortName"] == "v" for row in expected)
    assert sum(row["short_name"] == "v" for row in gfs) == num_v > 0


def test_extremes_are_those_that_eccodes_finds(
    gfs: list[dict[str, object]], real_data: Path
) -> None:
    def key(name: object, level_type: object, level: object) -> bool:
        return (name, level_type, level) == ("t", "isobaricInhPa", 500)

    (expected,) = (
        row
        for row in read_with_eccodes(real_data / "gfs-full" / "gfs.grb")
        if key(row["shortName"], row["typeOfLevel"], row["level"])
    )
    (found,) = (row for row in gfs if key(row["short_name"], row["level_type"], row["level"]))
    assert found["min"] == pytest.approx(expected["min"], rel=1e-6)
    assert found["max"] == pytest.approx(expected["max"], rel=1e-6)
    assert found["mean"] == pytest.approx(expected["average"], rel=1e-6)


def test_a_field_that_no_forecast_can_use_says_why(gfs: list[dict[str, object]]) -> None:
    unusable = [row for row in gfs if not row["usable"]]
    assert any("absv" in str(row["why"]) for row in unusable)
    assert all(row["why"] for row in unusable)
    assert all(row["why"] == "" for row in gfs if row["usable"])


def test_the_table_has_a_line_for_each_field(gfs: list[dict[str, object]], real_data: Path) -> None:
    done = inspect(str(real_data / "gfs-full" / "gfs.grb"), "--quiet")
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["variable", "level", "valid_time"]
    assert len(lines) == 1 + len(gfs)


def test_a_file_that_is_broken_as_a_whole_is_refused(real_data: Path) -> None:
    done = inspect(str(real_data / "broken" / "empty_file.grib"), "--json")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "is empty" in done.stderr


def test_times_of_a_field_share_a_line_and_the_file_has_a_verdict(real_data: Path) -> None:
    path = str(real_data / "mixed" / "multi_param_on_multi_dims.grib")
    done = inspect(path)
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + 12  # three variables on four levels
    assert all("(4 times)" in line and " hPa " in line for line in lines[1:])
    assert "48 maps at 4 times; a forecast can start from 48 of them" in done.stderr
    assert "geopotential (4 levels)" in done.stderr
    assert len(json.loads(inspect(path, "--json", "--quiet").stdout)) == 48
