"""The tiny world in LVIS's layout: read by the lvis package, and true of the scenes."""

import json

import numpy as np
import pytest
from lvis import LVIS
from PIL import Image

from eval.prepare.tiny_lvis import FIRST_SEEDS, frequencies, main, write_tiny_lvis
from textregion.errors import InputError
from textregion.tiny.scenes import draw_scene


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny_lvis")
    write_tiny_lvis(folder, scenes=6, train_scenes=7)
    return folder


@pytest.mark.parametrize(("split", "scenes"), [("train", 7), ("val", 6)])
def test_lvis_reads_it_and_boxes_and_masks_are_the_scenes_own(folder, split, scenes):
    data = LVIS(str(folder / f"lvis_tiny_{split}.json"))
    assert len(data.imgs) == scenes
    for number, image in data.imgs.items():
        scene = draw_scene(number)
        with Image.open(folder / "images" / image["coco_url"]) as opened:
            assert np.array_equal(np.asarray(opened), scene.image)
        objects = [(r.class_name, m) for r, m in zip(scene.regions, scene.masks, strict=True) if r.kind == "object"]
        for annotation in data.load_anns(data.get_ann_ids(img_ids=[number])):
            mask = data.ann_to_mask(annotation).astype(bool)
            name = data.cats[annotation["category_id"]]["name"]
            assert any(name == other and np.array_equal(mask, own) for other, own in objects)
            rows, columns = np.nonzero(mask)
            x, y, width, height = annotation["bbox"]
            assert (x, y, x + width - 1, y + height - 1) == (columns.min(), rows.min(), columns.max(), rows.max())
            assert annotation["area"] == mask.sum()


def test_images_tell_what_is_absent_and_what_is_not_fully_boxed(folder):
    content = json.loads((folder / "lvis_tiny_train.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    unfinished = 0
    for image in content["images"]:
        own = [a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"]]
        true = [region.class_name for region in draw_scene(image["id"]).regions if region.kind == "object"]
        assert not set(own) & set(image["neg_category_ids"])
        for number, name in names.items():
            missing = true.count(name) - own.count(number)
            assert missing == (number in image["not_exhaustive_category_ids"])
            unfinished += missing
    assert unfinished > 0


def test_val_categories_carry_the_training_counts(folder):
    train, val = (json.loads((folder / f"lvis_tiny_{split}.json").read_text()) for split in ("train", "val"))
    assert train["categories"] == val["categories"]
    for category in train["categories"]:
        own = [a["image_id"] for a in train["annotations"] if a["category_id"] == category["id"]]
        assert (category["image_count"], category["instance_count"]) == (len(set(own)), len(own))


def test_a_third_of_the_categories_each_is_rare_common_and_frequent():
    assert frequencies([5, 1, 9, 3, 1, 7, 2]) == ["c", "r", "f", "c", "r", "f", "r"]


def test_the_program_draws_objects_and_refuses_other_seeds(tmp_path, capsys):
    assert main(["--output", str(tmp_path), "--scenes", "2", "--seed", "11", "--names", "objects"]) == 0
    assert "2 scenes for training and 2 for evaluation" in capsys.readouterr().out
    content = json.loads((tmp_path / "lvis_tiny_val.json").read_text())
    assert [image["id"] for image in content["images"]] == [FIRST_SEEDS["val"] + 11, FIRST_SEEDS["val"] + 12]
    assert len(content["categories"]) == 90
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path), "--seed", "-1"])


def test_a_folder_is_drawn_into_unless_it_holds_files_of_these_names(tmp_path):
    (tmp_path / "boxes.json").write_text("{}")
    write_tiny_lvis(tmp_path, 1)
    assert (tmp_path / "boxes.json").read_text() == "{}"
    other = tmp_path / "other"
    other.mkdir()
    (other / "lvis_tiny_val.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds lvis_tiny_val\.json, which was not drawn here; give another"):
        write_tiny_lvis(other, 1)
    assert (other / "lvis_tiny_val.json").read_text() == "{}"
