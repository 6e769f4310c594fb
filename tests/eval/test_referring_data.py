"""The preprocessed layout of RefCOCO, read line by line."""

import json

import pytest

from eval.referring import find_splits, image_name, read_detections, read_line, read_splits
from textregion.errors import InputError

LINE = {
    "image_id": 581857,
    "file_name": "COCO_train2014_000000581857_16.jpg",
    "anns": [{"id": 7, "bbox": [1, 2, 3, 4]}, {"id": 9, "bbox": [5.5, 6, 7, 8]}, {"id": 11, "bbox": [0, 0, 1, 1]}],
    "ann_id": 9,
    "sentences": [{"raw": "The lady"}, {"raw": "left one"}],
}
DETECTIONS = {"581857": ((2.0, 2.0, 2.0, 2.0),)}


def line(**changes) -> bytes:
    return json.dumps({**LINE, **changes}).encode()


def read(proposals="detections", **changes):
    return read_line(line(**changes), "refcoco_val", 3, proposals, DETECTIONS)


def test_one_line():
    found = read()
    assert found.image == "COCO_train2014_000000581857.jpg"
    assert found.ground_truth == ((5.5, 6, 7, 8),)
    assert found.candidates == DETECTIONS["581857"]
    assert found.sentences == ("The lady", "left one")
    assert found.name == "refcoco_val line 3"
    assert found.snaps


def test_ann_id_may_be_a_list():
    assert read(ann_id=[11, 7]).ground_truth == ((0, 0, 1, 1), (1, 2, 3, 4))
    assert read(ann_id=[7]).ground_truth == read(ann_id=7).ground_truth == ((1, 2, 3, 4),)


def test_candidates_by_kind_of_proposal():
    assert read("gt").candidates == ((1, 2, 3, 4), (5.5, 6, 7, 8), (0, 0, 1, 1))
    assert not read("none").snaps
    assert read(image_id=1).candidates == ()


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("COCO_train2014_000000581857_16.jpg", "COCO_train2014_000000581857.jpg"),
        ("COCO_val2014_000000000001_7.png", "COCO_val2014_000000000001.jpg"),
        ("COCO_train2014_000000581857.jpg", "COCO_train2014_000000581857.jpg"),
        ("my_own_photo.jpg", "my_own_photo.jpg"),
        ("train2014\\COCO_train2014_000000581857_16.jpg", "train2014/COCO_train2014_000000581857.jpg"),
        ("train2014/COCO_train2014_000000581857.jpg", "train2014/COCO_train2014_000000581857.jpg"),
        ("coco/my_own_photo.jpg", "coco/my_own_photo.jpg"),
    ],
)
def test_image_names(file_name, name):
    assert image_name(file_name) == name


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"image_id": 5, "file', "JSONDecodeError"),
        (b"\xff\xfe", "UnicodeDecodeError"),
        (b"[1, 2]", "TypeError"),
        (line(anns=[{"id": 9, "bbox": [1, 2, 3]}]), "expected x, y, width, height"),
        (line(anns=[{"id": 9, "bbox": [1, 2, 3, float("nan")]}]), "expected x, y, width, height"),
        (line(sentences=None), "TypeError"),
        (line(sentences=[{"raw": 7}]), "got the sentence 7, expected text"),
        (line(file_name=None), "AttributeError"),
        (line(image_id=None), "got the image id 'None'"),
        (line(ann_id=None), "got the image id 'None'"),
        (line(anns=[{"id": 9, "bbox": None}]), "TypeError"),
        (line(anns=[*LINE["anns"], {"id": "9", "bbox": [0, 0, 9, 9]}]), "the annotation 9 has two boxes"),
        (line(ann_id=8), r"none of ann_id \[8\] is among the 3 anns"),
        (json.dumps({k: v for k, v in LINE.items() if k != "file_name"}).encode(), "'file_name'"),
    ],
)
def test_a_broken_line_says_why(bad, reason):
    with pytest.raises(InputError, match=reason):
        read_line(bad, "refcoco_val", 3, "gt", {})


def test_both_formats_of_detections(tmp_path):
    (tmp_path / "a.json").write_text('{"17": [[1, 2, 3, 4], [5, 6, 7, 8]], "19": []}')
    rows = [{"image_id": 17, "box": [1, 2, 3, 4], "score": 0.5}, {"image_id": 17, "box": [5, 6, 7, 8]}]
    (tmp_path / "b.json").write_text(json.dumps(rows))
    boxes = ((1, 2, 3, 4), (5, 6, 7, 8))
    assert read_detections(tmp_path / "a.json") == {"17": boxes}
    assert read_detections(tmp_path / "b.json") == {"17": boxes}


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", '{"17": 3}', '{"17": [[1, 2]]}', '{"17": [null]}', '{"17": [], "17": []}', '[{"image_id": null}]'],
)
def test_other_detections_are_refused(tmp_path, content):
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(InputError, match=r"d.json is not (a JSON file of detections|valid JSON)"):
        read_detections(tmp_path / "d.json")


def test_missing_files_say_what_to_do(tmp_path):
    with pytest.raises(InputError, match="run with --proposals gt or none"):
        read_detections(tmp_path / "refcoco_dets_dict.json")
    with pytest.raises(InputError, match="no folder"):
        find_splits(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has none of refcoco_val.jsonl"):
        find_splits(tmp_path)
    (tmp_path / "refcoco_testa.jsonl").touch()
    assert find_splits(tmp_path) == ["refcoco_testa"]
    with pytest.raises(InputError, match=r"refcocog_val.jsonl; there are: refcoco_testa"):
        find_splits(tmp_path, ["refcocog_val"])


def test_lines_are_gathered_by_image_over_splits(tmp_path):
    other = line(file_name="COCO_train2014_000000000002_1.jpg", image_id=2, sentences=[])
    (tmp_path / "refcoco_val.jsonl").write_bytes(b"\n".join([line(), b"", b"{broken", other]))
    (tmp_path / "refcoco+_val.jsonl").write_bytes(line(ann_id=7))
    expressions, unusable = read_splits(tmp_path, ["refcoco_val", "refcoco+_val"], "none")
    first, second = "COCO_train2014_000000581857.jpg", "COCO_train2014_000000000002.jpg"
    assert list(expressions) == [first, second]
    assert [e.name for e in expressions[first]] == ["refcoco_val line 1", "refcoco+_val line 1"]
    told = [(one.id, one.kind) for one in unusable]
    assert told == [("refcoco_val line 3", "broken line"), ("refcoco_val line 4", "no sentences")]


@pytest.mark.parametrize("number", [581857, 581857.0, "581857", "581857.0"])
@pytest.mark.parametrize("annotation", [9, 9.0, "9"])
def test_ids_may_be_numbers_or_text(tmp_path, number, annotation):
    found = read(image_id=number, ann_id=annotation)
    assert (found.candidates, found.ground_truth) == (DETECTIONS["581857"], ((5.5, 6, 7, 8),))
    (tmp_path / "d.json").write_text(json.dumps([{"image_id": number, "box": [2, 2, 2, 2]}]))
    assert read_detections(tmp_path / "d.json") == DETECTIONS


def test_a_sentence_of_null_has_no_words():
    assert read(sentences=[{"raw": None}, {"raw": "left one"}]).sentences == ("", "left one")


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_byte_order_mark_and_line_ends_do_not_matter(tmp_path, end):
    lines = [line(), line(ann_id=7)]
    (tmp_path / "refcoco_val.jsonl").write_bytes(b"\xef\xbb\xbf" + end.join([*lines, b""]))
    (tmp_path / "refcoco_dets_dict.json").write_bytes(b'\xef\xbb\xbf{"581857": [[2, 2, 2, 2]]}' + end)
    expressions, unusable = read_splits(tmp_path, ["refcoco_val"])
    assert unusable == []
    (asked,) = expressions.values()
    assert [e.candidates for e in asked] == [DETECTIONS["581857"]] * 2


def test_a_line_that_is_there_twice_counts_once(tmp_path):
    (tmp_path / "refcoco_val.jsonl").write_bytes(b"\n".join([line(), line(ann_id=7), line() + b" \r"]))
    expressions, unusable = read_splits(tmp_path, ["refcoco_val"], "none")
    assert [len(asked) for asked in expressions.values()] == [2]
    assert [(one.id, one.kind, one.reason) for one in unusable] == [
        ("refcoco_val line 3", "repeated line", "the same as line 1")
    ]
