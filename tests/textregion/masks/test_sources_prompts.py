"""SAM 2 asked about boxes and points: the same masks as the sam2 package's own predictor, one per prompt."""

import numpy as np
import pytest
import torch
from sam2.sam2_image_predictor import SAM2ImagePredictor

from textregion.errors import InputError
from textregion.masks import BoxMaskGenerator, PointMaskGenerator, Sam2MaskGenerator, SlicMasks
from textregion.masks.prompts import masks_from_boxes, masks_from_points
from TextRegionSegmenter import TextRegionSegmenter

IMAGE = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
BOXES = [[10, 20, 130, 201], [0, 0, 256, 256], [100.5, 3, 113, 30.25]]
POINTS = [[31, 43], [200, 101], [0, 256]]


@pytest.fixture(scope="module")
def generator(tiny_sam2):
    return Sam2MaskGenerator(tiny_sam2)


@pytest.fixture(scope="module")
def predictor(tiny_sam2):
    """The package's own, at the model's own input size, where its resizing does nothing."""
    predictor = SAM2ImagePredictor(tiny_sam2)
    predictor._bb_feat_sizes = [(64, 64), (32, 32), (16, 16)]
    predictor.set_image(IMAGE)
    return predictor


def expected(predictor, multimask_output, **prompt):
    """(R, 64, 64) logits of the best output, and its predicted IoU."""
    _, scores, logits = predictor.predict(multimask_output=multimask_output, return_logits=True, **prompt)
    logits, scores = logits.reshape(-1, *logits.shape[-3:]), scores.reshape(-1, scores.shape[-1])
    best = scores.argmax(1)
    return logits[np.arange(len(best)), best], scores[np.arange(len(best)), best]


@pytest.mark.parametrize("multimask_output", [False, True])
def test_boxes_give_what_the_package_gives(generator, predictor, multimask_output):
    masks = masks_from_boxes(generator, IMAGE, BOXES, multimask_output)
    logits, scores = expected(predictor, multimask_output, box=np.array(BOXES))
    assert len(masks) == 3
    np.testing.assert_allclose(masks.soft.float().numpy(), logits, atol=0.02)
    np.testing.assert_allclose(masks.predicted_iou.numpy(), scores, atol=1e-3)


@pytest.mark.parametrize("multimask_output", [False, True])
def test_points_give_what_the_package_gives(generator, predictor, multimask_output):
    masks = masks_from_points(generator, IMAGE, POINTS, multimask_output=multimask_output)
    prompt = {"point_coords": np.array(POINTS)[:, None], "point_labels": np.ones((3, 1), int)}
    logits, scores = expected(predictor, multimask_output, **prompt)
    np.testing.assert_allclose(masks.soft.float().numpy(), logits, atol=0.02)
    np.testing.assert_allclose(masks.predicted_iou.numpy(), scores, atol=1e-3)


def test_groups_of_points_with_labels(generator, predictor):
    points, labels = [[[31, 43], [60, 50]], [[200, 101], [20, 20]]], [[1, 0], [1, 1]]
    masks = masks_from_points(generator, IMAGE, points, labels)
    logits, _ = expected(predictor, True, point_coords=np.array(points), point_labels=np.array(labels))
    np.testing.assert_allclose(masks.soft.float().numpy(), logits, atol=0.02)


def test_regions_come_in_the_order_of_the_prompts_whatever_the_batch(tiny_sam2, generator):
    one_by_one = Sam2MaskGenerator(tiny_sam2, points_per_batch=1)
    together, apart = (masks_from_boxes(g, IMAGE, BOXES).soft.float() for g in (generator, one_by_one))
    torch.testing.assert_close(together, apart, atol=0.01, rtol=0)
    turned = masks_from_boxes(generator, IMAGE, BOXES[::-1]).soft.float()
    torch.testing.assert_close(turned.flip(0), together, atol=0.01, rtol=0)


def test_no_prompt_is_no_region(generator):
    assert len(masks_from_boxes(generator, IMAGE, [])) == 0
    assert len(masks_from_points(generator, IMAGE, np.zeros((0, 2)))) == 0


def test_prompts_are_in_pixels_of_the_original_image(generator):
    half = np.ascontiguousarray(IMAGE[::2, ::2])
    direct = BoxMaskGenerator(generator, np.array(BOXES) / 2).generate(half)
    scaled = BoxMaskGenerator(generator, BOXES).generate(half, image_size=(256, 256))
    assert torch.equal(direct.soft, scaled.soft)
    assert (direct.image_size, scaled.image_size) == ((128, 128), (256, 256))


def test_a_segmenter_gives_tokens_of_boxes(tiny_clip, generator):
    image = np.random.default_rng(8).integers(0, 256, (61, 97, 3), dtype=np.uint8)
    segmenter = TextRegionSegmenter(tiny_clip, generator, scale=(128, 96), global_patch_threshold=None, device="cpu")
    masks = masks_from_boxes(segmenter, image, [[3, 5, 60, 50], [0, 0, 97, 61]])
    assert masks.image_size == (61, 97)
    assert masks.mask_size == segmenter.resize(image).shape[:2]
    regions = segmenter.encode_image(image, masks=masks)
    assert regions.source_index.tolist() == [r for r in range(2) if masks.soft[r].sum() > 0]
    segmenter = TextRegionSegmenter(tiny_clip, generator, scale=(128, 96), mask_size="original", device="cpu")
    assert masks_from_points(segmenter, image, [[3, 5]]).mask_size == (61, 97)


@pytest.mark.parametrize(
    ("boxes", "line"),
    [
        ([[0, 0, 258, 9]], r"box 0 at \[0\.0, 0\.0, 258\.0, 9\.0\] lies outside the image of 256 x 256"),
        ([[5, 5, 9, 9], [-2, 0, 7, 9]], "box 1 at"),
        ([[9, 0, 9, 7]], "expected x1 < x2 and y1 < y2"),
        ([[9, 8, 3, 9]], "expected x1 < x2 and y1 < y2"),
        ([[1, 2, 3]], r"got boxes of shape \(1, 3\), expected finite numbers \(R, 4\)"),
        ([1, 2, 3, 4], r"got boxes of shape \(4,\)"),
        ([[1, 2, 3, float("nan")]], "expected finite numbers"),
        ([["a", 2, 3, 4]], "that are no numbers of one shape"),
        ([[1, 2, 3, 4], [1]], "that are no numbers of one shape"),
    ],
)
def test_bad_boxes_are_one_line(generator, boxes, line):
    with pytest.raises(InputError, match=line) as error:
        masks_from_boxes(generator, IMAGE, boxes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("points", "labels", "line"),
    [
        ([[3, 257]], None, "point 0 at"),
        ([[3, 4, 5]], None, "got points of shape"),
        ([[3, 4]], [[2]], "expected .* of 0 and 1"),
        ([[3, 4]], [[1], [1]], r"got labels of shape \(2, 1\), expected \(1, 1\)"),
    ],
)
def test_bad_points_are_one_line(generator, points, labels, line):
    with pytest.raises(InputError, match=line) as error:
        masks_from_points(generator, IMAGE, points, labels)
    assert "\n" not in str(error.value)


def test_without_sam2_there_is_nobody_to_ask(tiny_clip, untyped):
    segmenter = TextRegionSegmenter(tiny_clip, device="cpu")
    with pytest.raises(InputError, match="without SAM 2"):
        masks_from_boxes(segmenter, IMAGE, BOXES)
    with pytest.raises(InputError, match="expected a Sam2MaskGenerator"):
        PointMaskGenerator(SlicMasks(), POINTS)
