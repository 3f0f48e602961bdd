"""The sharded products: what makes a mixer block run on a mesh with nothing held twice.

Each function takes this rank's piece of the activations and of the weights and returns this
rank's piece of the result; its backward returns the complete gradient of each piece over domain
and tensor. Weights are gathered along their storage axis just before use, in forward and again in
backward; neither gathered activations nor gathered weights are kept for backward.

On a mesh of one rank the same code runs with collectives that do nothing.
"""

from typing import Any

import torch
from torch.autograd import Function
from torch.nn import functional as F

from jigsaw_forecast.parallel.collectives import all_gather, reduce_scatter
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.weights import (
    Plan,
    Weight,
    gather_piece,
    scatter_gradient,
    storage_layouts,
)

Tensor = torch.Tensor
NORM_EPSILON = 1e-5  # torch.nn.LayerNorm's default


class _ShardedLayerNorm(Function):
    """Layer norm over channels that are cut over the tensor axis."""

    @staticmethod
    def forward(ctx: Any, mesh: Mesh, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        num_local, num_channels = x.shape[-1], x.shape[-1] * mesh.tensor.size
        mean = x.mean(-1)
        m2 = (x - mean[..., None]).square_().sum(-1)
        both = all_gather(mesh, torch.stack([mean, m2])[None], "tensor", 0, "statistics")
        means, m2s = both[:, 0], both[:, 1]
        mean = means.mean(0)  # parts have equal lengths
        # Chan, Golub and LeVeque 1983: merged sum of squares about the common mean
        m2 = m2s.sum(0) + num_local * (means - mean).square().sum(0)
        inverse_std = torch.rsqrt(m2 / num_channels + NORM_EPSILON)[..., None]
        standard = (x - mean[..., None]) * inverse_std
        ctx.mesh = mesh
        ctx.save_for_backward(standard, inverse_std, scale)
        return standard * scale + shift

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        standard, inverse_std, scale = ctx.saved_tensors
        scaled = grad * scale
        sums = torch.stack([scaled.sum(-1), (scaled * standard).sum(-1)])[None]
        sums = all_gather(ctx.mesh, sums, "tensor", 0, "statistics").sum(0)
        means = (sums / (standard.shape[-1] * ctx.mesh.tensor.size))[..., None]
        grad_x = (scaled - means[0] - standard * means[1]) * inverse_std
        grad_scale = (grad * standard).flatten(0, -2).sum(0)
        return None, grad_x, grad_scale, grad.flatten(0, -2).sum(0)


def sharded_layer_norm(mesh: Mesh, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer norm of x [..., C/tensor] over all channels; scale and shift [C/tensor].

    Communication:
        Forward: all-gather of (mean, M2) over tensor, 2 floats a token from each other rank.
        Backward: the same size again.
    """
    if mesh.tensor.size == 1:
        return F.layer_norm(x, (x.shape[-1],), scale, shift, NORM_EPSILON)
    result: Tensor = _ShardedLayerNorm.apply(mesh, x, scale, shift)
    return result


class _TokenMixing(Function):
    """`x + W2 gelu(W1 y + b1)` along tokens; y is the normed x."""

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, x: Tensor, y: Tensor, w1: Tensor, b1: Tensor, w2: Tensor
    ) -> Tensor:
        mesh = plan.mesh
        y = y.to(plan.dtype)
        tokens = all_gather(mesh, y, "domain", 1, "activations")
        full_w1 = gather_piece(w1, plan.layouts[0], plan)
        hidden = torch.matmul(full_w1, tokens).add_(b1.to(plan.dtype)[:, None])
        del tokens, full_w1
        full_w2 = gather_piece(w2, plan.layouts[1], plan)
        partial = torch.matmul(full_w2, F.gelu(hidden))
        result = reduce_scatter(mesh, partial, "domain", 1, "activations")
        ctx.plan = plan
        ctx.dtypes = (x.dtype, w1.dtype)
        ctx.save_for_backward(y, hidden, w1, w2)
        return result.to(x.dtype).add_(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        plan, mesh = ctx.plan, ctx.plan.mesh
        y, hidden, w1, w2 = ctx.saved_tensors
        full_grad = all_gather(mesh, grad.to(plan.dtype), "domain", 1, "activations")
        active = F.gelu(hidden)
        grad_w2 = _sum_over_batch(torch.matmul(full_grad, active.mT), plan.dtype)
        grad_w2 = scatter_gradient(grad_w2, plan.layouts[1], plan)
        del active
        grad_hidden = torch.matmul(gather_piece(w2, plan.layouts[1], plan).mT, full_grad)
        grad_hidden = torch.ops.aten.gelu_backward(grad_hidden, hidden)
        del full_grad
        grad_b1 = grad_hidden.sum((0, 2), dtype=ctx.dtypes[1])
        tokens = all_gather(mesh, y, "domain", 1, "activations")
        grad_w1 = _sum_over_batch(torch.matmul(grad_hidden, tokens.mT), plan.dtype)
        grad_w1 = scatter_gradient(grad_w1, plan.layouts[0], plan)
        del tokens
        grad_tokens = torch.matmul(gather_piece(w1, plan.layouts[0], plan).mT, grad_hidden)
        grad_y = reduce_scatter(mesh, grad_tokens, "domain", 1, "activations")
        weight_dtype = ctx.dtypes[1]
        return (
            None,
            grad,
            grad_y.to(ctx.dtypes[0]),
            grad_w1.to(weight_dtype),
            grad_b1,
            grad_w2.to(weight_dtype),
        )


def token_mixing(
    mesh: Mesh,
    dtype: torch.dtype,
    x: Tensor,
    normed: Tensor,
    w1: Weight,
    b1: Tensor,
    w2: Weight,
) -> Tensor:
    """Residual MLP along tokens.

    Its output has no bias: one number a token would be taken out again by every norm.

    Args:
        mesh: This rank's mesh.
        dtype: Dtype of the products and of what travels.
        x: Residual stream [B, N/domain, C/tensor].
        normed: Normed x, same shape.
        w1: [D_n, N]; computes cut over domain along D_n, stored cut over tensor along N.
        b1: [D_n/domain].
        w2: [N, D_n]; computes cut over domain along D_n, stored cut over tensor along N.

    Communication:
        Forward over domain: gather N C/tensor, reduce-scatter the same; weights over tensor.
        Backward: two gathers and one reduce-scatter; weights gathered again, gradients
        reduce-scattered.
    """
    plan = Plan(mesh, dtype, storage_layouts(w1, w2))
    result: Tensor = _TokenMixing.apply(plan, x, normed, w1.piece, b1, w2.piece)
    return result


class _ChannelMixing(Function):
    """`x + W2 gelu(W1 norm(x) + b1) + b2` along channels."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
    ) -> Tensor:
        mesh = plan.mesh
        channels = all_gather(mesh, x.to(plan.dtype), "tensor", 2, "activations")
        normed = _layer_norm(channels, scale, shift, plan.dtype)[0]
        full_w1 = gather_piece(w1, plan.layouts[0], plan)
        hidden = F.linear(normed, full_w1, b1.to(plan.dtype))
        del channels, normed, full_w1
        partial = F.linear(F.gelu(hidden), gather_piece(w2, plan.layouts[1], plan))
        result = reduce_scatter(mesh, partial, "tensor", 2, "activations")
        ctx.plan = plan
        ctx.save_for_backward(x, hidden, scale, shift, w1, w2)
        return result.to(x.dtype).add_(b2).add_(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        plan, mesh = ctx.plan, ctx.plan.mesh
        x, hidden, scale, shift, w1, w2 = ctx.saved_tensors
        grad_b2 = grad.sum((0, 1))
        full_grad = all_gather(mesh, grad.to(plan.dtype), "tensor", 2, "activations").contiguous()
        grad_w2 = full_grad.flatten(0, 1).mT @ F.gelu(hidden).flatten(0, 1)
        grad_w2 = scatter_gradient(grad_w2, plan.layouts[1], plan)
        grad_hidden = torch.matmul(full_grad, gather_piece(w2, plan.layouts[1], plan))
        grad_hidden = torch.ops.aten.gelu_backward(grad_hidden, hidden)
        del full_grad
        grad_b1 = grad_hidden.sum((0, 1), dtype=w1.dtype)
        channels = all_gather(mesh, x.to(plan.dtype), "tensor", 2, "activations")
        normed, mean, inverse_std = _layer_norm(channels, scale, shift, plan.dtype)
        grad_w1 = grad_hidden.flatten(0, 1).mT @ normed.flatten(0, 1)
        grad_w1 = scatter_gradient(grad_w1, plan.layouts[0], plan)
        grad_normed = torch.matmul(grad_hidden, gather_piece(w1, plan.layouts[0], plan))
        grad_channels, grad_scale, grad_shift = _layer_norm_backward(
            grad_normed, channels, mean, inverse_std, scale, shift
        )
        grad_x = reduce_scatter(mesh, grad_channels.to(plan.dtype), "tensor", 2, "activations")
        return (
            None,
            grad + grad_x.to(grad.dtype),
            grad_scale,
            grad_shift,
            grad_w1.to(w1.dtype),
            grad_b1,
            grad_w2.to(w2.dtype),
            grad_b2.to(w2.dtype),
        )


def channel_mixing(
    mesh: Mesh,
    dtype: torch.dtype,
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    w1: Weight,
    b1: Tensor,
    w2: Weight,
    b2: Tensor,
) -> Tensor:
    """Residual MLP along channels, its norm included.

    Args:
        mesh: This rank's mesh.
        dtype: Dtype of the products and of what travels.
        x: Residual stream [B, N/domain, C/tensor].
        norm: Scale and shift of the norm, each [C]: it comes after the gather.
        w1: [D_c, C]; computes cut over tensor along D_c, stored cut over domain along C.
        b1: [D_c/tensor].
        w2: [C, D_c]; computes cut over tensor along D_c, stored cut over domain along C.
        b2: [C/tensor].

    Communication:
        Forward over tensor: gather N/domain C, reduce-scatter the same; weights over domain.
        Backward: two gathers and one reduce-scatter; weights gathered again, gradients
        reduce-scattered.
    """
    plan = Plan(mesh, dtype, storage_layouts(w1, w2))
    result: Tensor = _ChannelMixing.apply(plan, x, *norm, w1.piece, b1, w2.piece, b2)
    return result


class _Embed(Function):
    """`patches W^T`, summed over the ranks' fields."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, patches: Tensor, weight: Tensor) -> Tensor:
        full = gather_piece(weight, plan.layouts[0], plan)
        partial = F.linear(patches.to(plan.dtype), full)
        ctx.plan = plan
        ctx.save_for_backward(patches, weight)
        result = reduce_scatter(plan.mesh, partial, "tensor", 2, "activations")
        return result.to(patches.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        plan: Plan = ctx.plan
        patches, weight = ctx.saved_tensors
        full_grad = all_gather(plan.mesh, grad.to(plan.dtype), "tensor", 2, "activations")
        grad_weight = full_grad.flatten(0, 1).mT @ patches.to(plan.dtype).flatten(0, 1)
        grad_weight = scatter_gradient(grad_weight, plan.layouts[0], plan).to(weight.dtype)
        if not ctx.needs_input_grad[1]:
            return None, None, grad_weight
        grad_patches = torch.matmul(full_grad, gather_piece(weight, plan.layouts[0], plan))
        return None, grad_patches.to(patches.dtype), grad_weight


def embed(mesh: Mesh, dtype: torch.dtype, patches: Tensor, weight: Weight) -> Tensor:
    """Tokens [B, N/domain, C/tensor] from the patches of this rank's fields.

    Args:
        mesh: This rank's mesh.
        dtype: Dtype of the product and of what travels.
        patches: [B, N/domain, K], K the points of all local maps under one window.
        weight: [C, K], stored cut over domain along C.

    Communication:
        Forward: reduce-scatter of N/domain C over tensor. Backward: gather of the same. Weights
        over domain.
    """
    result: Tensor = _Embed.apply(Plan(mesh, dtype, storage_layouts(weight)), patches, weight.piece)
    return result


class _Head(Function):
    """`norm(x) W^T` for this rank's fields."""

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor
    ) -> Tensor:
        channels = all_gather(plan.mesh, x.to(plan.dtype), "tensor", 2, "activations")
        normed = _layer_norm(channels, scale, shift, plan.dtype)[0]
        ctx.plan = plan
        ctx.save_for_backward(x, scale, shift, weight)
        return F.linear(normed, gather_piece(weight, plan.layouts[0], plan)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        plan: Plan = ctx.plan
        x, scale, shift, weight = ctx.saved_tensors
        grad = grad.to(plan.dtype)
        channels = all_gather(plan.mesh, x.to(plan.dtype), "tensor", 2, "activations")
        normed, mean, inverse_std = _layer_norm(channels, scale, shift, plan.dtype)
        grad_weight = grad.flatten(0, 1).mT @ normed.flatten(0, 1)
        grad_weight = scatter_gradient(grad_weight, plan.layouts[0], plan)
        grad_normed = torch.matmul(grad, gather_piece(weight, plan.layouts[0], plan))
        grad_channels, grad_scale, grad_shift = _layer_norm_backward(
            grad_normed, channels, mean, inverse_std, scale, shift
        )
        grad_x = reduce_scatter(plan.mesh, grad_channels.to(plan.dtype), "tensor", 2, "activations")
        return None, grad_x.to(x.dtype), grad_scale, grad_shift, grad_weight.to(weight.dtype)


def head(
    mesh: Mesh, dtype: torch.dtype, x: Tensor, norm: tuple[Tensor, Tensor], weight: Weight
) -> Tensor:
    """Windows [B, N/domain, K] of this rank's fields from the tokens.

    Args:
        mesh: This rank's mesh.
        dtype: Dtype of the product and of what travels.
        x: Residual stream [B, N/domain, C/tensor].
        norm: Scale and shift of the norm, each [C].
        weight: [K, C], stored cut over domain along C.

    Communication:
        Forward: gather of N/domain C over tensor. Backward: the gather again and a
        reduce-scatter. Weights over domain.
    """
    result: Tensor = _Head.apply(Plan(mesh, dtype, storage_layouts(weight)), x, *norm, weight.piece)
    return result


def _sum_over_batch(product: Tensor, dtype: torch.dtype) -> Tensor:
    return product.sum(0).to(dtype) if product.shape[0] > 1 else product[0]


def _layer_norm(
    x: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.native_layer_norm(
        x.contiguous(), (x.shape[-1],), scale.to(dtype), shift.to(dtype), NORM_EPSILON
    )


def _layer_norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, inverse_std: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (linear in `grad`, so partial sums stay partial sums), scale and shift."""
    grad_x, grad_scale, grad_shift = torch.ops.aten.native_layer_norm_backward(
        grad,
        x.contiguous(),
        (x.shape[-1],),
        mean,
        inverse_std,
        scale.to(x.dtype),
        shift.to(x.dtype),
        [True, True, True],
    )
    return grad_x, grad_scale.to(scale.dtype), grad_shift.to(shift.dtype)
