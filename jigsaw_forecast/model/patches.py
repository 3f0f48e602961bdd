"""Both ends of the model: tokens from windows of the maps, and maps from tokens."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.sample import (
    DIAGNOSTICS_LARGER_LAST,
    FORCINGS_LARGER_LAST,
    sample_pieces,
)
from jigsaw_forecast.model.sharded import (
    OVER_TENSOR_THEN_DOMAIN,
    STORED_OVER_BOTH,
    ShardedModule,
    join,
)
from jigsaw_forecast.parallel.ends import embed, head
from jigsaw_forecast.parallel.halo import overlap_mean, pad_maps
from jigsaw_forecast.parallel.layout import Cut, Layout
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.products import Scheme
from jigsaw_forecast.parallel.weights import Gathering, Weight

Tensor = torch.Tensor


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
        self.add_piece("bias", Layout((c,), *OVER_TENSOR_THEN_DOMAIN))
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
        maps: Sequence[Tensor],
    ) -> Tensor:
        """Tokens [B, N/domain, C/tensor] of state [B, F_j, Y_i, X] and forcing maps."""
        tokens = embed(scheme, weights, pieces, self._patches(maps))
        return tokens + (vectors[self.path + "bias"] + self.position)

    @torch.no_grad()
    def make_resident(self) -> None:
        """Gathers the weights and joins the two matrices."""
        super().make_resident()
        self.joined = join(self, ("state", "forcing"), 1)

    def _patches(self, groups: Sequence[Tensor]) -> Tensor:
        """Windows of all maps, [B, N/domain, maps x window points]; one copy after the padding."""
        overlap, (rows, columns) = self.config.overlap, self.config.patch
        padded = [pad_maps(self.mesh, overlap, groups)] if overlap else groups
        height, width = self.config.window
        windows = [maps.unfold(2, height, rows).unfold(3, width, columns) for maps in padded]
        by_token = torch.cat([each.permute(0, 2, 3, 1, 4, 5) for each in windows], 3)
        return by_token.flatten(3).flatten(1, 2)


class HeadMaps(NamedTuple):
    """What the head makes of the tokens, for the local fields.

    Attributes:
        tendency: Maps of the tendencies but for their bias, [B, F_j, Y_i, X].
        bias: Of the tendencies, [F_j].
        blend: Share of the state that is not kept, [F_j].
        diagnostics: Maps with their bias, [B, D_j, Y_i, X].
    """

    tendency: Tensor
    bias: Tensor
    blend: Tensor
    diagnostics: Tensor


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
        self.add_piece("norm_scale", Layout((c,), *STORED_OVER_BOTH), fill=1.0)
        self.add_piece("norm_shift", Layout((c,), *STORED_OVER_BOTH))
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
    ) -> HeadMaps:
        """Maps of the local fields [B, F_j, Y_i, X] and diagnostics [B, D_j, Y_i, X]."""
        scale, shift, bias, blend, diagnostic_bias = (
            vectors[self.path + name]
            for name in ("norm_scale", "norm_shift", "bias", "blend", "diagnostic_bias")
        )
        windows = head(scheme, weights, pieces, x, (scale, shift))
        maps = self._overlap_add(windows)
        num_fields = bias.shape[0]
        # joined, so that the bias of no diagnostics has its (empty) gradient
        biases = torch.cat([bias, diagnostic_bias])
        diagnostics = maps[:, num_fields:] + biases[num_fields:, None, None]
        return HeadMaps(maps[:, :num_fields], biases[:num_fields], blend, diagnostics)

    @torch.no_grad()
    def make_resident(self) -> None:
        """Gathers the weights and joins the two matrices."""
        super().make_resident()
        self.joined = join(self, ("state", "diagnostic"), 0)

    def _overlap_add(self, windows: Tensor) -> Tensor:
        """Maps [B, maps, Y_i, X] from windows [B, maps x window points, N/domain]."""
        overlap, (rows, columns) = self.config.overlap, self.config.patch
        batch, num_outputs, num_tokens = windows.shape
        num_rows = num_tokens // self.config.token_columns * rows
        num_lon = self.config.grid_object.num_lon
        if num_outputs == 0:
            return windows.reshape(batch, 0, num_rows, num_lon)  # none, but in the graph
        sums = F.fold(
            windows,
            (num_rows + 2 * overlap, num_lon + 2 * overlap),
            self.config.window,
            stride=(rows, columns),
        )
        return overlap_mean(self.mesh, overlap, sums, self.count)

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
