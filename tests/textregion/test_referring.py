import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from textregion.referring import box_ious, is_hit, largest_component_box, snap


def drawn(*rows: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in rows])


@pytest.mark.parametrize(
    ("rows", "box"),
    [
        (["....", "...."], None),
        (["#"], (0, 0, 0, 0)),  # no +1: one pixel has no extent
        (["....", ".##.", ".##.", "...."], (1, 1, 1, 1)),
        (["####", "####"], (0, 0, 3, 1)),
        (["#..", ".#.", "..#"], (0, 0, 2, 2)),  # corners connect
        (["##..#", "....#", "##..#", "....#"], (4, 0, 0, 3)),  # largest of three
        (["#.#", "###", "...", "#.."], (0, 0, 2, 1)),
        (["#####", "#...#", "#.#.#", "#...#", "#####"], (0, 0, 4, 4)),  # what lies in a hole is another one
    ],
)
def test_hand_made(rows, box):
    assert largest_component_box(drawn(*rows)) == box


def components(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """8-connected components by flooding."""
    left, found = {(int(y), int(x)) for y, x in np.argwhere(mask)}, []
    while left:
        border, component = [left.pop()], set()
        while border:
            y, x = border.pop()
            component.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            border += near
        found.append(component)
    return found


@given(st.integers(0, 10_000))
def test_equals_flooding(seed):
    mask = np.random.default_rng(seed).random((13, 11)) > 0.7
    largest = max(map(len, components(mask)))
    boxes = []
    for component in components(mask):
        (y1, x1), (y2, x2) = np.min(list(component), 0), np.max(list(component), 0)
        if len(component) == largest:
            boxes.append((x1, y1, x2 - x1, y2 - y1))
    assert largest_component_box(mask) in boxes


def test_iou_by_hand_without_plus_one():
    # 4 x 3 against itself, half of it, a neighbour that only touches, and one pixel's worth
    ious = box_ious((2, 1, 4, 3), [(2, 1, 4, 3), (2, 1, 2, 3), (6, 1, 4, 3), (3, 2, 1, 1)])
    assert ious.tolist() == [1, 0.5, 0, pytest.approx(1 / 12)]


def test_boxes_without_area_overlap_nothing():
    assert box_ious((2, 1, 0, 3), [(2, 1, 0, 3), (0, 0, 9, 9)]).tolist() == [0, 0]
    assert box_ious((2, 1, 4, 3), []).shape == (0,)


numbers = st.integers(-11, 11).map(float)
sides = st.integers(0, 13).map(float)
boxes = st.tuples(numbers, numbers, sides, sides)


@given(boxes, st.lists(boxes, min_size=1, max_size=5))
def test_iou_equals_counting_cells(box, others):
    def cells(box):
        x, y, width, height = map(int, box)
        return {(i, j) for i in range(x, x + width) for j in range(y, y + height)}

    for other, iou in zip(others, box_ious(box, others), strict=True):
        union = len(cells(box) | cells(other))
        assert iou == pytest.approx(len(cells(box) & cells(other)) / union if union else 0)


def test_snapping_takes_the_largest_overlap_and_the_first_of_equals():
    box = (10.0, 10.0, 10.0, 10.0)
    left, right, far = (5.0, 10.0, 10.0, 10.0), (15.0, 10.0, 10.0, 10.0), (50.0, 50.0, 3.0, 3.0)
    assert snap(box, [far, left, right]) == (left, 1)
    assert snap(box, [far, right, left]) == (right, 1)
    assert snap(box, [left, (10, 10, 10, 9)]) == ((10, 10, 10, 9), 1)


def test_without_any_overlap_the_box_stays():
    box = (10.0, 10.0, 10.0, 10.0)
    assert snap(box, [(20, 10, 5, 5), (0, 0, 10, 10)]) == (box, None)
    assert snap(box, []) == (box, None)


def test_exactly_one_half_is_not_enough():
    (half,) = box_ious((0, 0, 4, 3), [(0, 0, 2, 3)])
    (more,) = box_ious((0, 0, 400, 3), [(0, 0, 201, 3)])
    assert (half, is_hit(half)) == (0.5, False)
    assert is_hit(more)
