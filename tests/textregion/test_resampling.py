import bounds
import oracles
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from textregion.resampling import bilinear_taps, lerp_columns, lerp_rows

sizes = st.integers(1, 61)


@given(sizes, sizes, sizes, sizes, st.integers(0, 10_000))
@example(1, 1, 7, 5, 0)
@example(53, 47, 1, 1, 0)
@example(31, 29, 31, 29, 0)
def test_taps_reproduce_interpolate(h, w, height, width, seed):
    x = torch.rand(3, h, w, generator=torch.Generator().manual_seed(seed))
    y = lerp_rows(lerp_columns(x, bilinear_taps(w, width)), bilinear_taps(h, height))
    torch.testing.assert_close(y, oracles.resize(x, (height, width)), rtol=0, atol=3e-5)


@given(sizes, sizes, st.integers(0, 10_000))
@example(64, 192, 0)
@example(64, 192, 1)
@example(256, 672, 2)
def test_positive_values_are_the_same_ones(size_in, size_out, seed):
    """A weight of 6e-8 decides whether a pixel belongs to a mask, where torch's own kernels are exact to it."""
    x = (torch.rand(1, 1, size_in, generator=torch.Generator().manual_seed(seed)) - 0.5).clamp(min=0)
    y = lerp_columns(x, bilinear_taps(size_in, size_out))
    expected = oracles.resize(x, (1, size_out))
    other = (y > 0) != (expected > 0)
    assert torch.maximum(y, expected)[other].le(bounds.positions(size_in, 0.5)).all()
    assert not (other.any() and bounds.rounds_positions_once())


@given(sizes, sizes)
def test_taps_are_neighbours_inside(size_in, size_out):
    lower, upper, weight = bilinear_taps(size_in, size_out)
    assert len(lower) == len(upper) == len(weight) == size_out
    assert lower.min() >= 0
    assert upper.max() < size_in
    assert ((upper - lower) <= 1).all()
    assert (upper >= lower).all()
    assert (lower.diff() >= 0).all()
    assert (weight >= 0).all()
    assert (weight < 1).all()


def test_same_size_changes_nothing():
    x = torch.rand(2, 13, 17)
    assert torch.equal(lerp_rows(lerp_columns(x, bilinear_taps(17, 17)), bilinear_taps(13, 13)), x)


def test_hand_made():
    lower, upper, weight = bilinear_taps(2, 4)
    assert lower.tolist() == [0, 0, 0, 1]
    assert upper.tolist() == [1, 1, 1, 1]
    assert weight.tolist() == [0, 0.25, 0.75, 0]
