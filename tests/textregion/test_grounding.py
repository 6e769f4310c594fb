"""From words to one region: boxes and their overlap by hand, the target against everything else."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textregion.errors import InputError
from textregion.labeling import box_ious, is_hit, label_target, largest_component_box, nearest, snap, target_prompts
from textregion.types import RegionMasks, RegionTokens
from TextRegionSegmenter import TextRegionSegmenter


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


def test_the_two_queries_as_published():
    prompts = target_prompts("The Red Star")
    assert prompts.queries == ("background, anything but the red star", "the red star")
    assert prompts.names == ("background, anything but the red star", "The Red Star")
    assert prompts.query_label == (0, 1)


def test_other_words_may_be_given():
    assert target_prompts("cup", "background, any other thing").queries == ("background, any other thing", "cup")
    prompts = target_prompts("cup; saucer", ["floor", "not a {target}"])
    assert prompts.queries == ("floor", "not a cup; saucer", "cup; saucer"), "a sentence is not split at ;"
    assert prompts.query_label == (0, 0, 1)


@pytest.mark.parametrize("target", ["", "  "])
def test_a_blank_target_is_refused(target):
    with pytest.raises(InputError, match="expected a word or phrase"):
        target_prompts(target)


def tokens(masks: torch.Tensor, vectors: list[list[float]], image_size=None) -> RegionTokens:
    masks = RegionMasks(masks, image_size or tuple(masks.shape[1:]), tuple(masks.shape[1:]))
    return RegionTokens(torch.tensor(vectors), masks, torch.arange(len(vectors)), (2, 2))


def test_pixels_in_no_region_are_everything_else():
    # A region that is certain of the target, a region that is certain of the other, and a bare column.
    masks = torch.zeros(2, 1, 3)
    masks[0, 0, 0], masks[1, 0, 1] = 1, 1
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = label_target(tokens(masks, [[0.0, 1.0], [1.0, 0.0]]), text, target_prompts("cup"))
    assert found.label_map.tolist() == [[1, 0, 0]]
    assert found.region_map.tolist() == [[0, 1, -1]]
    # Logits (1, 0) times 50: as sure as can be.
    assert found.confidence[0, 2] == pytest.approx(1)


def test_without_regions_everything_is_background():
    empty = RegionTokens(torch.zeros(0, 2), RegionMasks.empty((3, 5)), torch.arange(0), (2, 2))
    found = label_target(empty, torch.eye(2), target_prompts("cup"))
    assert found.label_map.tolist() == [[0] * 5] * 3


def test_labels_are_decided_at_mask_size_and_brought_to_the_image_by_nearest_neighbour():
    masks = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    found = label_target(tokens(masks, [[0.0, 1.0]], (5, 3)), torch.eye(2), target_prompts("cup"))
    # rows 0, 1, 2 of 5 and columns 0, 1 of 3 come from the first row and column
    assert found.label_map.tolist() == [[1, 1, 0]] * 3 + [[0, 0, 0]] * 2


@given(st.tuples(st.integers(1, 29), st.integers(1, 29)), st.tuples(st.integers(1, 31), st.integers(1, 31)))
def test_nearest_is_torchs_and_cv2s(old, new):
    values = np.arange(old[0] * old[1], dtype=np.float32).reshape(old)
    ours = nearest(values, new)
    torchs = torch.nn.functional.interpolate(torch.from_numpy(values)[None, None], new, mode="nearest")[0, 0].numpy()
    cv2s = cv2.resize(values, new[::-1], interpolation=cv2.INTER_NEAREST)
    # Theirs multiply by a rounded ratio: where i * h / H is a whole number they may fall one short.
    exact = [np.array([i * o % n != 0 for i in range(n)]) for o, n in zip(old, new, strict=True)]
    chosen = np.ix_(*exact)
    assert (ours[chosen] == torchs[chosen]).all()
    assert (ours[chosen] == cv2s[chosen]).all()


def test_the_segmenter_uses_this(tiny_clip):
    segmenter = TextRegionSegmenter(tiny_clip, scale=(64, 32), device="cpu")
    image = np.random.default_rng(3).integers(0, 255, (37, 53, 3), np.uint8)
    masks = np.zeros((2, 37, 53), bool)
    masks[0, :, :20], masks[1, :19, 20:] = True, True
    regions = segmenter.encode_image(image, masks=masks)
    found = segmenter.reason(regions, "A red cup", "floor")
    text = segmenter.encode_text(["floor", "a red cup"])
    expected = label_target(regions, text, target_prompts("A red cup", "floor"))
    assert (found.label_map == expected.label_map).all()
    assert found.labels == ("floor", "A red cup")
    assert not found.mask(1)[19:, 20:].any(), "no region lies there"
    winner = (regions.similarity(text) @ torch.tensor([-1.0, 1.0]) > 0).tolist()
    assert [bool(found.mask(1)[5, 5]), bool(found.mask(1)[5, 40])] == winner


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("wrong", [["a"], ("a", "b"), None, 3, b"star"])
def test_a_sentence_or_target_that_is_no_string_is_one_line(tiny_clip, wrong):
    segmenter = TextRegionSegmenter(tiny_clip, scale=(64, 32), device="cpu")
    regions = tokens(torch.ones(1, 4, 6), [[1.0] + [0.0] * 23])
    for ask in (segmenter.refer, segmenter.reason):
        with pytest.raises(InputError, match=f"got a sentence of type {type(wrong).__name__}, expected one string"):
            ask(regions, wrong)
