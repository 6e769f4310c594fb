import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textregion.boxes import boxes_inside
from textregion.errors import InputError

coordinate = st.floats(-20, 80, width=32)


def test_boxes_within_the_image_stay_as_they_are():
    boxes = [[0, 0, 53, 31], [1.5, 2, 3, 4]]
    for given_as in (boxes, np.array(boxes), torch.tensor(boxes, dtype=torch.float64)):
        found = boxes_inside(given_as, (31, 53))
        assert found.dtype == torch.float32
        assert torch.equal(found, torch.tensor(boxes))


@pytest.mark.parametrize("nothing", [[], np.zeros((0, 4)), torch.zeros(0, 4)])
def test_no_box_is_fine(nothing):
    assert boxes_inside(nothing, (31, 53)).shape == (0, 4)


def test_a_pixel_of_rounding_is_cut():
    assert boxes_inside([[-1, -0.5, 54, 31.9]], (31, 53)).tolist() == [[0, 0, 53, 31]]


def refused(boxes, size) -> int | None:
    """Which box is refused, None if none is."""
    try:
        boxes_inside(boxes, size)
    except InputError as error:
        return int(str(error).split()[1])
    return None


@given(st.lists(st.tuples(*[coordinate] * 4), min_size=1, max_size=4))
def test_a_box_is_used_or_refused_by_its_number(boxes):
    height, width = 31, 53
    index = refused(boxes, (height, width))
    if index is not None:
        x1, y1, x2, y2 = boxes[index]
        assert x1 >= x2 or y1 >= y2 or min(x1, y1) < 0 or x2 > width or y2 > height
        return
    found = boxes_inside(boxes, (height, width))
    assert ((found >= 0) & (found <= torch.tensor([width, height, width, height]))).all()
    assert (found[:, :2] < found[:, 2:]).all()
    assert (found - torch.tensor(boxes)).abs().max() <= 1


@pytest.mark.parametrize(
    ("boxes", "line"),
    [
        ([[1, 2, 3, 4], [53, 0, 54, 9]], "box 1 at .* is empty within the image of 53 x 31"),
        ([[0, 0, 54.5, 9]], "box 0 at .* lies outside the image of 53 x 31 pixels"),
        ([[3, 3, 3, 9]], r"box 0 at \[3.0, 3.0, 3.0, 9.0\] expected x1 < x2 and y1 < y2"),
        ([[1, 2, 3, float("nan")]], "box 0 at .* expected finite numbers"),
        ([[1, 2, 3]], r"got boxes of shape \(1, 3\)"),
        ([["a", 2, 3, 4]], "no numbers"),
    ],
)
def test_bad_boxes_are_one_line(boxes, line):
    with pytest.raises(InputError, match=line) as error:
        boxes_inside(boxes, (31, 53))
    assert "\n" not in str(error.value)
