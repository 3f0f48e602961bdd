"""Blocks serve every mesh with whole blocks as long as they stay large enough."""

from itertools import product

import pytest

from jigsaw_forecast.checkpoint.blocks import (
    MIN_BLOCK_BYTES,
    cut_degrees,
    num_blocks,
    overlap,
    usable_degrees,
)
from jigsaw_forecast.checkpoint.format import Block, block_bounds
from jigsaw_forecast.model.config import PRESETS
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.layout import Cut, Layout, split_sizes
from jigsaw_forecast.parallel.mesh import single_rank_mesh

POWERS = [1, 2, 4, 8, 16]


def test_a_large_matrix_is_cut_for_16_by_16_ranks() -> None:
    assert num_blocks((8192, 14400), {0: POWERS, 1: POWERS}, "bfloat16") == (16, 16)


def test_a_small_matrix_is_cut_evenly_until_blocks_are_small() -> None:
    # 512 x 128 bfloat16 is 128 KiB: 8 blocks of 16 KiB
    assert num_blocks((512, 128), {0: POWERS, 1: POWERS}, "bfloat16") == (4, 2)


def test_a_vector_is_one_block() -> None:
    assert num_blocks((384,), {0: POWERS}, "float32") == (1,)


def test_a_tensor_of_no_values_is_one_block() -> None:
    assert num_blocks((0, 110, 4608), {0: POWERS, 2: POWERS}, "bfloat16") == (1, 1, 1)


def test_fields_that_no_degree_divides_are_cut_one_by_one() -> None:
    assert num_blocks((69, 720, 1440), {0: POWERS, 1: POWERS}, "float32") == (69, 16, 1)


def test_few_fields_that_do_not_divide_are_cut_where_two_and_four_ranks_cut_them() -> None:
    # of 8 larger-first parts none starts at 35, where two ranks part
    assert num_blocks((69, 1024), {0: POWERS}, "float32") == (4, 1)


def test_degrees_that_are_no_powers_of_two_are_served_after_those() -> None:
    degrees = [1, 2, 4, 3, 6, 12]
    assert num_blocks((1536, 16), {0: degrees}, "float32") == (4, 1)  # 12 would be 8 KiB each
    assert num_blocks((1536, 64), {0: degrees}, "float32") == (12, 1)


def test_usable_degrees_divide_what_the_axis_cuts_powers_of_two_first() -> None:
    # 8 token rows and 512 features; 384 channels and 1536 features
    usable = usable_degrees(PRESETS["wm-nature"])
    assert usable == {"domain": [1, 2, 4, 8], "tensor": [1, 2, 4, 8, 16, 3, 6, 12]}


def test_a_dim_cut_along_both_axes_takes_the_products() -> None:
    layout = Layout((48,), (Cut(0, "tensor"),), (Cut(0, "domain"),))
    assert cut_degrees(layout, {"domain": [1, 2], "tensor": [1, 3]}) == {0: [1, 2, 3, 6]}


@pytest.mark.parametrize(("degrees", "length"), [(POWERS, 69), (POWERS, 4608), ([1, 2, 3], 24)])
def test_parts_of_every_degree_start_where_blocks_do(degrees: list[int], length: int) -> None:
    (count,) = num_blocks((length,), {0: degrees}, "float64") if length > 1 << 11 else (length,)
    starts = set(block_bounds(length, count))
    served = [degree for degree in degrees if degree <= count]
    for degree, larger_last in product(served, (False, True)):
        sizes = split_sizes(length, degree, larger_last=larger_last)
        assert {sum(sizes[:index]) for index in range(degree)} <= starts


def test_every_large_block_of_the_largest_preset_holds_between_its_bounds() -> None:
    config = PRESETS["wm-3.2b"]
    usable = usable_degrees(config)
    layouts = WeatherMixer(config, single_rank_mesh("meta"), seed=None).layouts()
    for name, layout in layouts.items():
        counts = num_blocks(layout.full_shape, cut_degrees(layout, usable), "bfloat16")
        num_bytes = 2
        for length, count in zip(layout.full_shape, counts, strict=True):
            num_bytes *= length // count
        is_cut = max(counts) > 1
        assert (MIN_BLOCK_BYTES <= num_bytes <= 1 << 20) if is_cut else num_bytes < 1 << 16, name


def test_overlap_is_where_part_and_block_meet() -> None:
    block = Block((slice(2, 4), slice(0, 8)), "x@1,0", "shard", "")
    assert overlap((slice(3, 9), slice(4, 5)), block) == (slice(3, 4), slice(4, 5))
    assert overlap((slice(4, 9), slice(4, 5)), block) is None
