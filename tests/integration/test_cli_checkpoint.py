"""`checkpoint new`, `checkpoint verify` and `inspect` of checkpoints, from a shell."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def jigsaw(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """One command, as a shell would start it."""
    return subprocess.run(
        [sys.executable, "-m", "jigsaw_forecast.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )


def refused(*arguments: str | Path) -> str:
    """The one message of a command that is refused."""
    done = jigsaw(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh checkpoint of the smallest preset of the Earth."""
    folder = tmp_path_factory.mktemp("made") / "wm"
    done = jigsaw("checkpoint", "new", "wm-9m-5.625", folder, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["dtype"] == "bfloat16"
    assert report["bytes"] == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert "Untrained" in report["notice"]
    return folder


def test_a_new_checkpoint_is_intact(made: Path) -> None:
    done = jigsaw("checkpoint", "verify", made, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["intact"] is True
    assert "verifying wm: " in done.stderr


def test_a_recipe_gives_its_architecture(tmp_path: Path) -> None:
    recipe = "recipes/nature-run_train_cpu.toml"
    done = jigsaw(
        "checkpoint", "new", recipe, tmp_path / "new", "--dtype", "float32", "--seed", "3"
    )
    assert done.returncode == 0, done.stderr
    described = json.loads(jigsaw("inspect", tmp_path / "new", "--json").stdout)
    assert described["grid"]["name"] == "64x32"
    assert described["dtype"] == "float32"
    assert described["provenance"]["weights"] == "untrained, seed 3"


def test_an_unknown_preset_is_refused_with_those_there_are(tmp_path: Path) -> None:
    message = refused("checkpoint", "new", "wm-9b", tmp_path / "new")
    assert "unknown preset 'wm-9b'" in message
    assert "wm-3.2b" in message
    assert not (tmp_path / "new").exists()


def test_a_folder_that_exists_is_refused(made: Path) -> None:
    assert "exists already" in refused("checkpoint", "new", "wm-9m-5.625", made)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that not even root may write")
def test_a_place_that_cannot_be_written_is_refused() -> None:
    message = refused("checkpoint", "new", "wm-9m-5.625", "/proc/new")
    assert "/proc/new: cannot be written" in message


def test_verify_names_every_bad_shard(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "model.json").write_text((made / "model.json").read_text())
    names = sorted(path.name for path in made.glob("*.safetensors"))
    message = refused("checkpoint", "verify", folder)
    assert all(f"missing {folder / name}" in message for name in names)
    content = bytearray((made / names[0]).read_bytes())
    content[100] ^= 1  # in the header, where no block's digest looks
    (folder / names[0]).write_bytes(content)
    assert f"{folder / names[0]}: sha256" in refused("checkpoint", "verify", folder)


def test_inspect_shows_the_size_on_each_rank_of_a_mesh(made: Path) -> None:
    done = jigsaw("inspect", made, "--mesh", "domain=2,tensor=2", "--json")
    assert done.returncode == 0, done.stderr
    described = json.loads(done.stdout)
    ranks = described["mesh"]["ranks"]
    assert [(rank["domain"], rank["tensor"]) for rank in ranks] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    # 69 fields leave one group a field larger; header, vectors and static maps are read by all
    assert all(rank["bytes_to_read"] < 1.06 / 4 * described["bytes"] for rank in ranks)
    whole = json.loads(jigsaw("inspect", made, "--mesh", "domain=1", "--json").stdout)
    (alone,) = whole["mesh"]["ranks"]
    assert alone["bytes_to_read"] == described["bytes"]
    assert sum(rank["parameter_bytes"] for rank in ranks) == alone["parameter_bytes"]


def test_inspect_fits_a_screen(made: Path) -> None:
    done = jigsaw("inspect", made, "--mesh", "domain=2")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) < 60
    assert "rank 1 (domain 1, tensor 0): stores" in done.stdout
    assert "t50-1000 130 to 350" in done.stdout
    assert "Untrained" in done.stdout


def test_a_mesh_that_does_not_divide_is_refused(made: Path) -> None:
    message = refused("inspect", made, "--mesh", "domain=3,tensor=5")
    assert "domain=3 does not divide 8 token rows" in message
    assert "tensor=5 does not divide 384 channels" in message


def test_a_mesh_for_a_data_file_is_refused() -> None:
    store = "checkpoints/nature-run/initial.zarr"
    assert "is no checkpoint" in refused("inspect", store, "--mesh", "domain=2")


def test_a_checkpoint_of_another_version_is_refused(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "later"
    folder.mkdir()
    raw = json.loads((made / "model.json").read_text()) | {"format_version": 7}
    (folder / "model.json").write_text(json.dumps(raw))
    for command in (
        ["inspect"],
        ["checkpoint", "verify"],
        ["run", "--init", "20260624", "--checkpoint"],
    ):
        assert "format version 7, this program reads 1 and 2" in refused(*command, folder)


def test_a_forecast_runs_from_a_fresh_checkpoint_on_four_ranks(tmp_path: Path) -> None:
    store = "checkpoints/nature-run/initial.zarr"
    made = tmp_path / "new"
    assert jigsaw("checkpoint", "new", "wm-nature", made, "--statics", store).returncode == 0
    report = tmp_path / "report.json"
    options = ["--lead-time", "6h", "--mesh", "domain=2,tensor=2", "--report", report]
    run = ["run", "--init", "2026-06-24T00", "--checkpoint", made, "--input", store]
    done = jigsaw(*run, *options, "--output", tmp_path / "f.zarr")
    assert done.returncode == 0, done.stderr
    foretold = json.loads(jigsaw("inspect", made, "--mesh", "domain=2,tensor=2", "--json").stdout)
    ranks = json.loads(report.read_text())["ranks"]
    assert [rank["checkpoint_bytes_read"] for rank in ranks] == [
        rank["bytes_to_read"] for rank in foretold["mesh"]["ranks"]
    ]
