"""Which part of a tensor each rank holds: pure arithmetic, no communication."""

from collections.abc import Iterator
from dataclasses import dataclass

from jigsaw_forecast.parallel.mesh import Mesh


def split_sizes(length: int, parts: int, *, larger_last: bool = False) -> list[int]:
    """Sizes of contiguous parts that differ by at most one; parts may be empty.

    The larger parts come first, or last with `larger_last`, so that two lists split over the
    same ranks even each other out.
    """
    small, remainder = divmod(length, parts)
    sizes = [small + 1] * remainder + [small] * (parts - remainder)
    return sizes[::-1] if larger_last else sizes


def split_range(length: int, parts: int, index: int, *, larger_last: bool = False) -> slice:
    """The part with this index of `range(length)` cut by `split_sizes`."""
    sizes = split_sizes(length, parts, larger_last=larger_last)
    start = sum(sizes[:index])
    return slice(start, start + sizes[index])


@dataclass(frozen=True)
class Cut:
    """One cut of one dim along one mesh axis."""

    dim: int
    axis: str
    larger_last: bool = False


@dataclass(frozen=True)
class Layout:
    """How a parameter lies on the mesh.

    Attributes:
        full_shape: Shape of the whole tensor.
        compute: Cuts that hold while it computes: each rank multiplies by this part.
        storage: Further cuts that hold while it is stored; undone by a gather just before use.
    """

    full_shape: tuple[int, ...]
    compute: tuple[Cut, ...] = ()
    storage: tuple[Cut, ...] = ()

    def piece_slices(self, mesh: Mesh) -> tuple[slice, ...]:
        """The part of the whole tensor that this rank stores."""
        return self._slices(mesh, (*self.compute, *self.storage))

    def piece_shape(self, mesh: Mesh) -> tuple[int, ...]:
        """Shape of the stored part."""
        return _lengths(self.piece_slices(mesh))

    def gather_steps(self, mesh: Mesh) -> Iterator[tuple[Cut, list[tuple[int, ...]]]]:
        """Storage cuts, last first, each with the shapes of all peers' parts before its gather."""
        for position in reversed(range(len(self.storage))):
            cut = self.storage[position]
            outer = list(_lengths(self._slices(mesh, (*self.compute, *self.storage[:position]))))
            sizes = split_sizes(
                outer[cut.dim], mesh.axis(cut.axis).size, larger_last=cut.larger_last
            )
            yield cut, [(*outer[: cut.dim], size, *outer[cut.dim + 1 :]) for size in sizes]

    def _slices(self, mesh: Mesh, cuts: tuple[Cut, ...]) -> tuple[slice, ...]:
        slices = [slice(0, length) for length in self.full_shape]
        for cut in cuts:
            axis = mesh.axis(cut.axis)
            outer = slices[cut.dim]
            inner = split_range(
                outer.stop - outer.start, axis.size, axis.index, larger_last=cut.larger_last
            )
            slices[cut.dim] = slice(outer.start + inner.start, outer.start + inner.stop)
        return tuple(slices)


def _lengths(slices: tuple[slice, ...]) -> tuple[int, ...]:
    return tuple(part.stop - part.start for part in slices)
