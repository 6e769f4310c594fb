import numpy as np
import pytest
import torch
from torch.nn import functional as F

from textregion.boxes import GivenBoxes
from textregion.outputs.annotations import box_rows
from textregion.outputs.folder import name_boxes
from textregion.outputs.pictures import MOST_BOXES, boxes_picture
from textregion.types import RegionMasks, RegionTokens
from TextRegionSegmenter import TextRegionSegmenter

COLOURS = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [250, 250, 10]], np.uint8)
BOXES = np.array([[1, 2, 30, 40], [5, 5, 20.25, 25], [0, 0, 50, 45]], np.float32)
IMAGE = np.full((45, 53, 3), 90, np.uint8)


def tokens_of(kept, random) -> RegionTokens:
    masks = RegionMasks(torch.ones(len(kept), 3, 3), (45, 53), predicted_iou=torch.arange(1.0, len(kept) + 1) / 8)
    unit = F.normalize(torch.randn(len(kept), 5, generator=random), dim=1)
    return RegionTokens(unit, masks, torch.tensor(kept, dtype=torch.int64), (3, 3))


@pytest.fixture
def text(random):
    return F.normalize(torch.randn(4, 5, generator=random), dim=1)


def test_rows_by_hand(random, text):
    tokens = tokens_of([0, 2], random)
    rows = box_rows(tokens, GivenBoxes(BOXES, np.array([0.5, 1, 0.25], np.float32)), text, ["a", "b; c", "d"], 7.0)
    cosine = (tokens.tokens @ text.T).numpy()
    share = np.exp(7 * cosine) / np.exp(7 * cosine).sum(1, keepdims=True)
    assert [row["region"] for row in rows] == [0, None, 1]
    assert [row["xyxy"] for row in rows] == BOXES.tolist()
    assert [row["detector_score"] for row in rows] == [0.5, 1, 0.25]
    assert [row["predicted_iou"] for row in rows] == [0.125, None, 0.25]
    assert rows[1]["labels"] == []
    for row, factor in ((rows[0], 0.5), (rows[2], 0.25)):
        r = row["region"]
        expected = [share[r, 0], max(share[r, 1:3]), share[r, 3]]
        assert [label["index"] for label in row["labels"]] == np.argsort(expected)[::-1].tolist()
        for label in row["labels"]:
            assert label["name"] == ["a", "b", "d"][label["index"]]
            assert label["probability"] == pytest.approx(expected[label["index"]], abs=1e-5)
            assert label["score"] == pytest.approx(factor * expected[label["index"]], abs=1e-5)
        assert row["labels"][0]["cosine"] == pytest.approx(cosine[r].max(), abs=1e-5)


def test_without_detector_scores_the_score_is_the_probability(random, text):
    rows = box_rows(tokens_of([0, 1, 2], random), GivenBoxes(BOXES), text, list("abcd"), 7.0, top=2)
    assert all(row["detector_score"] is None and len(row["labels"]) == 2 for row in rows)
    assert all(label["score"] == label["probability"] for row in rows for label in row["labels"])


def test_no_box_at_all(random, text):
    tokens = RegionTokens(torch.zeros(0, 5), RegionMasks.empty((45, 53)), torch.zeros(0, dtype=torch.int64), (3, 3))
    assert box_rows(tokens, GivenBoxes(np.zeros((0, 4), np.float32)), text, list("abcd"), 7.0) == []
    assert boxes_picture(IMAGE, [], COLOURS).size[0] == 16 * 53


def test_the_picture_shows_every_box_where_it_is(random, text):
    rows = box_rows(tokens_of([0, 2], random), GivenBoxes(BOXES), text, ["a", "very " * 40, "c", "\U0001f600"], 7.0)
    picture = np.asarray(boxes_picture(IMAGE, rows, COLOURS))
    factor = 16  # the first whole one that gives 800 pixels
    assert picture.shape[1] == factor * 53
    assert picture.shape[0] > round(45 * factor)
    for x1, y1, x2, y2 in BOXES.astype(float):
        y, x = round(factor * (y1 + y2) / 2), round(factor * (x1 + x2) / 2)
        assert (picture[y, round(factor * x1) + 1] != 90).any()
        assert (picture[round(factor * y2) - 1, x] != 90).any()


def test_of_very_many_boxes_the_best_are_drawn():
    def row(number, score):
        labels = [{"index": 0, "name": "a", "score": score}]
        return {"box": number, "xyxy": [5 * (number % 10), 0, 5 * (number % 10) + 4, 40], "labels": labels}

    few, many = (
        [row(n, 0.9) for n in range(MOST_BOXES)],
        [row(n, 0.9 if n < MOST_BOXES else 0.1) for n in range(MOST_BOXES + 30)],
    )
    drawn, cut = (np.asarray(boxes_picture(IMAGE, rows, COLOURS))[: 45 * 16] for rows in (few, many))
    assert np.array_equal(drawn, cut)


def test_boxes_files_say_that_there_is_no_region_and_what_else_is_to_be_said(tiny_clip):
    segmenter = TextRegionSegmenter(tiny_clip, scale=(64, 32), device="cpu")
    tokens = segmenter.encode_image(IMAGE, masks=np.zeros((1, *IMAGE.shape[:2]), bool))
    given = GivenBoxes(np.array([[1, 2, 9, 8]], np.float32))
    files = name_boxes(segmenter, IMAGE, tokens, given, ["a"], "textregion", "random weights")
    assert files["boxes.json"]["note"] == "no region found; random weights"
    assert [row["region"] for row in files["boxes.json"]["boxes"]] == [None]
