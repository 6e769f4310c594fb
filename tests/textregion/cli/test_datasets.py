"""--export: a folder becomes one data set, whatever stops the run on the way."""

import json
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from kills import SEEDS, kill_at_moments, long_form
from PIL import Image
from pycocotools.coco import COCO

from textregion.cli import datasets
from textregion.cli.batch import DemoRun
from textregion.cli.program import main
from textregion.errors import InputError
from textregion.outputs.georeference import georeference
from textregion.tiny.scenes import draw_scene

FLAGS = ("--preset", "tiny", "--labels", 'sky, "red, star", grass', "--scale", "96", "96")
ALL = ("coco", "coco-polygons", "yolo", "label-studio", "cvat", "labelme", "geojson")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Four small drawn scenes, one turned by its EXIF tag, and masks of three regions for each."""
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "masks").mkdir()
    exif = Image.Exif()
    exif[274] = 6
    for seed in range(4):
        picture = Image.fromarray(draw_scene(seed).image).resize((67, 53))
        picture.save(folder / f"scene{seed}.jpg", exif=exif if seed == 1 else Image.Exif(), quality=95)
        masks = np.zeros((3, *((67, 53) if seed == 1 else (53, 67))), bool)
        masks[0, :20], masks[1, 20:, : 20 + seed], masks[2, 10:45, 8:40] = True, True, True
        np.save(folder / "masks" / f"scene{seed}.npy", masks)
    return folder


def arguments(scenes, output, *more) -> list[str]:
    masks = str(scenes / "masks")
    return [*FLAGS, "--image", str(scenes), "--masks", masks, "--output", str(output), *map(str, more)]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def stop_at(monkeypatch, place, name: str, call: int) -> None:
    """From now on the function is not called again from this call on: the process ends there."""
    left, function = [call], getattr(place, name)

    def counting(*args, **options):
        left[0] -= 1
        if left[0] <= 0:
            raise KeyboardInterrupt
        return function(*args, **options)

    monkeypatch.setattr(place, name, counting)


def test_stopped_anywhere_and_resumed_is_as_if_left_alone(scenes, tmp_path, capsys, monkeypatch):
    """At the third image; in the middle of the data set, between two of its files and of its images."""
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    flags = ("--export", *ALL, "--no-pictures", "--resume")
    for place, name, call in ((DemoRun, "write", 3), (datasets, "copy_upright", 2), (datasets, "write_atomically", 4)):
        with monkeypatch.context() as patch:
            stop_at(patch, place, name, call)
            assert main(arguments(scenes, stopped, *flags)) == 130
    capsys.readouterr()
    (stopped / "dataset" / "labels").mkdir(exist_ok=True)
    (stopped / "dataset" / "labels" / ".scene1.txt.0123abcd").write_bytes(b"0 0.5")  # as kill -9 leaves it
    assert main(arguments(scenes, stopped, *flags)) == 0
    assert "4 images: 4 resumed" in capsys.readouterr().out
    assert main(arguments(scenes, whole, *flags)) == 0
    assert files(stopped / "dataset") == files(whole / "dataset")
    assert {p.name for p in whole.iterdir()} == {".records", "dataset", "summary.csv", "summary.md"}
    written = [p for p in (whole / "dataset").rglob("*") if p.is_file() and p.name != "scene1.jpg"]  # that is turned
    stamps = {p: p.stat().st_mtime_ns for p in written}
    assert main(arguments(scenes, whole, *flags)) == 0
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps


@pytest.mark.slow
@long_form
def test_killed_and_resumed_is_as_if_left_alone(scenes, tmp_path):
    """kill -9 at random moments, of the labelling and of the data set's writing."""
    flags = ("--export", *ALL, "--no-pictures")
    assert main(arguments(scenes, tmp_path / "whole", *flags)) == 0
    kills = 0
    for seed in SEEDS:
        output = tmp_path / str(seed)
        command = [sys.executable, "TextRegionSegmenter.py", *arguments(scenes, output, *flags)]
        kills += kill_at_moments(command, lambda folder=output: len(files(folder)), seed, moments=3, most=12)
        assert main(arguments(scenes, output, *flags, "--resume")) == 0
        assert files(output / "dataset") == files(tmp_path / "whole" / "dataset")
    assert kills > 0


def test_beside_the_folders_and_of_a_finished_run(scenes, tmp_path, capsys):
    """A run without --export is exported afterwards without being done again; the turned image is upright."""
    assert main(arguments(scenes, tmp_path)) == 0
    flags = ("--resume", "--export", "coco", "--export_of", "regions")
    assert main(arguments(scenes, tmp_path, *flags)) == 0
    out = capsys.readouterr().out
    assert "4 images: 4 resumed" in out
    assert f"data set of 4 images and 12 masks in {tmp_path / 'dataset'}: coco.json, images/" in out
    coco = COCO(tmp_path / "dataset" / "coco.json")
    assert [row["name"] for row in coco.dataset["categories"]] == ["sky", "red, star", "grass"]
    for image in coco.dataset["images"]:
        with Image.open(tmp_path / "dataset" / "images" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
            assert picture.getexif().get(274, 1) == 1
        masks = np.load(scenes / "masks" / f"{image['file_name'][:-4]}.npy")
        found = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        assert (np.stack([coco.annToMask(row) for row in found]) == masks).all()


def test_labels_are_the_label_map(scenes, tmp_path):
    assert main(arguments(scenes, tmp_path, "--export", "coco")) == 0
    coco = COCO(tmp_path / "dataset" / "coco.json")
    for image in coco.dataset["images"]:
        with Image.open(tmp_path / image["file_name"][:-4] / "labels.png") as picture:
            label_map = np.array(picture)
        for row in coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]])):
            assert (coco.annToMask(row) == (label_map == row["category_id"] - 1)).all()


def test_another_run_is_moved_aside_and_failures_are_counted(scenes, tmp_path, capsys):
    """Ids stay where an image is missing."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(3):
        os.link(scenes / f"scene{n}.jpg", photos / f"scene{n}.jpg")
    (photos / "scene1.jpg").unlink()
    (photos / "scene1.jpg").write_bytes(b"no image")
    output = tmp_path / "out"
    (output / "dataset").mkdir(parents=True)
    (output / "dataset" / "mine.txt").write_text("kept")
    words = [*FLAGS, "--image", str(photos), "--masks", str(scenes / "masks"), "--output", str(output)]
    assert main([*words, "--export", "coco", "geojson", "--no_pictures"]) == 1
    out = capsys.readouterr().out
    assert f"kept as {output / 'dataset.old-1'}" in out
    assert f"note: 1 images are not in the data set: {photos / 'scene1.jpg'}" in out
    assert (output / "dataset.old-1" / "mine.txt").read_text() == "kept"
    content = json.loads((output / "dataset" / "coco.json").read_text())
    assert [(image["id"], image["file_name"]) for image in content["images"]] == [(1, "scene0.jpg"), (3, "scene2.jpg")]
    assert len(list((output / "dataset" / "geojson").iterdir())) == 2


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--export", "coco"], "error: got --export but no image; add --image photos/ and --labels\n"),
        (["--image", "x.png", "--labels", "a", "--no_pictures"], "error: got --no_pictures without --export, so "),
        (
            ["--image", "x.png", "--labels", "a", "--no_pictures", "--export", "coco", "--save_tokens"],
            "error: got --no_pictures and --save_tokens, which asks for files of an image's folder; leave one out\n",
        ),
    ],
)
def test_flags_that_mean_nothing_are_refused(flags, line, tmp_path, capsys):
    assert main([*flags, "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(line)


@pytest.fixture
def map_and_photo(tmp_path):
    """A GeoTIFF of half a metre a pixel, north up from (100, 200), and a PNG; all of each is one region."""
    folder = tmp_path / "photos"
    (folder / "masks").mkdir(parents=True)
    pixels = draw_scene(1).image[:40, :52]
    Image.fromarray(pixels).save(folder / "photo.png")
    kind = {"driver": "GTiff", "width": 52, "height": 40, "count": 3, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(folder / "map.tif", "w", **kind, transform=(0.5, 0, 100, 0, -0.5, 200)) as file:
        file.write(pixels.transpose(2, 0, 1))
    for name in ("map", "photo"):
        np.save(folder / "masks" / f"{name}.npy", np.ones((1, 40, 52), bool))
    return folder


def test_a_geotiff_keeps_its_coordinates(map_and_photo, tmp_path, capsys):
    assert main(arguments(map_and_photo, tmp_path / "out", "--export", "geojson", "--export_of", "regions")) == 0
    read = {}
    for name in ("map", "photo"):
        content = json.loads((tmp_path / "out" / "dataset" / "geojson" / f"{name}.geojson").read_text())
        (feature,) = content["features"]
        corners = np.array(feature["geometry"]["coordinates"][0])
        bounds = [*corners.min(0).tolist(), *corners.max(0).tolist()]
        read[name] = bounds, content.get("crs", {}).get("properties")
    assert read == {"map": ([100, 180, 126, 200], {"name": "EPSG:32633"}), "photo": ([0, 0, 52, 40], None)}


def test_a_geotiff_without_rasterio_is_one_line_after_the_work_is_kept(map_and_photo, tmp_path, capsys, monkeypatch):
    """Other formats and other images need none."""
    flags = arguments(map_and_photo, tmp_path / "out", "--export")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "rasterio", None)
        assert main([*flags, "coco"]) == 0
        assert main([*flags, "geojson", "--resume"]) == 2
        remedy = "bash setup_env.sh --geo, or pip install 'textregion[geo]'"
        line = "error: a GeoTIFF's coordinates (--export geojson) needs rasterio, which is not installed; run: "
        assert capsys.readouterr().err.splitlines()[-1] == line + remedy
    assert main([*flags, "geojson", "--resume"]) == 0
    assert "2 images: 2 resumed" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["turned", "no directory", "keys"])
def test_georeferences_that_cannot_be(damage, map_and_photo):
    path = map_and_photo / "map.tif"
    data = bytearray(path.read_bytes())
    if damage == "turned":
        tag = data.index(struct.pack("<HHL", 284, 3, 1))  # planar configuration, which chunky files may leave out
        data[tag : tag + 12] = struct.pack("<HHLHH", 274, 3, 1, 6, 0)
    elif damage == "no directory":
        data[4:8] = b"\xff\xff\xff\x7f"
    else:
        tag = data.index(struct.pack("<HH", 34735, 3))
        data[tag + 8 : tag + 12] = b"\xff\xff\xff\x7f"
    path.write_bytes(data)
    if damage == "keys":
        assert georeference(path) is None or georeference(path).crs == ""
    else:
        with pytest.raises(InputError):
            georeference(path)
