"""The sharded products at both ends of the model: the embed and the head.

As in `products`: pieces in, pieces out, complete gradients of each piece in backward.
"""

from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from jigsaw_forecast.parallel.chunks import GatheredChunks, ScatteredChunks, half
from jigsaw_forecast.parallel.norms import NormGradients, layer_norm
from jigsaw_forecast.parallel.products import (
    Scheme,
    gather_channels,
    scatter_channels,
    scatter_columns,
)
from jigsaw_forecast.parallel.weights import Gathering

Tensor = torch.Tensor


class _Embed(Function):
    """`patches W^T`, summed over the ranks' fields."""

    @staticmethod
    def forward(
        ctx: Any, scheme: Scheme, weights: Gathering, patches: Tensor, *_: Tensor
    ) -> Tensor:
        mesh, rows = scheme.mesh, patches.flatten(0, 1).to(scheme.dtype)
        parts = scheme.chunks(rows.shape[0], "tensor", weights)
        (weight,) = weights.take()
        num_channels = weight.whole.shape[0] // mesh.tensor.size
        result = patches.new_empty((rows.shape[0], num_channels))
        sums = ScatteredChunks(lambda part, values: result[part].copy_(values))
        for part in parts:
            sums.add(part, scatter_channels(mesh, rows[part], weight.whole))
        sums.finish()
        ctx.scheme, ctx.weights = scheme, weights
        ctx.save_for_backward(patches)
        return result.view(*patches.shape[:2], num_channels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        scheme, weights = ctx.scheme, ctx.weights
        (patches,) = ctx.saved_tensors
        rows, grad_rows = patches.flatten(0, 1), grad.contiguous().flatten(0, 1)
        parts = scheme.chunks(rows.shape[0], "tensor", weights)
        grads = GatheredChunks(parts, lambda part: gather_channels(scheme, grad_rows[part]))
        is_wanted = ctx.needs_input_grad[2]
        weight = weights.take_one(0) if is_wanted else None
        grad_patches = torch.empty_like(rows) if is_wanted else None
        grad_weight = weights.product(0)
        for index, part in enumerate(parts):
            full_grad = grads.take()
            grad_weight.add(full_grad.mT, rows[part].to(scheme.dtype))
            if weight is not None and grad_patches is not None:
                grad_patches[part] = weight.back_to_rows(full_grad)
            if index == half(parts):
                weights.half_done(0)
        piece_grad = weights.scatter(0, grad_weight)
        if grad_patches is not None:
            grad_patches = grad_patches.view_as(patches)
        return None, None, grad_patches, piece_grad


def embed(
    scheme: Scheme, weights: Gathering, pieces: tuple[Tensor, ...], patches: Tensor
) -> Tensor:
    """Tokens [B, N/domain, C/tensor] from the patches of this rank's fields.

    Args:
        scheme: How products run.
        weights: [C, K], stored cut over domain along C.
        pieces: What `announce` returned for it.
        patches: [B, N/domain, K], K the points of all local maps under one window.

    Communication:
        Forward: reduce-scatter of N/domain C over tensor. Backward: gather of the same. Weights
        over domain.
    """
    result: Tensor = _Embed.apply(scheme, weights, patches, *pieces)
    return result


class _Head(Function):
    """`W norm(x)^T` for this rank's fields: tokens last, as the windows are added up from."""

    @staticmethod
    def forward(
        ctx: Any,
        scheme: Scheme,
        weights: Gathering,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        *_: Tensor,
    ) -> Tensor:
        rows = x.flatten(0, 1)
        parts = scheme.chunks(rows.shape[0], "tensor", weights)
        channels = GatheredChunks(parts, lambda part: gather_channels(scheme, rows[part]))
        (weight,) = weights.take()
        result = rows.new_empty((weight.blocks[0].shape[0], rows.shape[0]), dtype=scheme.dtype)
        for part in parts:
            normed = layer_norm(channels.take(), scale, shift)[0]
            weight.put_times_rows(normed, result[:, part])
        ctx.scheme, ctx.weights = scheme, weights
        ctx.save_for_backward(x, scale, shift)
        return result.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        scheme, weights = ctx.scheme, ctx.weights
        x, scale, shift = ctx.saved_tensors
        rows, grad = x.flatten(0, 1), grad.to(scheme.dtype)
        parts = scheme.chunks(rows.shape[0], "tensor", weights)
        channels = GatheredChunks(parts, lambda part: gather_channels(scheme, rows[part]))
        weight = weights.take_one(0)
        result = torch.empty_like(rows)
        sums = ScatteredChunks(lambda part, values: result[part].copy_(values))
        grad_weight = weights.product(0)
        norm_grads = NormGradients(scale, shift)
        for index, part in enumerate(parts):
            chunk = channels.take()
            normed, mean, inverse_std = layer_norm(chunk, scale, shift)
            grad_weight.add(grad[:, part], normed)
            grad_normed = weight.back_to_rows(grad[:, part].mT)
            grad_chunk = norm_grads.through(grad_normed, chunk, mean, inverse_std)
            sums.add(part, scatter_columns(scheme.mesh, grad_chunk))
            if index == half(parts):
                weights.half_done(0)
        piece_grad = weights.scatter(0, grad_weight)
        sums.finish()
        return None, None, result.view_as(x), norm_grads.scale, norm_grads.shift, piece_grad


def head(
    scheme: Scheme,
    weights: Gathering,
    pieces: tuple[Tensor, ...],
    x: Tensor,
    norm: tuple[Tensor, Tensor],
) -> Tensor:
    """Windows [B, K, N/domain] of this rank's fields from the tokens.

    Args:
        scheme: How products run.
        weights: [K, C], stored cut over domain along C.
        pieces: What `announce` returned for it.
        x: Residual stream [B, N/domain, C/tensor].
        norm: Scale and shift of the norm, each [C].

    Communication:
        Forward: gather of N/domain C over tensor. Backward: the gather again and a
        reduce-scatter. Weights over domain.
    """
    by_token: Tensor = _Head.apply(scheme, weights, x, *norm, *pieces)
    windows: Tensor = by_token.unflatten(1, x.shape[:2]).transpose(0, 1)
    return windows
