"""What the page shows for what the browser sends."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from textregion.errors import InputError
from textregion.web import views
from textregion.web.cached_segmenter import CachedSegmenter, Limits
from textregion.web.views import (
    EMPTY,
    HINT,
    LABELS,
    SENTENCE,
    Controls,
    DrawingOptions,
    largest_patch,
    page_content,
    save,
    share_of,
    words_read,
    write_names,
)


@pytest.fixture
def controls(scene_file):
    """controls(text, mode, …): the page's controls with the drawn scene uploaded."""

    def make(text="sand, brick", mode=LABELS, threshold=0, opacity=0.6, switches=("masks", "names")):
        upload = {"path": str(scene_file), "orig_name": "my scene.png"}
        return Controls(upload, mode, text, threshold, opacity, list(switches))

    return make


def test_an_empty_page_says_how_to_start(model):
    shown = page_content(model, Controls(None, LABELS, "sand", 0, 0.6, []))
    assert EMPTY in shown.notice
    assert (shown.picture, shown.answered) == (None, False)


@pytest.mark.parametrize("text", ["", "  ", ",, ;\n,"])
@pytest.mark.parametrize(("mode", "what"), [(LABELS, "type labels"), (SENTENCE, "type a sentence")])
def test_an_image_without_words_shows_its_regions(model, controls, text, mode, what):
    shown = page_content(model, controls(text, mode))
    assert what in shown.notice
    assert f"{len(model.open(controls().path).regions)} regions found" in shown.notice
    assert shown.picture.shape == (768, 768, 3)
    assert not shown.answered


def test_words_give_a_picture_a_legend_and_a_hint(model, controls):
    shown = page_content(model, controls("sand, zebra <i>"))
    assert "never saw: zebra, i." in shown.notice
    assert "zebra &lt;i&gt;" in shown.legend
    assert "<i>" not in shown.legend.replace('<i class="tr-swatch"', "")
    assert HINT in shown.scores
    assert shown.answered


def test_new_words_are_told_with_a_bar_while_they_take_long(model, controls, monkeypatch):
    assert list(words_read(model, controls("sand, brick"))) == []  # soon done
    monkeypatch.setattr(views, "SLOW_WORDS", 0.0)
    asked = controls("tower; chimney, a cloud, sand")
    first, second = words_read(model, asked)
    assert "Reading words: 1 of 3, about " in first
    assert '<progress max="3" value="2"></progress>' in second
    assert list(words_read(model, asked)) == []  # they are remembered
    assert list(words_read(model, controls(3))) == []  # page_content says why


def test_every_control_changes_the_picture(model, controls):
    pictures = [
        page_content(model, controls(**change)).picture
        for change in (
            {},
            {"text": "brick, water"},  # the other order of the same words changes nothing: colours follow the words
            {"threshold": 0.999999},
            {"opacity": 0.1},
            {"switches": ["masks"]},
            {"switches": ["names"]},
            {"switches": ["heat map"]},
            {"switches": ["heat map", "masks"]},
            {"mode": SENTENCE, "text": "the black ring"},
            {"mode": SENTENCE, "text": "the black ring", "switches": []},
        )
    ]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    assert (pictures[-1] == model.open(controls().path).shown).all()


def test_what_has_to_be_said_stands_on_the_page_and_on_its_files(model, controls):
    told = CachedSegmenter(model.segmenter, "clip-vit-b16", Limits(), "random weights: labels mean nothing")
    assert "Random weights: labels mean nothing." in page_content(told, controls()).notice
    assert json.loads(save(told, controls(), "numbers")[1])["note"] == "random weights: labels mean nothing"
    picture = np.array(Image.open(io.BytesIO(save(told, controls(), "picture")[1])))
    assert picture.shape[0] > 768
    assert (picture[768:] < 200).any()


def test_labels_are_read_as_the_programs_read_them(model, controls):
    asked = controls('"sand, wet", brick; wall\nbrick')
    shown = page_content(model, asked)
    assert "taken once: brick" in shown.notice
    assert model.ask(model.open(asked.path), asked.question).names == ("sand, wet", "brick")


def test_a_click_marks_the_region_and_lists_its_scores(model, controls):
    asked = controls("sand, brick, yellow square")
    answer = model.ask(model.open(asked.path), asked.question)
    point = (0.3, 0.3)
    region = answer.region_at(point)
    shown = page_content(model, asked, point)
    assert f"Region {region}" in shown.scores
    assert [f"{value:.3f}" in shown.scores for value in answer.cosine[region]] == [True] * 3
    assert (shown.picture != page_content(model, asked).picture).any()
    in_sentence = page_content(model, controls("the black ring", SENTENCE), point)
    assert f"region {region}, clicked" in in_sentence.scores


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": ", ".join("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")}, "Got 52 labels, more than"),
        ({"text": "x" * 201}, "Got 201 characters in"),
        ({"text": "x" * 201, "mode": SENTENCE}, "Got 201 characters in"),
        ({"text": 5}, "load the page again"),
        ({"threshold": None}, "load the page again"),
        ({"threshold": float("nan")}, "load the page again"),
        ({"opacity": 7}, "load the page again"),
        ({"opacity": float("nan")}, "load the page again"),
        ({"switches": ()}, None),
    ],
)
def test_bad_words_are_one_line_beside_the_image(model, controls, change, message):
    shown = page_content(model, controls(**change))
    assert ("tr-error" in shown.notice) == (message is not None)
    assert (message or "") in shown.notice
    assert shown.picture.shape == (768, 768, 3)


@pytest.mark.parametrize("upload", [{"path": 3}, {"orig_name": "x"}, "text", ["list"], {"path": "/nowhere/x.png"}])
def test_uploads_that_no_page_sends_are_one_line(model, upload):
    shown = page_content(model, Controls(upload, LABELS, "sand", 0, 0.6, []))
    assert "tr-error" in shown.notice
    assert shown.picture is None


def test_switches_may_be_anything(model, controls):
    asked = controls()
    shown = page_content(model, Controls(asked.upload, LABELS, "sand", 0, 0.6, "masks"))
    assert "tr-error" in shown.notice
    drawing = controls(opacity=1, switches=["masks", "nonsense", 5]).drawing
    assert drawing == DrawingOptions(1.0, masks=True, names=False, heat_map=False)


def test_saved_files(model, controls):
    asked = controls("sand, brick, black ring", threshold=0.3)
    name, data = save(model, asked, "picture")
    assert name == "my_scene_picture.png"
    assert (np.array(Image.open(io.BytesIO(data))) == page_content(model, asked).picture).all()
    _, data = save(model, asked, "labels")
    result = model.segmenter.segment(model.open(asked.path).regions, ["sand", "brick", "black ring"], 0.3)
    assert (np.array(Image.open(io.BytesIO(data))) == result.label_map).all()
    name, data = save(model, asked, "numbers")
    content = json.loads(data)
    assert (name, content["file"], content["preset"], content["threshold"]) == (
        "my_scene.json",
        "my scene.png",
        "tiny",
        0.3,
    )
    assert content["coco"]["images"][0]["file_name"] == "my scene.png"
    assert len(content["regions"]) == len(model.open(asked.path).regions)
    for kind in ("picture", "labels", "numbers"):
        with pytest.raises(InputError, match="type one or more labels"):
            save(model, controls(" "), kind)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a b.png", "a_b"),
        ("../../etc/passwd", "passwd"),
        ("", "image"),
        (None, "image"),
        ("..", "image"),
        ("ñ;.x", "ñ"),
    ],
)
def test_names_of_files_are_harmless(name, stem):
    assert Controls({"orig_name": name}, *[None] * 5).file_stem == stem
    assert "/" not in Controls({"orig_name": name}, *[None] * 5).file_name
    assert len(Controls({"orig_name": "x" * 999}, *[None] * 5).file_stem) == 60


@pytest.mark.parametrize(
    "values", [(None, LABELS, 0), ("a", LABELS, -0.1), ("a", LABELS, 2), ("a", LABELS, "0"), (3, SENTENCE, True)]
)
def test_questions_that_no_page_sends_are_refused(controls, values):
    with pytest.raises(InputError, match="load the page again"):
        _ = controls(*values).question


@pytest.mark.parametrize("index", [None, [1], [1, 2, 3], ["1", "2"], [-1, 0], [0, 301], [float("nan"), 0]])
def test_clicks_outside_are_refused(index):
    with pytest.raises(InputError, match="click again"):
        share_of((300, 200), index)


def test_clicks_are_shares_of_the_sides():
    assert share_of((300, 200), [50, 300]) == (0.25, 1.0)


def test_the_largest_patch_and_its_middle():
    mask = np.zeros((31, 37), bool)
    mask[3:6, 3:6] = mask[10:21, 12:29] = True
    area, (x, y) = largest_patch(mask)
    assert area == 11 * 17
    assert y == 15
    assert 17 <= x <= 23


def test_names_stay_inside_and_apart():
    blank = np.full((101, 211, 3), 255, np.uint8)
    alone = write_names(blank, [("edge", (0, 0))])
    assert (alone[:8, :8] != 255).any()
    assert (write_names(blank, [("edge", (0, 0)), ("hidden", (4, 4))]) == alone).all()
    assert (write_names(blank, [("x" * 500, (100, 50))]) != 255).any()


@pytest.mark.parametrize("dense", [True, False])
def test_an_image_without_regions_is_shown(model, controls, monkeypatch, dense):
    image, nothing = model.open(controls().path), torch.zeros(0, dtype=torch.long)
    regions = image.regions
    empty = replace(regions, tokens=regions.tokens[nothing], masks=regions.masks.select(nothing), source_index=nothing)
    empty = empty if dense else replace(empty, dense=None)
    image = replace(image, key=f"empty {dense}", regions=empty)
    monkeypatch.setattr(model, "open", lambda _: image)
    for mode in (LABELS, SENTENCE):
        shown = page_content(model, controls("sand, brick", mode, switches=["masks", "names", "heat map"]), (0.5, 0.5))
        assert "0 regions" in shown.notice
        assert "No region found: " in shown.notice
        assert ("%" in shown.legend) == (dense and mode == LABELS)
        assert "No region" in shown.scores
        assert shown.picture.shape == (768, 768, 3)
    labelled = json.loads(save(model, controls(), "numbers")[1])
    assert labelled["note"].startswith("no region found: ")
    assert (sum(label["share"] for label in labelled["labels"]) > 0.99) == dense
    assert (len(labelled["coco"]["annotations"]) > 0) == dense
    picture = np.array(Image.open(io.BytesIO(save(model, controls(), "picture")[1])))
    assert picture.shape[0] > 768
    shown = page_content(model, controls()).picture
    assert (picture[:768] == shown).all()
    assert dense or (shown == image.shown).all()
    content = json.loads(save(model, controls("a brick", SENTENCE), "numbers")[1])
    assert (content["region"], content["box"], content["mask"], content["regions"]) == (None, None, None, [])
