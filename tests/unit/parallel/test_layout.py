"""Layout arithmetic."""

import pytest

from jigsaw_forecast.errors import MeshError
from jigsaw_forecast.parallel.layout import Cut, Layout, split_range, split_sizes
from jigsaw_forecast.parallel.mesh import check_degrees
from tests.unit.model.test_weather_mixer import layout_mesh


def test_69_fields_split_into_three_equal_groups() -> None:
    assert split_sizes(69, 3) == [23, 23, 23]


def test_sizes_differ_by_at_most_one_and_may_be_empty() -> None:
    assert split_sizes(7, 4) == [2, 2, 2, 1]
    assert split_sizes(2, 4) == [1, 1, 0, 0]
    assert split_sizes(2, 4, larger_last=True) == [0, 0, 1, 1]


def test_ranges_are_contiguous_and_cover() -> None:
    covered = [i for k in range(5) for i in range(13)[split_range(13, 5, k)]]
    assert covered == list(range(13))


def test_a_vector_is_cut_over_both_axes_outer_first() -> None:
    layout = Layout((12,), (Cut(0, "tensor"),), (Cut(0, "domain"),))
    mesh = layout_mesh(2, 3).at(1, 2)  # third of three, then second of two
    assert layout.piece_slices(mesh) == (slice(10, 12),)


def test_gather_steps_undo_storage_cuts_last_first() -> None:
    layout = Layout((10,), (), (Cut(0, "tensor"), Cut(0, "domain")))
    steps = list(layout.gather_steps(layout_mesh(2, 3).at(0, 0)))
    # 10 over 3 is 4, 3, 3; the first part, 4, over 2 is 2, 2
    assert [(cut.axis, shapes) for cut, shapes in steps] == [
        ("domain", [(2,), (2,)]),
        ("tensor", [(4,), (3,), (3,)]),
    ]


def test_wrong_axes_and_degrees_come_in_one_message() -> None:
    with pytest.raises(MeshError) as caught:
        check_degrees({"domian": 2, "tensor": 0})
    assert "domian" in str(caught.value)
    assert "tensor=0" in str(caught.value)
