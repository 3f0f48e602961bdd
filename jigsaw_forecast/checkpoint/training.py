"""The training checkpoint: a step's folder with what inference needs and what training needs.

    step-00001000/
        model.json, weights-*.safetensors    inference checkpoint of the averaged weights
        training/                            torch Distributed Checkpoint and its manifest
            __RANK_0.distcp, .metadata
            manifest.json                    sha256 of every file of the step's folder

The manifest is written last. The folder has the name `step-00001000.partial` until everything is on
disk, so whatever has the final name is whole; only damage that came later can be found in it.

Compatibility: a reader accepts format version 1 and refuses every other.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from pydantic import BaseModel, ConfigDict

from jigsaw_forecast.checkpoint.format import MANIFEST as MODEL_MANIFEST
from jigsaw_forecast.checkpoint.format import ShardRecord, damaged_shards, file_digest, open_sealed
from jigsaw_forecast.errors import CheckpointError

FORMAT_VERSION = 1
TRAINING_FOLDER = "training"
TRAINING_MANIFEST = "manifest.json"
_REMEDY = "delete the folder to go on from the one before, or copy it again"


class TrainingManifest(BaseModel):
    """`training/manifest.json`.

    Attributes:
        train_step: Train steps done.
        num_updates: Of the optimizer: train steps less those that were skipped.
        samples: Samples seen by all replicas.
        validation_error: Of the averaged weights at this step, where it was validated: what the
            best checkpoint has least of.
        mesh: Degree by axis of the mesh that saved.
        sample_order: Where the order of samples stands.
        recipe: As run.
        versions: Of the programs.
        files: By path from the step's folder.
        digest: Sha256 of all the rest.
    """

    model_config = ConfigDict(extra="forbid")

    format_version: int = FORMAT_VERSION
    train_step: int
    num_updates: int
    samples: int
    validation_error: float | None = None
    mesh: dict[str, int]
    sample_order: dict[str, Any]
    recipe: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, ShardRecord] = {}
    digest: str = ""

    def compute_digest(self) -> str:
        """The sha256 of everything but `digest`."""
        rest = self.model_dump(mode="json", exclude={"digest"})
        return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()

    def training_files(self) -> dict[str, ShardRecord]:
        """The files that training goes on from."""
        prefix = TRAINING_FOLDER + "/"
        return {name: record for name, record in self.files.items() if name.startswith(prefix)}


def is_training_checkpoint(folder: Path) -> bool:
    """Whether a folder is a step's folder, whole or damaged."""
    return (folder / TRAINING_FOLDER).is_dir()


def find_training_checkpoint(path: Path) -> Path:
    """The step's folder of a path to it or to its `training` folder.

    Raises:
        CheckpointError: It is neither.
    """
    resolved = path.resolve()  # a run that goes on may point `latest` elsewhere meanwhile
    candidates = [resolved]
    if resolved.name == TRAINING_FOLDER:
        candidates.append(resolved.parent)
    for folder in candidates:
        if is_training_checkpoint(folder):
            return folder
    raise CheckpointError(
        f"{path}: missing {TRAINING_FOLDER}/{TRAINING_MANIFEST}: not a training checkpoint; it is "
        "a folder such as OUTPUT/checkpoints/step-00001000 of a training run"
    )


def write_training_manifest(folder: Path, manifest: TrainingManifest) -> None:
    """Writes the manifest with its digest, and waits until it is on disk.

    Args:
        folder: The step's folder.
        manifest: With all files listed.
    """
    sealed = manifest.model_copy(update={"digest": manifest.compute_digest()})
    path = folder / TRAINING_FOLDER / TRAINING_MANIFEST
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(sealed.model_dump(mode="json"), indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    sync_folder(path.parent)


def read_training_manifest(folder: Path) -> TrainingManifest:
    """The manifest of a step's folder, its own digest compared.

    Raises:
        CheckpointError: It is missing, altered, of another version, or names a file outside.
    """
    path = folder / TRAINING_FOLDER / TRAINING_MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"missing {path}: the checkpoint is torn; {_REMEDY}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; {_REMEDY}") from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {version}, this program reads {FORMAT_VERSION}; go on with "
            "the version that wrote it"
        )
    manifest = open_sealed(TrainingManifest, raw, path, _REMEDY)
    outside = [
        name
        for name in manifest.files
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts
    ]
    if outside:
        raise CheckpointError(f"{path}: files outside of the folder: {', '.join(outside)}")
    return manifest


def verify_training_checkpoint(folder: Path) -> TrainingManifest:
    """Compares every file of a step's folder with its digest.

    Raises:
        CheckpointError: Names every file that is missing, torn or altered.
    """
    manifest = read_training_manifest(folder)
    raise_if_torn(folder, damaged_shards(folder, manifest.files))
    return manifest


def raise_if_torn(folder: Path, problems: list[str]) -> None:
    """Raises one error for all damaged files.

    Raises:
        CheckpointError: There are any.
    """
    if problems:
        raise CheckpointError(
            f"training checkpoint {folder} is damaged: {'; '.join(problems)}; {_REMEDY}"
        )


def sync_file(path: Path) -> None:
    """Waits until a file is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Waits until a folder's entries are on disk, so that a name in it survives a power cut."""
    sync_file(path)


def list_inference_files(folder: Path, shards: Mapping[str, ShardRecord]) -> dict[str, ShardRecord]:
    """Records of the inference checkpoint's files, put on disk on the way.

    Args:
        folder: Where they are.
        shards: Hashed when they were written.
    """
    for name in (MODEL_MANIFEST, *shards):
        sync_file(folder / name)
    path = folder / MODEL_MANIFEST
    record = ShardRecord(sha256=file_digest(path), num_bytes=path.stat().st_size)
    return {MODEL_MANIFEST: record, **shards}
