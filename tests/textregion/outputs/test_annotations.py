"""What other programs read: the JSON says what the arrays hold, pycocotools and supervision read it."""

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from textregion.errors import InputError
from textregion.labeling import label_pixels
from textregion.labels import LabelPrompts, region_scores
from textregion.outputs.annotations import (
    coco_json,
    coco_regions_json,
    label_shares,
    labels_json,
    no_region_note,
    region_rows,
    similarity_map,
)
from textregion.resampling import crop_regions
from textregion.types import RegionMasks, RegionTokens, Segmentation

LABELS = ["cat; kitten", "sky", "red sofa"]  # four queries


@pytest.fixture
def result() -> Segmentation:
    label_map = np.array([[0, 0, 0, 2, 2], [0, 2, 2, 2, 2], [0, 0, 0, 0, 2]])
    confidence = np.where(label_map == 0, 0.25, 0.75).astype(np.float32)
    region_map = np.array([[0, 0, 0, 1, 1], [0, 1, 1, 1, -1], [0, 0, 0, -1, -1]])
    return Segmentation(label_map, confidence, region_map, ("cat", "sky", "red sofa"))


@pytest.fixture
def tokens() -> RegionTokens:
    """Two overlapping regions in 4 x 6 pixels, with axis vectors so that cosines are the text's entries."""
    masks = torch.zeros(2, 4, 6)
    masks[0, :2] = 1
    masks[1, 1:3, 1:4] = 1
    masks = RegionMasks(masks, (4, 6), predicted_iou=torch.tensor([0.9, 0.8]), stability=torch.tensor([0.99, 0.95]))
    return RegionTokens(torch.eye(2, 3), masks, torch.tensor([4, 7]), (2, 2))


@pytest.fixture
def text() -> torch.Tensor:
    """Four queries; only the cosines with the first two axes matter here."""
    return torch.tensor([[0.10, 0.20, 0.0], [0.13, 0.11, 0.0], [0.12, 0.24, 0.0], [0.05, 0.25, 0.0]])


def test_labels_json(result, tokens):
    found = labels_json(result, tokens, "take care")
    assert found["image"] == {"width": 5, "height": 3}
    assert (found["regions"], found["note"]) == (2, "take care")
    assert [e["pixels"] for e in found["labels"]] == [8, 0, 7]
    assert found["uncovered"] == pytest.approx(3 / 15)
    assert [(e["index"], e["name"]) for e in found["labels"]] == [(0, "cat"), (1, "sky"), (2, "red sofa")]
    assert [e["share"] for e in found["labels"]] == pytest.approx([8 / 15, 0, 7 / 15], abs=1e-5)
    assert [e["confidence"] for e in found["labels"]] == [0.25, None, 0.75]
    for entry, colour in zip(found["labels"], result.palette.tolist(), strict=True):
        assert [int(entry["colour"][i : i + 2], 16) for i in (1, 3, 5)] == colour
    assert json.loads(json.dumps(found)) == found


def test_region_rows_by_hand(tokens, text):
    first, second = region_rows(tokens, text, LABELS, top=2)
    assert (first["region"], first["mask"], first["box"], first["area"]) == (0, 4, [0, 0, 6, 2], 12)
    assert (second["region"], second["mask"], second["box"], second["area"]) == (1, 7, [1, 1, 4, 3], 6)
    assert (first["predicted_iou"], second["stability"]) == (0.9, 0.95)
    assert [e["name"] for e in first["labels"]] == ["cat", "sky"]
    assert [e["name"] for e in second["labels"]] == ["red sofa", "sky"]
    assert [e["cosine"] for e in first["labels"]] == pytest.approx([0.13, 0.12])
    weights = [math.exp(50 * cosine) for cosine in (0.10, 0.13, 0.12, 0.05)]
    expected = [weights[1] / sum(weights), weights[2] / sum(weights)]
    assert [e["probability"] for e in first["labels"]] == pytest.approx(expected, abs=1e-5)
    assert json.loads(json.dumps([first, second])) == [first, second]


def test_region_scores_are_those_of_a_pixel_that_one_region_covers(tiny_clip):
    """The same numbers as the label map's, bias and scale included."""
    random = torch.Generator().manual_seed(3)
    unit = torch.nn.functional.normalize(torch.randn(6, 8, generator=random), dim=1)
    masks = RegionMasks(torch.eye(2)[:, None], (1, 2))
    tokens = RegionTokens(unit[:2], masks, torch.arange(2), (1, 2), logit_scale=0.3, logit_bias=-0.1)
    prompts = LabelPrompts.parse(LABELS)
    pixels = label_pixels(tokens.logits(unit[2:]), masks, prompts, return_probabilities=True)
    cosine, probability = region_scores(tokens, unit[2:], prompts)
    np.testing.assert_allclose(probability.T, pixels.probabilities[:, 0], rtol=1e-5)
    assert (probability.argmax(1) == pixels.label_map[0]).all()
    every = replace(tokens, logit_scale=1.0).similarity(unit[2:]).numpy()
    np.testing.assert_array_equal(cosine, np.stack([every[:, :2].max(1), every[:, 2], every[:, 3]], 1))


def test_scores_and_text_must_belong_together(tokens, text):
    with pytest.raises(InputError, match="3 text embeddings for 4 queries"):
        region_rows(tokens, text[:3], LABELS)
    with pytest.raises(InputError, match="expected one for each of 2 regions"):
        similarity_map(tokens, torch.zeros(3))


@pytest.fixture
def none() -> RegionTokens:
    """No region in 3 x 5 pixels."""
    return RegionTokens(torch.zeros(0, 3), RegionMasks.empty((3, 5)), torch.zeros(0, dtype=torch.long), (1, 1))


def test_no_region_is_said_and_no_label_told(none, text):
    """The label map holds the first label everywhere (method 8.4): no share, no annotation, no confidence of it."""
    bare = label_pixels(none.logits(text), none.masks, LabelPrompts.parse(LABELS))
    assert (bare.label_map == 0).all()
    assert no_region_note(bare, none).startswith("no region found: the label map holds the first label")
    assert label_shares(bare, none) == []
    found = labels_json(bare, none, "x")
    assert (found["regions"], found["uncovered"]) == (0, 1.0)
    assert [(e["pixels"], e["share"], e["confidence"]) for e in found["labels"]] == [(0, 0.0, None)] * 3
    assert coco_json([("a.png", bare, none)], "x")["annotations"] == []
    assert coco_json([("a.png", bare, none)], "x")["info"]["note"] == "x"


def test_dense_features_label_where_no_region_lies(none, text, result):
    dense = replace(none, dense=torch.zeros(3, 1, 1))
    bare = replace(result, region_map=result.region_map * 0 - 1)
    assert no_region_note(bare, dense) == "no region found: labelled from dense features"
    assert (
        label_shares(bare, dense) == label_shares(result, none) == [("cat", 8 / 15), ("sky", 0), ("red sofa", 7 / 15)]
    )
    assert len(coco_json([("a.png", bare, dense)])["annotations"]) == 2
    assert no_region_note(result, none) == ""


def test_a_region_without_a_pixel_is_counted(tokens, text):
    """Its box and area are zero, and the COCO file, which cannot hold it, says that it is left out."""
    masks = replace(tokens.masks, soft=tokens.masks.soft * torch.tensor([0.0, 1.0])[:, None, None])
    tokens = replace(tokens, masks=masks)
    crops = crop_regions(masks)
    rows = region_rows(tokens, text, LABELS, crops=crops)
    assert [(row["box"], row["area"]) for row in rows] == [([0, 0, 0, 0], 0), ([1, 1, 4, 3], 6)]
    found = coco_regions_json("a.jpg", tokens, rows, ["cat", "sky", "red sofa"], crops, "take care")
    assert found["info"]["note"] == "take care; left out, for they cover no pixel: 1 of 2 regions"
    assert [a["region"] for a in found["annotations"]] == [1]


@pytest.mark.parametrize("seed", range(6))
def test_boxes_and_areas_are_those_of_the_mask_at_the_images_size(seed):
    """Masks of other sizes, with parts, and boxes of their own that are wider: the files have the mask's own."""
    random = torch.Generator().manual_seed(seed)
    soft = (torch.rand(9, 5, 7, generator=random) - 0.9).clamp(min=0)
    boxes = torch.tensor([[0.0, 0, 41, 29]]).expand(7, 4)
    masks = RegionMasks(soft, (29, 41), (17, 23), torch.tensor([0, 1, 2, 3, 4, 5, 6, 1, 3]), boxes)
    tokens = RegionTokens(torch.eye(7), masks, torch.arange(7), (2, 2))
    crops = crop_regions(masks)
    rows = region_rows(tokens, torch.eye(3, 7), ["a", "b", "c"], crops=crops)
    coco = coco_regions_json("a.png", tokens, rows, ["a", "b", "c"], crops)["annotations"]
    for row, mask in zip(rows, masks.binary().numpy(), strict=True):
        y, x = mask.nonzero()
        expected = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0]
        assert (row["box"], row["area"]) == (expected, len(x))
    for a in coco:
        x1, y1, x2, y2 = rows[a["region"]]["box"]
        assert a["bbox"] == [x1, y1, x2 - x1, y2 - y1] == coco_mask.toBbox(a["segmentation"]).tolist()
        assert a["area"] == rows[a["region"]]["area"] == coco_mask.area(a["segmentation"])


def test_no_region_is_a_normal_result(none, text):
    assert region_rows(none, text, LABELS) == []
    assert np.isnan(similarity_map(none, np.zeros(0, np.float32))).all()
    assert len(none.to_supervision(text, LABELS)) == 0


def test_similarity_map_is_the_maximum_over_the_regions_that_cover_a_pixel(tokens):
    nan = np.nan
    assert np.array_equal(
        similarity_map(tokens, torch.tensor([0.3, 0.2])),
        np.array([[0.3] * 6, [0.3] * 6, [nan, 0.2, 0.2, 0.2, nan, nan], [nan] * 6], np.float32),
        equal_nan=True,
    )


@pytest.mark.parametrize("seed", range(4))
def test_similarity_map_equals_the_slow_form(seed):
    random = torch.Generator().manual_seed(seed)
    soft = (torch.rand(17, 11, 7, generator=random) - 0.8).clamp(min=0)
    group = torch.cat([torch.arange(13), torch.randint(13, (4,), generator=random)])
    masks = RegionMasks(soft, (37, 31), (29, 23), group)
    unit = torch.nn.functional.normalize(torch.randn(13, 5, generator=random), dim=1)
    tokens, scores = RegionTokens(unit, masks, torch.arange(13), (2, 2)), torch.rand(13, generator=random) - 0.5
    stacked = np.where(masks.binary().numpy(), scores.numpy()[:, None, None], -np.inf).max(0)
    expected = np.where(np.isinf(stacked), np.nan, stacked)
    assert np.array_equal(similarity_map(tokens, scores), expected, equal_nan=True)
    assert np.array_equal(similarity_map(tokens, scores, crop_regions(masks)), expected, equal_nan=True)


def test_coco_file_of_label_maps_loads_and_decodes(tmp_path, result, tokens):
    other = Segmentation(np.ones((2, 3), np.int64), np.ones((2, 3), np.float32), np.zeros((2, 3), int), ("sky", "dog"))
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco_json([("a.jpg", result, tokens), ("b.jpg", other, tokens)])))
    coco = COCO(str(path))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["cat", "sky", "red sofa", "dog"]
    assert [(i["file_name"], i["width"], i["height"]) for i in coco.loadImgs([1, 2])] == [
        ("a.jpg", 5, 3),
        ("b.jpg", 3, 2),
    ]
    first = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert [a["category_id"] for a in first] == [1, 3]
    for annotation in first:
        mask = result.label_map == annotation["category_id"] - 1
        assert (coco.annToMask(annotation) == mask).all()
        assert annotation["area"] == mask.sum()
    assert first[1]["bbox"] == [1, 0, 4, 3]
    assert first[1]["score"] == pytest.approx(0.75)
    (dog,) = coco.loadAnns(coco.getAnnIds(imgIds=[2]))
    assert coco.loadCats(dog["category_id"])[0]["name"] == "dog"


def test_coco_file_of_regions_loads_and_decodes(tmp_path, tokens, text):
    crops, names = crop_regions(tokens.masks), ["cat", "sky", "red sofa"]
    rows = region_rows(tokens, text, LABELS, crops=crops)
    path = tmp_path / "coco_regions.json"
    path.write_text(json.dumps(coco_regions_json("a.jpg", tokens, rows, names, crops)))
    coco = COCO(str(path))
    annotations = coco.loadAnns(coco.getAnnIds())
    assert [(a["region"], a["category"]) for a in annotations] == [(0, "cat"), (1, "red sofa")]
    for annotation, mask in zip(annotations, tokens.masks.binary().numpy(), strict=True):
        assert (coco.annToMask(annotation) == mask).all()
        assert annotation["area"] == mask.sum()


def test_label_rle_decodes(result):
    for annotation in result.to_coco_rle():
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        assert (mask == result.mask(annotation["category_id"])).all()


def test_segmentation_as_detections(result):
    found = result.to_supervision()
    assert found.class_id.tolist() == [0, 2]
    assert found.data["class_name"].tolist() == ["cat", "red sofa"]
    assert found.confidence.tolist() == [0.25, 0.75]
    assert (found.mask == np.stack([result.mask(0), result.mask(2)])).all()
    assert found.xyxy.tolist() == [[0, 0, 4, 3], [1, 0, 5, 3]]


def test_regions_as_detections(tokens, text):
    found = tokens.to_supervision(text, LABELS)
    rows = region_rows(tokens, text, LABELS)
    assert found.data["class_name"].tolist() == ["cat", "red sofa"]
    assert found.class_id.tolist() == [0, 2]
    assert (found.mask == tokens.masks.binary().numpy()).all()
    assert found.xyxy.tolist() == [row["box"] for row in rows]
    assert found.confidence.tolist() == pytest.approx([row["labels"][0]["probability"] for row in rows], abs=1e-5)
    assert found.data["cosine"].tolist() == pytest.approx([0.13, 0.25])
    assert found[found.confidence > 2].xyxy.shape == (0, 4)


def test_supervision_draws_and_filters(result):
    import supervision

    found = result.to_supervision()
    drawn = supervision.MaskAnnotator().annotate(np.zeros((3, 5, 3), np.uint8), found[found.class_id == 2])
    assert (drawn.any(2) == result.mask(2)).all()


def test_missing_supervision_is_one_line(monkeypatch, result):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match=r"pip install 'textregion\[supervision\]'") as error:
        result.to_supervision()
    assert "\n" not in str(error.value)


def test_shares_keep_duplicate_labels(tokens):
    label_map = np.array([[0, 1, 1, 2]])
    result = Segmentation(label_map, np.ones((1, 4), np.float32), label_map * 0, ("a", "b", "b"))
    assert label_shares(result, tokens) == [("a", 0.25), ("b", 0.5), ("b", 0.25)]
