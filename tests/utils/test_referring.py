import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.referring import largest_component_box


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
