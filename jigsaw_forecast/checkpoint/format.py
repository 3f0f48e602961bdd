"""The inference checkpoint: a folder with `model.json` and safetensors shards; no pickle.

Weights are stored as blocks cut over their sharded dims, so that the piece of any rank on any
mesh is whole blocks or a slice of few. Each block has a digest of its own, so that a rank checks
what it reads by reading it once.

Compatibility: a reader accepts the versions in `READABLE_VERSIONS` and refuses every other; a
writer writes `FORMAT_VERSION`, which a change that older readers would misread raises. Version 1
has digests of whole shards only: its shards are read through once before its blocks are read.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from itertools import product
from math import prod
from pathlib import Path, PurePath
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from jigsaw_forecast.checkpoint.progress import ByteProgress
from jigsaw_forecast.errors import CheckpointError
from jigsaw_forecast.model.config import ModelConfig

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
MANIFEST = "model.json"
CHECKPOINTS_VARIABLE = "JIGSAW_CHECKPOINTS"
_HASH_CHUNK_BYTES = 1 << 22

Part = tuple[slice, ...]  # of a whole tensor


class ShardRecord(BaseModel):
    """One safetensors file."""

    model_config = ConfigDict(extra="forbid")

    sha256: str
    num_bytes: int


class Block(NamedTuple):
    """One block of a tensor.

    Attributes:
        part: Its place in the whole tensor.
        key: Its name in the shard.
        shard: The file that holds it.
        sha256: Of its bytes; empty in version 1.
    """

    part: Part
    key: str
    shard: str
    sha256: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Its lengths."""
        return tuple(piece.stop - piece.start for piece in self.part)


class TensorRecord(BaseModel):
    """One tensor: its full shape, how many blocks cut each dim, shard and digest of each block."""

    model_config = ConfigDict(extra="forbid")

    shape: tuple[int, ...]
    dtype: str
    num_blocks: tuple[int, ...]
    shards: tuple[str, ...]  # by block, last dim fastest
    digests: tuple[str, ...] = ()  # likewise, sha256; none in version 1

    @model_validator(mode="after")
    def _is_consistent(self) -> "TensorRecord":
        if self.dtype not in ITEM_BYTES:
            raise ValueError(f"dtype {self.dtype} is none of {', '.join(ITEM_BYTES)}")
        count = prod(self.num_blocks)
        is_cut = len(self.num_blocks) == len(self.shape) and min(self.num_blocks, default=1) > 0
        if not is_cut or len(self.shards) != count or len(self.digests) not in (0, count):
            raise ValueError("shape, num_blocks, shards and digests do not fit together")
        return self

    def blocks(self, name: str) -> Iterator[Block]:
        """Every block of this tensor, whose name is given."""
        digests = self.digests or ("",) * len(self.shards)
        places = self.places(self.shape, self.num_blocks)
        for (key, part), shard, sha256 in zip(places, self.shards, digests, strict=True):
            yield Block(part, f"{name}@{key}", shard, sha256)

    @staticmethod
    def places(shape: Sequence[int], num_blocks: Sequence[int]) -> Iterator[tuple[str, Part]]:
        """Key and place of every block of a tensor, last dim fastest."""
        bounds = [block_bounds(n, k) for n, k in zip(shape, num_blocks, strict=True)]
        for place in product(*(range(k) for k in num_blocks)):
            part = tuple(
                slice(bound[i], bound[i + 1]) for bound, i in zip(bounds, place, strict=True)
            )
            yield ",".join(map(str, place)), part

    def num_bytes(self, block: Block) -> int:
        """Size of one of its blocks."""
        return prod(block.shape) * ITEM_BYTES[self.dtype]


class Manifest(BaseModel):
    """`model.json`.

    Attributes:
        plausible: Lowest and highest value of each input field that is accepted, SI units.
        statics: Static fields stored beside the weights.
        notice: What must be said wherever a forecast of this model is shown.
    """

    model_config = ConfigDict(extra="forbid")

    format_version: int
    name: str
    architecture: ModelConfig
    dtype: str
    num_parameters: int
    plausible: dict[str, tuple[float, float]]
    statics: tuple[str, ...]
    notice: str = ""
    licence: str
    provenance: dict[str, Any]
    tensors: dict[str, TensorRecord]
    shards: dict[str, ShardRecord]
    digest: str = ""  # sha256 of all the rest

    @model_validator(mode="after")
    def _has_block_digests(self) -> "Manifest":
        bare = [name for name, record in self.tensors.items() if not record.digests]
        if bare and self.format_version > 1:
            raise ValueError(f"missing digests of the blocks of {', '.join(bare)}")
        return self

    def compute_digest(self) -> str:
        """The sha256 of everything but `digest`."""
        rest = self.model_dump(mode="json", exclude={"digest"})
        if self.format_version == 1:
            for record in rest["tensors"].values():
                del record["digests"]
        return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()

    def header_bytes(self) -> dict[str, int]:
        """What each shard holds before its blocks, in bytes."""
        sizes = {name: shard.num_bytes for name, shard in self.shards.items()}
        for name, record in self.tensors.items():
            for block in record.blocks(name):
                sizes[block.shard] -= record.num_bytes(block)
        return sizes


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `model.json` with its digest."""
    sealed = manifest.model_copy(update={"digest": manifest.compute_digest()})
    (folder / MANIFEST).write_text(json.dumps(sealed.model_dump(mode="json"), indent=1) + "\n")


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter takes the checkpoint's dtype; vectors and positions are float32."""
    return len(shape) > 1 and name != "embed.position"


def block_bounds(length: int, num_blocks: int) -> list[int]:
    """Where blocks start, and the end; lengths differ by at most one, larger ones first."""
    small, rest = divmod(length, num_blocks)
    return [index * small + min(index, rest) for index in range(num_blocks + 1)]


def check_complete(folder: Path, manifest: Manifest, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compares what the manifest lists with what its architecture needs.

    Args:
        folder: Of the checkpoint.
        manifest: Its model.json.
        shapes: Full shape of every parameter of the architecture.

    Raises:
        CheckpointError: Names everything that is missing, unknown or of another shape.
    """
    config = manifest.architecture
    num_fields, num_diagnostics = len(config.fields), len(config.diagnostics)
    map_shape = (config.grid_object.num_model_lat, config.grid_object.num_lon)
    needed = {
        **shapes,
        "statistics.mean": (num_fields, *map_shape),
        "statistics.std": (num_fields,),
        "statistics.tendency_std": (num_fields,),
        "statistics.diagnostic_mean": (num_diagnostics,),
        "statistics.diagnostic_std": (num_diagnostics,),
        **{f"statics.{name}": map_shape for name in manifest.statics},
    }
    problems = [f"missing tensor {name}" for name in needed if name not in manifest.tensors]
    problems += [f"unknown tensor {name}" for name in manifest.tensors if name not in needed]
    problems += [
        f"{name} has shape {record.shape}, its architecture needs {needed[name]}"
        for name, record in manifest.tensors.items()
        if name in needed and record.shape != needed[name]
    ]
    problems += [
        f"missing plausible range of {name}"
        for name in config.fields
        if name not in manifest.plausible
    ]
    if problems:
        raise CheckpointError(f"{folder / MANIFEST}: {'; '.join(problems)}")


def find_checkpoint(name: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint given by path or by name.

    A name is looked up in `./checkpoints`, in `$JIGSAW_CHECKPOINTS`, then beside the package.

    Raises:
        CheckpointError: It is nowhere; lists where it was looked for.
    """
    direct = Path(name)
    places = [direct]
    if len(PurePath(name).parts) == 1 and not direct.is_absolute():
        places.append(Path("checkpoints") / name)
        extra = os.environ.get(CHECKPOINTS_VARIABLE, "")
        places += [Path(folder) / name for folder in extra.split(os.pathsep) if folder]
        places.append(Path(__file__).resolve().parents[2] / "checkpoints" / name)
    for place in places:
        if (place / MANIFEST).is_file():
            return place
    listed = ", ".join(str(place) for place in _distinct(places))
    near = get_close_matches(str(name), _names_in(place.parent for place in places[1:]), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise CheckpointError(f"missing checkpoint {str(name)!r}: no {MANIFEST} in {listed}{hint}")


def _distinct(places: Sequence[Path]) -> list[Path]:
    """Places without those that are another one by a longer name."""
    return list({place.resolve(): place for place in reversed(places)}.values())[::-1]


def _names_in(folders: Iterable[Path]) -> list[str]:
    """Names of the checkpoints in folders."""
    return [path.parent.name for folder in folders for path in folder.glob(f"*/{MANIFEST}")]


class Sealed(Protocol):
    """A manifest that holds the digest of its own content."""

    digest: str

    @classmethod
    def model_validate(cls, obj: Any) -> Self:
        """Pydantic's own."""

    def compute_digest(self) -> str:
        """The sha256 of everything but `digest`."""


SealedManifest = TypeVar("SealedManifest", bound=Sealed)


def open_sealed(kind: type[SealedManifest], raw: Any, path: Path, remedy: str) -> SealedManifest:
    """A manifest out of what its file holds.

    Args:
        kind: Which manifest.
        raw: The file's content, of a version that is read.
        path: The file.
        remedy: What to do where it is altered.

    Raises:
        CheckpointError: Its content is not what a manifest holds, or is not what was sealed.
    """
    try:
        manifest = kind.model_validate(raw)
    except ValidationError as error:
        details = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()
        )
        raise CheckpointError(f"{path}: {details}") from error
    if manifest.digest != manifest.compute_digest():
        raise CheckpointError(f"{path} is altered: its digest is not that of its content; {remedy}")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint, checked for version and for paths that leave the folder.

    Raises:
        CheckpointError: It cannot be read, is of another version, or names a file outside.
    """
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version not in READABLE_VERSIONS:
        raise CheckpointError(
            f"{path}: format version {version}, this program reads "
            f"{' and '.join(map(str, READABLE_VERSIONS))}; "
            "export the checkpoint again or use the program version that wrote it"
        )
    manifest = open_sealed(Manifest, raw, path, "copy it again")
    outside = [shard for shard in manifest.shards if shard != PurePath(shard).name or shard == ".."]
    unknown = sorted(
        {shard for record in manifest.tensors.values() for shard in record.shards}
        - set(manifest.shards)
    )
    if outside or unknown:
        raise CheckpointError(
            f"{path}: shards outside of the folder: {', '.join(outside) or 'none'}; "
            f"shards without a digest: {', '.join(unknown) or 'none'}"
        )
    return manifest


def misfit_shards(folder: Path, shards: Mapping[str, ShardRecord]) -> list[str]:
    """One line for each shard that is missing or of another size; opens none."""
    problems = []
    for name, record in shards.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"missing {path}")
        elif (size := path.stat().st_size) != record.num_bytes:
            problems.append(f"{path}: {size} bytes, expected {record.num_bytes}")
    return problems


def damaged_shards(
    folder: Path, shards: Mapping[str, ShardRecord], advance: Callable[[int], None] | None = None
) -> list[str]:
    """One line for each shard that is missing, truncated or altered; read in parallel threads.

    Args:
        folder: Of the checkpoint.
        shards: Which to look at.
        advance: Called from any thread with the number of bytes just read.
    """

    def check(item: tuple[str, ShardRecord]) -> list[str]:
        name, record = item
        if problems := misfit_shards(folder, {name: record}):
            return problems
        try:
            found = file_digest(folder / name, advance)
        except OSError as error:
            return [f"{folder / name}: cannot be read: {error.strerror}"]
        if found == record.sha256:
            return []
        return [f"{folder / name}: sha256 {found[:12]}..., expected {record.sha256[:12]}..."]

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing leaves the interpreter free
        return [problem for found in pool.map(check, shards.items()) for problem in found]


def verify_digests(folder: Path) -> Manifest:
    """Compares every shard with its digest, shows progress and returns the manifest.

    Raises:
        CheckpointError: Names every shard that is missing, truncated or altered.
    """
    manifest = read_manifest(folder)
    total = sum(shard.num_bytes for shard in manifest.shards.values())
    with ByteProgress(f"verifying {manifest.name}", total) as progress:
        problems = damaged_shards(folder, manifest.shards, progress.advance)
    raise_if_damaged(folder, problems)
    return manifest


def raise_if_damaged(folder: Path, problems: Sequence[str]) -> None:
    """Raises one error for all damaged shards.

    Raises:
        CheckpointError: There are any.
    """
    if problems:
        raise CheckpointError(
            f"checkpoint {folder} is damaged: {'; '.join(problems)}; copy it again"
        )


def file_digest(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """The sha256 of a file, hexadecimal; `advance` is called with the bytes of each chunk."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
            if advance is not None:
                advance(len(chunk))
    return digest.hexdigest()
