"""WeatherMixer: patch embed, mixer blocks, head, residual on the normalised state.

The model's shape is written here once; how each product runs on a mesh is in
`parallel.products`. Every parameter's layout is declared where the parameter is made.
"""

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.patches import PatchEmbed, PatchHead
from jigsaw_forecast.model.sample import sample_pieces
from jigsaw_forecast.model.sharded import (
    OVER_DOMAIN_THEN_TENSOR,
    OVER_TENSOR_THEN_DOMAIN,
    STORED_OVER_BOTH,
    Initial,
    ShardedModule,
)
from jigsaw_forecast.parallel.layout import Cut, Layout
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.norms import sharded_layer_norm
from jigsaw_forecast.parallel.products import Scheme, channel_mixing, token_mixing
from jigsaw_forecast.parallel.vectors import gather_vectors
from jigsaw_forecast.parallel.weights import (
    Gathering,
    Lookahead,
    Weight,
)

Tensor = torch.Tensor


class MixerBlock(ShardedModule):
    """Token mixing, then channel mixing, each pre-normed and residual."""

    def __init__(self, config: ModelConfig, mesh: Mesh, seed: int | None, path: str) -> None:
        """Lays out the block's weights; the second products start small in a deep stack."""
        super().__init__(mesh, seed, path)
        n, c = config.num_tokens, config.channels
        d_n, d_c = config.token_hidden, config.channel_hidden
        depth_scale = (2 * config.num_blocks) ** -0.5  # GPT-2's rule for residual branches
        over_domain_0, over_domain_1 = (Cut(0, "domain"),), (Cut(1, "domain"),)
        over_tensor_0, over_tensor_1 = (Cut(0, "tensor"),), (Cut(1, "tensor"),)
        self.add_piece("norm1_scale", Layout((c,), *OVER_TENSOR_THEN_DOMAIN), fill=1.0)
        self.add_piece("norm1_shift", Layout((c,), *OVER_TENSOR_THEN_DOMAIN))
        self.add_piece("token_w1", Layout((d_n, n), over_domain_0, over_tensor_1), std=n**-0.5)
        self.add_piece("token_b1", Layout((d_n,), *OVER_DOMAIN_THEN_TENSOR))
        self.add_piece(
            "token_w2",
            Layout((n, d_n), over_domain_1, over_tensor_0),
            std=depth_scale * d_n**-0.5,
        )
        self.add_piece("norm2_scale", Layout((c,), *STORED_OVER_BOTH), fill=1.0)
        self.add_piece("norm2_shift", Layout((c,), *STORED_OVER_BOTH))
        self.add_piece("channel_w1", Layout((d_c, c), over_tensor_0, over_domain_1), std=c**-0.5)
        self.add_piece("channel_b1", Layout((d_c,), *OVER_TENSOR_THEN_DOMAIN))
        self.add_piece(
            "channel_w2",
            Layout((c, d_c), over_tensor_1, over_domain_0),
            std=depth_scale * d_c**-0.5,
        )
        self.add_piece("channel_b2", Layout((c,), *OVER_TENSOR_THEN_DOMAIN))

    def gatherings(self, dtype: torch.dtype) -> tuple[Gathering, Gathering]:
        """The weights of token and of channel mixing."""
        token = [self.weight(name) for name in ("token_w1", "token_w2")]
        channel = [self.weight(name) for name in ("channel_w1", "channel_w2")]
        return Gathering(self.mesh, dtype, token), Gathering(self.mesh, dtype, channel)

    def mix_tokens(
        self,
        scheme: Scheme,
        weights: Gathering,
        pieces: tuple[Tensor, ...],
        vectors: Mapping[str, Tensor],
        x: Tensor,
    ) -> Tensor:
        """The residual stream [B, N/domain, C/tensor] after token mixing."""
        scale, shift, b1 = (
            vectors[self.path + name] for name in ("norm1_scale", "norm1_shift", "token_b1")
        )
        normed = sharded_layer_norm(self.mesh, x, scale, shift)
        return token_mixing(scheme, weights, pieces, x, normed, b1)

    def mix_channels(
        self,
        scheme: Scheme,
        weights: Gathering,
        pieces: tuple[Tensor, ...],
        vectors: Mapping[str, Tensor],
        x: Tensor,
    ) -> Tensor:
        """The residual stream [B, N/domain, C/tensor] after channel mixing."""
        scale, shift, b1, b2 = (
            vectors[self.path + name]
            for name in ("norm2_scale", "norm2_shift", "channel_b1", "channel_b2")
        )
        return channel_mixing(scheme, weights, pieces, x, (scale, shift), (b1, b2))


class WeatherMixer(nn.Module):
    """One model step on this rank's piece of the normalised state.

    Attributes:
        config: The architecture.
        mesh: This rank's mesh.
        pieces: Which part of the sample this rank holds.
        compute_dtype: Dtype of the products and of what travels; the residual stream keeps the
            dtype of the parameters.
        num_chunks: Chunks of activations that travel one by one; None for the default.
        recompute_hidden: Keep no hidden features for backward; see `parallel.products.Scheme`.
        tendency_scale: Standard deviation of the 6 h tendency over that of the anomaly, for each
            local field; a buffer of shape [F_j].
    """

    tendency_scale: Tensor

    def __init__(self, config: ModelConfig, mesh: Mesh, seed: int | None = 0) -> None:
        """Makes this rank's pieces of fresh weights, equal on any mesh for one seed.

        Args:
            config: The architecture.
            mesh: This rank's mesh.
            seed: Of the initial weights; None leaves them unset, to be loaded.

        Raises:
            MeshError: The mesh does not divide the model.
            RecipeError: The patches do not tile the grid.
        """
        super().__init__()
        config.check()
        config.check_mesh(mesh.domain.size, mesh.tensor.size)
        self.config = config
        self.mesh = mesh
        self.pieces = sample_pieces(config, mesh)
        self.compute_dtype = torch.float32
        self.num_chunks: int | None = None
        self.recompute_hidden = False
        self.embed = PatchEmbed(config, mesh, seed, "embed.")
        self.blocks = nn.ModuleList(
            MixerBlock(config, mesh, seed, f"blocks.{index}.") for index in range(config.num_blocks)
        )
        self.head = PatchHead(config, mesh, seed, "head.")
        num_fields = self.pieces.fields.stop - self.pieces.fields.start
        self.register_buffer(
            "tendency_scale", torch.ones(num_fields, device=mesh.device), persistent=False
        )

    def forward(self, state: Tensor, forcing: Tensor) -> tuple[Tensor, Tensor]:
        """The state one step later and the diagnostics of that step, all normalised.

        Args:
            state: Prognostic fields [B, F_j, Y_i, X], anomalies over their deviation.
            forcing: Forcings [B, G_j, Y_i, X] at the start of the step.

        Returns:
            The next state [B, F_j, Y_i, X] and the diagnostics [B, D_j, Y_i, X].

        Communication:
            As `parallel.products` says for an embed, `num_blocks` blocks and a head.
        """
        dtype = self.compute_dtype
        scheme = Scheme(self.mesh, dtype, self.num_chunks, self.recompute_hidden)
        embedding = self.embed.gathering(dtype)
        mixing = [block.gatherings(dtype) for block in self._blocks()]
        heading = self.head.gathering(dtype)

        vectors = self._gather_vectors()  # needed first: not to wait behind the matrices
        ahead = Lookahead([embedding, *itertools.chain(*mixing), heading])
        maps = state, forcing
        x = self.embed(scheme, embedding, ahead.pieces(embedding), vectors, maps)
        for block, (token, channel) in zip(self._blocks(), mixing, strict=True):
            x = block.mix_tokens(scheme, token, ahead.pieces(token), vectors, x)
            x = block.mix_channels(scheme, channel, ahead.pieces(channel), vectors, x)
        pieces = ahead.pieces(heading)
        made = self.head(scheme, heading, pieces, vectors, x)
        keep, scale = (1.0 - made.blend)[:, None, None], self.tendency_scale[:, None, None]
        # the small terms first: they would lose digits beside the state
        change = torch.addcmul(made.bias[:, None, None] * scale, made.tendency, scale)
        return change.addcmul_(state, keep), made.diagnostics

    def set_tendency_scale(
        self, std: npt.NDArray[np.float32], tendency_std: npt.NDArray[np.float32]
    ) -> None:
        """Sets the scale of the tendencies from deviations of all fields, each [F]."""
        scale = torch.from_numpy(tendency_std / std)[self.pieces.fields]
        self.tendency_scale.copy_(scale)

    def layouts(self) -> dict[str, Layout]:
        """The layout of every parameter by its full name."""
        return {
            f"{module.path}{name}": layout
            for module in self._sharded_modules()
            for name, layout in module.layouts.items()
        }

    def initials(self) -> dict[str, Initial]:
        """The initial values of every parameter by its full name."""
        return {
            f"{module.path}{name}": initial
            for module in self._sharded_modules()
            for name, initial in module.initials.items()
        }

    def _sharded_modules(self) -> Iterator[ShardedModule]:
        return (module for module in self.modules() if isinstance(module, ShardedModule))

    def _blocks(self) -> Iterator[MixerBlock]:
        return (block for block in self.blocks if isinstance(block, MixerBlock))

    def _gather_vectors(self) -> dict[str, Tensor]:
        """The parts that compute of all vectors of the model, gathered together."""
        weights: dict[str, Weight] = {}
        for module in self._sharded_modules():
            weights |= module.vectors()
        values = gather_vectors(self.mesh, list(weights.values()))
        return dict(zip(weights, values, strict=True))

    def make_resident(self) -> None:
        """Gathers every weight along its storage axes once and keeps it; for inference only.

        Communication:
            The all-gathers that a streamed step would make, once.
        """
        for module in self._sharded_modules():
            module.make_resident()
