"""`textregion segment --method sam3-concepts`: the labeller's own maps, the files, what it has no use for."""

import json

import numpy as np
import pytest
import tiny_transformers
from PIL import Image

from textregion.cli.main import main
from textregion.concepts import ConceptLabeller

IMAGE = np.random.default_rng(5).integers(0, 256, (61, 83, 3), dtype=np.uint8)
LABELS = ["dog", "grass; sky", "red star"]
THRESHOLDS = {"score_thresh": 0.05, "fallback_thresh": 0.42}


@pytest.fixture(scope="module")
def sam3(tmp_path_factory):
    """A Sam3Model in the hub's layout."""
    place = tmp_path_factory.mktemp("sam3")
    tiny_transformers.sam3_concepts().save_pretrained(place)
    return place


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(IMAGE).save(folder / "one.png")
    Image.fromarray(IMAGE[:, ::-1]).save(folder / "two.png")
    return folder


def run(capsys, *words) -> tuple[int, str, str]:
    code = main(["segment", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def asked(sam3) -> list:
    options = [word for name, value in THRESHOLDS.items() for word in (f"--{name}", value)]
    return ["-l", *LABELS, "--method", "sam3-concepts", "--sam3_checkpoint", sam3, "--device", "cpu", *options]


def test_one_photo_gets_the_labellers_map_and_no_file_of_regions(sam3, photos, tmp_path, capsys):
    code, out, _ = run(capsys, photos / "one.png", *asked(sam3), "--output", tmp_path / "out")
    assert code == 0
    folder = tmp_path / "out" / "one"
    assert f"one.png: labelled -> {folder / 'picture.png'}" in out
    expected = ConceptLabeller(tiny_transformers.sam3_concepts(), **THRESHOLDS).segment(IMAGE, LABELS)
    assert (np.asarray(Image.open(folder / "labels.png")) == expected.label_map).all()
    unsure = (expected.region_map < 0).mean()
    assert 0 < unsure < 1
    assert f"({unsure:.1%} of the pixels reach --fallback_thresh with no label: counted as dog, the first label)" in out
    told = json.loads((folder / "labels.json").read_text())
    assert [row["name"] for row in told["labels"]] == ["dog", "grass", "red star"]
    assert [row["pixels"] for row in told["labels"]] == np.bincount(expected.label_map.ravel(), minlength=3).tolist()
    assert (told["regions"], told["uncovered"]) == (None, None)
    files = {"picture.png", "overlay.png", "labels.png", "labels.json", "coco.json", "one.png", "run.json"}
    assert {path.name for path in folder.iterdir()} == files
    settings = json.loads((folder / "run.json").read_text())["settings"]
    assert settings["config"] == {"recipe": "sam3-concepts", **THRESHOLDS}
    assert (settings["preset"], settings["mask_source"]) == ("sam3-concepts", None)
    assert settings["weights"]["sam3_checkpoint"]["path"] == str(sam3)


def test_a_folder_becomes_a_data_set_and_is_resumed(sam3, photos, tmp_path, capsys):
    words = [photos, *asked(sam3), "--unlabelled", "--output", tmp_path / "out", "--export", "coco"]
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert "one.png -> " in out
    labeller = ConceptLabeller(tiny_transformers.sam3_concepts(), **THRESHOLDS)
    result = labeller.segment(IMAGE, LABELS)
    expected = np.where(result.region_map < 0, 255, result.label_map)
    assert (np.asarray(Image.open(tmp_path / "out/one/labels.png")) == expected).all()
    masks = json.loads((tmp_path / "out/dataset/coco.json").read_text())["annotations"]
    of_first = {row["category_id"] - 1: row["area"] for row in masks if row["image_id"] == 1}
    assert of_first == {index: (expected == index).sum() for index in np.unique(expected[expected < 255])}
    code, out, _ = run(capsys, *words, "--resume")
    assert code == 0
    assert "2 images: 2 resumed" in out
    other = [0.9 if word == THRESHOLDS["fallback_thresh"] else word for word in words]
    _, out, _ = run(capsys, *other, "--resume")
    assert "2 images: 2 done" in out, "a threshold is part of what was asked for"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--masks", "sam2"], "got --masks with --method sam3-concepts, which has no use for it; leave it out (it has"),
        (["--recipe", "corrclip"], "got --recipe with"),
        (["--templates", "7"], "got --templates with"),
        (["--memory", "photos.lance"], "got --memory with"),
        (["--boxes", "1,2,3,4"], "got --boxes with"),
        (["--preset", "tiny"], "got --preset with"),
        (["--threshold", "0"], "got --threshold with"),
        (["--serve"], "got --serve with"),
        (["--random_weights"], "got --random_weights with"),
        (["--export", "coco", "--export_of", "regions"], "got --export_of regions with"),
        (["--fallback_thresh", "2"], "got fallback_thresh 2.0, expected a number in 0..1"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_it_has_no_use_for_is_one_line(words, said, sam3, photos, tmp_path, capsys):
    asked = ["-l", "dog", "--method", "sam3-concepts", "--sam3_checkpoint", sam3, "--device", "cpu"]
    code, _, error = run(capsys, photos / "one.png", *asked, "--output", tmp_path / "out", *words)
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith(f"error: {said}")


def test_what_it_lacks_is_one_line(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["--method", "sam3-concepts"]
    assert run(capsys, *asked)[2].startswith("error: got --method sam3-concepts but no image; add --image PHOTO")
    gone = [photos / "one.png", "-l", "dog", *asked, "--sam3_checkpoint", tmp_path / "none"]
    assert run(capsys, *gone)[0] == 2
    words = [photos / "one.png", "-l", "dog", "--score_thresh", "0.5"]
    assert run(capsys, *words)[2].startswith("error: got --score_thresh without --method sam3-concepts")
