"""What the ranks run: one small WeatherMixer, every odd case of the layouts in it."""

from functools import partial

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.collectives import all_reduce_sum
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.train.optimizer import local_gradient_square

# 24 token rows divide by 1, 2, 3, 4, 6 and 8; 7 fields split unevenly and leave one of 8 groups
# empty; 72 tokens and 54 hidden features do not divide by 8 where they are only stored.
CONFIG = ModelConfig(
    grid="12x48",
    fields=("z500", "t850", "u850", "v850", "2t", "10u", "msl"),
    diagnostics=("tp",),
    forcings=("land_sea_mask", "sin_year", "cos_year"),
    patch=(2, 4),
    overlap=1,
    channels=48,
    token_hidden=24,
    channel_hidden=48,
    num_blocks=2,
)
# 3 fields and nothing else: on 4 ranks of tensor one has no map to make at all
FEW_FIELDS = CONFIG.model_copy(update={"fields": ("z500", "t850", "2t"), "diagnostics": ()})
BATCH = 2

Piece = tuple[tuple[slice, ...], np.ndarray]


def make_model(mesh: Mesh, config: ModelConfig = CONFIG) -> WeatherMixer:
    """The model in float64, every parameter moved off its initial constant."""
    torch.set_default_dtype(torch.float64)
    try:
        model = WeatherMixer(config, mesh, seed=3)
    finally:
        torch.set_default_dtype(torch.float32)
    model.double()
    model.compute_dtype = torch.float64
    layouts = model.layouts()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(len(name) + sum(map(ord, name)))
            full = torch.randn(layouts[name].full_shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * full[layouts[name].piece_slices(mesh)])
    return model


def sample(seed: int, num_maps: int, rows: int, columns: int) -> torch.Tensor:
    """A whole random sample [B, maps, Y, X]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, num_maps, rows, columns)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def train_step(
    mesh: Mesh,
    resident: bool = False,
    num_chunks: int | None = None,
    recompute: str = "nothing",
    config: ModelConfig = CONFIG,
) -> dict[str, Piece]:
    """Two rollout steps, loss, gradients, gradient norm and one AdamW step: every piece.

    `recompute` is "nothing", "hidden" (features of the mixings) or "steps" (whole model steps).
    """
    model = make_model(mesh, config)
    model.num_chunks = num_chunks
    model.recompute_hidden = recompute == "hidden"
    config, pieces = model.config, model.pieces
    rows, columns = config.grid_object.num_lat, config.grid_object.num_lon
    maps = {
        "state": (len(config.fields), pieces.fields),
        "target": (len(config.fields), pieces.fields),
        "forcing": (len(config.forcings), pieces.forcings),
        "rain": (len(config.diagnostics), pieces.diagnostics),
    }
    local = {
        name: sample(seed, count, rows, columns)[:, group, pieces.rows]
        for seed, (name, (count, group)) in enumerate(maps.items())
    }
    state = local["state"].requires_grad_()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    step = partial(checkpoint, model, use_reentrant=False) if recompute == "steps" else model
    first, rain = step(state, local["forcing"])
    second, more_rain = step(first, local["forcing"])
    loss = (second - local["target"]).square().sum() + (rain * more_rain - local["rain"]).sum()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    square = local_gradient_square(list(model.parameters()))
    norm = all_reduce_sum(square, (mesh.domain, mesh.tensor)).sqrt()
    optimizer.step()

    total = all_reduce_sum(loss.detach().clone(), (mesh.domain, mesh.tensor))
    everything = (slice(None),)
    field_part = (slice(0, BATCH), pieces.fields, pieces.rows, slice(0, columns))
    rain_part = (slice(0, BATCH), pieces.diagnostics, pieces.rows, slice(0, columns))
    assert state.grad is not None
    result: dict[str, Piece] = {
        "loss": (everything, total.reshape(1).numpy()),
        "gradient norm": (everything, norm.reshape(1).numpy()),
        "output": (field_part, second.detach().numpy()),
        "diagnostics": (rain_part, more_rain.detach().numpy()),
        "gradient of the state": (field_part, state.grad.numpy()),
    }
    layouts = model.layouts()
    for name, parameter in model.named_parameters():
        part = layouts[name].piece_slices(mesh)
        result[f"gradient of {name}"] = (part, gradients[name].numpy())
        result[f"{name} after one step"] = (part, parameter.detach().numpy())
        moment = optimizer.state[parameter]["exp_avg_sq"]
        result[f"second moment of {name}"] = (part, moment.numpy())
    if resident:
        model.make_resident()
        with torch.no_grad():
            output, _ = model(state.detach(), local["forcing"])
        result["resident output"] = (field_part, output.numpy())
    return result


def assemble(results: list[dict[str, Piece]]) -> dict[str, np.ndarray]:
    """Whole tensors from the pieces of all ranks; fails where a point is held twice or never."""
    whole = {}
    for name in results[0]:
        parts = [result[name] for result in results]
        if parts[0][0] == (slice(None),):
            values = {part[1].tobytes() for part in parts}
            assert len(values) == 1, f"{name} differs between ranks"
            whole[name] = parts[0][1]
            continue
        shape = tuple(max(part[0][dim].stop for part in parts) for dim in range(len(parts[0][0])))
        full, held = np.full(shape, np.nan), np.zeros(shape, dtype=int)
        for place, values in parts:
            full[place] = values
            held[place] += 1
        assert (held == 1).all(), f"{name}: some values are held twice or by nobody"
        whole[name] = full
    return whole
