"""Edge rows of neighbouring latitude bands: padded in before the embed, added back after the head.

Both are linear and each is the adjoint of the other but for the poles, where rows are mirrored on
the way in and dropped on the way out.
"""

from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from jigsaw_forecast.parallel.collectives import exchange_rows
from jigsaw_forecast.parallel.mesh import Mesh

Tensor = torch.Tensor


class _PadRows(Function):
    """Rows of the neighbouring bands around this one; mirrored at the poles."""

    @staticmethod
    def forward(ctx: Any, mesh: Mesh, num_rows: int, x: Tensor) -> Tensor:
        ctx.mesh, ctx.num_rows = mesh, num_rows
        return _pad_rows(mesh, num_rows, x, mirror=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, None, _add_rows(ctx.mesh, ctx.num_rows, grad, mirror=True)


class _AddRows(Function):
    """Edge rows added to the bands that they overlap; dropped beyond the poles."""

    @staticmethod
    def forward(ctx: Any, mesh: Mesh, num_rows: int, x: Tensor) -> Tensor:
        ctx.mesh, ctx.num_rows = mesh, num_rows
        return _add_rows(mesh, num_rows, x, mirror=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, None, _pad_rows(ctx.mesh, ctx.num_rows, grad, mirror=False)


def pad_rows(mesh: Mesh, num_rows: int, x: Tensor) -> Tensor:
    """Maps [..., Y, X] with `num_rows` rows of each neighbouring band, mirrored at the poles.

    Communication:
        `num_rows` rows from each neighbour on the domain axis, forward and backward.
    """
    if num_rows == 0:
        return x
    result: Tensor = _PadRows.apply(mesh, num_rows, x)
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


def _pad_rows(mesh: Mesh, num_rows: int, x: Tensor, *, mirror: bool) -> Tensor:
    top, bottom = x[..., :num_rows, :], x[..., -num_rows:, :]
    north, south = exchange_rows(mesh, top, bottom)
    if north is None:
        north = top.flip(-2) if mirror else torch.zeros_like(top)
    if south is None:
        south = bottom.flip(-2) if mirror else torch.zeros_like(bottom)
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
