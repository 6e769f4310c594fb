import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textregion.boxes import boxes_inside, read_boxes
from textregion.errors import InputError

A, B = [1.0, 2.0, 11.0, 22.5], [3.0, 4.0, 5.0, 6.0]
A_XYWH, B_XYWH = [1, 2, 10, 20.5], [3, 4, 2, 2]
coordinate = st.floats(-20, 80, width=32)


def test_boxes_within_the_image_stay_as_they_are():
    boxes = [[0, 0, 53, 31], [1.5, 2, 3, 4]]
    for given_as in (boxes, np.array(boxes), torch.tensor(boxes, dtype=torch.float64)):
        found = boxes_inside(given_as, (31, 53))
        assert found.dtype == torch.float32
        assert torch.equal(found, torch.tensor(boxes))


@pytest.mark.parametrize("nothing", [[], np.zeros((0, 4)), torch.zeros(0, 4)])
def test_no_box_is_fine(nothing):
    assert boxes_inside(nothing, (31, 53)).shape == (0, 4)


def test_a_pixel_of_rounding_is_cut():
    assert boxes_inside([[-1, -0.5, 54, 31.9]], (31, 53)).tolist() == [[0, 0, 53, 31]]


def refused(boxes, size) -> int | None:
    """Which box is refused, None if none is."""
    try:
        boxes_inside(boxes, size)
    except InputError as error:
        return int(str(error).split()[1])
    return None


@given(st.lists(st.tuples(*[coordinate] * 4), min_size=1, max_size=4))
def test_a_box_is_used_or_refused_by_its_number(boxes):
    height, width = 31, 53
    index = refused(boxes, (height, width))
    if index is not None:
        x1, y1, x2, y2 = boxes[index]
        assert x1 >= x2 or y1 >= y2 or min(x1, y1) < 0 or x2 > width or y2 > height
        return
    found = boxes_inside(boxes, (height, width))
    assert ((found >= 0) & (found <= torch.tensor([width, height, width, height]))).all()
    assert (found[:, :2] < found[:, 2:]).all()
    assert (found - torch.tensor(boxes)).abs().max() <= 1


@pytest.mark.parametrize(
    ("boxes", "line"),
    [
        ([[1, 2, 3, 4], [53, 0, 54, 9]], "box 1 at .* is empty within the image of 53 x 31"),
        ([[0, 0, 54.5, 9]], "box 0 at .* lies outside the image of 53 x 31 pixels"),
        ([[3, 3, 3, 9]], r"box 0 at \[3.0, 3.0, 3.0, 9.0\] expected x1 < x2 and y1 < y2"),
        ([[1, 2, 3, float("nan")]], "box 0 at .* expected finite numbers"),
        ([[1, 2, 3]], r"got boxes of shape \(1, 3\)"),
        ([["a", 2, 3, 4]], "no numbers"),
    ],
)
def test_bad_boxes_are_one_line(boxes, line):
    with pytest.raises(InputError, match=line) as error:
        boxes_inside(boxes, (31, 53))
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------- files


def written(tmp_path, content, name="boxes.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def check(given, boxes, scores=None):
    np.testing.assert_array_equal(given.boxes, np.array(boxes, np.float32).reshape(-1, 4))
    assert given.boxes.dtype == np.float32
    if scores is None:
        assert given.scores is None
    else:
        np.testing.assert_allclose(given.scores, scores)


def test_coco_annotations_by_id_and_by_name(tmp_path):
    images = [{"id": 7, "file_name": "val/a.jpg"}, {"id": 9, "file_name": "b.png"}, {"id": 11}]
    rows = [{"image_id": 9, "bbox": B_XYWH}, {"image_id": 7, "bbox": A_XYWH}, {"image_id": 9, "bbox": A_XYWH}]
    read = read_boxes(written(tmp_path, {"images": images, "annotations": rows}))
    for name in (7, "7", "val/a.jpg", "a.jpg"):
        check(read.of(name), [A])
    check(read.of("b.png"), [B, A])
    check(read.of(11), [])
    with pytest.raises(InputError, match=r"boxes.json lists no image c.png; it lists 3 images: b.png, val/a.jpg"):
        read.of("c.png")
    with pytest.raises(InputError, match=r"boxes.json lists no image of the id 8; it lists 3 images"):
        read.of(8)


def test_coco_annotations_that_name_files_or_no_image_at_all(tmp_path):
    rows = [{"file_name": "a.jpg", "bbox": A_XYWH}, {"file_name": "b.jpg", "bbox": B_XYWH, "score": 0.5}]
    read = read_boxes(written(tmp_path, {"annotations": rows}))
    check(read.of("some/a.jpg"), [A])
    check(read.of("b.jpg"), [B], [0.5])
    check(read_boxes(written(tmp_path, {"annotations": [{"bbox": A_XYWH}]})).of("whatever.png"), [A])
    check(read_boxes(written(tmp_path, {"annotations": []})).of("whatever.png"), [])


def test_coco_results(tmp_path):
    rows = [
        {"image_id": 139, "bbox": A_XYWH, "score": 0.25, "category_id": 1},
        {"image_id": 139, "bbox": B_XYWH, "score": 1},
    ]
    read = read_boxes(written(tmp_path, rows))
    for name in (139, "000000000139.jpg"):
        check(read.of(name), [A, B], [0.25, 1])


def test_detections_by_image(tmp_path):
    rows = {"139": {"boxes": [A, B], "scores": [0.5, 0.75], "labels": [3, 4]}, "a": {"boxes": []}}
    read = read_boxes(written(tmp_path, rows))
    check(read.of("val2017/000000000139.jpg"), [A, B], [0.5, 0.75])
    check(read.of("a.png"), [])


PLACES = {"A": (A_XYWH, A), "B": (B_XYWH, B)}


def layouts(names):
    """The layouts of a file that has one box of each of these images: {"A": file name, "B": file name}."""
    rows = [{"file_name": name, "bbox": PLACES[box][0]} for box, name in names.items()]
    numbered = [{**row, "image_id": n} for n, row in enumerate(rows, 1)]
    coco = {
        "images": [{"id": row["image_id"], "file_name": row["file_name"]} for row in numbered],
        "annotations": [{"image_id": row["image_id"], "bbox": row["bbox"]} for row in numbered],
    }
    detections = {name: {"boxes": [PLACES[box][1]]} for box, name in names.items()}
    return {"coco": coco, "results with names": rows, "results with both": numbered, "detections": detections}


@pytest.mark.parametrize("layout", layouts({}))
@pytest.mark.parametrize(
    ("names", "asked", "expected"),
    [
        ({"A": "cam1/0001.jpg", "B": "cam2/0001.jpg"}, "photos/cam1/0001.jpg", "A"),
        ({"A": "cam1/0001.jpg", "B": "cam2/0001.jpg"}, "/data/cam2/0001.jpg", "B"),
        ({"A": "cam1\\0001.jpg", "B": "cam2\\0001.jpg"}, "cam2/0001.jpg", "B"),
        ({"A": "2.jpg", "B": "1.jpg"}, "photos/1.jpg", "B"),
        ({"A": "cam1/0001.jpg", "B": "cam2/0001.jpg"}, "0001.jpg", None),
        ({"A": "cam1/0001.jpg", "B": "cam2/0001.jpg"}, "cam3/0001.jpg", None),
        ({"A": "cat.jpg", "B": "dog.jpg"}, "photos/1.jpg", None),
    ],
)
def test_boxes_are_of_their_own_image_or_refused(tmp_path, layout, names, asked, expected):
    read = read_boxes(written(tmp_path, layouts(names)[layout]))
    if expected is None:
        with pytest.raises(InputError):
            read.of(Path(asked))
    else:
        check(read.of(Path(asked)), [PLACES[expected][1]])


@pytest.mark.parametrize("layout", ["coco", "results with both", "detections"])
def test_two_ids_of_one_name_are_refused(tmp_path, layout):
    read = read_boxes(written(tmp_path, layouts({"A": "f.png", "B": ".\\f.png"})[layout]))
    with pytest.raises(InputError, match=r"lists 2 images that x/f.png may be"):
        read.of("x/f.png")


@pytest.mark.parametrize("listed", [7, 7.0, "7", "7.0", "007"])
@pytest.mark.parametrize("named", [7, 7.0, "7", "007"])
def test_ids_are_the_same_as_numbers_and_as_text(tmp_path, listed, named):
    images = [{"id": listed, "file_name": "a.jpg"}, {"id": 70, "file_name": "b.jpg"}]
    rows = [{"image_id": named, "bbox": A_XYWH}]
    check(read_boxes(written(tmp_path, {"images": images, "annotations": rows})).of("a.jpg"), [A])
    check(read_boxes(written(tmp_path, rows)).of("0007.jpg"), [A])


@pytest.mark.parametrize(
    ("first", "second"), [("7", "7.0"), ("7", "007"), ("a.jpg", "a.jpg "), ("7", '7": {"boxes": []}, "7')]
)
def test_two_entries_of_one_image_are_refused(tmp_path, first, second):
    box = json.dumps({"boxes": [A]})
    with pytest.raises(InputError, match=r"2 entries are of 1 images|is there twice"):
        read_boxes(written(tmp_path, f'{{"{first}": {box}, "{second}": {box}}}'))


def test_annotations_of_images_that_are_not_listed_are_counted(tmp_path):
    images = [{"id": 7, "file_name": "a.jpg"}]
    rows = [{"image_id": 8, "bbox": B_XYWH}, {"image_id": 7, "bbox": A_XYWH}, {"image_id": "x", "bbox": B_XYWH}]
    with pytest.warns(UserWarning, match=r"2 of 3 annotations are of images that it does not list \(image_id 8 first"):
        read = read_boxes(written(tmp_path, {"images": images, "annotations": rows}))
    check(read.of("a.jpg"), [A])
    assert read.unlisted == 2
    with pytest.raises(InputError, match="1 of 1 annotations are of images that it does not list"):
        read_boxes(written(tmp_path, {"images": images, "annotations": rows[:1]}))


@pytest.mark.parametrize("nulls", [("image_id",), ("file_name",), ("image_id", "file_name"), ("score",)])
def test_null_is_as_good_as_missing(tmp_path, nulls):
    row = {"image_id": 7, "file_name": "a.jpg", "bbox": A_XYWH, "score": 0.5, **dict.fromkeys(nulls)}
    given = read_boxes(written(tmp_path, [row])).of("7.jpg" if nulls == ("file_name",) else "a.jpg")
    check(given, [A], None if "score" in nulls else [0.5])


def test_an_image_without_a_name_has_no_boxes_by_name(tmp_path):
    images = [{"id": 7, "file_name": None}, {"id": 9, "file_name": "b.jpg"}]
    rows = [{"image_id": 7, "bbox": A_XYWH}, {"image_id": 9, "bbox": B_XYWH}]
    read = read_boxes(written(tmp_path, {"images": images, "annotations": rows}))
    check(read.of("b.jpg"), [B])
    with pytest.raises(InputError, match=r"lists no image 7.jpg"):
        read.of("7.jpg")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_byte_order_marks_and_line_ends_do_not_matter(tmp_path, mark, end):
    lines = end.join([f"{mark}x1,y1,x2,y2,score", "1,2,11,22.5,0.5", f"{mark}3,4,5,6,1", ""])
    (tmp_path / "b.csv").write_bytes(lines.encode())
    check(read_boxes(tmp_path / "b.csv").of("x.png"), [A, B], [0.5, 1])
    text = json.dumps({"a.jpg": {"boxes": [A]}}, indent=1).replace("\n", end)
    (tmp_path / "b.json").write_bytes(f"{mark}{text}".encode())
    check(read_boxes(tmp_path / "b.json").of("a.jpg"), [A])


def test_plain_lists_and_lines_are_boxes_of_any_image(tmp_path):
    check(read_boxes(written(tmp_path, [A, B])).of("x.png"), [A, B])
    check(read_boxes(written(tmp_path, [])).of("x.png"), [])
    check(read_boxes(written(tmp_path, "1,2,11,22.5\n\n# note\n3 4 5 6\n", "b.txt")).of("x.png"), [A, B])
    lines = "x1,y1,x2,y2,score\n1,2,11,22.5,0.5\n3, 4, 5, 6, 1\n"
    check(read_boxes(written(tmp_path, lines, "b.csv")).of("x.png"), [A, B], [0.5, 1])
    check(read_boxes(written(tmp_path, "", "b.csv")).of("x.png"), [])


@pytest.mark.parametrize(
    ("content", "name", "line"),
    [
        ("{", "b.json", "is not valid JSON"),
        ("", "b.json", "is not valid JSON"),
        ({}, "b.json", "no boxes in a known layout"),
        ({"a": 1}, "b.json", "no boxes in a known layout"),
        (7, "b.json", "no boxes in a known layout"),
        ([A, {"bbox": A}], "b.json", "no boxes in a known layout"),
        ([[1, 2, 3]], "b.json", r"box 0 of the list is \[1, 2, 3\], expected 4 finite numbers"),
        ([A, [1, 2, 3, float("nan")]], "b.json", "box 1 of the list"),
        ([A, 5], "b.json", "box 1 of the list is 5"),
        ([A, "1234"], "b.json", "box 1 of the list is 1234"),
        ({"annotations": [{"bbox": A}, {"id": 3}]}, "b.json", "annotation 1 has no bbox"),
        ({"annotations": [{"bbox": [1, 2]}]}, "b.json", r"annotation 0 is \[1, 2\], expected 4"),
        (
            {"annotations": [{"bbox": A, "image_id": 3}, {"bbox": A}]},
            "b.json",
            "annotation 1 and others name no image_id",
        ),
        ({"annotations": [], "images": [{"file_name": "a"}]}, "b.json", "an image without an id"),
        ([{"bbox": A, "image_id": 3, "score": "high"}], "b.json", "scores of image 3"),
        ([{"bbox": A, "image_id": 3, "score": 1}, {"bbox": A, "image_id": 3}], "b.json", "scores of image 3"),
        ({"7": {"boxes": [A], "scores": []}}, "b.json", "image 7 has 0 scores for 1 boxes"),
        ({"7": {"boxes": 5}}, "b.json", "image 7 has no lists"),
        ({"annotations": [{"bbox": None, "image_id": 3}]}, "b.json", "annotation 0 has no bbox"),
        ({"annotations": [{"bbox": A, "image_id": True}]}, "b.json", "annotation 0 has the image_id True"),
        ({"annotations": [{"bbox": A, "image_id": float("nan")}]}, "b.json", "annotation 0 has the image_id nan"),
        ({"annotations": [{"bbox": A, "image_id": [3]}]}, "b.json", r"annotation 0 has the image_id \[3\]"),
        ({"annotations": [], "images": [{"id": None, "file_name": "a"}]}, "b.json", "an image without an id"),
        ({"annotations": [], "images": {"id": 3}}, "b.json", "images that are no list"),
        ([{"bbox": A, "image_id": 3, "score": None}, {"bbox": A, "image_id": 3, "score": 1}], "b.json", "scores of"),
        ("1,2,3\n", "b.csv", "line 1 is .* expected 4 or 5 finite numbers"),
        ("1,2,3,4\n1,2,3,b\n", "b.csv", "line 2"),
        ("1,2,3,4\n1,2,3,4,5\n", "b.csv", "some lines have a score"),
    ],
)
def test_bad_files_are_one_line(tmp_path, content, name, line):
    path = written(tmp_path, content, name)
    with pytest.raises(InputError, match=line) as error:
        read_boxes(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(InputError, match="no file"):
        read_boxes(tmp_path / "none.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_boxes(tmp_path / "a.json")


@pytest.mark.parametrize("content", ["[" * 100_000, f"[[{10**400}, 1, 2, 3]]", "[[" + "9" * 5000 + ", 1, 2, 3]]"])
def test_too_deep_and_too_long_numbers_are_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=r"a\.json"):
        read_boxes(tmp_path / "a.json")
