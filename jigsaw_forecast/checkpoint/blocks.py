"""How tensors are cut into blocks, and which blocks a rank needs."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, product
from math import lcm, prod

from jigsaw_forecast.checkpoint.format import ITEM_BYTES, Block, Manifest, Part, block_bounds
from jigsaw_forecast.model.config import ModelConfig, common_divisors
from jigsaw_forecast.model.sample import sample_pieces
from jigsaw_forecast.parallel.layout import Layout
from jigsaw_forecast.parallel.mesh import Mesh

MAX_DEGREE = 16  # of an axis: a mesh of up to 16 x 16 reads whole blocks
MAX_GROUP = 256  # a dim up to this length may be cut index by index, which serves every degree
MIN_BLOCK_BYTES = 1 << 14  # header and digest of a block are then about 1 % of it

Degrees = Sequence[int]


def usable_degrees(config: ModelConfig) -> dict[str, Degrees]:
    """The degrees of `domain` and of `tensor`, up to `MAX_DEGREE`, that divide a model.

    Powers of two come first: where a tensor is too small to serve all, they are served.
    """
    divisors = {
        "domain": common_divisors(config.token_rows, config.token_hidden),
        "tensor": common_divisors(config.channels, config.channel_hidden),
    }
    return {
        axis: sorted(
            (degree for degree in degrees if degree <= MAX_DEGREE),
            key=lambda degree: (degree & (degree - 1) != 0, degree),
        )
        for axis, degrees in divisors.items()
    }


def cut_degrees(layout: Layout, usable: Mapping[str, Degrees]) -> dict[int, Degrees]:
    """In how many parts a mesh may cut each dim of a tensor; a dim cut twice by both degrees."""
    axes: dict[int, list[str]] = {}
    for cut in (*layout.compute, *layout.storage):
        axes.setdefault(cut.dim, []).append(cut.axis)
    return {
        dim: sorted({prod(degrees) for degrees in product(*(usable[axis] for axis in names))})
        if len(names) > 1
        else usable[names[0]]
        for dim, names in axes.items()
    }


def num_blocks(
    shape: tuple[int, ...], degrees: Mapping[int, Degrees], dtype: str
) -> tuple[int, ...]:
    """How many blocks cut each dim of a tensor.

    As many as serve all degrees with whole blocks, as long as blocks stay above
    `MIN_BLOCK_BYTES`; the dims take turns.

    Args:
        shape: Of the whole tensor.
        degrees: In how many parts a mesh may cut each dim.
        dtype: As torch names it.
    """
    counts = [1] * len(shape)
    num_bytes = prod(shape) * ITEM_BYTES[dtype]
    finer = {dim: list(_counts(shape[dim], usable)) for dim, usable in degrees.items()}
    while any(finer.values()):
        for dim, candidates in finer.items():
            if not candidates:
                continue
            tried = [*counts]
            tried[dim] = candidates.pop(0)
            if num_bytes // prod(tried) >= MIN_BLOCK_BYTES:
                counts = tried
            else:
                candidates.clear()
    return tuple(counts)


def _counts(length: int, degrees: Degrees) -> Iterator[int]:
    """Ever larger numbers of blocks, each serving one more degree and all before it."""
    before = 1
    for num_served, count in enumerate(accumulate(degrees, lcm), 1):
        starts = set(block_bounds(length, count))
        serves = all(starts.issuperset(block_bounds(length, d)) for d in degrees[:num_served])
        if before < count < length and serves:
            yield count
            before = count
    if before < length <= MAX_GROUP:
        yield length


def parts_to_read(manifest: Manifest, layouts: Mapping[str, Layout], mesh: Mesh) -> dict[str, Part]:
    """The part of each tensor that a rank needs, by name: parameters, statistics, static maps.

    Args:
        manifest: The checkpoint's `model.json`.
        layouts: Of all parameters.
        mesh: As the rank sees it.
    """
    pieces = sample_pieces(manifest.architecture, mesh)
    columns = slice(0, manifest.architecture.grid_object.num_lon)
    rows = manifest.architecture.grid_object.num_model_lat
    return {
        **{name: layout.piece_slices(mesh) for name, layout in layouts.items()},
        "statistics.mean": (pieces.fields, pieces.rows, columns),
        "statistics.std": (pieces.fields,),
        "statistics.tendency_std": (pieces.fields,),
        "statistics.diagnostic_mean": (pieces.diagnostics,),
        "statistics.diagnostic_std": (pieces.diagnostics,),
        **{f"statics.{name}": (slice(0, rows), columns) for name in manifest.statics},
    }


def overlap(part: Part, block: Block) -> Part | None:
    """Where a part and a block meet in the whole tensor, or None."""
    common = tuple(
        slice(max(want.start, have.start), min(want.stop, have.stop))
        for want, have in zip(part, block.part, strict=True)
    )
    return None if any(piece.start >= piece.stop for piece in common) else common


def bytes_to_read(manifest: Manifest, parts: Mapping[str, Part]) -> int:
    """What a rank reads for these parts: the blocks that meet them, and their shards' headers."""
    total = 0
    shards: set[str] = set()
    for name, part in parts.items():
        record = manifest.tensors[name]
        for block in record.blocks(name):
            if overlap(part, block) is not None:
                total += record.num_bytes(block)
                shards.add(block.shard)
    headers = manifest.header_bytes()
    return total + sum(headers[shard] for shard in shards)
