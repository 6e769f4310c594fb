import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textregion.masks import filters
from textregion.types import RegionMasks

seeds = st.integers(0, 10_000)


def blobs(seed: int, count: int = 7, size: tuple[int, int] = (13, 17)) -> torch.Tensor:
    """Soft rectangles of a few sizes that contain and overlap each other; the last one is empty."""
    random = np.random.default_rng(seed)
    soft = torch.zeros(count, *size)
    for mask in soft[:-1]:
        y, x = random.integers(0, size[0] - 4), random.integers(0, size[1] - 4)
        mask[y : y + random.integers(2, 11), x : x + random.integers(2, 13)] = float(random.uniform(0.5, 3))
    return soft


# ---------------------------------------------------------------- points and order


def test_points_are_cell_centres_x_fastest():
    expected = [((k % 3 + 0.5) / 3, (k // 3 + 0.5) / 3) for k in range(9)]
    torch.testing.assert_close(filters.point_grid(3), torch.tensor(expected))
    assert filters.point_grid(1).tolist() == [[0.5, 0.5]]


def test_candidates_are_ordered_whole_part_subpart():
    outputs = torch.tensor([[10, 11, 12], [20, 21, 22]]).float()
    assert filters.order_candidates(outputs).tolist() == [12, 22, 11, 21, 10, 20]
    maps = outputs[..., None, None].expand(2, 3, 5, 7)
    assert filters.order_candidates(maps)[:, 4, 6].tolist() == [12, 22, 11, 21, 10, 20]


# ---------------------------------------------------------------- filters


def test_stability():
    logits = torch.tensor(
        [
            [[2.0, 2.0, 0.0, -2.0]],  # 2 above 1, 3 above -1
            [[1.0, -1.0, 1.5, 0.0]],  # neither bound counts itself
            [[2.0, 3.0, -5.0, -5.0]],
            [[0.0, 0.5, -0.5, -9.0]],
            [[-2.0, -2.0, -1.0, -9.0]],
        ]
    )
    scores = filters.stability_scores(logits)
    assert scores[:4].tolist() == pytest.approx([2 / 3, 1 / 3, 1, 0])
    assert math.isnan(scores[4])
    torch.testing.assert_close(filters.stability_scores(logits.half()), scores, equal_nan=True)


def test_inclusive_boxes():
    on = torch.zeros(4, 5, 7, dtype=torch.bool)
    on[0, 1, 2] = True
    on[1, 1:4, 0] = on[1, 2, 6] = True
    on[2] = True
    assert filters.inclusive_boxes(on).tolist() == [[2, 1, 2, 1], [0, 1, 6, 3], [0, 0, 6, 4], [0, 0, 0, 0]]


@given(seeds)
def test_boxes_hold_every_pixel(seed):
    on = torch.from_numpy(np.random.default_rng(seed).random((3, 11, 13)) > 0.95)
    for mask, box in zip(on, filters.inclusive_boxes(on), strict=True):
        y, x = mask.nonzero().T
        expected = [x.min(), y.min(), x.max(), y.max()] if len(x) else [0, 0, 0, 0]
        assert box.tolist() == expected


def test_suppression_keeps_the_better_of_two():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 25, 25], [0, 0, 10, 5]])
    scores = torch.tensor([0.7, 0.9, 0.8, 0.6])
    assert filters.suppress(boxes, scores, 0.89).tolist() == [1, 2, 3]  # IoU of the first two is 0.9
    assert filters.suppress(boxes, scores, 0.91).tolist() == [1, 2, 0, 3]
    assert filters.suppress(boxes, scores, 0.0).tolist() == [1, 2]
    assert filters.suppress(boxes[:0], scores[:0], 0.5).tolist() == []


@given(seeds, st.floats(0.1, 0.95))
def test_suppression_equals_pair_by_pair(seed, threshold):
    random = np.random.default_rng(seed)
    low = random.integers(0, 30, (23, 2))
    boxes = np.concatenate([low, low + random.integers(1, 30, (23, 2))], 1)
    scores = random.permutation(23) / 23
    expected = oracles.non_maximum_suppression(boxes.tolist(), scores.tolist(), threshold)
    kept = filters.suppress(torch.from_numpy(boxes), torch.from_numpy(scores), threshold)
    assert kept.tolist() == expected


def test_sorting_by_level_then_score_is_stable():
    # 4 points: candidates 0-3 whole, 4-7 part, 8-11 subpart
    index = torch.tensor([9, 0, 5, 3, 4, 11, 1])
    scores = torch.tensor([0.5, 0.7, 0.9, 0.8, 0.9, 0.6, 0.7])
    order = filters.sort_by_level(index, scores, 4)
    assert index[order].tolist() == [3, 0, 1, 5, 4, 11, 9]
    assert filters.sort_by_level(index[:0], scores[:0], 4).tolist() == []


# ---------------------------------------------------------------- fusion


@given(seeds)
def test_box_overlaps_equal_pair_by_pair(seed):
    random = np.random.default_rng(seed)
    low = random.integers(0, 20, (9, 2))
    boxes = np.concatenate([low, low + random.integers(0, 20, (9, 2))], 1)
    overlaps = filters.box_overlaps(torch.from_numpy(boxes))[0]
    expected = [oracles.box_iou(boxes[0].tolist(), box) for box in boxes.tolist()]
    assert overlaps.tolist() == pytest.approx(expected, abs=1e-6)


@given(seeds, st.sampled_from([0.0, 0.5, 0.8, 1.0]))
def test_fusion_groups_equal_pair_by_pair(seed, threshold):
    soft = blobs(seed)
    masks = RegionMasks(soft, (29, 31), mask_size=(29, 31))
    boxes = filters.inclusive_boxes(soft > 0)
    full = oracles.resize(soft, (29, 31)).numpy()
    groups = filters.fusion_groups(masks, boxes, threshold)
    assert groups == oracles.fusion_groups(full, boxes.tolist(), threshold)
    assert all(len(soft) - 1 not in group for group in groups)  # an empty mask belongs nowhere


def test_only_the_seed_is_compared():
    """A chain a - b - c, where a and c share nothing: c does not follow b into a's region."""
    soft = torch.zeros(3, 8, 20)
    soft[0, :, 0:10] = 1
    soft[1, :, 1:11] = 1
    soft[2, :, 3:20] = 1
    boxes = filters.inclusive_boxes(soft > 0)
    assert filters.fusion_groups(RegionMasks(soft, (8, 20)), boxes, 0.8) == [[0, 1], [2]]


def test_a_contained_mask_with_a_distant_box_stays_alone():
    soft = torch.zeros(2, 20, 20)
    soft[0] = 1
    soft[1, 5:10, 5:10] = 1  # box IoU with the first is 16/361
    boxes = filters.inclusive_boxes(soft > 0)
    assert filters.fusion_groups(RegionMasks(soft, (20, 20)), boxes, 0.8) == [[0], [1]]


def test_merging_takes_the_maximum_and_the_seeds_scores():
    soft = blobs(3, 4)
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    masks = RegionMasks(soft, (29, 31), (29, 31), None, None, scores, scores / 2)
    merged = filters.merge(masks, [[0, 2], [1]])
    full = oracles.resize(soft, (29, 31))
    torch.testing.assert_close(merged.full(), torch.stack([torch.maximum(full[0], full[2]), full[1]]))
    assert merged.predicted_iou.tolist() == pytest.approx([0.9, 0.8])
    assert merged.stability.tolist() == pytest.approx([0.45, 0.4])


def test_merging_nothing():
    masks = RegionMasks(torch.zeros(2, 3, 5), (6, 10))
    assert filters.fusion_groups(masks, torch.zeros(2, 4, dtype=torch.long)) == []
    merged = filters.merge(masks, [])
    assert len(merged) == 0
    assert merged.image_size == (6, 10)


# ---------------------------------------------------------------- no overlap


def rows_of(*spans: tuple[int, int], width: int = 10) -> RegionMasks:
    """Masks of value 2 on spans of columns, ten pixels high."""
    soft = torch.zeros(len(spans), 10, width)
    for mask, (start, stop) in zip(soft, spans, strict=True):
        mask[:, start:stop] = 2.0
    scores = torch.linspace(0.9, 0.5, len(spans))
    return RegionMasks(soft, (10, width), (10, width), None, None, scores, scores)


def test_every_pixel_goes_to_the_first_mask():
    masks = filters.without_overlap(rows_of((0, 4), (2, 7), (6, 10)), min_size=1)
    assert (masks.full()[:, 0] > 0).int().tolist() == [
        [1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 1, 1, 1],
    ]
    assert masks.full().max() == 2


def test_small_free_parts_are_dropped_and_stay_free():
    masks = filters.without_overlap(rows_of((0, 4), (3, 5), (4, 8)), min_size=20)
    assert (masks.full()[:, 0] > 0).sum(1).tolist() == [4, 4]  # the second had 10 free pixels, the third gets them
    assert masks.predicted_iou.tolist() == pytest.approx([0.9, 0.5])


def test_a_free_part_of_exactly_min_size_is_kept():
    assert len(filters.without_overlap(rows_of((0, 4), (3, 6)), min_size=20)) == 2
    assert len(filters.without_overlap(rows_of((0, 4), (3, 6)), min_size=21)) == 1


def test_the_walk_stops_when_the_image_is_full():
    assert len(filters.without_overlap(rows_of((0, 9), (8, 10), (9, 10)), min_size=11)) == 1
    assert len(filters.without_overlap(rows_of((0, 10), (0, 10)), min_size=0)) == 2  # 0 free is not fewer than 0


def test_no_overlap_of_nothing():
    assert len(filters.without_overlap(RegionMasks.empty((5, 7)), min_size=1)) == 0
    assert len(filters.without_overlap(rows_of((0, 4)), min_size=100)) == 0


@given(seeds, st.sampled_from([0, 5, 60]))
def test_no_two_masks_overlap(seed, min_size):
    masks = RegionMasks(blobs(seed), (29, 31), mask_size=(29, 31))
    parts = filters.without_overlap(masks, min_size).full() > 0
    assert (parts.sum(0) <= 1).all()
    assert (parts.sum((1, 2)) >= min_size).all()
