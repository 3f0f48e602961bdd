"""A State is checked when built."""

import numpy as np
import pytest
import torch

from jigsaw_forecast.fields import Field
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.state import State

GRID = Grid.parse("8x4")
FIELDS = (Field("geopotential", 500), Field("2m_temperature"))
INIT = np.datetime64("2026-06-24T00", "h")


def make_state(
    data: torch.Tensor | None = None, *, lead_hours: int = 6, row_start: int = 0
) -> State:
    lead_time = np.timedelta64(lead_hours, "h")
    values = torch.zeros(2, 4, 8) if data is None else data
    return State(values, FIELDS, GRID, INIT, lead_time, row_start)


def test_valid_time_is_initial_time_plus_lead_time() -> None:
    assert make_state(lead_hours=30).valid_time == np.datetime64("2026-06-25T06")


def test_times_are_in_seconds_whatever_they_were_given_in() -> None:
    state = make_state()
    assert state.init_time.dtype == np.dtype("datetime64[s]")
    assert state.lead_time.dtype == np.dtype("timedelta64[s]")


def test_lead_hours_are_whole_hours() -> None:
    assert make_state(lead_hours=240).lead_hours == 240


def test_a_band_of_rows_is_a_state() -> None:
    assert make_state(torch.zeros(2, 1, 8), row_start=3).row_start == 3


def test_the_state_at_another_lead_time_keeps_fields_rows_and_initial_time() -> None:
    state = make_state(torch.zeros(2, 2, 8), row_start=2)
    later = state.at(torch.ones(2, 2, 8), np.timedelta64(2, "D"))
    assert (later.fields, later.row_start, later.init_time) == (FIELDS, 2, state.init_time)
    assert later.lead_hours == 48
    assert later.data.eq(1).all()


@pytest.mark.parametrize(
    ("shape", "row_start", "message"),
    [
        ((4, 8), 0, r"shape \(4, 8\), expected \[F, Y, X\]"),
        ((3, 4, 8), 0, "3 maps for 2 fields"),
        ((2, 4, 9), 0, "9 columns, grid 8x4"),
        ((2, 5, 8), 0, "rows 0 to 5 are outside"),
        ((2, 2, 8), 3, "rows 3 to 5 are outside"),
        ((2, 2, 8), -1, "rows -1 to 1 are outside"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    shape: tuple[int, ...], row_start: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_state(torch.zeros(shape), row_start=row_start)


def test_whole_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="expected floating point"):
        make_state(torch.zeros(2, 4, 8, dtype=torch.int64))
