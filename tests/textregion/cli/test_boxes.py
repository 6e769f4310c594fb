"""--boxes and --method on the command line: which boxes an image has, what is written about them."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from textregion.boxes import GivenBoxes
from textregion.cli.jobs import box_of, boxes_of
from textregion.cli.program import main
from textregion.errors import InputError
from textregion.labels import TEMPERATURE
from textregion.outputs.folder import name_boxes
from textregion.regionspot import loading
from textregion.regionspot.loading import save_head
from textregion.regionspot.model import RegionSpotHead, encode_names, probabilities
from textregion.segmenter import TextRegionSegmenter
from textregion.tiny.scenes import draw_scene

BOXES = [[10.0, 12.0, 100.0, 120.0], [100.0, 20.0, 200.0, 250.0]]
LABELS = ("sky", "red star", "moon; blue moon")


@pytest.fixture(autouse=True)
def head(tmp_path_factory, monkeypatch):
    """Untrained, in the place of the shipped one."""
    torch.manual_seed(2)
    path = tmp_path_factory.mktemp("head") / "head.safetensors"
    save_head(path, RegionSpotHead(192, 128, 96, 16, 1), {"clip": "tiny", "side": 96, "sam": "sam2:tinyworld"})
    monkeypatch.setattr(loading, "SHIPPED_HEAD", path)
    return path


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in (3, 4):
        Image.fromarray(draw_scene(seed).image).save(folder / f"scene_{seed}.png")
    return folder


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(a) for a in ("--preset", "tiny", "--device", "cpu", "--masks", "sam2", *arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def flags(*boxes, method="textregion", checkpoint=None) -> argparse.Namespace:
    return argparse.Namespace(boxes=[str(b) for b in boxes] or None, method=method, regionspot_checkpoint=checkpoint)


@pytest.mark.parametrize("method", ["textregion", "regionspot"])
def test_one_image_with_boxes_written_out(tmp_path, capsys, images, method):
    boxes = ["10,12,100,120", "100,20,200,250"]
    where = ("--image", images / "scene_3.png", "--labels", *LABELS, "--output", tmp_path / "out")
    code, out, err = run(capsys, *where, "--boxes", *boxes, "--method", method)
    assert (code, err) == (0, "")
    folder = tmp_path / "out" / "scene_3"
    content = json.loads((folder / "boxes.json").read_text())
    assert (content["method"], content["labels"]) == (method, ["sky", "red star", "moon"])
    assert [row["xyxy"] for row in content["boxes"]] == BOXES
    for row in content["boxes"]:
        best = row["labels"][0]
        assert best["score"] == best["probability"] == max(label["probability"] for label in row["labels"])
        assert f"box {row['box']} at" in out
        assert f"{best['name']} {best['score']:.0%}" in out
    with Image.open(folder / "boxes.png") as picture:
        assert picture.width == 1024  # four times the scene, the first whole factor that makes it 800 or more
    assert np.asarray(Image.open(folder / "labels.png")).shape == (256, 256)
    assert {"boxes.json", "boxes.png"} <= set(json.loads((folder / "run.json").read_text())["files"])


def test_many_images_with_a_detector_s_file(tmp_path, capsys, images):
    detections = {"scene_3": {"boxes": BOXES, "scores": [0.5, 0.25]}, "scene_4": {"boxes": [], "scores": []}}
    (tmp_path / "boxes.json").write_text(json.dumps(detections))
    command = ("--image", images, "--labels", *LABELS, "--boxes", tmp_path / "boxes.json", "--method", "regionspot")
    code, _, _ = run(capsys, *command, "--output", tmp_path / "out")
    assert code == 0
    rows = json.loads((tmp_path / "out" / "scene_3" / "boxes.json").read_text())["boxes"]
    assert [row["detector_score"] for row in rows] == [0.5, 0.25]
    for row in rows:
        for label in row["labels"]:
            assert label["score"] == pytest.approx(label["probability"] * row["detector_score"], abs=1e-5)
    assert json.loads((tmp_path / "out" / "scene_4" / "boxes.json").read_text())["boxes"] == []
    code, out, _ = run(capsys, *command, "--output", tmp_path / "out", "--resume")
    assert code == 0
    assert "2 resumed" in out
    detections["scene_3"]["scores"] = [1, 1]
    (tmp_path / "boxes.json").write_text(json.dumps(detections))
    code, out, _ = run(capsys, *command, "--output", tmp_path / "out", "--resume")
    assert code == 0
    assert "2 done" in out  # other boxes: nothing is finished


def test_an_image_that_the_file_does_not_know_is_one_failed_image(tmp_path, capsys, images):
    (tmp_path / "boxes.json").write_text(json.dumps({"scene_3": {"boxes": BOXES}}))
    command = ("--image", images, "--labels", "sky", "--boxes", tmp_path / "boxes.json", "--output", tmp_path / "out")
    code, _, err = run(capsys, *command)
    assert code == 1
    assert "lists no image" in err
    assert (tmp_path / "out" / "scene_3" / "boxes.json").is_file()


def test_names_by_hand(head):
    segmenter = TextRegionSegmenter.from_preset("tiny", device="cpu", regionspot_checkpoint=head)
    image = draw_scene(3).image
    given = GivenBoxes(np.array(BOXES, np.float32), np.array([0.5, 0.75], np.float32))
    for method in ("textregion", "regionspot"):
        tokens = segmenter.encode_boxes(image, BOXES, method)
        content = name_boxes(segmenter, image, tokens, given, ("sky", "red star"), method)["boxes.json"]
        scale = segmenter.regionspot.scale if method == "regionspot" else TEMPERATURE
        text = segmenter.encode_text(["sky", "red star"])
        text = encode_names(segmenter.backbone, ["sky", "red star"]) if method == "regionspot" else text
        expected = probabilities(tokens.similarity(text), scale)
        assert content["scale"] == pytest.approx(scale, abs=1e-4)
        for row in content["boxes"]:
            for label in row["labels"]:
                share = expected[row["region"], label["index"]].item()
                assert label["probability"] == pytest.approx(share, abs=1e-5)
                assert label["score"] == pytest.approx(share * given.scores[row["box"]], abs=1e-5)


def test_a_single_word_without_commas_is_a_file(tmp_path):
    (tmp_path / "1,2,3,4").write_text("5,6,7,8\n")
    assert boxes_of(flags(tmp_path / "1,2,3,4"), "tiny").of(Path("any.png")).boxes.tolist() == [[5, 6, 7, 8]]
    assert boxes_of(flags("1,2,3,4"), "tiny").of(Path("any.png")).boxes.tolist() == [[1, 2, 3, 4]]
    assert boxes_of(flags(), "tiny") is None
    with pytest.raises(InputError, match=r"no file boxes\.json; expected boxes"):
        boxes_of(flags("boxes.json"), "tiny")


@pytest.mark.parametrize("text", ["1,2,3", "a,b,c,d", "1 2 3 4"])
def test_a_bad_box_is_named(text):
    with pytest.raises(InputError, match="expected x1,y1,x2,y2"):
        box_of(text)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--method", "regionspot"], "got --method regionspot without boxes"),
        (["--boxes", "1,2,3,4", "5,6,7"], "got the box '5,6,7'"),
        (["--boxes", "none.json"], "no file none.json"),
        (["--boxes", "1,2,3,400"], "lies outside the image of 256 x 256"),
        (["--boxes", "9,2,3,40", "--method", "regionspot"], "box 0 at [9.0, 2.0, 3.0, 40.0] expected x1 < x2"),
        (
            ["--preset", "clip-vit-b16", "--boxes", "1,2,3,4", "--method", "regionspot"],
            "give one as --regionspot_check",
        ),
        (["--boxes", "1,2,3,4", "--method", "magic"], "invalid choice: 'magic'"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, images, arguments, line):
    where = ("--image", images / "scene_3.png", "--labels", "sky", "--output", tmp_path / "out")
    try:
        code, _, err = run(capsys, *where, *arguments)
    except SystemExit as stopped:
        code, err = stopped.code, capsys.readouterr().err
    assert code == 2
    assert line in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("boxes", [["-0.5,0,50,50"], ["10,10,60,60", "-.5,-0.25,20,30"], ["-1e-1,0,9,9"]])
def test_boxes_that_begin_half_a_pixel_beyond_the_edge(tmp_path, capsys, images, boxes):
    where = ("--image", images / "scene_3.png", "--labels", *LABELS, "--output", tmp_path / "out")
    code, _, err = run(capsys, *where, "--boxes", *boxes)
    assert (code, err) == (0, "")
    rows = json.loads((tmp_path / "out" / "scene_3" / "boxes.json").read_text())["boxes"]
    assert len(rows) == len(boxes)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--seed", "-1"], "got --seed -1, expected a whole number of at least 0"),
        (["--pred_iou_thresh", "-0.5"], "got pred_iou_thresh -0.5, expected a number in 0..1"),
        (["--min-size", "-3"], "got min_size -3, expected a whole number of at least 0"),
        (["--box_nms_thresh", "-inf"], "got box_nms_thresh -inf, expected a number in 0..1"),
    ],
)
def test_a_negative_number_out_of_range_is_said_so(tmp_path, capsys, words, line):
    code, _, err = run(capsys, "--preset", "tiny", "--output", tmp_path / "out", *words)
    assert code == 2
    assert err.startswith(f"error: {line}")
