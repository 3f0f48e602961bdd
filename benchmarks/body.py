"""What the parallel benchmarks compute: a wide WeatherMixer with a small embed and head."""

import argparse
import hashlib
import math
from typing import NamedTuple

import torch

from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.weather_mixer import WeatherMixer

Tensor = torch.Tensor
PATCH = 2  # points a side; small, so that the blocks are nearly all of the arithmetic
MOVED_STD = 0.02  # of what is added to weights that start as constants


class Sample(NamedTuple):
    """One training sample, whole or a rank's piece: maps [1, fields, Y, X]."""

    state: Tensor
    forcing: Tensor
    target: Tensor


def add_size_options(parser: argparse.ArgumentParser) -> None:
    """Options for the size of the body, N and C of which are in the parallel scheme's formulas."""
    parser.add_argument("--tokens", type=int, default=4096, help="N; divided by 2 and a square")
    parser.add_argument("--channels", type=int, default=1024, help="C")
    parser.add_argument("--token-hidden", type=int, default=4096, help="D_n")
    parser.add_argument("--channel-hidden", type=int, default=4096, help="D_c")
    parser.add_argument("--blocks", type=int, default=3)


def body_config(options: argparse.Namespace) -> ModelConfig:
    """The model of the size that the options say."""
    rows = next(n for n in range(math.isqrt(options.tokens), 0, -1) if options.tokens % n == 0)
    return ModelConfig(
        grid=f"{options.tokens // rows * PATCH}x{rows * PATCH}",
        fields=("z500", "t850", "u850", "v850"),
        forcings=("land_sea_mask", "geopotential_at_surface"),
        patch=(PATCH, PATCH),
        overlap=1,
        channels=options.channels,
        token_hidden=options.token_hidden,
        channel_hidden=options.channel_hidden,
        num_blocks=options.blocks,
    )


def make_sample(config: ModelConfig, seed: int) -> Sample:
    """A whole random sample."""
    generator = torch.Generator().manual_seed(seed)
    grid = config.grid_object
    return Sample(
        *(
            torch.randn((1, len(names), grid.num_model_lat, grid.num_lon), generator=generator)
            for names in (config.fields, config.forcings, config.fields)
        )
    )


def sample_piece(model: WeatherMixer, whole: Sample) -> Sample:
    """The part of a sample that this rank holds."""
    pieces = model.pieces
    return Sample(
        whole.state[:, pieces.fields, pieces.rows].contiguous(),
        whole.forcing[:, pieces.forcings, pieces.rows].contiguous(),
        whole.target[:, pieces.fields, pieces.rows].contiguous(),
    )


def pattern(name: str, shape: tuple[int, ...]) -> Tensor:
    """Normal numbers that depend on a name and a shape alone."""
    digest = hashlib.sha256(name.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.randn(shape, generator=generator)


@torch.no_grad()
def move_constants(model: WeatherMixer) -> None:
    """Moves what starts as a constant, equally on any mesh.

    A fresh head is zero: its output would not depend on the body, and the body's gradients would
    be zero.
    """
    layouts = model.layouts()
    for name, parameter in model.named_parameters():
        shape = layouts[name].full_shape
        if name.startswith("head.") or len(shape) == 1:
            parameter.add_(MOVED_STD * pattern(name, shape)[layouts[name].piece_slices(model.mesh)])
