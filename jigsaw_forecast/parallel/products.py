"""The sharded products: what makes a mixer block run on a mesh with nothing held twice.

Each function takes this rank's piece of the activations and of the weights and returns this
rank's piece of the result; its backward returns the complete gradient of each piece over domain
and tensor. Weights are gathered along their storage axis just before use, in forward and again in
backward; neither gathered activations nor gathered weights are kept for backward. Activations
travel in chunks, each while another is multiplied.

Token mixing works on matrices of tokens by (sample and channel), channel mixing on matrices of
(sample and token) by channels, so that what is gathered is already what is multiplied.

On a mesh of one rank the same code runs with collectives that do nothing.

A forward can be gone back through once: the hidden features' gradient takes their place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from jigsaw_forecast.parallel.chunks import GatheredChunks, ScatteredChunks, chunk_ranges, half
from jigsaw_forecast.parallel.collectives import Pending, start_all_gather, start_reduce_scatter
from jigsaw_forecast.parallel.columns import Columns, GrowingProduct
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.norms import NormGradients, layer_norm
from jigsaw_forecast.parallel.weights import Gathering

Tensor = torch.Tensor


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

    def chunks(self, length: int, axis: str, weights: Gathering) -> list[slice]:
        """The chunks of a dim that travel over an axis, each while another is multiplied."""
        travels = self.mesh.axis(axis).size > 1
        return chunk_ranges(length, self.num_chunks, travels, weights.travels)


class _TokenMixing(Function):
    """`x + W2 gelu(W1 y + b1)` along tokens; y is the normed x."""

    @staticmethod
    def forward(
        ctx: Any, scheme: Scheme, weights: Gathering, x: Tensor, y: Tensor, b1: Tensor, *_: Tensor
    ) -> Tensor:
        mesh, y = scheme.mesh, _token_major(y.to(scheme.dtype))
        bias = b1.to(scheme.dtype)[:, None]
        parts = scheme.chunks(y.shape[1], "domain", weights)
        tokens = GatheredChunks(parts, lambda part: _gather_tokens(mesh, y[:, part]))
        w1, w2 = weights.take()
        mixed = torch.empty_like(y)
        sums = ScatteredChunks(lambda part, values: mixed[:, part].copy_(values))
        kept = []
        for part in parts:
            hidden = w1.times(tokens.take(), bias)
            partial = torch.mm(w2.whole, F.gelu(hidden))
            sums.add(part, start_reduce_scatter(mesh, partial, "domain", "activations"))
            kept += [] if scheme.recompute_hidden else [hidden]
            del hidden, partial
        sums.finish()
        ctx.scheme, ctx.weights, ctx.dtype = scheme, weights, x.dtype
        ctx.save_for_backward(y, b1, *kept)
        return _sample_major(mixed, x.shape) + x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        scheme: Scheme = ctx.scheme
        mesh, weights = scheme.mesh, ctx.weights
        y, b1, *kept = ctx.saved_tensors
        out_grad = _token_major(grad.to(scheme.dtype))
        parts = scheme.chunks(y.shape[1], "domain", weights)
        grads = GatheredChunks(parts, lambda part: _gather_tokens(mesh, out_grad[:, part]))
        tokens = GatheredChunks(parts, lambda part: _gather_tokens(mesh, y[:, part]))
        grad_w1, grad_w2 = weights.product(0), weights.product(1)
        grad_y, grad_b1 = torch.empty_like(y), torch.zeros_like(b1)
        sums = ScatteredChunks(lambda part, values: grad_y[:, part].copy_(values))

        def make_hidden(w1: Columns, chunk: Tensor) -> Tensor:
            return w1.times(chunk, b1.to(scheme.dtype)[:, None])

        def through_w2(w2: Columns, hidden: Tensor) -> None:
            full_grad = grads.take()
            grad_w2.add(full_grad, F.gelu(hidden).mT)
            _through_gelu(w2.transposed_times(full_grad), hidden)

        def through_w1(w1: Columns, part: slice, chunk: Tensor, grad_hidden: Tensor) -> None:
            grad_b1.add_(grad_hidden.sum(1, dtype=b1.dtype))
            grad_w1.add(grad_hidden, chunk.mT)
            partial = w1.transposed_times(grad_hidden)
            sums.add(part, start_reduce_scatter(mesh, partial, "domain", "activations"))

        steps = _Steps(make_hidden, through_w2, through_w1)
        piece_grads = _pass_back(weights, parts, tokens, kept, steps, (grad_w1, grad_w2))
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
        parts = scheme.chunks(rows.shape[0], "tensor", weights)
        channels = GatheredChunks(parts, lambda part: gather_channels(scheme, rows[part]))
        w1, w2 = weights.take()
        result = torch.empty_like(rows)

        def put(part: slice, mixed: Tensor) -> None:
            torch.add(rows[part], mixed, out=result[part]).add_(b2)

        sums, kept = ScatteredChunks(put), []
        for part in parts:
            normed = layer_norm(channels.take(), scale, shift)[0]
            hidden = w1.of_rows(normed, b1.to(scheme.dtype))
            del normed
            sums.add(part, scatter_channels(mesh, F.gelu(hidden), w2.whole))
            kept += [] if scheme.recompute_hidden else [hidden]
            del hidden
        sums.finish()
        ctx.scheme, ctx.weights = scheme, weights
        ctx.save_for_backward(x, scale, shift, b1, *kept)
        return result.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        scheme: Scheme = ctx.scheme
        mesh, weights = scheme.mesh, ctx.weights
        x, scale, shift, b1, *kept = ctx.saved_tensors
        rows, grad_rows = x.flatten(0, 1), grad.contiguous().flatten(0, 1)
        parts = scheme.chunks(rows.shape[0], "tensor", weights)
        grads = GatheredChunks(parts, lambda part: gather_channels(scheme, grad_rows[part]))
        channels = GatheredChunks(parts, lambda part: gather_channels(scheme, rows[part]))
        grad_w1, grad_w2 = weights.product(0), weights.product(1)
        grad_b1, norm_grads = torch.zeros_like(b1), NormGradients(scale, shift)
        result = torch.empty_like(rows)

        def put(part: slice, grad_x: Tensor) -> None:
            torch.add(grad_rows[part], grad_x, out=result[part])

        sums = ScatteredChunks(put)

        def make_hidden(w1: Columns, chunk: Tensor) -> Tensor:
            return w1.of_rows(layer_norm(chunk, scale, shift)[0], b1.to(scheme.dtype))

        def through_w2(w2: Columns, hidden: Tensor) -> None:
            full_grad = grads.take()
            grad_w2.add(full_grad.mT, F.gelu(hidden))
            _through_gelu(w2.back_to_rows(full_grad), hidden)

        def through_w1(w1: Columns, part: slice, chunk: Tensor, grad_hidden: Tensor) -> None:
            normed, mean, inverse_std = layer_norm(chunk, scale, shift)
            grad_b1.add_(grad_hidden.sum(0, dtype=b1.dtype))
            grad_w1.add(grad_hidden.mT, normed)
            del normed
            grad_normed = w1.back_to_rows(grad_hidden)
            grad_chunk = norm_grads.through(grad_normed, chunk, mean, inverse_std)
            sums.add(part, scatter_columns(mesh, grad_chunk))

        steps = _Steps(make_hidden, through_w2, through_w1)
        piece_grads = _pass_back(weights, parts, channels, kept, steps, (grad_w1, grad_w2))
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


@dataclass(frozen=True)
class _Steps:
    """What a backward does with one chunk.

    Attributes:
        make_hidden: From W1 and the gathered input, the hidden features before GELU.
        through_w2: From W2 and the hidden features; leaves their gradient in their place.
        through_w1: From W1, the chunk's place, its gathered input and the gradient of the hidden
            features.
    """

    make_hidden: Callable[[Columns, Tensor], Tensor]
    through_w2: Callable[[Columns, Tensor], None]
    through_w1: Callable[[Columns, slice, Tensor, Tensor], None]


def _pass_back(
    weights: Gathering,
    parts: list[slice],
    inputs: GatheredChunks,
    kept: list[Tensor],
    steps: _Steps,
    products: tuple[GrowingProduct, GrowingProduct],
) -> tuple[Tensor | None, Tensor | None]:
    """Backward through a pair of matrices; returns the gradients of their pieces.

    One pass for W2, then one for W1, so that the gathered matrices and gradients that are here at
    once take no more than two layers' gathered weights. Where no hidden features were kept, making
    them takes W1 and the input as well, and both passes are one.

    Args:
        weights: W1 and W2.
        parts: The chunks.
        inputs: Of the layer, gathered chunk by chunk.
        kept: Hidden features before GELU, or nothing; overwritten.
        steps: What is done with each chunk.
        products: The growing gradients of W1 and W2.
    """
    weights.turn_back()
    w2 = weights.take_one(1)
    if not kept:
        w1 = weights.take_one(0)
        for index, part in enumerate(parts):
            chunk = inputs.take()
            hidden = steps.make_hidden(w1, chunk)
            steps.through_w2(w2, hidden)
            steps.through_w1(w1, part, chunk, hidden)
            if index == half(parts):
                weights.half_done(0)
        del w1, w2
        return weights.scatter(0, products[0]), weights.scatter(1, products[1])
    for index, hidden in enumerate(kept):
        steps.through_w2(w2, hidden)
        if index == half(parts):
            weights.half_done(1)
    del w2
    grad_w2 = weights.scatter(1, products[1])
    w1 = weights.take_one(0)
    for index, (part, grad_hidden) in enumerate(zip(parts, kept, strict=True)):
        steps.through_w1(w1, part, inputs.take(), grad_hidden)
        if index == half(parts):
            weights.half_done(0)
    del w1
    return weights.scatter(0, products[0]), grad_w2


def _through_gelu(grad: Tensor, hidden: Tensor) -> None:
    """Puts the gradient of what went into GELU in its place: it is not needed again."""
    torch.ops.aten.gelu_backward.grad_input(grad, hidden, grad_input=hidden)


def _token_major(x: Tensor) -> Tensor:
    """[B, N/domain, C/tensor] as a matrix [N/domain, B C/tensor]; a view where B is 1."""
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def _sample_major(x: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `_token_major`."""
    return x.view(shape[1], shape[0], shape[2]).transpose(0, 1)


def _gather_tokens(mesh: Mesh, columns: Tensor) -> Pending[Tensor]:
    """[N, chunk] of all bands from [N/domain, chunk]."""
    return start_all_gather(mesh, columns, "domain", 0, "activations")


def gather_channels(scheme: Scheme, rows: Tensor) -> Pending[Tensor]:
    """[chunk, C] of all features from [chunk, C/tensor]."""
    return start_all_gather(scheme.mesh, rows.to(scheme.dtype), "tensor", 1, "activations")


def scatter_channels(mesh: Mesh, rows: Tensor, weight: Tensor) -> Pending[Tensor]:
    """`rows weight^T` summed over tensor, [chunk, C/tensor]: a product for each rank's part."""
    parts = weight.chunk(mesh.tensor.size)
    partial = rows.new_empty((len(parts), rows.shape[0], parts[0].shape[0]))
    for destination, part in zip(partial, parts, strict=True):
        torch.mm(rows, part.mT, out=destination)
    return start_reduce_scatter(mesh, partial.flatten(0, 1), "tensor", "activations")


def scatter_columns(mesh: Mesh, partial: Tensor) -> Pending[Tensor]:
    """[chunk, C] summed over tensor, [chunk, C/tensor]."""
    if mesh.tensor.size > 1:
        partial = torch.cat(partial.chunk(mesh.tensor.size, 1))
    return start_reduce_scatter(mesh, partial, "tensor", "activations")
