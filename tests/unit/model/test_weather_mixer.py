"""The model: sizes of the presets, what each rank holds, and what a fresh model does."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from jigsaw_forecast.errors import MeshError, RecipeError
from jigsaw_forecast.model.config import PRESETS, ModelConfig
from jigsaw_forecast.model.sample import sample_pieces
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.mesh import Axis, Mesh, single_rank_mesh
from jigsaw_forecast.parallel.products import Scheme
from tests.parallel.cases import CONFIG

MESHES_UP_TO_8 = [
    (domain, tensor)
    for domain in (1, 2, 4, 8)
    for tensor in (1, 2, 3, 4, 6, 8)
    if domain * tensor <= 8
]


def layout_mesh(domain: int, tensor: int) -> Mesh:
    """A mesh of these degrees that lays parameters out on the meta device."""
    one = single_rank_mesh("meta")
    return replace(
        one,
        domain=Axis("domain", domain, 0, None),
        tensor=Axis("tensor", tensor, 0, None),
        model=Axis("model", domain * tensor, 0, None),
    )


def num_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_largest_preset_has_3_2_billion_parameters() -> None:
    model = WeatherMixer(PRESETS["wm-3.2b"], single_rank_mesh("meta"))
    assert num_parameters(model) == pytest.approx(3.2e9, rel=0.02)


@pytest.mark.parametrize("name", [name for name in PRESETS if "0.25" in name or "3.2b" in name])
def test_token_rows_of_the_quarter_degree_presets_divide_by_16(name: str) -> None:
    assert PRESETS[name].token_rows % 16 == 0


def test_a_step_of_the_largest_preset_is_44_to_46_teraflop() -> None:
    config = PRESETS["wm-3.2b"]
    model = WeatherMixer(config, single_rank_mesh("meta"))
    grid = config.grid_object
    state = torch.empty(1, len(config.fields), grid.num_model_lat, grid.num_lon, device="meta")
    forcing = torch.empty(1, len(config.forcings), *state.shape[2:], device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(state, forcing)
    assert 44e12 <= counter.get_total_flops() <= 46e12


@pytest.mark.parametrize(("domain", "tensor"), MESHES_UP_TO_8)
def test_no_rank_holds_more_than_its_share_of_the_shipped_model(domain: int, tensor: int) -> None:
    config = PRESETS["wm-nature"]
    base = layout_mesh(domain, tensor)
    whole = num_parameters(WeatherMixer(config, single_rank_mesh("meta")))
    held = [
        num_parameters(WeatherMixer(config, base.at(i, j)))
        for i in range(domain)
        for j in range(tensor)
    ]
    assert sum(held) == whole
    assert max(held) <= 1.02 * whole / (domain * tensor)


@pytest.mark.parametrize(("domain", "tensor"), MESHES_UP_TO_8)
def test_pieces_of_the_sample_cover_it_once(domain: int, tensor: int) -> None:
    config = PRESETS["wm-nature"]
    base = layout_mesh(domain, tensor)
    pieces = [sample_pieces(config, base.at(i, j)) for i in range(domain) for j in range(tensor)]
    cells = [
        (field, row)
        for piece in pieces
        for field in config.fields[piece.fields]
        for row in range(piece.rows.start, piece.rows.stop)
    ]
    assert len(cells) == len(set(cells)) == len(config.fields) * config.grid_object.num_model_lat


def test_a_fresh_model_persists_the_state() -> None:
    model = WeatherMixer(CONFIG, single_rank_mesh(), seed=0)
    state = torch.randn(2, len(CONFIG.fields), 48, 12)
    forcing = torch.randn(2, len(CONFIG.forcings), 48, 12)
    following, diagnostics = model(state, forcing)
    torch.testing.assert_close(following, state)
    assert (diagnostics == 0).all()


def test_columns_are_periodic() -> None:
    # a shift by a whole patch of columns shifts the tokens; without positions the embed follows
    model = WeatherMixer(CONFIG, single_rank_mesh(), seed=0)
    with torch.no_grad():
        model.embed.position.zero_()
    maps = torch.randn(1, len(CONFIG.fields) + len(CONFIG.forcings), 48, 12)
    scheme, weights = Scheme(model.mesh, torch.float32), model.embed.gathering(torch.float32)
    vectors = dict(model.named_parameters())
    tokens, shifted = (
        model.embed(
            scheme,
            weights,
            weights.pieces,
            vectors,
            each.split([len(CONFIG.fields), len(CONFIG.forcings)], 1),
        )
        for each in (maps, maps.roll(4, -1))
    )
    by_column = tokens.unflatten(1, (24, 3)).roll(1, 2).flatten(1, 2)
    torch.testing.assert_close(shifted, by_column)


def test_overlapping_windows_of_ones_add_up_to_ones() -> None:
    model = WeatherMixer(CONFIG, single_rank_mesh(), seed=0)
    height, width = CONFIG.window
    windows = torch.ones(1, 3 * height * width, CONFIG.num_tokens)
    maps = model.head._overlap_add(windows)
    torch.testing.assert_close(maps, torch.ones(1, 3, 48, 12))


def test_a_step_without_tendencies_is_bias_and_blend() -> None:
    model = WeatherMixer(CONFIG, single_rank_mesh(), seed=0)  # its head's weights are zero
    num_fields = len(CONFIG.fields)
    bias, blend, scale = (torch.rand(num_fields) for _ in range(3))
    with torch.no_grad():
        model.head.bias.copy_(bias)
        model.head.blend.copy_(blend)
        model.tendency_scale.copy_(scale)
        state = torch.randn(1, num_fields, 48, 12)
        found, _ = model(state, torch.randn(1, len(CONFIG.forcings), 48, 12))
    expected = state * (1 - blend)[:, None, None] + (bias * scale)[:, None, None]
    torch.testing.assert_close(found, expected)


def test_mesh_that_does_not_divide_names_the_degrees_that_do() -> None:
    with pytest.raises(MeshError) as caught:
        PRESETS["wm-nature"].check_mesh(3, 5)
    assert "domain=3 does not divide 8 token rows" in str(caught.value)
    assert "use 1, 2, 4 or 8" in str(caught.value)
    assert "tensor=5 does not divide 384 channels" in str(caught.value)


def test_patches_that_do_not_tile_are_refused() -> None:
    config = ModelConfig(**(CONFIG.model_dump() | {"patch": (5, 7)}))
    with pytest.raises(RecipeError) as caught:
        config.check()
    assert "patch rows 5 do not divide 48 rows" in str(caught.value)
    assert "patch columns 7 do not divide 12 columns" in str(caught.value)
