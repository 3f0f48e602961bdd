"""Stored weights: gathered along their storage axes before use, gradients scattered after."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import Function

from jigsaw_forecast.parallel.collectives import all_gather, all_reduce_sum, reduce_scatter
from jigsaw_forecast.parallel.layout import Layout
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


@dataclass(frozen=True)
class Plan:
    """What the autograd Functions need besides tensors.

    Attributes:
        mesh: This rank's mesh.
        dtype: Of the products and of what travels.
        layouts: Of each weight; None where it is resident and nothing is gathered.
    """

    mesh: Mesh
    dtype: torch.dtype
    layouts: tuple[Layout | None, ...]


def gather_weight(mesh: Mesh, weight: Weight) -> Tensor:
    """The part of a weight that computes, in its own dtype; not differentiable.

    Communication:
        One all-gather over each storage axis of more than one rank.
    """
    layout = None if weight.is_resident else weight.layout
    plan = Plan(mesh, weight.piece.dtype, (layout,))
    return gather_piece(weight.piece.detach(), layout, plan).contiguous()


def gather_piece(piece: Tensor, layout: Layout | None, plan: Plan) -> Tensor:
    """The part that computes, in the plan's dtype; a resident weight (no layout) is cast only."""
    weight = piece.to(plan.dtype)
    if layout is not None:
        for cut, shapes in layout.gather_steps(plan.mesh):
            sizes = [shape[cut.dim] for shape in shapes]
            weight = all_gather(plan.mesh, weight, cut.axis, cut.dim, "weights", sizes)
    return weight


def scatter_gradient(grad: Tensor, layout: Layout | None, plan: Plan) -> Tensor:
    """The complete gradient of the stored piece from this rank's term for the part computed."""
    if layout is not None:
        for cut, shapes in reversed(list(layout.gather_steps(plan.mesh))):
            sizes = [shape[cut.dim] for shape in shapes]
            grad = reduce_scatter(plan.mesh, grad, cut.axis, cut.dim, "weights", sizes)
    return grad


class _GatherVectors(Function):
    """Gathers many small parameters with one collective for each storage axis."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, *pieces: Tensor) -> tuple[Tensor, ...]:
        ctx.plan = plan
        values = list(pieces)
        for steps in _vector_rounds(plan):
            _gather_round(plan.mesh, values, steps)
        return tuple(value.clone() if value is piece else value for value, piece in
                     zip(values, pieces, strict=True))  # fmt: skip

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        values = list(grads)
        for steps in reversed(_vector_rounds(ctx.plan)):
            _scatter_round(ctx.plan.mesh, values, steps)
        return (None, *values)


_Round = tuple[str, list[tuple[int, list[int]]]]


def _vector_rounds(plan: Plan) -> list[_Round]:
    """Rounds of (axis, [(which vector, lengths of its parts)]): domain first, then tensor."""
    rounds: list[_Round] = []
    for axis in ("domain", "tensor"):
        if plan.mesh.axis(axis).size == 1:
            continue
        members = []
        for position, layout in enumerate(plan.layouts):
            for cut, shapes in layout.gather_steps(plan.mesh) if layout is not None else ():
                if cut.axis == axis:
                    assert len(shapes[0]) == 1, "only vectors are gathered together"
                    members.append((position, [shape[0] for shape in shapes]))
        if members:
            rounds.append((axis, members))
    return rounds


def _gather_round(mesh: Mesh, values: list[Tensor], steps: _Round) -> None:
    axis, members = steps
    flat = torch.cat([values[position] for position, _ in members])
    num_ranks = mesh.axis(axis).size
    totals = [sum(lengths[rank] for _, lengths in members) for rank in range(num_ranks)]
    everything = all_gather(mesh, flat, axis, 0, "weights", totals).split(totals)
    by_rank = [
        part.split([lengths[rank] for _, lengths in members])
        for rank, part in enumerate(everything)
    ]
    for member, (position, _) in enumerate(members):
        values[position] = torch.cat([parts[member] for parts in by_rank])


def _scatter_round(mesh: Mesh, values: list[Tensor], steps: _Round) -> None:
    axis, members = steps
    num_ranks, index = mesh.axis(axis).size, mesh.axis(axis).index
    split = [values[position].split(lengths) for position, lengths in members]
    by_rank = [torch.cat([parts[rank] for parts in split]) for rank in range(num_ranks)]
    totals = [part.numel() for part in by_rank]
    own = reduce_scatter(mesh, torch.cat(by_rank), axis, 0, "weights", totals)
    pieces = own.split([lengths[index] for _, lengths in members])
    for (position, _), piece in zip(members, pieces, strict=True):
        values[position] = piece


def gather_vectors(mesh: Mesh, weights: Sequence[Weight]) -> tuple[Tensor, ...]:
    """The parts that compute of many vectors, differentiable.

    Communication:
        Forward: at most one all-gather over domain and one over tensor. Backward: one
        reduce-scatter over each.
    """
    if mesh.model.size == 1 or all(weight.is_resident for weight in weights):
        return tuple(weight.piece for weight in weights)
    layouts = tuple(None if weight.is_resident else weight.layout for weight in weights)
    plan = Plan(mesh, weights[0].piece.dtype, layouts)
    gathered: tuple[Tensor, ...] = _GatherVectors.apply(plan, *(w.piece for w in weights))
    return gathered


def storage_layouts(*weights: Weight) -> tuple[Layout | None, ...]:
    """The layouts to gather by: None for each resident weight."""
    return tuple(None if weight.is_resident else weight.layout for weight in weights)


def global_norm(mesh: Mesh, tensors: Sequence[Tensor]) -> Tensor:
    """Root of the sum of squares over all pieces of the model group, each counted once.

    Communication:
        All-reduce of one float over domain and tensor.
    """
    squares = [tensor.double().square().sum() for tensor in tensors if tensor.numel()]
    total = torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64)
    return all_reduce_sum(total, (mesh.domain, mesh.tensor)).sqrt()
