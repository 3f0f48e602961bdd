"""The command line from a shell: help, errors and exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jigsaw_forecast

COMMANDS = [
    ["run"],
    ["train"],
    ["inspect"],
    ["plot"],
    ["selfcheck"],
    ["data", "nature-run"],
    ["plan"],
    ["bench"],
    ["checkpoint", "verify"],
    ["checkpoint", "new"],
]


def jigsaw(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """One command, as a shell would start it."""
    return subprocess.run(
        [sys.executable, "-m", "jigsaw_forecast.cli.main", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=300,
    )


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2 and one plain message on stderr, nothing on stdout."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert not set("╭│╰") & set(done.stderr)
    for word in words:
        assert word in done.stderr


def test_the_installed_script_runs() -> None:
    script = Path(sys.executable).with_name("jigsaw-forecast")
    done = subprocess.run([script, "--version"], capture_output=True, text=True)
    assert done.stdout == f"jigsaw-forecast {jigsaw_forecast.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command: list[str]) -> None:
    done = jigsaw(*command, "--help")
    assert done.returncode == 0
    assert f"  jigsaw-forecast {' '.join(command)} " in done.stdout
    assert all(name in done.stdout for name in ("--quiet", "--log-file", "--version"))


def test_help_lists_every_command() -> None:
    done = jigsaw("--help")
    assert done.returncode == 0
    assert all(f"\n  {command[0]} " in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]], ids=" ".join)
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from jigsaw_forecast.cli.main import main\n"
        f"main({arguments!r})\n"
        "heavy = ('torch', 'numpy', 'xarray', 'zarr', 'eccodes', 'matplotlib', 'rich')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("arguments", [["--version"], ["run", "--version"]], ids=" ".join)
def test_the_version_is_told_before_and_after_the_command(arguments: list[str]) -> None:
    assert jigsaw(*arguments).stdout == f"jigsaw-forecast {jigsaw_forecast.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["missing command", "see jigsaw-forecast --help"]),
        (["data"], ["missing command", "see jigsaw-forecast data --help"]),
        (["runn"], ["no such command 'runn'"]),
        (["run"], ["missing option '--init'", "see jigsaw-forecast run --help"]),
        (["train"], ["missing argument 'RECIPE'"]),
        (["run", "--init", "2026062400", "--speed", "9"], ["no such option", "--speed"]),
        (["run", "--init", "2026062400", "--device", "tpu"], ["'tpu' is not one of 'auto'"]),
        (["train", "x.toml", "--max-steps", "0"], ["--max-steps"]),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_plain_message(
    arguments: list[str], words: list[str]
) -> None:
    done = jigsaw(*arguments)
    assert_refused(done, *words)
    assert len(done.stderr.splitlines()) == 1


def test_all_wrong_values_of_a_run_are_told_at_once() -> None:
    wrong = ["--init", "someday", "--lead-time", "far", "--mesh", "rows=2", "--grib", "centre"]
    done = jigsaw("run", *wrong, "--output-frequency", "often")
    assert_refused(
        done,
        "'someday' is not a time",
        "--lead-time far is not",
        "unknown axis 'rows'",
        "'centre' is not KEY=VALUE",
        "--output-frequency often is not",
    )


def test_a_file_that_does_not_exist_is_refused() -> None:
    assert_refused(jigsaw("inspect", "nowhere.grib"), "nowhere.grib: no such file")


def test_selfcheck_reports_versions_and_a_grib_round_trip_as_json() -> None:
    done = jigsaw("selfcheck", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["jigsaw-forecast"] == jigsaw_forecast.__version__
    assert {"torch", "eccodes", "zarr", "xarray"} <= report["versions"].keys()
    assert "2t" in report["eccodes"]["round_trip"]
    assert "gloo" in report["backends"]
    assert report["problems"] == []


def test_selfcheck_fails_where_the_eccodes_library_is_missing(tmp_path: Path) -> None:
    # what the Python package does where it finds no library
    message = "Cannot find the ecCodes library"
    (tmp_path / "eccodes.py").write_text(f"raise RuntimeError({message!r})")
    done = subprocess.run(
        [sys.executable, "-m", "jigsaw_forecast.cli.main", "selfcheck", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 2
    assert done.stderr == f"error: selfcheck failed: eccodes: {message}\n"
    assert json.loads(done.stdout)["problems"] == [f"eccodes: {message}"]


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_log_file_is_taken_before_and_after_the_command(place: str, tmp_path: Path) -> None:
    option = ["--log-file", str(tmp_path / "no" / "run.log")]
    command = ["selfcheck"]
    done = jigsaw(*(option + command if place == "before" else command + option))
    assert_refused(done, "cannot write the log file", "no/run.log")


def test_numbers_are_refused_in_plain_words_and_helps_first_line_is_whole() -> None:
    assert_refused(jigsaw("plan", "wm-3.2b", "--ranks", "x"), "'--ranks': expected a whole number")
    shown = " ".join(jigsaw("--help").stdout.split())
    assert "..." not in shown.partition("Commands:")[2]


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jigsaw_forecast", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"jigsaw-forecast {jigsaw_forecast.__version__}\n"


def test_a_misspelt_checkpoint_is_guessed_and_each_place_named_once() -> None:
    done = jigsaw("inspect", "naturerun")
    assert_refused(done, "did you mean 'nature-run'?")
    places = done.stderr.partition("in ")[2].partition(";")[0].split(", ")
    assert len({Path(place).resolve() for place in places}) == len(places)
