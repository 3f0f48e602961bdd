"""The checkpoint folder: versions, digests, paths, blocks."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from jigsaw_forecast.checkpoint.format import (
    FORMAT_VERSION,
    Manifest,
    check_complete,
    find_checkpoint,
    read_manifest,
    verify_digests,
    write_manifest,
)
from jigsaw_forecast.checkpoint.load import load_checkpoint
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
    with pytest.raises(CheckpointError, match="format version 99, this program reads 1 and 2"):
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


def as_version_1(folder: Path) -> None:
    """Rewrites model.json as the first version had it: no digests of blocks."""
    path = folder / "model.json"
    raw = json.loads(path.read_text()) | {"format_version": 1, "digest": ""}
    for record in raw["tensors"].values():
        del record["digests"]
    rest = {key: value for key, value in raw.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True)
    path.write_text(json.dumps(raw | {"digest": hashlib.sha256(text.encode()).hexdigest()}))


def test_version_1_loads_the_same_values(folder: Path) -> None:
    expected = load_checkpoint(folder, single_rank_mesh()).model.state_dict()
    as_version_1(folder)
    loaded = load_checkpoint(folder, single_rank_mesh())
    assert loaded.manifest.format_version == 1
    for name, values in loaded.model.state_dict().items():
        assert torch.equal(values, expected[name]), name


def test_altered_shard_of_version_1_is_refused(folder: Path) -> None:
    as_version_1(folder)
    (shard,) = folder.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{shard.name}: sha256"):
        load_checkpoint(folder, single_rank_mesh())


def test_version_2_without_digests_of_blocks_is_refused(folder: Path) -> None:
    raw = json.loads((folder / "model.json").read_text())
    raw["tensors"]["head.bias"]["digests"] = []
    (folder / "model.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="missing digests of the blocks of head.bias"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "int7"}, "dtype int7 is none of float32"),
        ({"num_blocks": [3]}, "do not fit together"),
        ({"num_blocks": [0]}, "do not fit together"),
    ],
)
def test_a_tensor_recorded_in_an_impossible_way_is_refused(
    folder: Path, change: dict[str, object], words: str
) -> None:
    raw = json.loads((folder / "model.json").read_text())
    raw["tensors"]["head.bias"] |= change
    (folder / "model.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=rf"tensors.head.bias.*{words}"):
        read_manifest(folder)


def test_another_architecture_is_refused_by_its_settings(folder: Path) -> None:
    raw = json.loads((folder / "model.json").read_text())
    raw["architecture"]["num_heads"] = 8
    del raw["architecture"]["patch"]
    (folder / "model.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError) as caught:
        read_manifest(folder)
    assert "architecture.num_heads" in str(caught.value)
    assert "architecture.patch" in str(caught.value)


def test_a_tensor_that_the_architecture_does_not_know_is_refused(folder: Path) -> None:
    manifest = read_manifest(folder)
    extra = {"head.gate": manifest.tensors["head.bias"]}
    changed = manifest.model_copy(update={"tensors": manifest.tensors | extra})
    with pytest.raises(CheckpointError, match="unknown tensor head.gate"):
        check_complete(folder, changed, shapes())
