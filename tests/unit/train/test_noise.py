"""Noise on initial states: normal, and the same whatever part of a map is made."""

import numpy as np

from jigsaw_forecast.train.noise import normal_rows

SHAPE = (40, 30)


def test_a_band_is_the_band_of_the_whole_map() -> None:
    whole = normal_rows((1, 2, 3), SHAPE, 0, 40)
    np.testing.assert_array_equal(normal_rows((1, 2, 3), SHAPE, 13, 29), whole[13:29])


def test_other_keys_give_other_numbers() -> None:
    one, two = (normal_rows((1, 2, key), SHAPE, 0, 40) for key in (3, 4))
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.1


def test_the_numbers_are_normal() -> None:
    values = normal_rows((5,), (200, 500), 0, 200).ravel()
    moments = [values.mean(), values.std(), (values**3).mean(), (values**4).mean()]
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=0.05)  # 100,000 draws: 4 deviations
