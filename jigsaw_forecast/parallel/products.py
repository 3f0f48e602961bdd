"""The sharded products: what makes a mixer block run on a mesh with nothing held twice.

Each function takes this rank's piece of the activations and of the weights and returns this
rank's piece of the result; its backward returns the complete gradient of each piece over domain
and tensor. Weights are gathered along their storage axis just before use, in forward and again in
backward; neither gathered activations nor gathered weights are kept for backward. Activations
travel in chunks, each while another is multiplied.

Token mixing works on matrices of tokens by (sample and channel), channel mixing on matrices of
(sample and token) by channels, so that what is gathered is already what is multiplied.

On a mesh of one rank the same code runs with collectives that do nothing.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import Function
from torch.nn import functional as F

from jigsaw_forecast.parallel.chunks import GatheredChunks, ScatteredChunks, chunk_ranges
from jigsaw_forecast.parallel.collectives import (
    Pending,
    all_gather,
    start_all_gather,
    start_reduce_scatter,
)
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.weights import Gathering

Tensor = torch.Tensor
NORM_EPSILON = 1e-5  # torch.nn.LayerNorm's default


@dataclass(frozen=True)
class Scheme:
    """How products run.

    Attributes:
        mesh: This rank's mesh.
        dtype: Of the products and of what travels.
        num_chunks: Chunks of activations that travel one by one; None for the default.
        recompute_hidden: Make the hidden features again in backward, out of what is gathered
            there anyway, and keep none: a seventh more work, no more communication.
    """

    mesh: Mesh
    dtype: torch.dtype
    num_chunks: int | None = None
    recompute_hidden: bool = False

    def chunks(self, length: int, axis: str) -> list[slice]:
        """The chunks of a dim that travel over an axis."""
        return chunk_ranges(length, self.num_chunks, self.mesh.axis(axis).size)


class _ShardedLayerNorm(Function):
    """Layer norm over channels that are cut over the tensor axis."""

    @staticmethod
    def forward(ctx: Any, mesh: Mesh, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        num_local, num_channels = x.shape[-1], x.shape[-1] * mesh.tensor.size
        variance, mean = torch.var_mean(x, -1, correction=0)
        both = torch.stack([mean, variance * num_local])[None]
        both = all_gather(mesh, both, "tensor", 0, "statistics")
        means, m2s = both[:, 0], both[:, 1]
        mean = means.mean(0)  # parts have equal lengths
        # Chan, Golub and LeVeque 1983: merged sum of squares about the common mean
        m2 = m2s.sum(0) + num_local * (means - mean).square().sum(0)
        mean = mean[..., None]
        inverse_std = torch.rsqrt(m2 / num_channels + NORM_EPSILON)[..., None]
        ctx.mesh = mesh
        ctx.save_for_backward(x, mean, inverse_std, scale)
        return torch.addcmul(shift, (x - mean).mul_(inverse_std), scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, mean, inverse_std, scale = ctx.saved_tensors
        standard = (x - mean).mul_(inverse_std)
        scaled = grad * scale
        sums = torch.stack([scaled.sum(-1), torch.linalg.vecdot(scaled, standard)])[None]
        sums = all_gather(ctx.mesh, sums, "tensor", 0, "statistics").sum(0)
        means = (sums / (x.shape[-1] * ctx.mesh.tensor.size))[..., None]
        grad_x = scaled.sub_(means[0]).addcmul_(standard, means[1], value=-1.0).mul_(inverse_std)
        grad_scale = standard.mul_(grad).flatten(0, -2).sum(0)
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
        ctx: Any, scheme: Scheme, weights: Gathering, x: Tensor, y: Tensor, b1: Tensor, *_: Tensor
    ) -> Tensor:
        mesh, y = scheme.mesh, _token_major(y.to(scheme.dtype))
        bias = b1.to(scheme.dtype)[:, None]
        parts = scheme.chunks(y.shape[1], "domain")
        tokens = GatheredChunks(parts, lambda part: _gather_tokens(mesh, y[:, part]))
        w1, w2 = weights.take()
        mixed = torch.empty_like(y)
        sums = ScatteredChunks(lambda part, values: mixed[:, part].copy_(values))
        kept = []
        for part in parts:
            hidden = torch.addmm(bias, w1, tokens.take())
            partial = torch.mm(w2, F.gelu(hidden))
            sums.add(part, start_reduce_scatter(mesh, partial, "domain", "activations"))
            kept += [] if scheme.recompute_hidden else [hidden]
            del hidden, partial
        sums.finish()
        ctx.scheme, ctx.weights, ctx.dtype = scheme, weights, x.dtype
        ctx.save_for_backward(y, b1, *kept)
        return _sample_major(mixed, x.shape) + x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        scheme: Scheme = ctx.scheme
        mesh, weights = scheme.mesh, ctx.weights
        y, b1, *kept = ctx.saved_tensors
        out_grad = _token_major(grad.to(scheme.dtype))
        parts = scheme.chunks(y.shape[1], "domain")
        grads = GatheredChunks(parts, lambda part: _gather_tokens(mesh, out_grad[:, part]))
        tokens = GatheredChunks(parts, lambda part: _gather_tokens(mesh, y[:, part]))
        w1, w2 = weights.take()
        weights.start_before()
        grad_y = torch.empty_like(y)
        sums = ScatteredChunks(lambda part, values: grad_y[:, part].copy_(values))
        grad_w1, grad_w2 = _Product(transposed=weights.travels), _Product()
        grad_b1 = torch.zeros_like(b1)
        for index, part in enumerate(parts):
            full_grad, chunk = grads.take(), tokens.take()
            if scheme.recompute_hidden:
                hidden = torch.addmm(b1.to(scheme.dtype)[:, None], w1, chunk)
            else:
                hidden = kept[index]
            grad_w2.add(full_grad, F.gelu(hidden).mT)
            grad_hidden = torch.ops.aten.gelu_backward(torch.mm(w2.mT, full_grad), hidden)
            del full_grad, hidden
            grad_b1 += grad_hidden.sum(1, dtype=b1.dtype)
            grad_w1.add(grad_hidden, chunk.mT)
            del chunk
            partial = torch.mm(w1.mT, grad_hidden)
            sums.add(part, start_reduce_scatter(mesh, partial, "domain", "activations"))
            del grad_hidden, partial
        del w1, w2
        piece_grads = weights.scatter([grad_w1.value(), grad_w2.value()])
        sums.finish()
        grad_y = _sample_major(grad_y, grad.shape).to(ctx.dtype)
        return None, None, grad, grad_y, grad_b1, *piece_grads


def token_mixing(
    scheme: Scheme, weights: Gathering, pieces: tuple[Tensor, ...], x: Tensor, y: Tensor, b1: Tensor
) -> Tensor:
    """Residual MLP along tokens.

    Its output has no bias: one number a token would be taken out again by every norm.

    Args:
        scheme: How products run.
        weights: W1 [D_n, N] and W2 [N, D_n]; both compute cut over domain along D_n and are
            stored cut over tensor along N.
        pieces: What `announce` returned for them.
        x: Residual stream [B, N/domain, C/tensor].
        y: Normed x, same shape.
        b1: [D_n/domain].

    Communication:
        Forward over domain: gather N C/tensor, reduce-scatter the same; weights over tensor.
        Backward: two gathers and one reduce-scatter; weights gathered again, gradients
        reduce-scattered.
    """
    result: Tensor = _TokenMixing.apply(scheme, weights, x, y, b1, *pieces)
    return result


class _ChannelMixing(Function):
    """`x + W2 gelu(W1 norm(x) + b1) + b2` along channels."""

    @staticmethod
    def forward(
        ctx: Any,
        scheme: Scheme,
        weights: Gathering,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        b1: Tensor,
        b2: Tensor,
        *_: Tensor,
    ) -> Tensor:
        mesh, rows = scheme.mesh, x.flatten(0, 1)
        parts = scheme.chunks(rows.shape[0], "tensor")
        channels = GatheredChunks(parts, lambda part: _gather_channels(scheme, rows[part]))
        w1, w2 = weights.take()
        result = torch.empty_like(rows)

        def put(part: slice, mixed: Tensor) -> None:
            torch.add(rows[part], mixed, out=result[part]).add_(b2)

        sums, kept = ScatteredChunks(put), []
        for part in parts:
            normed = _layer_norm(channels.take(), scale, shift)[0]
            hidden = F.linear(normed, w1, b1.to(scheme.dtype))
            del normed
            sums.add(part, _scatter_channels(mesh, F.gelu(hidden), w2))
            kept += [] if scheme.recompute_hidden else [hidden]
            del hidden
        sums.finish()
        ctx.scheme, ctx.weights = scheme, weights
        ctx.save_for_backward(x, scale, shift, b1, *kept)
        return result.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        scheme: Scheme = ctx.scheme
        mesh, weights = scheme.mesh, ctx.weights
        x, scale, shift, b1, *kept = ctx.saved_tensors
        rows, grad_rows = x.flatten(0, 1), grad.contiguous().flatten(0, 1)
        parts = scheme.chunks(rows.shape[0], "tensor")
        grads = GatheredChunks(parts, lambda part: _gather_channels(scheme, grad_rows[part]))
        channels = GatheredChunks(parts, lambda part: _gather_channels(scheme, rows[part]))
        w1, w2 = weights.take()
        weights.start_before()
        result = torch.empty_like(rows)

        def put(part: slice, grad_x: Tensor) -> None:
            torch.add(grad_rows[part], grad_x, out=result[part])

        sums = ScatteredChunks(put)
        grad_w1, grad_w2 = _Product(transposed=weights.travels), _Product()
        grad_b1, norm_grads = torch.zeros_like(b1), _NormGradients(scale, shift)
        for index, part in enumerate(parts):
            full_grad, chunk = grads.take(), channels.take()
            normed, mean, inverse_std = _layer_norm(chunk, scale, shift)
            if scheme.recompute_hidden:
                hidden = F.linear(normed, w1, b1.to(scheme.dtype))
            else:
                hidden = kept[index]
            grad_w2.add(full_grad.mT, F.gelu(hidden))
            grad_hidden = torch.ops.aten.gelu_backward(torch.mm(full_grad, w2), hidden)
            del full_grad, hidden
            grad_b1 += grad_hidden.sum(0, dtype=b1.dtype)
            grad_w1.add(grad_hidden.mT, normed)
            del normed
            grad_normed = torch.mm(grad_hidden, w1)
            del grad_hidden
            grad_chunk = norm_grads.through(grad_normed, chunk, mean, inverse_std)
            del grad_normed, chunk
            sums.add(part, _scatter_columns(mesh, grad_chunk))
            del grad_chunk
        del w1, w2
        piece_grads = weights.scatter([grad_w1.value(), grad_w2.value()])
        sums.finish()
        grad_b2 = grad_rows.sum(0)
        grad_scale, grad_shift = norm_grads.scale, norm_grads.shift
        result = result.view_as(x)
        return None, None, result, grad_scale, grad_shift, grad_b1, grad_b2, *piece_grads


def channel_mixing(
    scheme: Scheme,
    weights: Gathering,
    pieces: tuple[Tensor, ...],
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    biases: tuple[Tensor, Tensor],
) -> Tensor:
    """Residual MLP along channels, its norm included.

    Args:
        scheme: How products run.
        weights: W1 [D_c, C] and W2 [C, D_c]; both compute cut over tensor along D_c and are
            stored cut over domain along C.
        pieces: What `announce` returned for them.
        x: Residual stream [B, N/domain, C/tensor].
        norm: Scale and shift of the norm, each [C]: it comes after the gather.
        biases: [D_c/tensor] and [C/tensor].

    Communication:
        Forward over tensor: gather N/domain C, reduce-scatter the same; weights over domain.
        Backward: two gathers and one reduce-scatter; weights gathered again, gradients
        reduce-scattered.
    """
    result: Tensor = _ChannelMixing.apply(scheme, weights, x, *norm, *biases, *pieces)
    return result


class _Embed(Function):
    """`patches W^T`, summed over the ranks' fields."""

    @staticmethod
    def forward(
        ctx: Any, scheme: Scheme, weights: Gathering, patches: Tensor, *_: Tensor
    ) -> Tensor:
        mesh, rows = scheme.mesh, patches.flatten(0, 1).to(scheme.dtype)
        parts = scheme.chunks(rows.shape[0], "tensor")
        (weight,) = weights.take()
        num_channels = weight.shape[0] // mesh.tensor.size
        result = patches.new_empty((rows.shape[0], num_channels))
        sums = ScatteredChunks(lambda part, values: result[part].copy_(values))
        for part in parts:
            sums.add(part, _scatter_channels(mesh, rows[part], weight))
        sums.finish()
        ctx.scheme, ctx.weights = scheme, weights
        ctx.save_for_backward(patches)
        return result.view(*patches.shape[:2], num_channels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        scheme: Scheme = ctx.scheme
        (patches,) = ctx.saved_tensors
        rows, grad_rows = patches.flatten(0, 1), grad.contiguous().flatten(0, 1)
        parts = scheme.chunks(rows.shape[0], "tensor")
        grads = GatheredChunks(parts, lambda part: _gather_channels(scheme, grad_rows[part]))
        is_wanted = ctx.needs_input_grad[2]
        weight = ctx.weights.take()[0] if is_wanted else None
        grad_patches = torch.empty_like(rows) if is_wanted else None
        grad_weight = _Product()
        for part in parts:
            full_grad = grads.take()
            grad_weight.add(full_grad.mT, rows[part].to(scheme.dtype))
            if weight is not None and grad_patches is not None:
                grad_patches[part] = torch.mm(full_grad, weight)
        piece_grads = ctx.weights.scatter([grad_weight.value()])
        if grad_patches is not None:
            grad_patches = grad_patches.view_as(patches)
        return None, None, grad_patches, *piece_grads


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
    """`norm(x) W^T` for this rank's fields."""

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
        parts = scheme.chunks(rows.shape[0], "tensor")
        channels = GatheredChunks(parts, lambda part: _gather_channels(scheme, rows[part]))
        (weight,) = weights.take()
        result = x.new_empty((rows.shape[0], weight.shape[0]))
        for part in parts:
            normed = _layer_norm(channels.take(), scale, shift)[0]
            result[part] = F.linear(normed, weight)
        ctx.scheme, ctx.weights = scheme, weights
        ctx.save_for_backward(x, scale, shift)
        return result.view(*x.shape[:2], -1) if result.numel() else x.new_empty((*x.shape[:2], 0))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        scheme: Scheme = ctx.scheme
        x, scale, shift = ctx.saved_tensors
        rows, grad_rows = x.flatten(0, 1), grad.flatten(0, 1).to(scheme.dtype)
        parts = scheme.chunks(rows.shape[0], "tensor")
        channels = GatheredChunks(parts, lambda part: _gather_channels(scheme, rows[part]))
        (weight,) = ctx.weights.take()
        ctx.weights.start_before()
        result = torch.empty_like(rows)
        sums = ScatteredChunks(lambda part, values: result[part].copy_(values))
        grad_weight = _Product(transposed=ctx.weights.travels)
        norm_grads = _NormGradients(scale, shift)
        for part in parts:
            chunk = channels.take()
            normed, mean, inverse_std = _layer_norm(chunk, scale, shift)
            grad_weight.add(grad_rows[part].mT, normed)
            grad_normed = torch.mm(grad_rows[part], weight)
            grad_chunk = norm_grads.through(grad_normed, chunk, mean, inverse_std)
            sums.add(part, _scatter_columns(scheme.mesh, grad_chunk))
        piece_grads = ctx.weights.scatter([grad_weight.value()])
        sums.finish()
        return None, None, result.view_as(x), norm_grads.scale, norm_grads.shift, *piece_grads


def head(
    scheme: Scheme,
    weights: Gathering,
    pieces: tuple[Tensor, ...],
    x: Tensor,
    norm: tuple[Tensor, Tensor],
) -> Tensor:
    """Windows [B, N/domain, K] of this rank's fields from the tokens.

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
    result: Tensor = _Head.apply(scheme, weights, x, *norm, *pieces)
    return result


def _token_major(x: Tensor) -> Tensor:
    """[B, N/domain, C/tensor] as a matrix [N/domain, B C/tensor]; a view where B is 1."""
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def _sample_major(x: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `_token_major`."""
    return x.view(shape[1], shape[0], shape[2]).transpose(0, 1)


def _gather_tokens(mesh: Mesh, columns: Tensor) -> Pending:
    """[N, chunk] of all bands from [N/domain, chunk]."""
    return start_all_gather(mesh, columns, "domain", 0, "activations")


def _gather_channels(scheme: Scheme, rows: Tensor) -> Pending:
    """[chunk, C] of all features from [chunk, C/tensor]."""
    return start_all_gather(scheme.mesh, rows.to(scheme.dtype), "tensor", 1, "activations")


def _scatter_channels(mesh: Mesh, rows: Tensor, weight: Tensor) -> Pending:
    """`rows weight^T` summed over tensor, [chunk, C/tensor]: a product for each rank's part."""
    parts = weight.chunk(mesh.tensor.size)
    partial = rows.new_empty((len(parts), rows.shape[0], parts[0].shape[0]))
    for destination, part in zip(partial, parts, strict=True):
        torch.mm(rows, part.mT, out=destination)
    return start_reduce_scatter(mesh, partial.flatten(0, 1), "tensor", "activations")


def _scatter_columns(mesh: Mesh, partial: Tensor) -> Pending:
    """[chunk, C] summed over tensor, [chunk, C/tensor]."""
    if mesh.tensor.size > 1:
        partial = torch.cat(partial.chunk(mesh.tensor.size, 1))
    return start_reduce_scatter(mesh, partial, "tensor", "activations")


class _Product:
    """A product that grows by one chunk of its contracted dim after the other."""

    def __init__(self, *, transposed: bool = False) -> None:
        """Empty; `transposed` lays it out with the second dim first, as it will be scattered."""
        self._transposed = transposed
        self._total: Tensor | None = None

    def add(self, left: Tensor, right: Tensor) -> None:
        """Adds `left right`."""
        if self._transposed:
            left, right = right.mT, left.mT
        if self._total is None:
            self._total = torch.mm(left, right)
        else:
            # with out=, since torch's counter of operations does not know addmm_
            torch.addmm(self._total, left, right, out=self._total)

    def value(self) -> Tensor:
        """The sum, taken out."""
        total, self._total = self._total, None
        assert total is not None
        return total.mT if self._transposed else total


def _layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.native_layer_norm(
        x, (x.shape[-1],), scale.to(x.dtype), shift.to(x.dtype), NORM_EPSILON
    )


class _NormGradients:
    """Gradients of a norm's scale and shift, added up over chunks."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        """Starts at zero."""
        self._scale, self._shift = scale, shift
        self.scale, self.shift = torch.zeros_like(scale), torch.zeros_like(shift)

    def through(self, grad: Tensor, x: Tensor, mean: Tensor, inverse_std: Tensor) -> Tensor:
        """The gradient of x: linear in `grad`, so partial sums stay partial sums."""
        scale, shift = self._scale.to(x.dtype), self._shift.to(x.dtype)
        grad_x, grad_scale, grad_shift = torch.ops.aten.native_layer_norm_backward(
            grad, x, (x.shape[-1],), mean, inverse_std, scale, shift, [True, True, True]
        )
        self.scale += grad_scale
        self.shift += grad_shift
        return grad_x  # type: ignore[no-any-return]
