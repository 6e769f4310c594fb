"""Arrays to pictures and codes: colours, blends, outlines, label maps, masks that come back."""

import colorsys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from textregion.render import (
    APART,
    SHADES_APART,
    encode_mask,
    from_rle,
    grey,
    lab,
    label_colours,
    markdown_table,
    outline,
    palette,
    text_table,
    to_rle,
)
from textregion.types import Segmentation


@pytest.fixture
def halves() -> Segmentation:
    labels = np.zeros((7, 11), np.int64)
    labels[:, 5:] = 1
    return Segmentation(labels, np.ones((7, 11), np.float32), labels.copy(), ("left", "right"))


def test_palette_is_stable_and_distinct():
    colours = palette(40)
    assert (palette(7) == colours[:7]).all()
    assert len({tuple(c) for c in colours.tolist()}) == 40


def apart(colours: np.ndarray) -> float:
    """The least distance of two of some colours in CIE L*a*b*."""
    points = lab(colours)
    return min(np.linalg.norm(a - b) for n, a in enumerate(points) for b in points[:n])


def hue(colour: np.ndarray) -> float:
    """In degrees."""
    return 360 * colorsys.rgb_to_hsv(*(colour / 255).tolist())[0]


def test_a_label_has_the_colour_that_it_names():
    names = [
        "sky",
        "blue square",
        "yellow triangle",
        "white moon",
        "orange star",
        "Green grass",
        "thing",
        "dark-red cup",
    ]
    colours = label_colours(names)
    named = {0: 205, 1: 227, 2: 52, 4: 27, 5: 115, 7: 0}
    for n, degrees in named.items():
        assert abs((hue(colours[n]) - degrees + 180) % 360 - 180) < 12, names[n]
    assert apart(colours) >= SHADES_APART
    assert apart(label_colours([f"thing {n}" for n in range(8)])) >= APART
    assert apart(label_colours([f"thing {n}" for n in range(25)])) > 20 > apart(palette(25))
    assert apart(label_colours(["blue", "navy", "blue car", "blue sea"])) >= SHADES_APART


def test_further_labels_change_no_colour_and_all_differ():
    names = ["dog", "a red car", *(f"thing {n}" for n in range(298))]
    colours = label_colours(names)
    assert (label_colours(names[:7]) == colours[:7]).all()
    assert len({tuple(c) for c in colours[:150].tolist()}) == 150
    assert colours.shape == (300, 3)
    assert label_colours([]).shape == (0, 3)


@pytest.mark.parametrize("name", ["missing/folders/map.png", "no_ending", "map.jpg"])
def test_a_label_map_is_a_png_whatever_its_name_and_folder(tmp_path, halves, name):
    halves.save_png(tmp_path / name)
    with Image.open(tmp_path / name) as written:
        assert written.format == "PNG"
        assert (np.asarray(written) == halves.label_map).all()
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [Path(name).name]


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
    out = halves.overlay(image, opacity=0.25)
    expected = 0.75 * grey(image)[3, 2] + 0.25 * halves.palette[0]
    assert np.abs(out[3, 2] - expected).max() <= 0.5
    assert (out[:, 5] == 255).all()


def test_overlay_is_fainter_without_a_region(halves):
    bare = Segmentation(halves.label_map, halves.confidence, halves.region_map * 0 - 1, halves.labels)
    image = np.full((7, 11, 3), 100, np.uint8)
    assert np.abs(bare.overlay(image, 0.5)[3, 2] - (75 + 0.25 * halves.palette[0])).max() <= 0.5


def test_overlay_takes_an_image_of_another_size(halves):
    assert halves.overlay(np.zeros((14, 22, 3), np.uint8)).shape == (7, 11, 3)


def test_outline_marks_changes_only():
    index = np.zeros((5, 5), int)
    index[2:, :] = 1
    out = outline(np.zeros((5, 5, 3), np.uint8), index)
    assert (out[2] == 255).all()
    assert (out[[1, 3]] < 128).all()  # softened
    assert not out[[0, 4]].any()


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_masks_come_back_from_their_codes(dtype):
    mask = np.zeros((7, 11), bool)
    mask[2:5, 3:9] = True
    mask[3, 4] = False
    code = encode_mask(mask.astype(dtype))
    assert code["segmentation"] == to_rle(mask)
    assert (from_rle(code["segmentation"]) == mask).all()
    assert (code["area"], code["bbox"]) == (17, [3, 2, 6, 3])


def test_columns_are_as_wide_as_their_longest_cell():
    assert text_table(["name", "n"], [["a", "12"], ["longer", ""]]) == "name    n\na       12\nlonger"
    assert text_table(["name"], []) == "name"


def test_cells_cannot_break_a_markdown_table():
    lines = markdown_table(["a", "b"], [["x|y", "two\nlines "], [1.5, ""]])
    assert lines == ["| a | b |", "| --- | --- |", "| x\\|y | two lines |", "| 1.5 |  |"]
