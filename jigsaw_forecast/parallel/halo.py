"""Margins of latitude bands: filled in before the embed, added to what they overlap after the head.

Both are linear, and each is the other's transpose but for the poles: beyond them rows are mirrored
on the way in and dropped on the way out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from jigsaw_forecast.parallel.collectives import exchange_rows
from jigsaw_forecast.parallel.mesh import Mesh

Tensor = torch.Tensor


class _PadMaps(Function):
    """Groups of maps as one, with a margin of neighbouring points; each point is copied once."""

    @staticmethod
    def forward(ctx: Any, mesh: Mesh, margin: int, *groups: Tensor) -> Tensor:
        ctx.mesh, ctx.margin = mesh, margin
        ctx.counts = [group.shape[1] for group in groups]
        padded = _empty_padded(groups[0], sum(ctx.counts), margin)
        inner = _without_margin(padded, margin).split(ctx.counts, 1)
        for place, group in zip(inner, groups, strict=True):
            place.copy_(group)
        return _fill_margin(mesh, margin, padded, mirror=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        inner = _without_margin(grad, ctx.margin).clone()
        _add_margin(ctx.mesh, ctx.margin, grad, inner, mirror=True)
        return None, None, *inner.split(ctx.counts, 1)


class _OverlapMean(Function):
    """Maps with a margin as maps without, divided by how often each point was written."""

    @staticmethod
    def forward(ctx: Any, mesh: Mesh, margin: int, padded: Tensor, count: Tensor) -> Tensor:
        ctx.mesh, ctx.margin = mesh, margin
        ctx.save_for_backward(count)
        inner = _without_margin(padded, margin)
        _add_margin(mesh, margin, padded, inner, mirror=False)
        return inner / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (count,) = ctx.saved_tensors
        padded = _empty_padded(grad, grad.shape[1], ctx.margin)
        torch.div(grad, count, out=_without_margin(padded, ctx.margin))
        return None, None, _fill_margin(ctx.mesh, ctx.margin, padded, mirror=False), None


def pad_maps(mesh: Mesh, margin: int, groups: Sequence[Tensor]) -> Tensor:
    """Groups of maps [B, maps, Y, X] joined along dim 1, with a margin all around.

    North and south of it are rows of the neighbouring bands, mirrored at the poles; east and west
    the other end of the same rows.

    Communication:
        `margin` rows from each neighbour on the domain axis, forward and backward.
    """
    result: Tensor = _PadMaps.apply(mesh, margin, *groups)
    return result


def overlap_mean(mesh: Mesh, margin: int, padded: Tensor, count: Tensor) -> Tensor:
    """Maps [B, maps, Y, X] from sums of windows [B, maps, Y + 2 margin, X + 2 margin].

    The margin's rows are added to the neighbouring bands, which own them, or dropped beyond the
    poles; its columns to the other end of the rows. Then all is divided by `count` [Y, X], the
    number of windows that wrote each point. `padded` is used up: it is added to in place.

    Communication:
        `margin` rows from each neighbour on the domain axis, forward and backward.
    """
    if margin == 0:
        return padded  # each point was written once
    result: Tensor = _OverlapMean.apply(mesh, margin, padded, count)
    return result


def _empty_padded(maps: Tensor, num_maps: int, margin: int) -> Tensor:
    batch, _, height, width = maps.shape
    return maps.new_empty((batch, num_maps, height + 2 * margin, width + 2 * margin))


def _without_margin(padded: Tensor, margin: int) -> Tensor:
    return padded[..., margin:-margin, margin:-margin]


def _fill_margin(mesh: Mesh, margin: int, padded: Tensor, *, mirror: bool) -> Tensor:
    """Fills the margin from neighbouring bands and from the rows' other ends."""
    middle = padded[..., margin:-margin]
    top, bottom = (
        middle[..., rows, :].contiguous()
        for rows in (slice(margin, 2 * margin), slice(-2 * margin, -margin))
    )
    north, south = exchange_rows(mesh, top, bottom)
    for place, rows, edge in (
        (middle[..., :margin, :], north, top),
        (middle[..., -margin:, :], south, bottom),
    ):
        if rows is not None:
            place.copy_(rows)
        elif mirror:
            place.copy_(edge.flip(-2))
        else:
            place.zero_()
    padded[..., :margin] = middle[..., -margin:]
    padded[..., -margin:] = middle[..., :margin]
    return padded


def _add_margin(mesh: Mesh, margin: int, padded: Tensor, inner: Tensor, *, mirror: bool) -> None:
    """Adds the margin to what it overlaps: the transpose of `_fill_margin`."""
    edges = []
    for part in (slice(None, margin), slice(-margin, None)):
        edge = padded[..., part, margin:-margin].clone()
        _add_columns(margin, padded[..., part, :], edge)
        edges.append(edge)
    top, bottom = edges
    north, south = exchange_rows(mesh, top, bottom)
    _add_columns(margin, padded[..., margin:-margin, :], inner)
    for place, rows, edge in (
        (inner[..., :margin, :], north, top),
        (inner[..., -margin:, :], south, bottom),
    ):
        if rows is not None:
            place.add_(rows)
        elif mirror:
            place.add_(edge.flip(-2))


def _add_columns(margin: int, padded: Tensor, inner: Tensor) -> None:
    inner[..., -margin:] += padded[..., :margin]
    inner[..., :margin] += padded[..., -margin:]
