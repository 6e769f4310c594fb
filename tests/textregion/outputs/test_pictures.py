"""Pictures: what is drawn where."""

import numpy as np
import pytest
import torch
from PIL import Image

from textregion.outputs.pictures import (
    MARGIN,
    WIDEST,
    draw_box,
    draw_regions,
    grey,
    heat_map,
    outline,
    overlay,
    palette,
    sheet,
    with_footer,
)
from textregion.types import RegionMasks, Segmentation


@pytest.fixture
def halves() -> Segmentation:
    labels = np.zeros((7, 11), np.int64)
    labels[:, 5:] = 1
    return Segmentation(labels, np.ones((7, 11), np.float32), labels.copy(), ("left", "right"))


def test_palette_is_stable_and_distinct():
    colours = palette(40)
    assert (palette(7) == colours[:7]).all()
    assert len({tuple(c) for c in colours.tolist()}) == 40


def test_label_map_png_round_trip(tmp_path, halves):
    halves.save_png(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as image:
        assert image.mode == "P"
        assert (np.asarray(image) == halves.label_map).all()
        assert image.getpalette()[:6] == halves.palette.ravel().tolist()


def test_label_map_above_256_labels_is_16_bit(tmp_path):
    labels = np.arange(300).reshape(15, 20)
    many = Segmentation(labels, np.ones((15, 20), np.float32), labels, tuple(map(str, range(300))))
    many.save_png(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as image:
        assert (np.asarray(image) == labels).all()


def test_overlay_blends_grey_with_label_colour(halves):
    image = np.random.default_rng(0).integers(0, 255, (7, 11, 3), dtype=np.uint8)
    out = overlay(image, halves, opacity=0.25)
    expected = 0.75 * grey(image)[3, 2] + 0.25 * halves.palette[0]
    assert np.abs(out[3, 2] - expected).max() <= 0.5
    assert (out[:, 5] == 255).all()


def test_overlay_is_fainter_without_a_region(halves):
    bare = Segmentation(halves.label_map, halves.confidence, halves.region_map * 0 - 1, halves.labels)
    image = np.full((7, 11, 3), 100, np.uint8)
    assert np.abs(overlay(image, bare, 0.5)[3, 2] - (75 + 0.25 * halves.palette[0])).max() <= 0.5


def test_overlay_takes_an_image_of_another_size(halves):
    assert overlay(np.zeros((14, 22, 3), np.uint8), halves).shape == (7, 11, 3)


def test_outline_marks_changes_only():
    index = np.zeros((5, 5), int)
    index[2:, :] = 1
    out = outline(np.zeros((5, 5, 3), np.uint8), index)
    assert (out[2] == 255).all()
    assert not out[[0, 1, 3, 4]].any()


def test_small_regions_are_drawn_over_large_ones():
    masks = torch.zeros(2, 13, 17)
    masks[0, 4:8, 4:8] = 1
    masks[1] = 1
    image = np.full((13, 17, 3), 90, np.uint8)
    out = draw_regions(image, RegionMasks.from_array(masks, (13, 17)), opacity=1.0)
    assert not (out[6, 6] == out[1, 1]).all()


def test_heat_map_hatches_removed_patches():
    scores = np.array([[0.0, 1.0]], np.float32)
    out = heat_map(np.zeros((8, 16, 3), np.uint8), scores, scores < 0.5)
    assert (out[:, :8] == 255).all(2).sum() == 16
    assert not (out[:, 8:] == 255).all(2).any()


def test_box_is_drawn_on_a_copy():
    image = np.zeros((20, 20, 3), np.uint8)
    out = draw_box(image, (4.0, 5.0, 8.0, 9.0), colour=(1, 2, 3))
    assert not image.any()
    assert tuple(out[5, 4]) == tuple(out[14, 12]) == (1, 2, 3)


def test_sheet_holds_all_panels_and_wraps_the_legend():
    panels = [("one", np.zeros((240, 300, 3), np.uint8)), ("two", np.zeros((120, 120, 3), np.uint8))]
    few = sheet(panels, [(np.zeros(3), "a")])
    many = sheet(panels, [(np.zeros(3), f"label {i}") for i in range(40)])
    assert few.width == 300 + 240 + 3 * 16
    assert many.height > few.height


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_sheet_of_any_shape_is_bounded(size):
    picture = sheet([("title " * 50, np.zeros((*size, 3), np.uint8))] * 2, [(np.zeros(3), "x" * 999)], "note " * 99)
    assert 400 < picture.width <= 2 * (WIDEST + MARGIN) + MARGIN
    assert picture.height < 1200
    edges = np.asarray(picture)[:, [0, 1, -2, -1]]
    assert (edges == 255).all()


def test_footer_grows_with_the_picture():
    small = with_footer(np.zeros((10, 480, 3), np.uint8), [(np.zeros(3), "word")])
    large = with_footer(np.zeros((10, 3000, 3), np.uint8), [(np.zeros(3), "word")])
    assert large.height - 10 > 2 * (small.height - 10)
