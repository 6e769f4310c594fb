"""All files of one image say the same: the program with every flag, a turned photo of odd sizes, every file read."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import supervision
import torch
from PIL import Image, ImageOps
from pycocotools.coco import COCO

from textregion.cli.program import main
from textregion.images import load_image
from textregion.labels import LabelPrompts
from textregion.outputs.folder import LabelledImage, write_image
from textregion.tiny.scenes import draw_scene
from textregion.types import RegionMasks, RegionTokens, Segmentation

WIDTH, HEIGHT = 131, 211  # of the turned picture; stored it is 211 x 131
LABELS = ["sand", "brick", "red, round star; star", "yellow square"]


def save_turned(path: Path, turn: int = 6) -> None:
    """A drawn scene that is stored lying down, and says how to turn it."""
    image = Image.fromarray(draw_scene(11, distinct_colours=True).image).resize((HEIGHT, WIDTH))
    exif = image.getexif()
    exif[0x112] = turn
    image.save(path, exif=exif, quality=95)


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    """Two photos through the program, so that there is a summary as well; every flag that asks for a file."""
    photos, output = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("out")
    save_turned(photos / "tilted photo.jpg")
    (photos / "other.png").write_bytes((photos / "tilted photo.jpg").read_bytes())
    extras = ("--similarity_maps", "--save_tokens", "--visualize_global_patch")
    words = ("--labels", "sand, brick", '"red, round star; star", yellow square', "sand")
    code = main(["--preset", "tiny", "--image", str(photos), *words, *extras, "--output", str(output)])
    assert code == 0
    return output


@pytest.fixture(scope="module")
def folder(output) -> Path:
    return output / "tilted photo"


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_every_file_has_the_size_of_the_turned_picture(folder):
    size = {"width": WIDTH, "height": HEIGHT}
    run = read(folder, "run.json")
    assert {key: run[key] for key in size} == size
    assert read(folder, "labels.json")["image"] == read(folder, "regions.json")["image"] == size
    assert load_image(folder / "labels.png").shape[:2] == (HEIGHT, WIDTH)
    assert RegionTokens.load(folder / "tokens.safetensors").masks.image_size == (HEIGHT, WIDTH)
    for name in ("coco.json", "coco_regions.json"):
        (image,) = read(folder, name)["images"]
        assert (image["width"], image["height"]) == (WIDTH, HEIGHT)
        with Image.open(folder / image["file_name"]) as written:  # without regard for EXIF, as torchvision reads it
            assert written.size == (WIDTH, HEIGHT)
            assert (np.asarray(written) == load_image(folder / image["file_name"])).all()


def test_the_image_beside_the_results_is_the_one_that_was_labelled(folder):
    run = read(folder, "run.json")
    original, written = load_image(run["image"]["path"]), load_image(folder / "tilted photo.jpg")
    assert original.shape == written.shape
    assert np.abs(original.astype(int) - written).mean() < 4  # it was saved as JPEG once more


def test_label_files_say_the_same(folder):
    label_map = np.asarray(Image.open(folder / "labels.png"))
    labels, run, coco = read(folder, "labels.json"), read(folder, "run.json"), COCO(str(folder / "coco.json"))
    names = list(LabelPrompts.parse(LABELS).names)
    assert [label["name"] for label in labels["labels"]] == names
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == names
    assert run["labels"] == LABELS  # the second "sand" is the first
    pixels = np.bincount(label_map.ravel(), minlength=len(names))
    assert [label["pixels"] for label in labels["labels"]] == pixels.tolist()
    assert [label["share"] for label in labels["labels"]] == pytest.approx(pixels / pixels.sum(), abs=1e-5)
    found = {label["name"]: label for label in labels["labels"] if label["pixels"]}
    assert dict(run["shares"]) == {name: label["share"] for name, label in found.items()}
    assert run["uncovered"] == labels["uncovered"]
    annotations = coco.loadAnns(coco.getAnnIds())
    assert [annotation["category"] for annotation in annotations] == list(found)
    for annotation in annotations:
        mask, label = coco.annToMask(annotation), found[annotation["category"]]
        assert (mask == (label_map == label["index"])).all()
        assert annotation["area"] == label["pixels"] == mask.sum()
        assert annotation["category_id"] == label["index"] + 1
        assert annotation["score"] == pytest.approx(label["confidence"], abs=1e-5)
        assert annotation["bbox"] == tight_xywh(mask)


def tight_xywh(mask: np.ndarray) -> list[float]:
    y, x = mask.nonzero()
    return [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]


def test_region_files_say_the_same(folder):
    rows, coco = read(folder, "regions.json")["regions"], COCO(str(folder / "coco_regions.json"))
    tokens = RegionTokens.load(folder / "tokens.safetensors")
    assert len(rows) == len(tokens) == read(folder, "run.json")["regions"] == read(folder, "labels.json")["regions"]
    assert [row["mask"] for row in rows] == tokens.source_index.tolist()
    annotations = {annotation["region"]: annotation for annotation in coco.loadAnns(coco.getAnnIds())}
    assert len(annotations) == len(rows) >= 3
    for row, mask in zip(rows, tokens.masks.binary().numpy(), strict=True):
        annotation, (x1, y1, x2, y2) = annotations[row["region"]], row["box"]
        assert (coco.annToMask(annotation) == mask).all()
        assert row["area"] == annotation["area"] == mask.sum()
        assert [x1, y1, x2 - x1, y2 - y1] == annotation["bbox"] == tight_xywh(mask)
        assert (annotation["category"], annotation["score"]) == tuple(
            row["labels"][0][k] for k in ("name", "probability")
        )
        assert row["predicted_iou"] == pytest.approx(float(tokens.masks.predicted_iou[row["region"]]), abs=1e-5)


@pytest.mark.parametrize("name", ["coco.json", "coco_regions.json"])
def test_supervision_reads_image_and_masks(folder, name):
    """The root of file_name is the results folder; boxes and masks arrive as they are, on pixels of their size."""
    data = supervision.DetectionDataset.from_coco(str(folder), str(folder / name), force_masks=True)
    ((path, image, found),) = list(data)
    assert Path(path) == folder / "tilted photo.jpg"
    assert image.shape == (HEIGHT, WIDTH, 3)
    coco = COCO(str(folder / name))
    annotations = coco.loadAnns(coco.getAnnIds())
    assert (found.mask == np.stack([coco.annToMask(a) for a in annotations]).astype(bool)).all()
    assert found.xyxy.tolist() == [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in annotations)]
    assert [data.classes[i] for i in found.class_id] == [a["category"] for a in annotations]


def test_the_summary_says_what_the_folders_say(output):
    rows = list(csv.DictReader((output / "summary.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 2
    for row in rows:
        run = read(Path(row["folder"]), "run.json")
        assert (int(row["width"]), int(row["height"]), int(row["regions"])) == (WIDTH, HEIGHT, run["regions"])
        assert row["labels"] == ", ".join(f"{name} {share:.0%}" for name, share in run["shares"][:3])
        assert row["image"] == run["image"]["path"]
        assert Path(row["folder"]).name == run["folder"]
        assert sorted(run["files"]) == sorted(
            str(p.relative_to(row["folder"]))
            for p in Path(row["folder"]).rglob("*")
            if p.is_file() and p.name != "run.json"
        )


# ---------------------------------------------------------------------- the image beside its results


def of_pixels(name: str, source: Path | None, pixels: np.ndarray) -> LabelledImage:
    size = pixels.shape[:2]
    none = RegionTokens(torch.zeros(0, 3), RegionMasks.empty(size), torch.zeros(0, dtype=torch.long), (1, 1))
    result = Segmentation(np.zeros(size, int), np.zeros(size, np.float32), np.full(size, -1), ("a",))
    return LabelledImage(name, pixels, none, result, ["a"], source=source)


@pytest.mark.parametrize("turn", range(2, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_a_turned_image_is_written_upright(tmp_path, turn, ending):
    (tmp_path / "out").mkdir()
    save_turned(tmp_path / f"x.{ending}", turn)
    pixels = load_image(tmp_path / f"x.{ending}")
    name = write_image(tmp_path / "out", of_pixels(f"x.{ending}", tmp_path / f"x.{ending}", pixels))
    assert name == f"x.{ending}"
    with Image.open(tmp_path / "out" / name) as written:
        assert ImageOps.exif_transpose(written).tobytes() == written.tobytes()
        assert np.abs(np.asarray(written.convert("RGB")).astype(int) - pixels).mean() < 6
        assert written.format == {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF"}[ending]


@pytest.mark.parametrize(("name", "written"), [("x.gif", "x.gif"), ("Picture.PNG", "image_Picture.PNG")])
def test_an_upright_image_is_copied_and_hides_no_result(tmp_path, name, written):
    (tmp_path / "out").mkdir()
    Image.new("RGBA", (7, 5), (1, 2, 3, 99)).save(tmp_path / name)
    pixels = load_image(tmp_path / name)
    assert write_image(tmp_path / "out", of_pixels(name, tmp_path / name, pixels)) == written
    assert (tmp_path / "out" / written).read_bytes() == (tmp_path / name).read_bytes()


def test_pixels_without_a_file_become_a_png(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    assert write_image(tmp_path, of_pixels("scene.jpg", None, pixels)) == "scene.png"
    assert (np.asarray(Image.open(tmp_path / "scene.png")) == pixels).all()
