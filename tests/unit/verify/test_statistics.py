"""Statistics of forecasts against hand calculation."""

import numpy as np
import torch

from jigsaw_forecast.verify.statistics import SquaredErrors, spatial_mean_square


def test_the_spatial_mean_square_weighs_rows_by_area() -> None:
    difference = torch.tensor([[1.0, 3.0], [2.0, 2.0]])  # mean squares by row: 5 and 4
    weights = torch.tensor([0.75, 0.25])
    assert float(spatial_mean_square(difference, weights)) == 0.75 * 5 + 0.25 * 4


def test_bands_add_up_to_the_whole() -> None:
    difference = torch.arange(24.0).reshape(2, 4, 3)
    weights = torch.tensor([0.1, 0.4, 0.4, 0.1])
    parts = [spatial_mean_square(difference[:, rows], weights[rows]) for rows in ([0, 1], [2, 3])]
    torch.testing.assert_close(sum(parts), spatial_mean_square(difference, weights))


def test_rmse_is_the_root_of_the_mean_over_initial_times() -> None:
    errors = SquaredErrors.empty(num_leads=1, num_fields=2)
    errors.add(0, torch.tensor([[1.0, 0.0], [7.0, 4.0]]))
    np.testing.assert_allclose(errors.rmse(), [[2.0, np.sqrt(2.0)]])


def test_parts_merge_to_the_whole() -> None:
    squares = torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole, first, second = (SquaredErrors.empty(1, 3) for _ in range(3))
    whole.add(0, squares)
    first.add(0, squares[:2])
    second.add(0, squares[2:])
    first.merge(second)
    np.testing.assert_allclose(first.rmse(), whole.rmse())
