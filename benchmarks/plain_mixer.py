"""WeatherMixer in plain torch: one process, nn modules, no mesh. The baselines are built on it.

The same arithmetic and, after `copy_from`, the same weights as `jigsaw_forecast.model` on one
rank, written independently, so that torch's own parallel wrappers can be put around it.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.weather_mixer import WeatherMixer

Tensor = torch.Tensor


class Mlp(nn.Module):
    """`down(gelu(up(x)))` along the last dim."""

    def __init__(self, width: int, hidden: int, *, bias_out: bool) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width, bias=bias_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Token mixing, then channel mixing, each pre-normed and residual; x is [B, N, C]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.channels)
        # its output has no bias, as in the project: every norm would take it out again
        self.tokens = Mlp(config.num_tokens, config.token_hidden, bias_out=False)
        self.norm2 = nn.LayerNorm(config.channels)
        self.channels = Mlp(config.channels, config.channel_hidden, bias_out=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).mT).mT
        return x + self.channels(self.norm2(x))


class PlainMixer(nn.Module):
    """One model step of the whole normalised state."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.num_points = config.window[0] * config.window[1]
        num_inputs = len(config.fields) + len(config.forcings)
        num_outputs = len(config.fields) + len(config.diagnostics)
        self.embed = nn.Linear(num_inputs * self.num_points, config.channels)
        self.position = nn.Parameter(torch.empty(config.num_tokens, config.channels))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.channels)
        self.head = nn.Linear(config.channels, num_outputs * self.num_points, bias=False)
        self.bias = nn.Parameter(torch.empty(num_outputs))
        self.blend = nn.Parameter(torch.empty(len(config.fields)))
        self.register_buffer("scale", torch.ones(len(config.fields)))
        windows = torch.ones(1, config.num_tokens, num_outputs * self.num_points)
        self.register_buffer("count", self._overlap_add(windows)[0, 0])

    def forward(self, state: Tensor, forcing: Tensor) -> tuple[Tensor, Tensor]:
        """The next state [B, F, Y, X] and the diagnostics [B, D, Y, X]."""
        x = self.embed(self._windows(torch.cat([state, forcing], 1))) + self.position
        for block in self.blocks:
            x = block(x)
        maps = self._overlap_add(self.head(self.norm(x))) / self.count + self.bias[:, None, None]
        num_fields = state.shape[1]
        # a copy: FSDP2 hangs its hooks on the outputs and warns of views
        tendency, diagnostics = maps[:, :num_fields], maps[:, num_fields:].clone()
        keep = (1 - self.blend)[:, None, None]
        return state * keep + tendency * self.scale[:, None, None], diagnostics

    def named_parts(self, value: Callable[[nn.Parameter], Tensor]) -> dict[str, Tensor]:
        """A tensor of every parameter, in parts that go by the project's names and shapes.

        Args:
            value: What to take of a parameter: itself, its gradient; of the parameter's shape.
        """
        config, points = self.config, self.num_points
        num_fields, c = len(config.fields), config.channels
        embed = value(self.embed.weight).view(c, -1, points)
        head, bias = value(self.head.weight).view(-1, points, c), value(self.bias)
        parts = {
            "embed.state": embed[:, :num_fields],
            "embed.forcing": embed[:, num_fields:],
            "embed.bias": value(self.embed.bias),
            "embed.position": value(self.position),
            "head.norm_scale": value(self.norm.weight),
            "head.norm_shift": value(self.norm.bias),
            "head.state": head[:num_fields],
            "head.diagnostic": head[num_fields:],
            "head.bias": bias[:num_fields],
            "head.diagnostic_bias": bias[num_fields:],
            "head.blend": value(self.blend),
        }
        for index, block in enumerate(self.blocks):
            parts |= {
                f"blocks.{index}.{name}": value(parameter)
                for name, parameter in {
                    "norm1_scale": block.norm1.weight,
                    "norm1_shift": block.norm1.bias,
                    "token_w1": block.tokens.up.weight,
                    "token_b1": block.tokens.up.bias,
                    "token_w2": block.tokens.down.weight,
                    "norm2_scale": block.norm2.weight,
                    "norm2_shift": block.norm2.bias,
                    "channel_w1": block.channels.up.weight,
                    "channel_b1": block.channels.up.bias,
                    "channel_w2": block.channels.down.weight,
                    "channel_b2": block.channels.down.bias,
                }.items()
            }
        return parts

    @torch.no_grad()
    def copy_from(self, model: WeatherMixer) -> None:
        """Takes over the weights of a WeatherMixer on one rank."""
        parts = self.named_parts(lambda parameter: parameter)
        weights = dict(model.named_parameters())
        assert parts.keys() == weights.keys(), parts.keys() ^ weights.keys()
        for name, part in parts.items():
            part.copy_(weights[name])
        self.scale.copy_(model.tendency_scale)

    def _windows(self, maps: Tensor) -> Tensor:
        """Patches with their margins, [B, N, maps x points]: mirrored at the poles, periodic."""
        o, (rows, columns), (height, width) = (
            self.config.overlap,
            self.config.patch,
            self.config.window,
        )
        if o:
            maps = torch.cat([maps[..., :o, :].flip(-2), maps, maps[..., -o:, :].flip(-2)], -2)
            maps = F.pad(maps, (o, o, 0, 0), mode="circular")
        windows = maps.unfold(2, height, rows).unfold(3, width, columns)
        return windows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)

    def _overlap_add(self, windows: Tensor) -> Tensor:
        """Sums of windows [B, N, maps x points] on the grid [B, maps, Y, X]."""
        o, grid = self.config.overlap, self.config.grid_object
        size = (grid.num_model_lat + 2 * o, grid.num_lon + 2 * o)
        maps = F.fold(windows.mT, size, self.config.window, stride=self.config.patch)
        if not o:
            return maps
        maps = maps[..., o:-o, :]
        west, inner, east = maps.split([o, grid.num_lon, o], -1)
        return inner + F.pad(east, (0, grid.num_lon - o)) + F.pad(west, (grid.num_lon - o, 0))
