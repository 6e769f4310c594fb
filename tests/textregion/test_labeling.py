from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textregion.errors import InputError
from textregion.labeling import label_pixels, mean_iou, mode_per_mask
from textregion.labels import LabelPrompts, label_probabilities
from textregion.types import RegionMasks, Segmentation

GROUP = (0, 1, 1, 2, 3)
PROMPTS = LabelPrompts.parse(["sky; wall; floor", "cat", "cup; mug"])
PLAIN = LabelPrompts.parse(["sky", "cat", "cup"])


def problem(seed: int, prompts: LabelPrompts = PROMPTS, mask_size=(29, 23)):
    """Logits (4, Q) and masks of four regions; a corner belongs to no region."""
    random = torch.Generator().manual_seed(seed)
    soft = (torch.rand(len(GROUP), 13, 17, generator=random) * 4 - 2).clamp(min=0)
    soft[:, :5, :5] = 0
    masks = RegionMasks(soft, (37, 41), mask_size, torch.tensor(GROUP))
    return torch.rand(4, len(prompts.queries), generator=random) * 0.3, masks


def expected(logits, masks, prompts, size, uncovered=None):
    full = oracles.full_masks(masks.soft, list(GROUP), masks.mask_size)
    return oracles.pixel_probabilities(logits, full, prompts.query_label, size, uncovered)


def check(logits, masks, prompts=PROMPTS, size=(37, 41), uncovered=None, threshold=0.0, budget=2**28):
    result = label_pixels(logits, masks, prompts, size, uncovered, threshold, True, budget)
    probability = expected(logits, masks, prompts, size, uncovered)
    torch.testing.assert_close(torch.from_numpy(result.probabilities), probability, rtol=0, atol=1e-4)
    label_map, confidence = oracles.label_pixels(probability, threshold)
    np.testing.assert_allclose(result.confidence, confidence, atol=1e-4)
    clear = probability.sort(0, descending=True).values
    clear = ((clear[0] - clear[1]).numpy() > 2e-4) & (np.abs(confidence - threshold) > 2e-4)
    assert clear.mean() > 0.7  # uncovered pixels and certain ones at threshold 1 are ties
    np.testing.assert_array_equal(result.label_map[clear], label_map[clear])
    return result


@given(st.integers(0, 10_000), st.sampled_from([(37, 41), (29, 23), (11, 7), (29, 61), (1, 1)]))
def test_equals_the_form_at_once(seed, size):
    check(*problem(seed), size=size)


def test_default_size_is_the_images_own():
    assert label_pixels(*problem(0), PROMPTS).label_map.shape == (37, 41)


@pytest.mark.parametrize("size", [(11, 41), (29, 23)])
@pytest.mark.parametrize("shape", [None, (6,), (6, 5, 7)])
def test_every_memory_budget_gives_the_same(size, shape, random):
    uncovered = None if shape is None else torch.rand(shape, generator=random)
    whole = label_pixels(*problem(1), PROMPTS, size, uncovered, 0.3, True)
    for budget in (7_000, 40_000):  # one row at a time, six rows at a time
        part = label_pixels(*problem(1), PROMPTS, size, uncovered, 0.3, True, budget)
        np.testing.assert_allclose(part.probabilities, whole.probabilities, rtol=0, atol=1e-5)  # sums round
        np.testing.assert_array_equal(part.label_map, whole.label_map)
        np.testing.assert_array_equal(part.region_map, whole.region_map)


@pytest.mark.parametrize("size", [(37, 41), (29, 23)])
@pytest.mark.parametrize("shape", [(6,), (6, 5, 7)])
def test_uncovered_pixels_take_their_own_logits(size, shape, random):
    uncovered = torch.rand(shape, generator=random)
    logits, masks = problem(2)
    result = check(logits, masks, size=size, uncovered=uncovered)
    without = label_pixels(logits, masks, PROMPTS, size, None, 0, True)
    changed = np.abs(result.probabilities - without.probabilities).max(0) > 1e-5
    assert changed[0, 0]  # the corner no region covers
    assert not changed[-1, -1]


def test_uncovered_pixels_are_the_first_label_otherwise():
    logits, masks = problem(3, PLAIN)
    result = label_pixels(logits, masks, PLAIN, (29, 23))
    assert result.label_map[0, 0] == 0
    assert result.region_map[0, 0] == -1
    assert result.confidence[0, 0] == pytest.approx(1 / 3)


@pytest.mark.parametrize("threshold", [0.35, 0.5, 0.9, 1.0])
def test_unsure_pixels_become_the_first_label(threshold):
    result = check(*problem(4), threshold=threshold)
    assert (result.label_map[result.confidence < threshold] == 0).all()


def test_synonyms_take_the_maximum_after_the_softmax():
    logits = torch.tensor([0.01, 0.02, 0.0, 0.015, 0.0, 0.0])[:, None, None]
    query = (50 * logits).softmax(0)[:, 0, 0]
    probability = label_probabilities(logits, PROMPTS)[:, 0, 0]
    assert probability.tolist() == pytest.approx([float(query[1]), float(query[3]), float(query[4])])
    assert probability.sum() < 1


def test_overlapping_regions_add_their_logits():
    masks = RegionMasks(torch.tensor([[[1.0, 1, 0, 0]], [[0, 3.0, 3, 0]]]), (1, 4))
    logits = torch.tensor([[0.02, 0.0], [0.03, 0.04]])
    result = label_pixels(logits, masks, LabelPrompts.parse(["a", "b"]), return_probabilities=True)
    sums = torch.tensor([[0.02, 0.05, 0.03, 0], [0.0, 0.04, 0.04, 0]])
    np.testing.assert_allclose(result.probabilities[:, 0], (50 * sums).softmax(0), atol=1e-6)
    assert result.label_map.tolist() == [[0, 0, 1, 0]]


def test_hard_masks_count_fully():
    logits, masks = problem(5)
    hard = replace(masks, hard=True)
    result = label_pixels(logits, hard, PROMPTS, (29, 23), return_probabilities=True)
    full = (oracles.full_masks(masks.soft, list(GROUP), masks.mask_size) > 0).float()
    probability = oracles.pixel_probabilities(logits, full, PROMPTS.query_label, (29, 23))
    np.testing.assert_allclose(result.probabilities, probability, atol=1e-4)


@pytest.mark.parametrize("uncovered", [None, torch.tensor([0.0, 0.1, 0.0])])
def test_no_region_at_all(uncovered):
    result = label_pixels(torch.zeros(0, 3), RegionMasks.empty((5, 7)), PLAIN, uncovered=uncovered)
    assert (result.label_map == (0 if uncovered is None else 1)).all()
    assert (result.region_map == -1).all()
    assert result.label_map.shape == (5, 7)


def test_no_region_and_dense_features():
    dense = torch.zeros(3, 2, 2)
    dense[2, 1] = 1
    result = label_pixels(torch.zeros(0, 3), RegionMasks.empty((4, 4)), PLAIN, uncovered=dense)
    assert result.label_map[3].tolist() == [2] * 4


@pytest.mark.parametrize("size", [(29, 23), (37, 41), (11, 13)])
def test_region_map_equals_pixel_by_pixel(size):
    logits, masks = problem(6)
    result = label_pixels(logits, masks, PROMPTS, size, memory_budget=50_000)
    wanted = oracles.region_behind(logits, masks.full(), PROMPTS.query_label, result.label_map)
    np.testing.assert_array_equal(result.region_map, wanted)


def test_probabilities_only_when_asked():
    assert label_pixels(*problem(0), PROMPTS).probabilities is None


def test_one_label_is_certain():
    logits, masks = problem(0, LabelPrompts.parse(["a"]))
    result = label_pixels(logits, masks, LabelPrompts.parse(["a"]))
    assert (result.label_map == 0).all()
    np.testing.assert_allclose(result.confidence, 1)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_bad_thresholds(threshold):
    with pytest.raises(InputError, match=r"expected a number in 0\.\.1"):
        label_pixels(*problem(0), PROMPTS, probability_threshold=threshold)


@pytest.mark.parametrize("shape", [(3, 6), (4, 5)])
def test_logits_of_another_shape(shape):
    with pytest.raises(InputError, match=r"expected \(4, 6\)"):
        label_pixels(torch.zeros(shape), problem(0)[1], PROMPTS)


def test_mean_iou_by_hand():
    truth, prediction = np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 2]])
    assert mean_iou(prediction, truth, 3) == pytest.approx((1 / 2 + 1 / 3) / 2)


@given(st.integers(0, 10_000), st.sampled_from([(37, 41), (29, 23), (11, 7), (1, 1)]))
def test_mode_per_mask_is_larger_masks_painted_first(seed, size):
    logits, masks = problem(seed)
    result = label_pixels(logits, masks, PROMPTS, size)
    inside = masks.binary(size).numpy()
    label_map, region_map = result.label_map.copy(), result.region_map.copy()
    for region in sorted(range(len(masks)), key=lambda r: (-inside[r].sum(), -r)):
        if (pixels := result.label_map[inside[region]]).size:
            label_map[inside[region]] = max(sorted(set(pixels.tolist())), key=pixels.tolist().count)
            region_map[inside[region]] = region
    found = mode_per_mask(result, masks)
    np.testing.assert_array_equal(found.label_map, label_map)
    np.testing.assert_array_equal(found.region_map, region_map)
    np.testing.assert_array_equal(found.confidence, result.confidence)


def test_a_speck_goes_a_part_keeps_its_own_label():
    soft = torch.zeros(2, 5, 7)
    soft[0, :, :6], soft[1, 1:4, 1:3] = 1, 1
    masks = RegionMasks(soft, (5, 7))
    label_map = np.array(
        [[0, 0, 0, 0, 0, 1, 2], [0, 1, 1, 0, 0, 0, 2], [0, 1, 1, 0, 0, 0, 2]] + [[0, 1, 0, 0, 0, 0, 2]] * 2
    )
    result = Segmentation(label_map, np.ones((5, 7), np.float32), np.zeros((5, 7), np.int64), PLAIN.names)
    expected = np.zeros((5, 7), np.int64)
    expected[:, 6], expected[1:4, 1:3] = 2, 1
    np.testing.assert_array_equal(mode_per_mask(result, masks).label_map, expected)
