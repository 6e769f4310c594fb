"""Converters: what is missing, what is wrong, going on after an interruption."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from eval.mm import DATASETS
from eval.prepare import converters
from eval.prepare.__main__ import CONVERTERS, main
from eval.prepare.converters import (
    CONTEXT_CATEGORIES,
    check_order,
    city_scapes,
    draw_scenes,
    label_map,
    pascal_context,
    read_map,
)
from textregion.errors import InputError
from textregion.tiny.scenes import CLASS_NAMES, draw_scene


@pytest.mark.parametrize("name", [name for name in CONVERTERS if name != "tiny"])
def test_missing_data_names_the_folder_and_where_to_get_it(name, tmp_path, capsys):
    assert main(["--data-root", str(tmp_path), name]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"error: {name}: missing: {tmp_path}")
    assert "http" in said
    assert "\n" not in said


def test_an_unknown_name_is_refused(capsys):
    assert main(["imagenet"]) == 2
    assert "got 'imagenet', expected one of voc" in capsys.readouterr().err


def test_one_that_fails_does_not_stop_the_others(tmp_path, write_image, capsys):
    write_image(tmp_path / "coco_stuff164k/images/val2017/1.jpg", (3, 5))
    write_image(tmp_path / "coco_stuff164k/annotations/val2017/1.png", np.array([[0, 91], [255, 12]], np.uint8))
    assert main(["--data-root", str(tmp_path), "voc", "coco_stuff164k"]) == 2
    said = capsys.readouterr()
    assert "error: voc: missing" in said.err
    assert "coco_stuff164k: 1 label maps made, 0 were there" in said.out


def test_coco_tables_against_mmseg_and_the_spec():
    assert len(converters.STUFF_RAW) == 171
    names = DATASETS.get("COCOStuffDataset").METAINFO["classes"]
    trains = {raw: names[train] for train, raw in enumerate(converters.STUFF_RAW)}
    assert [trains[raw] for raw in (0, 10, 12, 89, 91, 181)] == [
        *("person", "fire hydrant", "stop sign", "toothbrush", "banner", "wood"),
    ]


def test_coco_object_keeps_things_and_makes_all_else_background(tmp_path, write_image):
    folder = tmp_path / "coco_stuff164k"
    write_image(folder / "images/val2017/1.jpg", (3, 5))
    write_image(folder / "annotations/val2017/1.png", np.array([[0, 10, 12, 89], [91, 181, 255, 24 + 2]], np.uint8))
    converters.coco_object(tmp_path)
    made = read_map(folder / "annotations/val2017/1_instanceTrainIds.png")
    assert made.tolist() == [[1, 11, 12, 80], [0, 0, 0, 25]]


def test_an_already_converted_map_is_not_taken_for_a_raw_one(tmp_path, write_image):
    folder = tmp_path / "coco_stuff164k"
    write_image(folder / "images/val2017/1.jpg", (3, 5))
    write_image(folder / "annotations/val2017/1.png", np.array([[11, 0]], np.uint8))
    with pytest.raises(InputError, match=r"1\.png has unknown labels \[11\]"):
        converters.coco_stuff164k(tmp_path)


def test_a_damaged_map_is_named_and_an_interrupted_conversion_goes_on(tmp_path, write_image):
    folder = tmp_path / "coco_stuff164k"
    write_image(folder / "images/val2017/1.jpg", (3, 5))
    for number in (1, 2):
        write_image(folder / f"annotations/val2017/{number}.png", np.zeros((3, 5), np.uint8))
    good = (folder / "annotations/val2017/2.png").read_bytes()
    (folder / "annotations/val2017/2.png").write_bytes(good[:30])
    with pytest.raises(InputError, match=r"2\.png is not a readable label map"):
        converters.coco_stuff164k(tmp_path)
    (folder / "annotations/val2017/2.png").write_bytes(good)
    assert converters.coco_stuff164k(tmp_path) == "1 label maps made, 1 were there"


def test_a_coloured_map_is_refused(tmp_path, write_image):
    write_image(tmp_path / "map.png", (3, 5))
    with pytest.raises(InputError, match="expected one 8-bit channel"):
        read_map(tmp_path / "map.png")


def test_a_palette_map_gives_indices(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8), mode=None).convert("L")
    image.putpalette(list(range(256)) * 3)
    image.save(tmp_path / "map.png")
    assert read_map(tmp_path / "map.png").tolist() == [[0, 1], [2, 255]]


def test_cityscapes_ids(tmp_path, write_image):
    (tmp_path / "cityscapes/leftImg8bit/val").mkdir(parents=True)
    folder = tmp_path / "cityscapes/gtFine/val/ulm"
    write_image(folder / "a_gtFine_labelIds.png", np.arange(34, dtype=np.uint8)[None])
    converters.city_scapes(tmp_path)
    made = read_map(folder / "a_gtFine_labelTrainIds.png")[0].tolist()
    assert [made[i] for i in (7, 8, 11, 17, 19, 26, 28, 31, 33)] == [0, 1, 2, 5, 6, 13, 15, 16, 18]
    assert sum(value == 255 for value in made) == 34 - 19


def test_context_categories_are_sorted_and_sixty():
    assert len(CONTEXT_CATEGORIES) == 60
    assert list(CONTEXT_CATEGORIES) == sorted(CONTEXT_CATEGORIES)


def test_context_refuses_another_class_order():
    check_order([{"category_id": 2, "name": "aeroplane"}, {"category_id": 9, "name": "bag"}, {"id": 5, "name": "x"}])
    with pytest.raises(InputError, match=r"category 9 of trainval_merged\.json is 'bed', expected 'bag'"):
        check_order([{"category_id": 9, "name": "bed"}])


def test_context_refuses_unknown_categories_and_sizes():
    image = {"height": 3, "width": 5, "file_name": "a.jpg"}
    code = {"size": [3, 5], "counts": "0?"}
    with pytest.raises(InputError, match="category 3"):
        label_map(image, [{"category_id": 3, "segmentation": code}])


@pytest.mark.parametrize("content", ["{", json.dumps({"images": []})])
def test_context_refuses_other_files(content, tmp_path):
    (tmp_path / "VOCdevkit/VOC2010/JPEGImages").mkdir(parents=True)
    (tmp_path / "VOCdevkit/VOC2010/trainval_merged.json").write_text(content)
    with pytest.raises(InputError, match=r"trainval_merged\.json"):
        pascal_context(tmp_path)


def test_scenes_are_drawn_once_and_completed(tmp_path):
    assert draw_scenes(tmp_path, 2, 64) == 2
    (tmp_path / "images/val/900001.png").unlink()
    assert draw_scenes(tmp_path, 3, 64) == 2
    assert draw_scenes(tmp_path, 3, 64) == 0
    scene = draw_scene(900_001, 64)
    assert np.array_equal(read_map(tmp_path / "annotations/val/900001.png"), scene.class_map)
    with Image.open(tmp_path / "images/val/900001.png") as image:
        assert np.array_equal(np.asarray(image), scene.image)


def test_of_several_that_draw_one_world_each_scene_is_drawn_by_one(tmp_path, monkeypatch):
    drawn = []

    def counted(seed, size):
        drawn.append(seed)
        return draw_scene(seed, size)

    monkeypatch.setattr(converters, "draw_scene", counted)
    with ThreadPoolExecutor(3) as pool:
        new = list(pool.map(lambda _: draw_scenes(tmp_path, 4, 64), range(3)))
    assert sum(new) == 4
    assert drawn == list(range(900_000, 900_004))


def test_the_tiny_config_has_the_tiny_worlds_classes():
    from eval.data import read_classes
    from eval.results import ROOT
    from eval.semantic import load_config

    config = load_config(ROOT / "configs/cfg_ds/cfg_tiny.py")
    assert tuple(config.test_dataloader.dataset.metainfo.classes) == CLASS_NAMES
    assert tuple(read_classes("tiny")) == CLASS_NAMES


def test_hidden_label_maps_are_passed_over(tmp_path, write_image):
    folder = tmp_path / "cityscapes/gtFine/val/a"
    (tmp_path / "cityscapes/leftImg8bit/val").mkdir(parents=True)
    write_image(folder / "x_gtFine_labelIds.png", np.full((3, 4), 7, np.uint8))
    (folder / "._x_gtFine_labelIds.png").write_bytes(b"\0\5\x16\7")
    (folder.parent / ".Trashes").mkdir()
    (folder.parent / ".Trashes/y_gtFine_labelIds.png").write_bytes(b"")
    assert city_scapes(tmp_path) == "1 label maps made, 0 were there"
    assert [path.name for path in tmp_path.rglob("*TrainIds.png")] == ["x_gtFine_labelTrainIds.png"]


def context_file(root, images, annotations):
    folder = root / "VOCdevkit" / "VOC2010"
    (folder / "JPEGImages").mkdir(parents=True)
    categories = [{"category_id": 2, "name": "aeroplane"}]
    content = {"images": images, "categories": categories, "annos_segmentation": annotations}
    (folder / "trainval_merged.json").write_text("\ufeff" + json.dumps(content), newline="\r\n")
    return folder


def context_image(number, name="2010_000001.jpg"):
    return {"image_id": number, "file_name": name, "phase": "val", "height": 3, "width": 4}


@pytest.mark.parametrize("kind", [int, str, float])
def test_context_ids_may_be_numbers_or_text(tmp_path, kind):
    mask = coco_mask.encode(np.asfortranarray(np.eye(3, 4, dtype=np.uint8)))
    mask["counts"] = mask["counts"].decode()
    row = {"category_id": kind(2), "segmentation": mask}
    annotations = [{**row, "image_id": kind(5)}, {**row, "image_id": 7}]
    folder = context_file(tmp_path, [context_image(5)], annotations)
    assert pascal_context(tmp_path) == (
        "1 label maps made, 0 were there, 1 masks of images that trainval_merged.json does not list were left out"
    )
    made = read_map(folder / "SegmentationClassContext/2010_000001.png")
    assert (made == CONTEXT_CATEGORIES.index(2) * np.eye(3, 4)).all()


@pytest.mark.parametrize(
    ("images", "annotation", "reason"),
    [
        ([context_image(5), context_image("5", "b.jpg")], {"image_id": 5}, "two images of one id or of one name"),
        ([context_image(5), context_image(6)], {"image_id": 5}, "two images of one id or of one name"),
        ([context_image(None)], {"image_id": 5}, "lacks or garbles a field"),
        ([context_image(5, None)], {"image_id": 5}, "lacks or garbles a field"),
        ([context_image(5)], {"image_id": None}, "lacks or garbles a field"),
        ([context_image(5)], {}, "lacks or garbles a field"),
        ([context_image(5)], {"image_id": 5, "category_id": 2, "segmentation": None}, "no run-length encoded mask"),
    ],
)
def test_context_refuses_what_is_no_image_of_its_own(tmp_path, images, annotation, reason):
    context_file(tmp_path, images, [annotation])
    with pytest.raises(InputError, match=reason) as error:
        pascal_context(tmp_path)
    assert "\n" not in str(error.value)
