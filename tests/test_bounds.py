"""Bounds by hand."""

import bounds
import numpy as np
import pytest
import torch


@pytest.mark.parametrize(
    ("reference", "dtype", "expected"),
    [
        (1.0, torch.float32, 2**-23),
        (0.99, torch.float32, 2**-24),
        (-31.9, torch.float16, 2**-6),
        (32.0, torch.float16, 2**-5),
        (torch.tensor([0.1, -3.0]), torch.float16, 2**-9),
        (np.array([300.0, 5.0]), torch.float64, 2**-44),
    ],
)
def test_steps_are_distances_of_neighbours(reference, dtype, expected):
    assert bounds.steps(reference, dtype, 1) == expected
    assert bounds.steps(reference, dtype, 7) == 7 * expected


def test_a_position_is_known_to_a_step_of_the_size():
    assert bounds.positions(64, 3.0) == 3 * 2**-17


def test_noise_is_the_last_bit_times_the_slope():
    given = torch.full((1000,), 1.5)
    steep, constant = bounds.rounding_noise(lambda x: (1024 * (x - 1), x * 0), given)
    assert (steep.largest, steep.rms) == (2**-13, 2**-13)
    assert (constant.largest, constant.rms) == (0, 0)
    expected = 1024 * (given - 1)
    steep.check(expected + 7 * 2**-13, expected)
    with pytest.raises(AssertionError, match="largest difference"):
        steep.check(expected + 9 * 2**-13, expected)


def test_many_small_differences_are_found_by_their_mean():
    noise = bounds.Noise(largest=1.0, rms=0.1)
    noise.check(torch.tensor([7.0] + [0.0] * 99), torch.zeros(100))
    with pytest.raises(AssertionError, match="on average"):
        noise.check(torch.full((100,), 0.9), torch.zeros(100))
