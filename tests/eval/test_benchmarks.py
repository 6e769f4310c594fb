"""Miniatures of the eight benchmarks in their published layout: converter, config, labels, class order."""

import json
import random

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from eval.data import read_classes
from eval.prepare.__main__ import main as prepare
from eval.results import ROOT
from eval.semantic import Evaluation, evaluate, load_config

SIZE = (29, 37)
VOC = {0: "background", 4: "boat", 11: "diningtable", 15: "person", 20: "tvmonitor", 255: None}
ADE = {0: None, 1: "wall", 8: "bed", 13: "person", 150: "flag"}
STUFF = {0: "person", 12: "stop sign", 89: "toothbrush", 91: "banner", 181: "wood", 255: None}
CITY = {0: None, 4: None, 7: "road", 20: "traffic sign", 24: "person", 33: "bicycle"}
CONTEXT = {2: "aeroplane", 65: "cat", 189: "ground", 458: "wood", 0: "background"}


def blocks(raw_values, seed):
    """A raw map (29, 37) of rectangles with all the values."""
    values = list(raw_values)
    random.Random(seed).shuffle(values)
    columns = np.minimum(np.arange(SIZE[1]) * len(values) // SIZE[1], len(values) - 1)
    raw = np.tile(np.array(values, np.uint8)[columns], (SIZE[0], 1))
    raw[:5] = values[seed % len(values)]
    return raw


def make_voc(root, write_image):
    folder = root / "VOCdevkit/VOC2012"
    maps = {f"2007_00000{n}": blocks(VOC, n) for n in (1, 2)}
    for name, raw in maps.items():
        write_image(folder / "JPEGImages" / f"{name}.jpg", SIZE)
        write_image(folder / "SegmentationClass" / f"{name}.png", raw)
    write_image(folder / "JPEGImages" / "2009_000009.jpg", SIZE)  # not in the list
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    (folder / "ImageSets/Segmentation/val.txt").write_text("".join(f"{name}\n" for name in maps))
    return maps, VOC


def make_voc20(root, write_image):
    maps, names = make_voc(root, write_image)
    return maps, {**names, 0: None}


def make_ade20k(root, write_image):
    folder = root / "ade/ADEChallengeData2016"
    maps = {f"ADE_val_0000000{n}": blocks(ADE, n) for n in (1, 2)}
    for name, raw in maps.items():
        write_image(folder / "images/validation" / f"{name}.jpg", SIZE)
        write_image(folder / "annotations/validation" / f"{name}.png", raw)
    return maps, ADE


def make_stuff(root, write_image):
    folder = root / "coco_stuff164k"
    maps = {f"00000000013{n}": blocks(STUFF, n) for n in (1, 2)}
    for name, raw in maps.items():
        write_image(folder / "images/val2017" / f"{name}.jpg", SIZE)
        write_image(folder / "annotations/val2017" / f"{name}.png", raw)
    return maps, STUFF


def make_object(root, write_image):
    maps, _ = make_stuff(root, write_image)
    things = {raw: name for raw, name in STUFF.items() if raw <= 90}
    return maps, {**dict.fromkeys(STUFF, "background"), **things}


def make_city(root, write_image):
    maps = {}
    for number, town in enumerate(("frankfurt", "munster"), start=1):
        name = f"{town}_000000_00000{number}"
        maps[f"{name}_leftImg8bit"] = raw = blocks(CITY, number)
        write_image(root / f"cityscapes/leftImg8bit/val/{town}/{name}_leftImg8bit.png", SIZE)
        write_image(root / f"cityscapes/gtFine/val/{town}/{name}_gtFine_labelIds.png", raw)
    return maps, CITY


def make_context60(root, write_image):
    folder = root / "VOCdevkit/VOC2010"
    images, annotations, maps = [], [], {}
    for number, phase in enumerate(("train", "val", "val", "test"), start=1):
        name = f"2008_00000{number}"
        raw = np.array(sorted(CONTEXT))[blocks(range(len(CONTEXT)), number)]
        write_image(folder / "JPEGImages" / f"{name}.jpg", SIZE)
        size = {"height": SIZE[0], "width": SIZE[1]}
        images.append({"image_id": number, "file_name": f"{name}.jpg", "phase": phase, **size})
        for category in sorted(CONTEXT)[1:]:
            code = coco_mask.encode(np.asfortranarray((raw == category).astype(np.uint8)))
            code["counts"] = code["counts"].decode()
            annotations.append({"image_id": number, "category_id": category, "segmentation": code})
        if phase == "val":
            maps[name] = raw
    categories = [{"category_id": c, "name": name} for c, name in CONTEXT.items() if c]
    content = {"images": images, "annos_segmentation": annotations, "categories": categories}
    (folder / "trainval_merged.json").write_text(json.dumps(content))
    return maps, CONTEXT


def make_context59(root, write_image):
    maps, names = make_context60(root, write_image)
    return maps, {**names, 0: None}


BENCHMARKS = {
    "voc20": (make_voc20, "voc"),
    "voc21": (make_voc, "voc"),
    "context59": (make_context59, "pascal_context"),
    "context60": (make_context60, "pascal_context"),
    "coco_object": (make_object, "coco_object"),
    "coco_stuff164k": (make_stuff, "coco_stuff164k"),
    "city_scapes": (make_city, "city_scapes"),
    "ade20k": (make_ade20k, "ade20k"),
}


def run(name, tmp_path, model_type):
    options = {"model.type": model_type, "test_dataloader.num_workers": 0}
    config = ROOT / "configs/cfg_ds" / f"cfg_{name}.py"
    return evaluate(Evaluation(config, tmp_path / model_type, cfg_options=options, device="cpu"))


def planted_maps(maps, names, classes):
    """Predictions equal to the truth, made from the raw values by name, without the data set's own loading."""
    index = {raw: 0 if name is None else classes.index(name) for raw, name in names.items()}
    return {stem: np.vectorize(index.get)(raw).astype(np.int64) for stem, raw in maps.items()}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_miniature_is_converted_loaded_and_evaluated(name, tmp_path, write_image, models, monkeypatch, capsys):
    make, converter = BENCHMARKS[name]
    root = tmp_path / "data"
    monkeypatch.setenv("TEXTREGION_DATA", str(root))
    maps, names = make(root, write_image)
    inputs = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert prepare(["--data-root", str(root), converter]) == 0
    assert all(path.read_bytes() == content for path, content in inputs.items()), "input was changed"
    assert prepare(["--data-root", str(root), converter]) == 0
    assert "0 label maps made" in capsys.readouterr().out or converter in ("voc", "ade20k")

    config = load_config(ROOT / "configs/cfg_ds" / f"cfg_{name}.py")
    metainfo = config.test_dataloader.dataset.get("metainfo")
    classes = [c.strip() for c in (metainfo.classes if metainfo else own_classes(config))]
    assert len(read_classes(config.model.classes)) == len(classes)
    assert len(read_classes(config.model.classes, "natural")) == len(classes)

    models["planted"].planted.update(planted_maps(maps, names, classes))
    planted = run(name, tmp_path, "Planted")
    counted = sum(int(np.isin(raw, [v for v, n in names.items() if n is not None]).sum()) for raw in maps.values())
    assert (planted.metrics["mIoU"], planted.metrics["aAcc"], planted.items) == (100.0, 100.0, 2)
    pixels = {c.strip(): row["pixels"] for c, row in planted.per_class.items() if row["pixels"]}
    assert sum(pixels.values()) == counted
    assert set(pixels) == {n for n in names.values() if n is not None}

    real = run(name, tmp_path, "SmallModel")
    assert set(models["small"].predictions) == set(maps)
    assert real.metrics["mIoU"] == pytest.approx(slow_miou(models["small"].predictions, maps, names, classes))
    assert real.metrics["mIoU"] < 100


def own_classes(config):
    from eval.mm import DATASETS

    return DATASETS.get(config.test_dataloader.dataset.type).METAINFO["classes"]


def slow_miou(predictions, maps, names, classes):
    """Mean IoU by class names and boolean masks, from the raw maps."""
    values = []
    for index, name in enumerate(classes):
        intersection = union = 0
        for stem, raw in maps.items():
            counts = np.isin(raw, [v for v, n in names.items() if n is not None])
            truth = np.isin(raw, [v for v, n in names.items() if n == name]) & counts
            predicted = (predictions[stem] == index) & counts
            intersection += int((truth & predicted).sum())
            union += int((truth | predicted).sum())
        if union:
            values.append(100 * intersection / union)
    return sum(values) / len(values)


def test_the_published_lists_have_the_spellings_of_the_paper():
    ade, city, stuff = (read_classes(name) for name in ("ade20k", "city_scapes", "coco_stuff164k"))
    assert {"chestofdrawers", "crtscreen", "bulletinboard", "tradename"} <= set(ade)
    assert ("trafficlight" in city, "trafficsign" in city, "traffic light" in city) == (True, True, False)
    assert {"hairdrier", "hotdog", "building-other"} <= set(stuff)
    assert {"traffic light", "hair drier", "building other"} <= set(read_classes("coco_stuff164k", "natural"))
    voc21, voc20 = read_classes("voc21"), read_classes("voc20")
    assert voc21[1:] == voc20
    assert (voc20[3], voc20[10]) == ("ship", "table")
    assert voc21[0].startswith("sky; wall; tree")
    assert len(voc21[0].split("; ")) == 26
    coco = read_classes("coco_object")
    assert len(coco[0].split("; ")) == 17
    assert coco[12] == "stop sign"
    assert read_classes("context60")[0] == "background"
    assert read_classes("context60")[1:] == read_classes("context59")


def test_the_settings_of_the_paper():
    expected = {
        "voc20": ((2016, 672), 0, 16),
        "voc21": ((1008, 672), 0.4, 16),
        "context59": ((2016, 672), 0, 16),
        "context60": ((2016, 672), 0.35, 16),
        "coco_object": ((2016, 672), 0.5, 16),
        "coco_stuff164k": ((1334, 896), 0, 16),
        "city_scapes": ((2688, 1344), 0, 36),
        "ade20k": ((2016, 672), 0, 16),
    }
    for name, values in expected.items():
        model = load_config(ROOT / "configs/cfg_ds" / f"cfg_{name}.py").model
        assert (tuple(model.scale), model.probability_threshold, model.points_per_side) == values, name
        assert (model.antialias, model.mask_size, model.recipe) == (False, "original", "auto")
        assert tuple(model.get("global_splits", (1, 1))) == ((1, 2) if name == "city_scapes" else (1, 1))


def test_the_thresholds_of_sam3_concepts_are_the_published_ones():
    expected = {"voc20": (0.2, 0.0), "voc21": (0.5, 0.4), "context59": (0.3, 0.0), "context60": (0.3, 0.1)}
    expected |= {"coco_object": (0.5, 0.4), "coco_stuff164k": (0.2, 0.0)}
    expected |= {"city_scapes": (0.3, 0.0), "ade20k": (0.3, 0.0)}
    for name, values in expected.items():
        concepts = load_config(ROOT / "configs/cfg_ds" / f"cfg_{name}.py").model.concepts
        assert (concepts.score_thresh, concepts.fallback_thresh) == values, name
