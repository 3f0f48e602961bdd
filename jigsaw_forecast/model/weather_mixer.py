"""WeatherMixer: patch embed, mixer blocks, head, residual on the normalised state.

The model's shape is written here once; how each product runs on a mesh is in
`parallel.products`. Every parameter's layout is declared where the parameter is made.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.parallel.ends import embed, head
from jigsaw_forecast.parallel.halo import add_rows, pad_rows
from jigsaw_forecast.parallel.layout import Cut, Layout, split_range
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.norms import sharded_layer_norm
from jigsaw_forecast.parallel.products import Scheme, channel_mixing, token_mixing
from jigsaw_forecast.parallel.vectors import gather_vectors
from jigsaw_forecast.parallel.weights import (
    Gathering,
    Lookahead,
    Weight,
    gather_weight,
)

Tensor = torch.Tensor

# A matrix that computes cut over one axis is stored cut over the other.
_OVER_DOMAIN_THEN_TENSOR = (Cut(0, "domain"),), (Cut(0, "tensor"),)
_OVER_TENSOR_THEN_DOMAIN = (Cut(0, "tensor"),), (Cut(0, "domain"),)
_STORED_OVER_BOTH = (), (Cut(0, "tensor"), Cut(0, "domain"))
# Field groups are cut with the larger parts first, these two with the larger parts last, so that
# the ranks' sums stay even; the sample and the weights must agree on it.
FORCINGS_LARGER_LAST = True
DIAGNOSTICS_LARGER_LAST = True


@dataclass(frozen=True)
class Pieces:
    """Which part of the sample a rank holds: slices into the config's lists and model rows."""

    fields: slice
    diagnostics: slice
    forcings: slice
    rows: slice
    token_rows: slice


def sample_pieces(config: ModelConfig, mesh: Mesh) -> Pieces:
    """The part of the sample that this rank holds."""
    tensor, domain = mesh.tensor, mesh.domain
    token_rows = split_range(config.token_rows, domain.size, domain.index)

    def group(length: int, *, larger_last: bool) -> slice:
        return split_range(length, tensor.size, tensor.index, larger_last=larger_last)

    return Pieces(
        fields=group(len(config.fields), larger_last=False),
        diagnostics=group(len(config.diagnostics), larger_last=DIAGNOSTICS_LARGER_LAST),
        forcings=group(len(config.forcings), larger_last=FORCINGS_LARGER_LAST),
        rows=slice(token_rows.start * config.patch[0], token_rows.stop * config.patch[0]),
        token_rows=token_rows,
    )


@dataclass(frozen=True)
class Initial:
    """Initial values of a parameter: normal with deviation `std`, or all `fill` where it is 0."""

    std: float = 0.0
    fill: float = 0.0


def initial_values(seed: int, name: str, shape: tuple[int, ...], initial: Initial) -> Tensor:
    """The whole fresh tensor, float32 by default: seed and full name fix it, on any mesh."""
    if initial.std == 0.0:
        return torch.full(shape, initial.fill)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.empty(shape).normal_(0.0, initial.std, generator=generator)


class ShardedModule(nn.Module):
    """A module whose parameters are this rank's pieces of larger tensors."""

    def __init__(self, mesh: Mesh, seed: int | None, path: str) -> None:
        """Starts without parameters.

        Args:
            mesh: This rank's mesh.
            seed: Of the initial weights; with the full tensor's name it fixes every value, on
                any mesh. None leaves the weights unset, to be loaded.
            path: Name of this module in the model.
        """
        super().__init__()
        self.mesh = mesh
        self.seed = seed
        self.path = path
        self.layouts: dict[str, Layout] = {}
        self.initials: dict[str, Initial] = {}
        self.is_resident = False

    def add_piece(self, name: str, layout: Layout, *, std: float = 0.0, fill: float = 0.0) -> None:
        """Registers this rank's piece of a parameter.

        Args:
            name: Of the parameter in this module.
            layout: How the whole tensor lies on the mesh.
            std: Of the normal initial values; 0 for a constant.
            fill: The constant.
        """
        initial = Initial(std, fill)
        self.layouts[name], self.initials[name] = layout, initial
        shape, device = layout.piece_shape(self.mesh), self.mesh.device
        if self.seed is None or device.type == "meta":
            piece = torch.empty(shape, device=device)
        elif std == 0.0:
            piece = torch.full(shape, fill, device=device)
        else:
            full = initial_values(self.seed, f"{self.path}{name}", layout.full_shape, initial)
            piece = full[layout.piece_slices(self.mesh)].contiguous().to(device)
        self.register_parameter(name, nn.Parameter(piece))

    def weight(self, name: str) -> Weight:
        """A parameter with what is needed to compute with it."""
        return Weight(self.get_parameter(name), self.layouts[name], self.is_resident)

    def vectors(self) -> dict[str, Weight]:
        """The parameters of one dim, by their full name."""
        return {
            f"{self.path}{name}": self.weight(name)
            for name, layout in self.layouts.items()
            if len(layout.full_shape) == 1
        }

    @torch.no_grad()
    def make_resident(self) -> None:
        """Gathers every weight along its storage axes once and keeps it; for inference only."""
        if self.is_resident:
            return
        for name in self.layouts:
            self.keep(name, gather_weight(self.mesh, self.weight(name)))
        self.is_resident = True

    def keep(self, name: str, values: Tensor) -> None:
        """Replaces a parameter by what computes from it."""
        self.register_parameter(name, nn.Parameter(values, requires_grad=False))


def join(module: ShardedModule, names: tuple[str, str], dim: int) -> Tensor:
    """Joins two resident parameters into one matrix, of which they become views.

    Saves the copy that a streamed step makes, and holds nothing twice.
    """
    first, second = (module.get_parameter(name) for name in names)
    joined = torch.cat([first, second], dim)
    length = first.shape[dim]
    module.keep(names[0], joined.narrow(dim, 0, length))
    module.keep(names[1], joined.narrow(dim, length, second.shape[dim]))
    return joined


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
        self.add_piece("norm1_scale", Layout((c,), *_OVER_TENSOR_THEN_DOMAIN), fill=1.0)
        self.add_piece("norm1_shift", Layout((c,), *_OVER_TENSOR_THEN_DOMAIN))
        self.add_piece("token_w1", Layout((d_n, n), over_domain_0, over_tensor_1), std=n**-0.5)
        self.add_piece("token_b1", Layout((d_n,), *_OVER_DOMAIN_THEN_TENSOR))
        self.add_piece(
            "token_w2",
            Layout((n, d_n), over_domain_1, over_tensor_0),
            std=depth_scale * d_n**-0.5,
        )
        self.add_piece("norm2_scale", Layout((c,), *_STORED_OVER_BOTH), fill=1.0)
        self.add_piece("norm2_shift", Layout((c,), *_STORED_OVER_BOTH))
        self.add_piece("channel_w1", Layout((d_c, c), over_tensor_0, over_domain_1), std=c**-0.5)
        self.add_piece("channel_b1", Layout((d_c,), *_OVER_TENSOR_THEN_DOMAIN))
        self.add_piece(
            "channel_w2",
            Layout((c, d_c), over_tensor_1, over_domain_0),
            std=depth_scale * d_c**-0.5,
        )
        self.add_piece("channel_b2", Layout((c,), *_OVER_TENSOR_THEN_DOMAIN))

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


class PatchEmbed(ShardedModule):
    """Tokens from overlapping windows of the local maps."""

    state: Tensor
    forcing: Tensor
    position: Tensor

    def __init__(self, config: ModelConfig, mesh: Mesh, seed: int | None, path: str) -> None:
        """Lays out one matrix for the state and one for the forcings."""
        super().__init__(mesh, seed, path)
        self.config = config
        self.joined: Tensor | None = None
        num_points = config.window[0] * config.window[1]
        num_fields, num_forcings = len(config.fields), len(config.forcings)
        c = config.channels
        std = ((num_fields + num_forcings) * num_points) ** -0.5
        stored = (Cut(0, "domain"),)
        self.add_piece(
            "state", Layout((c, num_fields, num_points), (Cut(1, "tensor"),), stored), std=std
        )
        forcing_cut = Cut(1, "tensor", FORCINGS_LARGER_LAST)
        self.add_piece(
            "forcing", Layout((c, num_forcings, num_points), (forcing_cut,), stored), std=std
        )
        self.add_piece("bias", Layout((c,), *_OVER_TENSOR_THEN_DOMAIN))
        self.add_piece(
            "position",
            Layout((config.num_tokens, c), (Cut(0, "domain"), Cut(1, "tensor"))),
            std=0.02,  # ViT's
        )

    def gathering(self, dtype: torch.dtype) -> Gathering:
        """The weights of state and forcings as one matrix."""
        joined = self.joined
        matrix = torch.cat([self.state, self.forcing], 1) if joined is None else joined
        matrix = matrix.flatten(1)
        layout = Layout((self.config.channels, matrix.shape[1]), (), (Cut(0, "domain"),))
        return Gathering(self.mesh, dtype, [Weight(matrix, layout, self.is_resident)])

    def forward(
        self,
        scheme: Scheme,
        weights: Gathering,
        pieces: tuple[Tensor, ...],
        vectors: Mapping[str, Tensor],
        maps: Tensor,
    ) -> Tensor:
        """Tokens [B, N/domain, C/tensor] of state and forcing maps [B, F_j + G_j, Y_i, X]."""
        tokens = embed(scheme, weights, pieces, self._patches(maps))
        return tokens + (vectors[self.path + "bias"] + self.position)

    @torch.no_grad()
    def make_resident(self) -> None:
        """Gathers the weights and joins the two matrices."""
        super().make_resident()
        self.joined = join(self, ("state", "forcing"), 1)

    def _patches(self, maps: Tensor) -> Tensor:
        """Windows of all maps, [B, N/domain, maps x window points]."""
        overlap, (rows, columns) = self.config.overlap, self.config.patch
        maps = pad_rows(self.mesh, overlap, maps)
        if overlap:
            maps = torch.cat([maps[..., -overlap:], maps, maps[..., :overlap]], dim=-1)
        height, width = self.config.window
        windows = maps.unfold(2, height, rows).unfold(3, width, columns)
        batch, num_maps, token_rows, token_columns = windows.shape[:4]
        return windows.permute(0, 2, 3, 1, 4, 5).reshape(
            batch, token_rows * token_columns, num_maps * height * width
        )


class PatchHead(ShardedModule):
    """Maps of the local fields from the tokens: windows overlap-added, divided by the count."""

    state: Tensor
    diagnostic: Tensor
    count: Tensor

    def __init__(self, config: ModelConfig, mesh: Mesh, seed: int | None, path: str) -> None:
        """Lays out the head; its weights start at zero, so a fresh model persists the state."""
        super().__init__(mesh, seed, path)
        self.config = config
        self.joined: Tensor | None = None
        self.token_rows = sample_pieces(config, mesh).token_rows
        num_points = config.window[0] * config.window[1]
        c = config.channels
        stored = (Cut(2, "domain"),)
        state_cut, diagnostic_cut = Cut(0, "tensor"), Cut(0, "tensor", DIAGNOSTICS_LARGER_LAST)
        self.add_piece("norm_scale", Layout((c,), *_STORED_OVER_BOTH), fill=1.0)
        self.add_piece("norm_shift", Layout((c,), *_STORED_OVER_BOTH))
        self.add_piece("state", Layout((len(config.fields), num_points, c), (state_cut,), stored))
        self.add_piece("bias", Layout((len(config.fields),), (state_cut,), (Cut(0, "domain"),)))
        self.add_piece("blend", Layout((len(config.fields),), (state_cut,), (Cut(0, "domain"),)))
        num_diagnostics = len(config.diagnostics)
        self.add_piece(
            "diagnostic", Layout((num_diagnostics, num_points, c), (diagnostic_cut,), stored)
        )
        self.add_piece(
            "diagnostic_bias", Layout((num_diagnostics,), (diagnostic_cut,), (Cut(0, "domain"),))
        )
        self.register_buffer("count", self._count(), persistent=False)

    def gathering(self, dtype: torch.dtype) -> Gathering:
        """The weights of state and diagnostics as one matrix."""
        joined = self.joined
        matrix = torch.cat([self.state, self.diagnostic]) if joined is None else joined
        matrix = matrix.flatten(0, 1)
        layout = Layout((matrix.shape[0], self.config.channels), (), (Cut(1, "domain"),))
        return Gathering(self.mesh, dtype, [Weight(matrix, layout, self.is_resident)])

    def forward(
        self,
        scheme: Scheme,
        weights: Gathering,
        pieces: tuple[Tensor, ...],
        vectors: Mapping[str, Tensor],
        x: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tendency maps, diagnostic maps and the blend of each local field."""
        scale, shift, bias, blend, diagnostic_bias = (
            vectors[self.path + name]
            for name in ("norm_scale", "norm_shift", "bias", "blend", "diagnostic_bias")
        )
        windows = head(scheme, weights, pieces, x, (scale, shift))
        maps = self._overlap_add(windows) + torch.cat([bias, diagnostic_bias])[:, None, None]
        num_fields = bias.shape[0]
        return maps[:, :num_fields], maps[:, num_fields:], blend

    @torch.no_grad()
    def make_resident(self) -> None:
        """Gathers the weights and joins the two matrices."""
        super().make_resident()
        self.joined = join(self, ("state", "diagnostic"), 0)

    def _overlap_add(self, windows: Tensor) -> Tensor:
        """Maps [B, maps, Y_i, X] from windows [B, N/domain, maps x window points]."""
        overlap, (rows, columns) = self.config.overlap, self.config.patch
        batch, num_tokens, num_outputs = windows.shape
        num_rows = num_tokens // self.config.token_columns * rows
        num_lon = self.config.grid_object.num_lon
        num_maps = num_outputs // (self.config.window[0] * self.config.window[1])
        if num_maps == 0:
            return windows.new_zeros((batch, 0, num_rows, num_lon))
        maps = F.fold(
            windows.mT,
            (num_rows + 2 * overlap, num_lon + 2 * overlap),
            self.config.window,
            stride=(rows, columns),
        )
        if overlap:
            inner = maps[..., overlap:-overlap].clone()
            inner[..., -overlap:] += maps[..., :overlap]
            inner[..., :overlap] += maps[..., -overlap:]
            maps = add_rows(self.mesh, overlap, inner)
        return maps / self.count

    def _count(self) -> Tensor:
        """How many windows write each point of the band, shape [Y_i, X]."""
        overlap, (rows, columns) = self.config.overlap, self.config.patch
        row = torch.arange(rows)
        row_count = 1.0 + (row < overlap).double() + (row >= rows - overlap).double()
        column = torch.arange(columns)
        column_count = 1.0 + (column < overlap).double() + (column >= columns - overlap).double()
        by_row = row_count.repeat(self.config.token_rows)
        if overlap:
            by_row[:overlap] -= 1.0  # no window beyond the poles
            by_row[-overlap:] -= 1.0
        band = by_row[self.token_rows.start * rows : self.token_rows.stop * rows]
        count = band[:, None] * column_count.repeat(self.config.token_columns)[None, :]
        return count.to(torch.float32).to(self.mesh.device)


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
        maps = torch.cat([state, forcing], dim=1)
        x = self.embed(scheme, embedding, ahead.pieces(embedding), vectors, maps)
        for block, (token, channel) in zip(self._blocks(), mixing, strict=True):
            x = block.mix_tokens(scheme, token, ahead.pieces(token), vectors, x)
            x = block.mix_channels(scheme, channel, ahead.pieces(channel), vectors, x)
        pieces = ahead.pieces(heading)
        tendency, diagnostics, blend = self.head(scheme, heading, pieces, vectors, x)
        keep = (1.0 - blend)[:, None, None]
        scale = self.tendency_scale[:, None, None]
        return torch.addcmul(state * keep, tendency, scale), diagnostics

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
