"""The checkpoint folder: versions, digests, paths, blocks."""

import json
from pathlib import Path

import numpy as np
import pytest

from jigsaw_forecast.checkpoint.format import (
    FORMAT_VERSION,
    Manifest,
    check_complete,
    find_checkpoint,
    read_manifest,
    verify_digests,
    write_manifest,
)
from jigsaw_forecast.checkpoint.save import num_blocks
from jigsaw_forecast.errors import CheckpointError
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.mesh import single_rank_mesh
from tests.parallel.cases import CONFIG
from tests.parallel.test_checkpoint import save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint."""
    path = tmp_path / "model"
    save(single_rank_mesh(), str(path))
    return path


def edit(folder: Path, **changes: object) -> None:
    """Changes model.json and seals it again."""
    path = folder / "model.json"
    changed = json.loads(path.read_text()) | changes
    if changed["format_version"] == FORMAT_VERSION:
        write_manifest(folder, Manifest.model_validate(changed))
    else:
        path.write_text(json.dumps(changed))


def shapes() -> dict[str, tuple[int, ...]]:
    """The full shapes that the architecture needs."""
    layouts = WeatherMixer(CONFIG, single_rank_mesh("meta")).layouts()
    return {name: layout.full_shape for name, layout in layouts.items()}


def test_whole_checkpoint_passes(folder: Path) -> None:
    verify_digests(folder)


def test_truncated_and_missing_shards_are_all_named(folder: Path) -> None:
    manifest = json.loads((folder / "model.json").read_text())
    (name,) = manifest["shards"]
    manifest["shards"]["weights-00001.safetensors"] = {"sha256": "0", "num_bytes": 1}
    edit(folder, shards=manifest["shards"])
    shard = folder / name
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(CheckpointError) as caught:
        verify_digests(folder)
    assert f"{name}: {shard.stat().st_size} bytes, expected" in str(caught.value)
    assert "missing" in str(caught.value)
    assert "weights-00001.safetensors" in str(caught.value)


def test_other_format_version_is_refused_by_number(folder: Path) -> None:
    edit(folder, format_version=99)
    with pytest.raises(CheckpointError, match="format version 99, this program reads 1"):
        read_manifest(folder)


def test_shard_outside_of_the_folder_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / "model.json").read_text())
    (record,) = manifest["shards"].values()
    edit(folder, shards=manifest["shards"] | {"../evil.safetensors": record})
    with pytest.raises(CheckpointError, match=r"outside of the folder: \.\./evil"):
        read_manifest(folder)


def test_altered_manifest_is_refused(folder: Path) -> None:
    path = folder / "model.json"
    path.write_text(path.read_text().replace('"overlap": 1', '"overlap": 0'))
    with pytest.raises(CheckpointError, match="altered"):
        read_manifest(folder)


def test_tensors_that_are_missing_or_misshapen_are_all_named(folder: Path) -> None:
    manifest = read_manifest(folder)
    check_complete(folder, manifest, shapes())
    tensors = dict(manifest.tensors)
    del tensors["head.state"], tensors["statistics.std"]
    wrong = tensors["embed.bias"].model_copy(update={"shape": (47,)})
    plausible = {name: bounds for name, bounds in manifest.plausible.items() if name != "t850"}
    changed = {"tensors": tensors | {"embed.bias": wrong}, "plausible": plausible}
    with pytest.raises(CheckpointError) as caught:
        check_complete(folder, manifest.model_copy(update=changed), shapes())
    message = str(caught.value)
    assert "missing tensor head.state" in message
    assert "missing tensor statistics.std" in message
    assert "embed.bias has shape (47,), its architecture needs (48,)" in message
    assert "missing plausible range of t850" in message


def test_existing_folder_is_not_overwritten(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="exists already"):
        save(single_rank_mesh(), str(folder))


def test_unknown_name_lists_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JIGSAW_CHECKPOINTS", str(tmp_path / "mine"))
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint("nowhere")
    assert "checkpoints/nowhere" in str(caught.value)
    assert str(tmp_path / "mine" / "nowhere") in str(caught.value)


def test_name_is_found_in_the_environments_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JIGSAW_CHECKPOINTS", str(folder.parent))
    assert find_checkpoint("model") == folder


def test_blocks_are_powers_of_two_that_divide_and_stay_large() -> None:
    # 4096 x 4096 bfloat16 is 32 MiB: 16 x 8 blocks of 256 KiB
    assert num_blocks((4096, 4096), {0, 1}, 2) in {(16, 8), (8, 16)}
    assert num_blocks((69, 110, 4608), {0, 2}, 2) == (1, 1, 16)
    assert num_blocks((384,), {0}, 4) == (1,)
    assert np.prod(num_blocks((1 << 14, 1 << 14), {0, 1}, 2)) == 256
