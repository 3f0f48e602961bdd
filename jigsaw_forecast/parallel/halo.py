"""Edge rows of neighbouring latitude bands: padded in before the embed, added back after the head.

Both are linear. Beyond the poles rows are mirrored on the way in and dropped on the way out.
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
        top, bottom = (
            torch.cat([group[..., edge, :] for group in groups], 1)
            for edge in (slice(None, margin), slice(-margin, None))
        )
        north, south = exchange_rows(mesh, top, bottom)
        (batch, _, height, width), num_maps = groups[0].shape, sum(ctx.counts)
        padded = groups[0].new_empty((batch, num_maps, height + 2 * margin, width + 2 * margin))
        middle = padded[..., margin:-margin]
        middle[..., :margin, :] = top.flip(-2) if north is None else north
        middle[..., -margin:, :] = bottom.flip(-2) if south is None else south
        inner = middle[..., margin:-margin, :].split(ctx.counts, 1)
        for place, group in zip(inner, groups, strict=True):
            place.copy_(group)
        padded[..., :margin] = middle[..., -margin:]
        padded[..., -margin:] = middle[..., :margin]
        return padded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        margin: int = ctx.margin
        middle = grad[..., margin:-margin].clone()
        middle[..., -margin:] += grad[..., :margin]
        middle[..., :margin] += grad[..., -margin:]
        inner = _add_rows(ctx.mesh, margin, middle, mirror=True)
        return None, None, *inner.split(ctx.counts, 1)


class _AddRows(Function):
    """Edge rows added to the bands that they overlap; dropped beyond the poles."""

    @staticmethod
    def forward(ctx: Any, mesh: Mesh, num_rows: int, x: Tensor) -> Tensor:
        ctx.mesh, ctx.num_rows = mesh, num_rows
        return _add_rows(mesh, num_rows, x, mirror=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, None, _pad_rows(ctx.mesh, ctx.num_rows, grad)


def pad_maps(mesh: Mesh, margin: int, groups: Sequence[Tensor]) -> Tensor:
    """Groups of maps [B, maps, Y, X] joined along dim 1, with a margin all around.

    North and south of it are rows of the neighbouring bands, mirrored at the poles; east and west
    the other end of the same rows.

    Communication:
        `margin` rows from each neighbour on the domain axis, forward and backward.
    """
    if margin == 0:
        return torch.cat(list(groups), 1)
    result: Tensor = _PadMaps.apply(mesh, margin, *groups)
    return result


def add_rows(mesh: Mesh, num_rows: int, x: Tensor) -> Tensor:
    """Maps [..., Y + 2 num_rows, X] with their outer rows added to the bands that own them.

    Rows beyond the poles are dropped.

    Communication:
        `num_rows` rows from each neighbour on the domain axis, forward and backward.
    """
    if num_rows == 0:
        return x
    result: Tensor = _AddRows.apply(mesh, num_rows, x)
    return result


def _pad_rows(mesh: Mesh, num_rows: int, x: Tensor) -> Tensor:
    top, bottom = x[..., :num_rows, :], x[..., -num_rows:, :]
    north, south = exchange_rows(mesh, top, bottom)
    if north is None:
        north = torch.zeros_like(top)
    if south is None:
        south = torch.zeros_like(bottom)
    return torch.cat([north, x, south], dim=-2)


def _add_rows(mesh: Mesh, num_rows: int, x: Tensor, *, mirror: bool) -> Tensor:
    top, bottom = x[..., :num_rows, :], x[..., -num_rows:, :]
    north, south = exchange_rows(mesh, top, bottom)
    if north is None and mirror:
        north = top.flip(-2)
    if south is None and mirror:
        south = bottom.flip(-2)
    inner = x[..., num_rows:-num_rows, :].clone()
    if north is not None:
        inner[..., :num_rows, :] += north
    if south is not None:
        inner[..., -num_rows:, :] += south
    return inner
