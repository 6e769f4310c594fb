"""Boxes of an image through both methods, by the segmenter and by its presets."""

import numpy as np
import pytest
import torch
from PIL import Image

from textregion.errors import InputError
from textregion.masks import Sam2MaskGenerator
from textregion.masks.prompts import masks_from_boxes
from textregion.regionspot import loading
from textregion.regionspot.box_tokens import Sam2BoxTokens
from textregion.regionspot.loading import save_head
from textregion.regionspot.model import RegionSpot, RegionSpotHead
from textregion.tiny.scenes import draw_scene
from TextRegionSegmenter import TextRegionSegmenter

IMAGE = np.random.default_rng(1).integers(0, 256, (61, 97, 3), dtype=np.uint8)
BOXES = [[3, 5, 60, 50], [0, 0, 97, 61], [40.5, 30, 44, 60]]
METHODS = ("textregion", "regionspot")


@pytest.fixture(scope="module")
def segmenter(tiny_clip, tiny_sam2):
    generator = Sam2MaskGenerator(tiny_sam2)
    segmenter = TextRegionSegmenter(tiny_clip, generator, recipe="semantic", scale=(128, 96), device="cpu")
    torch.manual_seed(2)
    source = Sam2BoxTokens(generator)
    segmenter.regionspot = RegionSpot(tiny_clip, source, RegionSpotHead(32, 24, source.token_width, 16))
    return segmenter


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A head for the tiny models, in the place of the shipped one."""
    torch.manual_seed(2)
    head, path = RegionSpotHead(192, 128, 96, 16, 1), tmp_path / "head.safetensors"
    save_head(path, head, {"clip": "tiny", "side": 96, "sam": "sam2:tinyworld"}, half=True)
    monkeypatch.setattr(loading, "SHIPPED_HEAD", path)
    return path


def test_textregion_is_given_masks(segmenter):
    found = segmenter.encode_boxes(IMAGE, BOXES)
    expected = segmenter.encode_image(IMAGE, masks_from_boxes(segmenter, IMAGE, BOXES))
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.source_index, expected.source_index)
    assert torch.equal(found.masks.soft, expected.masks.soft)


def test_textregion_may_pool_whole_boxes(tiny_clip):
    whole = TextRegionSegmenter(tiny_clip, recipe="semantic", scale=(128, 96), box_masks="box", device="cpu")
    masks = np.zeros((3, 61, 97), np.float32)
    for mask, (x1, y1, x2, y2) in zip(masks, [[3, 5, 60, 50], [0, 0, 97, 61], [40, 30, 44, 60]], strict=True):
        mask[y1:y2, x1:x2] = 1
    masks[2, 30:60, 40] = 0.5  # half of this column lies in the box
    expected = whole.encode_image(IMAGE, masks)
    found = whole.encode_boxes(IMAGE, BOXES)
    torch.testing.assert_close(found.tokens, expected.tokens, atol=1e-5, rtol=0)


def test_regionspot_is_the_model_s_own_encode(segmenter):
    found = segmenter.encode_boxes(IMAGE, BOXES, "regionspot")
    assert torch.equal(found.tokens, segmenter.regionspot.encode(IMAGE, BOXES).tokens)
    assert (found.recipe, found.source_index.tolist()) == ("regionspot", [0, 1, 2])
    text = segmenter.encode_text(["dog", "cat"])
    assert found.similarity(text).shape == (3, 2)


@pytest.mark.parametrize("method", METHODS)
def test_no_box_is_a_normal_result(segmenter, method):
    found = segmenter.encode_boxes(IMAGE, np.zeros((0, 4)), method)
    assert (len(found), len(found.masks), found.masks.image_size) == (0, 0, (61, 97))


@pytest.mark.parametrize("method", METHODS)
def test_images_of_any_kind_and_boxes_of_any_kind(segmenter, method, tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    expected = segmenter.encode_boxes(IMAGE, BOXES, method).tokens
    for boxes in (np.array(BOXES), torch.tensor(BOXES)):
        torch.testing.assert_close(segmenter.encode_boxes(tmp_path / "image.png", boxes, method).tokens, expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("boxes", "line"),
    [
        ([[0, 0, 9, 9], [5, 5, 5, 9]], "box 1 at .* expected x1 < x2"),
        ([[0, 0, 99, 9]], "box 0 at .* lies outside the image of 97 x 61"),
        ([[0, 0, 9]], "got boxes of shape"),
        ([["x", 0, 9, 9]], "no numbers"),
    ],
)
def test_bad_boxes_are_one_line(segmenter, method, boxes, line):
    with pytest.raises(InputError, match=line):
        segmenter.encode_boxes(IMAGE, boxes, method)


def test_a_method_that_does_not_exist(segmenter):
    with pytest.raises(InputError, match="expected one of textregion, regionspot"):
        segmenter.encode_boxes(IMAGE, BOXES, "magic")


def test_the_tiny_preset_brings_its_head_when_asked(shipped):
    segmenter = TextRegionSegmenter.from_preset("tiny", device="cpu")
    assert segmenter.regionspot is None
    found = segmenter.encode_boxes(draw_scene(3).image, [[9, 9, 90, 80], [100, 20, 200, 250]], "regionspot")
    torch.testing.assert_close(found.tokens.norm(dim=1), torch.ones(2))
    assert segmenter.regionspot.side == 96
    assert not segmenter.regionspot.head.isolate


def test_options_of_presets_reach_the_head(shipped):
    options = {"regionspot_checkpoint": shipped, "regionspot_isolate": True, "regionspot_use_class_token": False}
    head = TextRegionSegmenter.from_preset("tiny", device="cpu", **options).regionspot.head
    assert (head.isolate, head.use_class_token) == (True, False)


def test_presets_without_a_head_say_what_they_need(segmenter, tiny_clip):
    bare = TextRegionSegmenter(tiny_clip, segmenter.mask_generator, device="cpu")
    bare.backbone.name, name = "clip-vit-b16", bare.backbone.name
    try:
        with pytest.raises(InputError, match="no RegionSpot head is shipped for clip-vit-b16; give one as"):
            bare.encode_boxes(IMAGE, BOXES, "regionspot")
    finally:
        bare.backbone.name = name


@pytest.mark.parametrize("option", ["regionspot_checkpoint", "sam1_checkpoint"])
def test_a_file_that_does_not_exist_is_found_before_anything_is_loaded(option):
    with pytest.raises(InputError, match=r"no file nowhere\.pth"):
        TextRegionSegmenter.from_preset("clip-vit-l14", **{option: "nowhere.pth"})
