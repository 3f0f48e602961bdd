"""The sharded products: what makes a mixer block run on a mesh with nothing held twice.

Each function takes this rank's piece of the activations and of the weights and returns this
rank's piece of the result; its backward returns the complete gradient of each piece over domain
and tensor. Weights are gathered along their storage axis just before use, in forward and again in
backward; neither gathered activations nor gathered weights are kept for backward.

On a mesh of one rank the same code runs with collectives that do nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import Function
from torch.nn import functional as F

from jigsaw_forecast.parallel.collectives import (
    all_gather,
    all_reduce_sum,
    exchange_rows,
    reduce_scatter,
)
from jigsaw_forecast.parallel.layout import Layout
from jigsaw_forecast.parallel.mesh import Mesh

Tensor = torch.Tensor
NORM_EPSILON = 1e-5  # torch.nn.LayerNorm's default


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
class _Plan:
    """What the autograd Functions need besides tensors."""

    mesh: Mesh
    dtype: torch.dtype
    layouts: tuple[Layout | None, ...]  # None: resident, nothing to gather


def gather_weight(mesh: Mesh, weight: Weight) -> Tensor:
    """The part of a weight that computes, in its own dtype; not differentiable.

    Communication:
        One all-gather over each storage axis of more than one rank.
    """
    layout = None if weight.is_resident else weight.layout
    plan = _Plan(mesh, weight.piece.dtype, (layout,))
    return _gather_weight(weight.piece.detach(), layout, plan).contiguous()


def _gather_weight(piece: Tensor, layout: Layout | None, plan: _Plan) -> Tensor:
    """The part that computes, in the compute dtype."""
    weight = piece.to(plan.dtype)
    if layout is not None:
        for cut, shapes in layout.gather_steps(plan.mesh):
            sizes = [shape[cut.dim] for shape in shapes]
            weight = all_gather(plan.mesh, weight, cut.axis, cut.dim, "weights", sizes)
    return weight


def _scatter_gradient(grad: Tensor, layout: Layout | None, plan: _Plan) -> Tensor:
    """The complete gradient of the stored piece from this rank's term for the part computed."""
    if layout is not None:
        for cut, shapes in reversed(list(layout.gather_steps(plan.mesh))):
            sizes = [shape[cut.dim] for shape in shapes]
            grad = reduce_scatter(plan.mesh, grad, cut.axis, cut.dim, "weights", sizes)
    return grad


class _GatherVectors(Function):
    """Gathers many small parameters with one collective for each storage axis."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *pieces: Tensor) -> tuple[Tensor, ...]:
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


def _vector_rounds(plan: _Plan) -> list[_Round]:
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
    plan = _Plan(mesh, weights[0].piece.dtype, layouts)
    gathered: tuple[Tensor, ...] = _GatherVectors.apply(plan, *(w.piece for w in weights))
    return gathered


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
        ctx: Any, plan: _Plan, x: Tensor, y: Tensor, w1: Tensor, b1: Tensor, w2: Tensor
    ) -> Tensor:
        mesh = plan.mesh
        y = y.to(plan.dtype)
        tokens = all_gather(mesh, y, "domain", 1, "activations")
        full_w1 = _gather_weight(w1, plan.layouts[0], plan)
        hidden = torch.matmul(full_w1, tokens).add_(b1.to(plan.dtype)[:, None])
        del tokens, full_w1
        full_w2 = _gather_weight(w2, plan.layouts[1], plan)
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
        grad_w2 = _scatter_gradient(grad_w2, plan.layouts[1], plan)
        del active
        grad_hidden = torch.matmul(_gather_weight(w2, plan.layouts[1], plan).mT, full_grad)
        grad_hidden = torch.ops.aten.gelu_backward(grad_hidden, hidden)
        del full_grad
        grad_b1 = grad_hidden.sum((0, 2), dtype=ctx.dtypes[1])
        tokens = all_gather(mesh, y, "domain", 1, "activations")
        grad_w1 = _sum_over_batch(torch.matmul(grad_hidden, tokens.mT), plan.dtype)
        grad_w1 = _scatter_gradient(grad_w1, plan.layouts[0], plan)
        del tokens
        grad_tokens = torch.matmul(_gather_weight(w1, plan.layouts[0], plan).mT, grad_hidden)
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
    plan = _Plan(mesh, dtype, _layouts(w1, w2))
    result: Tensor = _TokenMixing.apply(plan, x, normed, w1.piece, b1, w2.piece)
    return result


class _ChannelMixing(Function):
    """`x + W2 gelu(W1 norm(x) + b1) + b2` along channels."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: _Plan,
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
        full_w1 = _gather_weight(w1, plan.layouts[0], plan)
        hidden = F.linear(normed, full_w1, b1.to(plan.dtype))
        del channels, normed, full_w1
        partial = F.linear(F.gelu(hidden), _gather_weight(w2, plan.layouts[1], plan))
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
        grad_w2 = _scatter_gradient(grad_w2, plan.layouts[1], plan)
        grad_hidden = torch.matmul(full_grad, _gather_weight(w2, plan.layouts[1], plan))
        grad_hidden = torch.ops.aten.gelu_backward(grad_hidden, hidden)
        del full_grad
        grad_b1 = grad_hidden.sum((0, 1), dtype=w1.dtype)
        channels = all_gather(mesh, x.to(plan.dtype), "tensor", 2, "activations")
        normed, mean, inverse_std = _layer_norm(channels, scale, shift, plan.dtype)
        grad_w1 = grad_hidden.flatten(0, 1).mT @ normed.flatten(0, 1)
        grad_w1 = _scatter_gradient(grad_w1, plan.layouts[0], plan)
        grad_normed = torch.matmul(grad_hidden, _gather_weight(w1, plan.layouts[0], plan))
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
    plan = _Plan(mesh, dtype, _layouts(w1, w2))
    result: Tensor = _ChannelMixing.apply(plan, x, *norm, w1.piece, b1, w2.piece, b2)
    return result


class _Embed(Function):
    """`patches W^T`, summed over the ranks' fields."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, patches: Tensor, weight: Tensor) -> Tensor:
        full = _gather_weight(weight, plan.layouts[0], plan)
        partial = F.linear(patches.to(plan.dtype), full)
        ctx.plan = plan
        ctx.save_for_backward(patches, weight)
        result = reduce_scatter(plan.mesh, partial, "tensor", 2, "activations")
        return result.to(patches.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        plan: _Plan = ctx.plan
        patches, weight = ctx.saved_tensors
        full_grad = all_gather(plan.mesh, grad.to(plan.dtype), "tensor", 2, "activations")
        grad_weight = full_grad.flatten(0, 1).mT @ patches.to(plan.dtype).flatten(0, 1)
        grad_weight = _scatter_gradient(grad_weight, plan.layouts[0], plan).to(weight.dtype)
        if not ctx.needs_input_grad[1]:
            return None, None, grad_weight
        grad_patches = torch.matmul(full_grad, _gather_weight(weight, plan.layouts[0], plan))
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
    result: Tensor = _Embed.apply(_Plan(mesh, dtype, _layouts(weight)), patches, weight.piece)
    return result


class _Head(Function):
    """`norm(x) W^T` for this rank's fields."""

    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor
    ) -> Tensor:
        channels = all_gather(plan.mesh, x.to(plan.dtype), "tensor", 2, "activations")
        normed = _layer_norm(channels, scale, shift, plan.dtype)[0]
        ctx.plan = plan
        ctx.save_for_backward(x, scale, shift, weight)
        return F.linear(normed, _gather_weight(weight, plan.layouts[0], plan)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        plan: _Plan = ctx.plan
        x, scale, shift, weight = ctx.saved_tensors
        grad = grad.to(plan.dtype)
        channels = all_gather(plan.mesh, x.to(plan.dtype), "tensor", 2, "activations")
        normed, mean, inverse_std = _layer_norm(channels, scale, shift, plan.dtype)
        grad_weight = grad.flatten(0, 1).mT @ normed.flatten(0, 1)
        grad_weight = _scatter_gradient(grad_weight, plan.layouts[0], plan)
        grad_normed = torch.matmul(grad, _gather_weight(weight, plan.layouts[0], plan))
        grad_channels, grad_scale, grad_shift = _layer_norm_backward(
            grad_normed, channels, mean, inverse_std, scale, shift
        )
        grad_x = reduce_scatter(
            plan.mesh, grad_channels.to(plan.dtype), "tensor", 2, "activations"
        )
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
    result: Tensor = _Head.apply(_Plan(mesh, dtype, _layouts(weight)), x, *norm, weight.piece)
    return result


class _PadRows(Function):
    """Rows of the neighbouring bands around this one; mirrored at the poles."""

    @staticmethod
    def forward(ctx: Any, mesh: Mesh, num_rows: int, x: Tensor) -> Tensor:
        ctx.mesh, ctx.num_rows = mesh, num_rows
        return _pad_rows(mesh, num_rows, x, mirror=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, None, _add_rows(ctx.mesh, ctx.num_rows, grad, mirror=True)


class _AddRows(Function):
    """Edge rows added to the bands that they overlap; dropped beyond the poles."""

    @staticmethod
    def forward(ctx: Any, mesh: Mesh, num_rows: int, x: Tensor) -> Tensor:
        ctx.mesh, ctx.num_rows = mesh, num_rows
        return _add_rows(mesh, num_rows, x, mirror=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, None, _pad_rows(ctx.mesh, ctx.num_rows, grad, mirror=False)


def pad_rows(mesh: Mesh, num_rows: int, x: Tensor) -> Tensor:
    """x [..., Y, X] with `num_rows` rows of each neighbouring band, mirrored at the poles.

    Communication:
        `num_rows` rows from each neighbour on the domain axis, forward and backward.
    """
    if num_rows == 0:
        return x
    result: Tensor = _PadRows.apply(mesh, num_rows, x)
    return result


def add_rows(mesh: Mesh, num_rows: int, x: Tensor) -> Tensor:
    """x [..., Y + 2 num_rows, X] with its outer rows added to the bands that own them.

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


def _layouts(*weights: Weight) -> tuple[Layout | None, ...]:
    return tuple(None if weight.is_resident else weight.layout for weight in weights)


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


def global_norm(mesh: Mesh, tensors: Sequence[Tensor]) -> Tensor:
    """Root of the sum of squares over all pieces of the model group, each counted once.

    Communication:
        All-reduce of one float over domain and tensor.
    """
    squares = [tensor.double().square().sum() for tensor in tensors if tensor.numel()]
    total = torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64)
    return all_reduce_sum(total, (mesh.domain, mesh.tensor)).sqrt()

