"""Pieces of whole tensors, and the chunks in which a Distributed Checkpoint holds them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

import torch

from jigsaw_forecast.checkpoint.blocks import overlap
from jigsaw_forecast.checkpoint.format import Block, Part, block_bounds

MIN_CHUNK_BYTES = 1 << 22  # smaller ones cost more Python than they save in reading
MAX_CUTS = 16  # of a dim: meshes of up to 16 x 16, powers of two, read whole chunks

Pieces = Mapping[str, "Piece"]


@dataclass(frozen=True)
class Piece:
    """This rank's part of a whole tensor.

    Attributes:
        values: The part.
        full_shape: Of the whole tensor.
        part: Where it lies.
        cut_dims: Dims that meshes cut.
        is_replicated: Whether every data replica holds the same; else each rank's is its own.
    """

    values: torch.Tensor
    full_shape: tuple[int, ...]
    part: Part
    cut_dims: tuple[int, ...] = ()
    is_replicated: bool = True

    def with_values(self, values: torch.Tensor) -> "Piece":
        """The same part of another tensor."""
        return Piece(values, self.full_shape, self.part, self.cut_dims, self.is_replicated)

    def chunks(self) -> Iterator[Part]:
        """Places of its chunks in the whole: whole chunks of any mesh of powers of two."""
        item_bytes = self.values.element_size()
        counts = chunk_counts(self.full_shape, self.cut_dims, item_bytes)
        bounds = [block_bounds(n, k) for n, k in zip(self.full_shape, counts, strict=True)]
        for place in product(*(range(count) for count in counts)):
            block = tuple(slice(b[i], b[i + 1]) for b, i in zip(bounds, place, strict=True))
            common = overlap(self.part, Block(block, "", "", ""))
            if common is not None:
                yield common

    def view(self, chunk: Part) -> torch.Tensor:
        """A chunk of its values."""
        return self.values[
            tuple(
                slice(inner.start - outer.start, inner.stop - outer.start)
                for inner, outer in zip(chunk, self.part, strict=True)
            )
        ]


def chunk_counts(
    shape: tuple[int, ...], cut_dims: tuple[int, ...], item_bytes: int
) -> tuple[int, ...]:
    """In how many chunks to cut each dim of a whole tensor: powers of two, the dims in turn."""
    counts = [1] * len(shape)
    num_bytes = prod(shape) * item_bytes
    growing = [dim for dim in cut_dims if shape[dim] > 1]
    while growing:
        for dim in list(growing):
            more = 2 * counts[dim]
            others = prod(counts) // counts[dim]
            if more > min(MAX_CUTS, shape[dim]) or num_bytes // (more * others) < MIN_CHUNK_BYTES:
                growing.remove(dim)
            else:
                counts[dim] = more
    return tuple(counts)
