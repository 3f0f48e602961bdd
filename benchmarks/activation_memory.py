"""Peak activation memory of a train step by torch's own memory tracker, and what it may be."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode

from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.chunks import chunk_ranges

SLACK = 1.15  # of a rank's share of the one-rank peak
# What the tracker tells apart beside activations and what is made on the way.
_HELD = ("Parameter", "Buffer", "Gradient", "Optstate")


class _Peak(TorchDispatchMode):
    """Asks the tracker after each operation: its own peak is that of all memory together."""

    def __init__(self, tracker: MemTracker, device: torch.device) -> None:
        super().__init__()
        self.num_bytes = 0
        self._tracker, self._device = tracker, device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        found = self._tracker.get_tracker_snapshot("current").get(self._device, {})
        held = sum(size for kind, size in found.items() if getattr(kind, "value", kind) in _HELD)
        self.num_bytes = max(self.num_bytes, found.get("Total", 0) - held)
        return result


def peak_activation_bytes(model: WeatherMixer, step: Callable[[WeatherMixer], None]) -> int:
    """Most bytes that a step holds at once beside parameters, buffers and gradients.

    Counts inputs, activations, what is on its way, and gradients until they are their parameter's.
    """
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker, _Peak(tracker, model.mesh.device) as peak:
        step(model)
    return peak.num_bytes


def allowed_bytes(
    config: ModelConfig,
    degrees: Mapping[str, int],
    whole_peak: int,
    *,
    item_bytes: int,
    batch_size: int = 1,
    num_chunks: int | None = None,
) -> dict[str, float]:
    """What a rank's peak may be: its share of the one-rank peak with 15 %, and two buffers.

    The buffers are two chunks of the larger gathered activation, N C/tensor over domain or
    N C/domain over tensor, and the gathered weights of two layers, one of token and one of channel
    mixing. An axis of one rank gathers nothing.

    Args:
        config: Architecture.
        degrees: Of the mesh.
        whole_peak: Peak of one rank that holds everything.
        item_bytes: Of one number of what travels.
        batch_size: Samples of the model group.
        num_chunks: Chunks of activations; None for the model's default.

    Returns:
        The terms by name, and their sum as `allowed`.
    """
    domain, tensor = degrees.get("domain", 1), degrees.get("tensor", 1)
    rows, channels = batch_size * config.num_tokens, config.channels
    chunks = 0.0
    if domain > 1:
        columns = batch_size * channels // tensor
        chunks = rows * channels / tensor / len(chunk_ranges(columns, num_chunks, travels=True))
    if tensor > 1:
        gathered = rows // domain
        num_parts = len(chunk_ranges(gathered, num_chunks, travels=True))
        chunks = max(chunks, rows * channels / domain / num_parts)
    weights = 0.0
    if tensor > 1:
        weights += 2 * config.num_tokens * config.token_hidden / domain
    if domain > 1:
        weights += 2 * channels * config.channel_hidden / tensor
    terms = {
        "share": SLACK * whole_peak / (domain * tensor),
        "chunks": 2 * chunks * item_bytes,
        "weights": weights * item_bytes,
    }
    return terms | {"allowed": sum(terms.values())}
