"""COCO-format files: what is read, what is passed over and counted, what is refused in one line."""

import json

import numpy as np
import pytest

from textregion.errors import InputError
from utils.regionspot.data import read_dataset

CATEGORIES = [{"id": 9, "name": "cat"}, {"id": 2, "name": "bat_(animal)"}, {"id": 5, "name": "cat"}]
IMAGES = [{"id": number, "height": 50, "width": 80, "file_name": f"{number}.png"} for number in (1, 2, 3)]


def annotation(image=1, category=2, bbox=(10, 20, 30, 10), **more):
    return {"image_id": image, "category_id": category, "bbox": bbox, **more}


@pytest.fixture
def write(tmp_path):
    def write(annotations=(), images=IMAGES, categories=CATEGORIES, **more):
        path = tmp_path / "boxes.json"
        path.write_text(
            json.dumps({"images": images, "annotations": list(annotations), "categories": categories} | more)
        )
        return path

    return write


def test_boxes_are_corners_and_classes_are_names_in_the_order_of_ids(write, tmp_path):
    path = write([annotation(), annotation(3, 9), annotation(3, 5, (0, 0, 1, 1))], info={"year": 2026})
    dataset = read_dataset("toy", path, tmp_path)
    assert dataset.names == ("bat_(animal)", "cat")
    first, second = dataset.images
    assert (first.id, first.boxes.tolist(), first.labels.tolist()) == (1, [[10, 20, 40, 30]], [0])
    assert (second.id, second.category_ids.tolist(), second.labels.tolist()) == (3, [9, 5], [1, 1])
    assert dataset.skipped == {"categories merged into one of equal name": 1, "images without boxes": 1}


def test_equal_names_stay_apart_as_published(write, tmp_path):
    dataset = read_dataset("toy", write([annotation(1, 9), annotation(1, 5)]), tmp_path, merge_names=False)
    assert dataset.names == ("bat_(animal)", "cat", "cat")
    assert dataset.images[0].labels.tolist() == [2, 1]


def test_what_cannot_be_used_is_counted(write, tmp_path):
    odd = [
        *(annotation(iscrowd=1), annotation(is_group_of=True)),
        *(annotation(category=7), annotation(category=[]), annotation(image=8)),
        *(annotation(bbox=(1, 2, 0, 3)), annotation(bbox=(1, 2, 3, -3))),
        *(annotation(bbox=(80, 2, 5, 5)), annotation(bbox=(-9, 2, 5, 5))),
        *(annotation(bbox=(1, 2, 3)), annotation(bbox=None), annotation(bbox=(1, 2, float("nan"), 3))),
        *({"image_id": 1, "category_id": 2}, annotation(bbox=(70, -5, 20, 10))),
    ]
    dataset = read_dataset("toy", write(odd), tmp_path, merge_names=False)
    assert dataset.images[0].boxes.tolist() == [[70, 0, 80, 5]]
    assert dataset.skipped == {
        "crowds": 2,
        "boxes of unknown categories": 2,
        "annotations of unknown images": 1,
        "boxes without area": 2,
        "boxes outside their image": 2,
        "boxes without four numbers": 4,
        "images without boxes": 2,
    }
    assert dataset.describe() == (
        "toy: 1 boxes in 1 images, 3 names; passed over: 4 boxes without four numbers, 2 crowds, "
        "2 boxes of unknown categories, 2 boxes without area, 2 boxes outside their image, 2 images without boxes, "
        "1 annotations of unknown images"
    )


def test_a_file_without_a_usable_box_is_refused(write, tmp_path):
    with pytest.raises(InputError, match=r"no usable box .*1 boxes without area"):
        read_dataset("toy", write([annotation(bbox=(1, 1, 0, 0))]), tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"categories": [{"id": 1}]}, "category .* expected a whole number as id and a name"),
        ({"categories": [{"id": 1, "name": "  "}]}, "expected a whole number as id and a name"),
        ({"categories": CATEGORIES + CATEGORIES}, "6 categories, expected at least one, each with an id of its own"),
        ({"categories": []}, "0 categories"),
        ({"categories": {}}, "no list of categories"),
        ({"images": [{"id": 1, "file_name": "a.png"}]}, "expected id, height, width and file_name or coco_url"),
        ({"images": [{"id": 1, "height": 5, "width": 5}]}, "expected id, height, width and file_name or coco_url"),
        ({"images": 3}, "no list of images"),
    ],
)
def test_other_files_are_refused_in_one_line(write, tmp_path, changed, said):
    with pytest.raises(InputError, match=said) as error:
        read_dataset("toy", write([annotation()], **changed), tmp_path)
    assert "\n" not in str(error.value)


def test_missing_or_broken_files_are_refused(write, tmp_path):
    with pytest.raises(InputError, match="no file"):
        read_dataset("toy", tmp_path / "none.json", tmp_path)
    with pytest.raises(InputError, match="no folder"):
        read_dataset("toy", write([annotation()]), tmp_path / "none")
    (tmp_path / "half.json").write_text('{"images": [')
    with pytest.raises(InputError, match=r"half\.json is not valid JSON"):
        read_dataset("toy", tmp_path / "half.json", tmp_path)


def test_images_are_found_by_the_longest_ending_of_their_name(write, tmp_path):
    url = "http://images.example.org/deep/val2017/7.png"
    images = [{"id": 1, "height": 5, "width": 5, "coco_url": url}]
    dataset = read_dataset("toy", write([annotation(bbox=(0, 0, 3, 3))], images), tmp_path)
    assert dataset.images[0].file == "val2017/7.png"
    with pytest.raises(InputError, match=r"toy: no image .*val2017/7\.png"):
        dataset.path(dataset.images[0])
    (tmp_path / "7.png").touch()
    assert dataset.path(dataset.images[0]) == tmp_path / "7.png"
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017/7.png").touch()
    assert dataset.path(dataset.images[0]) == tmp_path / "val2017/7.png"


def test_arrays_have_the_types_training_wants(write, tmp_path):
    image = read_dataset("toy", write([annotation()]), tmp_path).images[0]
    assert (image.boxes.dtype, image.labels.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("ids", [int, str, float])
def test_ids_may_be_numbers_or_text(write, tmp_path, ids):
    images = [{**row, "id": ids(row["id"])} for row in IMAGES]
    categories = [{**row, "id": ids(row["id"])} for row in CATEGORIES]
    plain = read_dataset("toy", write([annotation(3, 9)]), tmp_path)
    for rows in ([annotation(3, 9)], [annotation(ids(3), ids(9))]):
        read = read_dataset("toy", write(rows, images, categories), tmp_path)
        assert (read.names, read.skipped) == (plain.names, plain.skipped)
        assert [(i.id, i.file, i.category_ids.tolist(), i.labels.tolist()) for i in read.images] == [
            (3, "3.png", [9], [1])
        ]


def test_what_is_there_twice_is_counted(write, tmp_path):
    rows = [annotation(id=1), annotation(id=2), annotation(id="1")]
    read = read_dataset("toy", write(rows, [*IMAGES, IMAGES[2]], CATEGORIES[:2]), tmp_path)
    assert len(read.images[0].boxes) == 2
    assert read.skipped == {"annotations there twice": 1, "images listed twice": 1, "images without boxes": 2}
    with pytest.raises(InputError, match="two images of the id 1"):
        read_dataset("toy", write(rows, [*IMAGES, {**IMAGES[2], "id": "1"}]), tmp_path)


@pytest.mark.parametrize("name", ["image_id", "category_id", "bbox", "iscrowd", "id"])
def test_null_is_counted_or_as_good_as_missing(write, tmp_path, name):
    read = read_dataset("toy", write([annotation(2), annotation(**{name: None})], merge=None), tmp_path)
    reasons = {"image_id": "annotations of unknown images", "category_id": "boxes of unknown categories"}
    reasons["bbox"] = "boxes without four numbers"
    assert len(read.images) == 2 - (name in reasons)
    assert name not in reasons or read.skipped[reasons[name]] == 1


@pytest.mark.parametrize("changed", [{"id": None}, {"id": True}, {"file_name": None}, {"height": None}])
def test_images_without_id_name_or_size_are_refused(write, tmp_path, changed):
    with pytest.raises(InputError, match="expected id, height, width and file_name or coco_url"):
        read_dataset("toy", write([annotation()], [{**IMAGES[0], **changed}]), tmp_path)


def test_images_of_one_base_name_keep_apart(write, tmp_path):
    names = ["cam1\\a.png", "cam2\\a.png", "cam2\\b.png"]
    images = [{**row, "file_name": name} for row, name in zip(IMAGES, names, strict=True)]
    read = read_dataset("toy", write([annotation(n) for n in (1, 2, 3)], images), tmp_path)
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    assert read.path(read.images[2]) == tmp_path / "b.png"
    for image in read.images[:2]:  # whose is a.png?
        with pytest.raises(InputError, match=rf"no image .*{image.file}"):
            read.path(image)
    (tmp_path / "cam2").mkdir()
    (tmp_path / "cam2/a.png").touch()
    assert read.path(read.images[1]) == tmp_path / "cam2/a.png"


def test_boxes_of_two_images_of_one_name_are_passed_over(write, tmp_path):
    images = [*IMAGES, {**IMAGES[0], "id": 51}]
    read = read_dataset("toy", write([annotation(1), annotation(2), annotation(51)], images), tmp_path)
    assert [image.id for image in read.images] == [2]
    assert read.skipped["images of a name that others have"] == 2
    read = read_dataset("toy", write([annotation(1), annotation(2)], images), tmp_path)
    assert [image.id for image in read.images] == [1, 2]


def test_a_byte_order_mark_is_passed_over(write, tmp_path):
    path = write([annotation()])
    path.write_text("\ufeff" + path.read_text(), newline="\r\n")
    assert len(read_dataset("toy", path, tmp_path).images) == 1
