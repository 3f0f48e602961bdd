"""Stored vectors: all biases and norms of a model, gathered with one collective for each axis."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from jigsaw_forecast.parallel.collectives import all_gather, reduce_scatter
from jigsaw_forecast.parallel.layout import Layout
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.weights import Weight, gather_steps

Tensor = torch.Tensor


class _GatherVectors(Function):
    """Gathers many small parameters with one collective for each storage axis."""

    @staticmethod
    def forward(
        ctx: Any, mesh: Mesh, layouts: Sequence[Layout | None], *pieces: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.mesh, ctx.rounds = mesh, _vector_rounds(mesh, layouts)
        values = list(pieces)
        for steps in ctx.rounds:
            _gather_round(mesh, values, steps)
        return tuple(value.clone() if value is piece else value for value, piece in
                     zip(values, pieces, strict=True))  # fmt: skip

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        values = list(grads)
        for steps in reversed(ctx.rounds):
            _scatter_round(ctx.mesh, values, steps)
        return (None, None, *values)


_Round = tuple[str, list[tuple[int, list[int]]]]


def _vector_rounds(mesh: Mesh, layouts: Sequence[Layout | None]) -> list[_Round]:
    """Rounds of (axis, [(which vector, lengths of its parts)]): domain first, then tensor."""
    rounds: list[_Round] = []
    for axis in ("domain", "tensor"):
        members = [
            (position, sizes)
            for position, layout in enumerate(layouts)
            if layout is not None
            for cut, sizes in gather_steps(mesh, layout)
            if cut.axis == axis
        ]
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
    own = reduce_scatter(mesh, torch.cat(by_rank), axis, "weights", totals)
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
    gathered: tuple[Tensor, ...] = _GatherVectors.apply(mesh, layouts, *(w.piece for w in weights))
    return gathered
