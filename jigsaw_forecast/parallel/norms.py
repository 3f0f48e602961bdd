"""Layer norms of activations whose channels are cut over the tensor axis, or gathered."""

from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from jigsaw_forecast.parallel.collectives import all_gather
from jigsaw_forecast.parallel.mesh import Mesh

Tensor = torch.Tensor
NORM_EPSILON = 1e-5  # torch.nn.LayerNorm's default


class _ShardedLayerNorm(Function):
    """Layer norm over channels that are cut over the tensor axis."""

    @staticmethod
    def forward(ctx: Any, mesh: Mesh, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        num_local, num_channels = x.shape[-1], x.shape[-1] * mesh.tensor.size
        # several times as fast as torch.var_mean
        _, mean, inverse_std = torch.native_layer_norm(x, (num_local,), None, None, 0.0)
        m2 = inverse_std.square().reciprocal_().mul_(num_local)
        both = torch.stack([mean.squeeze(-1), m2.squeeze(-1)])[None]
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
    @once_differentiable
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


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Norm over whole rows [..., C], their means and inverse deviations [..., 1]."""
    return torch.native_layer_norm(
        x, (x.shape[-1],), scale.to(x.dtype), shift.to(x.dtype), NORM_EPSILON
    )


class NormGradients:
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
