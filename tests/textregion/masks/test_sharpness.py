"""Exported masks are as sharp as SAM 2 makes them: against the sam2 package's own generator, and the truth."""

import numpy as np
import pytest
import torch
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

from textregion.masks import Sam2MaskGenerator, filters
from textregion.masks.prompts import masks_from_boxes
from textregion.tiny.models import load_sam2
from textregion.tiny.scenes import draw_scene
from textregion.types import LOGIT_CUT, RegionMasks

SCENES = range(600, 610)
SIZES = (256, 384)  # the model sees 256: of the larger scenes each program makes its own small image
SIDE = 4  # clicks a side: 48 candidates a scene
UNFILTERED = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Of two boolean masks; 1 for two empty ones."""
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 1.0


@pytest.fixture(scope="module")
def ious() -> dict[str, list[float]]:
    """IoU of every candidate with sam2's of the same click and output, sharp and as published, over all scenes."""
    model = load_sam2()
    ours = Sam2MaskGenerator(model, SIDE)
    theirs = SAM2AutomaticMaskGenerator(model, SIDE, **UNFILTERED)
    theirs.predictor._bb_feat_sizes = [(model.image_size // stride,) * 2 for stride in (4, 8, 16)]  # it knows 1024 only
    found: dict[str, list[float]] = {"sharp": [], "published": []}
    for scene in SCENES:
        image = draw_scene(scene, SIZES[scene % 2]).image
        clicks = filters.point_grid(SIDE)
        logits, scores, _ = ours.decode_with_tokens(ours.encode(image), clicks[:, None])
        masks = RegionMasks(logits.flatten(0, 1), image.shape[:2], image.shape[:2], cut=LOGIT_CUT)
        by_click = {tuple(p): n for n, p in enumerate((clicks * image.shape[0]).tolist())}
        forms = {"sharp": masks.binary().numpy(), "published": masks.published().numpy()}
        for answer in theirs.generate(image):
            click = by_click[tuple(answer["point_coords"][0])]
            output = int((scores[click] - answer["predicted_iou"]).abs().argmin())
            for name, form in forms.items():
                found[name].append(iou(form[3 * click + output], answer["segmentation"]))
    return found


def test_masks_of_the_same_click_are_those_of_sam2(ious):
    assert len(ious["sharp"]) > 0.5 * 3 * SIDE**2 * len(SCENES)
    assert np.mean(ious["sharp"]) >= 0.97
    assert np.mean(ious["published"]) < np.mean(ious["sharp"]) - 0.05


def test_they_are_nearer_to_the_truth():
    """Best mask of every object of drawn scenes; cut as published, each is wider than the object."""
    generator, sharp, wide = Sam2MaskGenerator(load_sam2(), 8, fuse_mask=False), [], []
    for scene in SCENES[:4]:
        drawn = draw_scene(scene)
        found = generator.generate(drawn.image)
        for name, masks in ((sharp, found.binary()), (wide, found.published())):
            name += [max(iou(mask, one) for one in masks.numpy()) for mask in drawn.masks]
    assert np.mean(sharp) > np.mean(wide) + 0.01


def test_given_boxes_and_clicks_keep_their_logits():
    image = draw_scene(3).image
    masks = masks_from_boxes(Sam2MaskGenerator(load_sam2()), image, [[20, 20, 120, 130]])
    assert masks.cut == 0
    assert masks.soft.min() < 0
    large = torch.nn.functional.interpolate(masks.soft[None].float(), image.shape[:2], mode="bilinear")[0]
    assert torch.equal(masks.binary(), large > 0)
