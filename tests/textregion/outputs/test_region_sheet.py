"""Every region on its own, with what is said of it."""

import numpy as np
import pytest
import torch

from textregion.outputs.annotations import region_rows
from textregion.outputs.pictures import CELL, COLUMNS, MARGIN, SIDE, region_picture, region_sheet
from textregion.resampling import crop_regions
from textregion.types import RegionMasks, RegionTokens

RED = np.array([255, 0, 0], np.uint8)
COLOURS = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250]], np.uint8)


@pytest.fixture
def parts():
    """An image of 40 x 60, seven regions: row, crops."""
    soft = torch.zeros(7, 40, 60)
    for r in range(7):
        soft[r, r : 3 * r + 4, 5 * r : 5 * r + 9] = 3
    masks = RegionMasks(soft, (40, 60))
    tokens = RegionTokens(torch.eye(7), masks, torch.arange(7), (2, 2))
    image = np.random.default_rng(0).integers(0, 200, (40, 60, 3), dtype=np.uint8)
    rows = region_rows(tokens, torch.eye(3, 7), ["dog", "a very long label that has no room at all", "дерево"])
    return image, rows, crop_regions(masks)


def test_picture_shows_the_region_and_fades_the_rest():
    image = np.full((60, 60, 3), 100, np.uint8)
    soft = torch.zeros(1, 60, 60)
    soft[0, 20:40, 20:40] = 3
    (crop,) = crop_regions(RegionMasks(soft, (60, 60)))
    picture = region_picture(image, crop, RED, side=130)
    assert picture.shape == (130, 130, 3)
    assert (picture[65, 65] == 100).all()
    assert (picture[2, 2] == np.round(0.3 * 100 + 0.7 * 255)).all()
    outline = (picture == RED).all(2)
    assert outline[65].nonzero()[0].min() == pytest.approx((20 - 15) * 130 / 30, abs=4)
    assert not outline[50:80, 50:80].any()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (37, 41)])
def test_picture_of_any_shape_fits_its_side(size):
    masks = RegionMasks(torch.full((1, 3, 3), 3.0), size)
    picture = region_picture(np.zeros((*size, 3), np.uint8), crop_regions(masks)[0], RED)
    assert max(picture.shape[:2]) == SIDE


def test_a_region_without_a_pixel_shows_the_image():
    (crop,) = crop_regions(RegionMasks(torch.zeros(1, 3, 3), (20, 30)))
    assert region_picture(np.zeros((20, 30, 3), np.uint8), crop, RED).shape == (round(20 * SIDE / 30), SIDE, 3)


def test_large_regions_come_first_in_their_best_labels_colours(parts):
    image, rows, crops = parts
    sheet = np.asarray(region_sheet(image, rows, crops, COLOURS))
    assert sheet.shape[1] == COLUMNS * CELL[0] + MARGIN
    for n, r in enumerate((6, 5, 4, 3, 2, 1, 0)):
        y, x = MARGIN + n // COLUMNS * CELL[1] + SIDE + 11, MARGIN + n % COLUMNS * CELL[0] + 5
        assert (sheet[y, x] == COLOURS[rows[r]["labels"][0]["index"]]).all()
    assert (sheet[:, [0, -1]] == 255).all()  # nothing is cut at the sides


def test_of_many_only_the_largest_and_a_note(parts, monkeypatch):
    image, rows, crops = parts
    said = []
    monkeypatch.setattr(
        "textregion.outputs.pictures.footer", lambda legend, note, *more: said.append(note) or empty(*more)
    )
    from PIL import Image

    def empty(width, size):
        return Image.new("RGB", (width, 10))

    whole, some = region_sheet(image, rows, crops, COLOURS), region_sheet(image, rows, crops, COLOURS, most=2)
    assert whole.height - some.height == CELL[1]
    assert said[0].startswith("7 regions.")
    assert said[1].startswith("The 2 largest of 7 regions; all are in regions.json.")
    assert region_sheet(image, [], [], COLOURS).size[0] == 3 * CELL[0] + MARGIN
    assert said[2] == "No region found."
