"""Stored weights: gathered along their storage axes before use, gradients scattered after.

A matrix computes cut over one axis and is stored cut over the other. Its gather is begun one layer
ahead (`Lookahead`) and ended where it is used (`Gathering.take`); in backward one pass ahead,
towards the front. Its gradient's reduce-scatter is begun where the gradient is made and ended half
a pass later, at the latest when autograd wants the gradient: it runs later-made nodes first, so
the node of `announce`, made before the layer in front, comes after it.
"""

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from jigsaw_forecast.parallel.collectives import (
    Pending,
    all_gather,
    start_all_gather,
    start_gather_parts,
    start_reduce_scatter,
)
from jigsaw_forecast.parallel.columns import Columns, GrowingProduct
from jigsaw_forecast.parallel.layout import Cut, Layout
from jigsaw_forecast.parallel.mesh import Mesh

Tensor = torch.Tensor


@dataclass(frozen=True)
class Weight:
    """A weight as it is stored, and how to make what computes from it.

    Attributes:
        piece: The stored part, or the part that computes where `is_resident`.
        layout: Where the parts lie.
        is_resident: Already gathered along the storage axes; kept so (inference).
    """

    piece: Tensor
    layout: Layout
    is_resident: bool


def gather_weight(mesh: Mesh, weight: Weight) -> Tensor:
    """The part of a weight that computes, in its own dtype; not differentiable.

    Communication:
        One all-gather over each storage axis of more than one rank.
    """
    values = weight.piece.detach()
    if not weight.is_resident:
        for cut, sizes in gather_steps(mesh, weight.layout):
            values = all_gather(mesh, values, cut.axis, cut.dim, "weights", sizes)
    return values.contiguous()


def gather_steps(mesh: Mesh, layout: Layout) -> list[tuple[Cut, list[int]]]:
    """The gathers that a layout needs: cuts over more than one rank, with the parts' lengths."""
    return [
        (cut, [shape[cut.dim] for shape in shapes])
        for cut, shapes in layout.gather_steps(mesh)
        if mesh.axis(cut.axis).size > 1
    ]


class Gathering:
    """The matrices of one layer in one forward and its backward.

    Backward passes over a layer's activations once for each matrix, the last one first. While a
    pass goes on, the matrix of the next one arrives and the gradient of the one before it leaves.
    """

    def __init__(self, mesh: Mesh, dtype: torch.dtype, weights: Sequence[Weight]) -> None:
        """Begins nothing yet.

        Args:
            mesh: This rank's mesh.
            dtype: Of the products and of what travels.
            weights: Matrices, each stored cut over at most one axis of more than one rank.
        """
        self.mesh = mesh
        self.dtype = dtype
        self.pieces = tuple(weight.piece for weight in weights)
        steps = [[] if w.is_resident else gather_steps(mesh, w.layout) for w in weights]
        assert all(len(each) <= 1 for each in steps), "a matrix is stored cut over one axis"
        self._steps = [each[0] if each else None for each in steps]
        self._gathers: dict[int, Pending[Tensor] | Pending[list[Tensor]]] = {}
        self._scatters: list[tuple[Pending[Tensor], Tensor]] = []
        self._front: Gathering | None = None
        self._behind: weakref.ref[Gathering] | None = None  # weak: no cycle where none goes back
        self._is_behind_adjacent = False

    @property
    def travels(self) -> bool:
        """Whether anything is gathered at all."""
        return any(step is not None for step in self._steps)

    def follow(self, front: "Gathering", *, is_adjacent: bool) -> None:
        """Notes the nearest layer in front whose weights travel too."""
        self._front, front._behind = front, weakref.ref(self)
        front._is_behind_adjacent = is_adjacent

    def start(self, *matrices: int) -> None:
        """Begins the gathers of some matrices, of all where none is named, unless under way.

        Communication:
            One all-gather for each matrix that is stored cut.
        """
        for index in matrices or range(len(self.pieces)):
            step = self._steps[index]
            if step is None or index in self._gathers:
                continue
            (cut, sizes), piece = step, self.pieces[index].detach().to(self.dtype)
            # Rows are joined as they arrive, columns stay in parts.
            begin = start_gather_parts if cut.dim == 1 else start_all_gather
            self._gathers[index] = begin(self.mesh, piece, cut.axis, cut.dim, "weights", sizes)

    def take(self) -> list[Columns]:
        """The parts that compute of all matrices, in the products' dtype."""
        self.start()
        return [self.take_one(index) for index in range(len(self.pieces))]

    def take_one(self, index: int) -> Columns:
        """The part that computes of one matrix, in the products' dtype."""
        self.start(index)
        if self._steps[index] is None:
            return Columns([self.pieces[index].detach().to(self.dtype)])
        arrived = self._gathers.pop(index).wait()
        return Columns([arrived] if isinstance(arrived, Tensor) else arrived)

    def turn_back(self) -> None:
        """Begins the gathers for this layer's backward.

        What the layer behind sent is taken in first, where it has had another layer's time to
        travel.
        """
        if not self._is_behind_adjacent:
            self._receive_from_behind()
        self.start()

    def half_done(self, index: int) -> None:
        """Half of the pass for a matrix is done: what was sent before the pass is taken in.

        In the last pass of the layer, the gather for the first one of the layer in front begins.
        """
        self._receive_from_behind()
        self.finish_scatters()
        if index == 0 and self._front is not None:
            self._front.start(len(self._front.pieces) - 1)

    def product(self, index: int) -> GrowingProduct:
        """An empty gradient of the part that computes, laid out as it will be scattered."""
        step = self._steps[index]
        return GrowingProduct(step[1] if step is not None and step[0].dim == 1 else None)

    def scatter(self, index: int, product: GrowingProduct) -> Tensor | None:
        """Begins to sum the gradient of the part computed; returns that of the piece, if wanted.

        What travels is returned empty; `finish_scatters` puts the sum there.

        Communication:
            One reduce-scatter where the matrix is stored cut.
        """
        gradient, piece, step = product.value(), self.pieces[index], self._steps[index]
        if not piece.requires_grad:
            return None
        if step is None:
            return gradient.to(piece.dtype)
        cut, sizes = step
        if cut.dim == 1:
            sizes = [piece.shape[0] * width for width in sizes]
        pending = start_reduce_scatter(self.mesh, gradient, cut.axis, "weights", sizes)
        result = torch.empty_like(piece)
        self._scatters.append((pending, result))
        if torch.is_anomaly_enabled():  # which looks at it at once
            self.finish_scatters()
        return result

    def finish_scatters(self) -> None:
        """Ends what `scatter` began, unless it has ended, and fills what it returned."""
        scatters, self._scatters = self._scatters, []
        for pending, gradient in scatters:
            gradient.copy_(pending.wait().view_as(gradient))

    def _receive_from_behind(self) -> None:
        behind = self._behind() if self._behind is not None else None
        if behind is not None:
            behind.finish_scatters()
        self._behind = None


class _Announce(Function):
    """The pieces themselves; forward begins their gather, backward ends their gradients' sum."""

    @staticmethod
    def forward(ctx: Any, gathering: Gathering, *pieces: Tensor) -> tuple[Tensor, ...]:
        ctx.gathering = gathering
        gathering.start()
        return tuple(piece.view_as(piece) for piece in pieces)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        ctx.gathering.finish_scatters()
        return (None, *gradients)


def announce(gathering: Gathering) -> tuple[Tensor, ...]:
    """The pieces to differentiate by; their gather begins now.

    Communication:
        Forward: the gathers of `Gathering.start`, awaited by `take`. Backward: ends the
        reduce-scatters that the layer's own backward began.
    """
    if not gathering.travels:
        return gathering.pieces
    pieces: tuple[Tensor, ...] = _Announce.apply(gathering, *gathering.pieces)
    return pieces


class Lookahead:
    """Announces the weights of each layer that travel while the one before them computes."""

    def __init__(self, layers: Sequence[Gathering]) -> None:
        """Takes the model's layers in order and announces the first whose weights travel.

        Backward looks ahead likewise, but for the first layer of all: whether it wants its
        weights depends on whether the model's input is differentiated.

        Raises:
            ValueError: Some weights are frozen and some are not: backward would end before
                layers whose weights have been sent for.
        """
        wanted = {piece.requires_grad for layer in layers for piece in layer.pieces}
        if torch.is_grad_enabled() and len(wanted) > 1:
            raise ValueError("freeze all weights of the model or none")
        places = [place for place, layer in enumerate(layers) if layer.travels]
        for front, place in itertools.pairwise(places):
            if front > 0:
                layers[place].follow(layers[front], is_adjacent=place == front + 1)
        self._waiting = [layers[place] for place in reversed(places)]
        self._announced: tuple[Tensor, ...] = ()
        self._announce_next()

    def pieces(self, layer: Gathering) -> tuple[Tensor, ...]:
        """The pieces of the layer whose turn it is; the next one's gather begins."""
        if not layer.travels:
            return layer.pieces
        pieces = self._announced
        self._announce_next()
        return pieces

    def _announce_next(self) -> None:
        if self._waiting:
            self._announced = announce(self._waiting.pop())
