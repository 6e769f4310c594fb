"""Boxes as soft masks: areas are exact, whatever the grid."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textregion.errors import InputError
from textregion.masks.prompts import rectangle_masks


def test_by_hand():
    masks = rectangle_masks([[1, 0, 3, 2], [0.5, 1, 2, 1.25]], (3, 5))
    expected = np.zeros((2, 3, 5), np.float32)
    expected[0, :2, 1:3] = 1
    expected[1, 1, :2] = 0.125, 0.25
    np.testing.assert_allclose(masks.soft, expected, atol=1e-6)
    assert masks.boxes.tolist() == [[1, 0, 3, 2], [0.5, 1, 2, 1.25]]


@given(
    st.integers(7, 1009),
    st.integers(7, 1009),
    st.floats(0, 0.9),
    st.floats(0, 0.9),
    st.floats(0.05, 1),
    st.floats(0.05, 1),
)
def test_the_area_of_a_box_is_kept(height, width, x, y, across, down):
    box = [x * width, y * height, min(x + across, 1) * width, min(y + down, 1) * height]
    masks = rectangle_masks([box], (height, width))
    cell = height * width / masks.soft[0].numel()
    assert masks.soft.sum().item() * cell == pytest.approx((box[2] - box[0]) * (box[3] - box[1]), rel=1e-3)
    assert max(masks.soft.shape[1:]) <= 256


def test_none_and_bad():
    assert len(rectangle_masks([], (5, 7))) == 0
    with pytest.raises(InputError):
        rectangle_masks([[0, 0, 9, 3]], (5, 7))


def test_many_boxes_of_a_large_image_stay_small():
    masks = rectangle_masks([[0, 0, 2688, 1344]] * 300, (1344, 2688))
    assert masks.soft.numel() == 300 * 128 * 256
    assert torch.all(masks.soft == 1)
