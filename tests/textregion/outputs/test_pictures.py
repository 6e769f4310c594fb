"""Pictures of one image: what is drawn where, values where they can be read off, sizes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from textregion.outputs.annotations import region_rows
from textregion.outputs.pictures import (
    MARGIN,
    MOST_IN_LEGEND,
    boxes_picture,
    draw_box,
    draw_regions,
    faint_note,
    global_patch_picture,
    heat_map,
    labels_over,
    legend,
    main_picture,
    overlay_picture,
    region_sheet,
    sentences,
    sheet,
    shown_factor,
    similarity_picture,
    size_note,
    turbo,
)
from textregion.render import grey, label_colours
from textregion.resampling import crop_regions
from textregion.types import RegionMasks, RegionTokens, Segmentation


def test_small_regions_are_drawn_over_large_ones():
    masks = torch.zeros(2, 13, 17)
    masks[0, 4:8, 4:8] = 1
    masks[1] = 1
    image = np.full((13, 17, 3), 90, np.uint8)
    image[4:8, 4:8] = 250
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


TOKENS = RegionTokens(torch.eye(1), RegionMasks(torch.ones(1, 1, 1), (1, 1)), torch.arange(1), (1, 1))


def labelled(label_map: np.ndarray, labels: tuple[str, ...]) -> Segmentation:
    return Segmentation(label_map, np.ones(label_map.shape, np.float32), label_map * 0, labels)


def test_legend_of_very_many_labels_has_the_largest():
    label_map = np.repeat(np.arange(100), np.arange(1, 101)).reshape(1, -1)
    entries, note = legend(labelled(label_map, tuple(f"w{i}" for i in range(100))), TOKENS)
    assert len(entries) == MOST_IN_LEGEND
    assert [words.split()[0] for _, words in entries] == [f"w{i}" for i in range(100 - MOST_IN_LEGEND, 100)]
    assert note == f"{100 - MOST_IN_LEGEND} more labels: labels.json"
    assert legend(labelled(np.zeros((1, 1), int), ("a",)), TOKENS)[1] == ""
    few = np.array([[7, 7, 99]])
    entries, _ = legend(labelled(few, tuple(f"w{i}" for i in range(100))), TOKENS)
    assert [words for _, words in entries] == ["w7 67%", "w99 33%"]
    assert len(legend(labelled(few * 0, tuple("abc")), TOKENS)[0]) == 3


def test_without_any_region_no_label_is_drawn_or_told():
    """The label map holds the first label everywhere, which means nothing: grey, no legend, and the note."""
    bare = replace(labelled(np.zeros((40, 480), int), ("a", "b")), region_map=np.full((40, 480), -1))
    image = np.random.default_rng(0).integers(0, 255, (40, 480, 3), dtype=np.uint8)
    assert legend(bare, TOKENS) == ([], "")
    picture = np.asarray(overlay_picture(image, bare, TOKENS, "no region found"))
    assert (picture[:40] == grey(image)).all()
    assert (picture == picture[..., :1]).all()  # no coloured square
    assert (picture[40:] < 200).any()  # words
    assert np.asarray(overlay_picture(image, bare, TOKENS)).shape[0] < picture.shape[0]


def test_a_note_stands_under_every_picture():
    image, crops = np.full((53, 67, 3), 90, np.uint8), crop_regions(RegionMasks(torch.ones(1, 53, 67), (53, 67)))
    found, note = labelled(np.zeros((53, 67), int), ("a",)), "random weights: labels and scores mean nothing"
    rows = region_rows(TOKENS, torch.eye(1), ["a"], crops=crops)
    made = {
        "picture": lambda said: main_picture(image, TOKENS, found, crops, said),
        "overlay": lambda said: overlay_picture(image, found, TOKENS, said),
        "regions": lambda said: region_sheet(image, rows, crops, found.palette, said),
        "no region": lambda said: region_sheet(image, [], [], found.palette, said),
        "similarity": lambda said: similarity_picture(image, np.zeros((53, 67), np.float32), "a", 0, 1, said),
        "patches": lambda said: global_patch_picture(image, np.eye(2, dtype=np.float32), 0.1, said),
        "boxes": lambda said: boxes_picture(image, [], found.palette, said),
    }
    for name, make in made.items():
        plain, said = np.asarray(make("")), np.asarray(make(note))
        foot = said[-24:] if name != "no region" else said
        assert (foot < 200).any(), name
        assert plain.shape != said.shape or (plain != said).any(), name


def test_regions_are_drawn_in_pale_colours_of_their_own():
    image = np.full((20, 30, 3), 255, np.uint8)
    image[:, :15] = 200, 40, 40
    soft = torch.zeros(2, 20, 30)
    soft[0, :, :15] = soft[1, :, 15:] = 1
    out = draw_regions(image, RegionMasks(soft, (20, 30)), opacity=1.0)
    assert out[10, 5].tolist() == [168, 74, 74]
    assert out[10, 25].tolist() == [200, 200, 200]  # on white, too, a white line shows
    assert (out[:, 15] == 255).all()


def test_the_legend_tells_what_grey_and_pale_mean():
    label_map = np.repeat(np.array([[0, 1, -1, -1]]), 50, 0)
    found = labelled(label_map, ("a", "b"))
    entries, _ = legend(found, TOKENS)
    assert [words for _, words in entries] == ["a 25%", "b 25%", "grey: no label 50%"]
    assert faint_note(found, TOKENS) == ""
    half = replace(found, region_map=np.where(np.arange(4) > 0, 0, -1) + label_map * 0)
    assert faint_note(half, TOKENS) == "fainter: in no region"
    assert faint_note(half, None) == "fainter: no label is sure enough"
    assert faint_note(replace(half, label_map=np.where(half.region_map < 0, -1, 1)), TOKENS) == ""


def test_panels_have_the_images_size_or_a_multiple_that_is_said():
    assert [shown_factor(size) for size in ((20, 20), (240, 9), (200, 300), (500, 1600), (1280, 9), (20, 900))] == [
        *(12, 1, 2, 1, 0.5, 1)
    ]
    assert shown_factor((100, 3200)) == 0.5
    assert size_note(12) == "shown at 12 times the size"
    assert size_note(0.5) == "shown at 0.5 of the size"
    assert size_note(1) == ""
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    large = np.asarray(main_picture(image, TOKENS, labelled(np.zeros((60, 80), int), ("a",)), [], ""))
    assert (large[MARGIN + 20 :, MARGIN:][:240, :320] == image.repeat(4, 0).repeat(4, 1)).all()


def test_outlines_are_thin_on_an_enlarged_image():
    label_map = np.zeros((20, 20), int)
    label_map[7, 7] = 1
    picture = labels_over(np.zeros((20, 20, 3), np.uint8), labelled(label_map, ("a", "b")), TOKENS, 12)
    assert picture.shape == (240, 240, 3)
    assert (picture[90, 90] == (0.6 * label_colours(("a", "b"))[1]).round()).all()  # the middle of the one pixel


def test_wide_panels_stand_one_below_the_other():
    panels = [("a", np.zeros((60, 1500, 3), np.uint8))] * 3
    assert sheet(panels).size[0] == 1500 + 2 * MARGIN
    assert sheet(panels[:2]).size[0] == 2 * 1500 + 3 * MARGIN


def test_names_of_boxes_do_not_cover_each_other():
    labels = [{"index": 0, "name": "a", "score": 1.0}]
    rows = [{"box": n, "xyxy": [10, 300, 500, 700], "labels": labels} for n in range(3)]
    colours = np.array([[255, 0, 0]], np.uint8)
    strips = (np.asarray(boxes_picture(np.full((800, 800, 3), 90, np.uint8), rows, colours))[:, 12] == colours[0]).all(
        1
    )
    assert strips[:700].sum() >= 3 * 18


def test_notes_become_sentences():
    assert sentences("", "no region found", "random weights: x.", "") == "No region found. Random weights: x."
    assert sentences() == sentences("") == ""


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (700, 3), (53, 67)])
def test_overlay_keeps_the_image_in_its_own_size(size):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    found = labelled(np.zeros(size, np.int64), ("дерево", "x" * 3000, "犬"))
    picture = np.asarray(overlay_picture(image, found, TOKENS))
    assert (picture[: size[0], : size[1]] == found.overlay(image)).all()
    assert picture.shape[0] > size[0] + MARGIN
    assert (picture[size[0] :, -MARGIN // 2 :] == 255).all()  # no letters at the edge


def test_similarity_is_coloured_by_value_and_grey_where_unknown():
    image = np.full((240, 480, 3), 80, np.uint8)
    values = np.full((240, 480), np.nan, np.float32)
    values[:, :160], values[:, 160:320] = -0.1, 0.3
    picture = np.asarray(similarity_picture(image, values, "dog", -0.1, 0.3)).astype(int)
    left = MARGIN + 480 + MARGIN
    row = picture[MARGIN + 20 + 120]
    scale = turbo(np.array([[0, 255]], np.uint8))[0].astype(int)
    assert np.abs(row[left + 80] - (0.4 * 80 + 0.6 * scale[0])).max() <= 1
    assert np.abs(row[left + 240] - (0.4 * 80 + 0.6 * scale[1])).max() <= 1
    assert (row[left + 400] == 80).all()


def test_similarity_of_one_value_only():
    values = np.full((5, 7), 0.2, np.float32)
    assert similarity_picture(np.zeros((5, 7, 3), np.uint8), values, "a", 0.2, 0.2).width >= 480


def test_global_patches_are_hatched_where_removed():
    scores = np.array([[0.0, 0.5]], np.float32)
    picture = np.asarray(global_patch_picture(np.zeros((240, 480, 3), np.uint8), scores, 0.07))
    left, top = MARGIN + 480 + MARGIN, MARGIN + 20
    panel = picture[top : top + 240, left : left + 480]
    assert (panel[:, :240] == 255).all(2).mean() == pytest.approx(0.25, abs=0.02)
    assert not (panel[:, 240:] == 255).all(2).any()
