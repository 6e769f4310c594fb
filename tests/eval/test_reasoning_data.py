"""ReasonSeg on disk, painted and scored by hand."""

import json
import math

import numpy as np
import pytest

from eval.reasoning import (
    Question,
    ReasoningTask,
    Shape,
    find_items,
    find_split,
    first_text,
    iou_metrics,
    item_iou,
    overlap,
    paint,
    read_answer,
    read_question,
    target_words,
)
from textregion.errors import InputError


def square(label: str, x: int, y: int, side: int) -> Shape:
    points = [[x, y], [x + side, y], [x + side, y + side], [x, y + side]]
    return Shape(label, np.array(points, np.int32))


def test_a_polygon_is_filled_with_its_outline():
    ground_truth = paint([square("target", 1, 2, 3)], (7, 11))
    expected = np.zeros((7, 11), np.uint8)
    expected[2:6, 1:5] = 1
    assert (ground_truth == expected).all()


def test_small_shapes_lie_over_large_ones_whatever_their_order():
    large, small = square("target", 0, 0, 6), square("ignore", 2, 2, 1)
    for shapes in ([large, small], [small, large]):
        ground_truth = paint(shapes, (11, 13))
        assert (ground_truth[2:4, 2:4] == 255).all()
        assert (ground_truth == 1).sum() == 7 * 7 - 4
    hidden = paint([square("Ignored area", 0, 0, 6), square("target", 2, 2, 1)], (11, 13))
    assert ((hidden == 1).sum(), (hidden == 255).sum()) == (4, 7 * 7 - 4)


def test_of_equal_areas_the_first_listed_lies_on_top():
    ground_truth = paint([square("ignore", 1, 1, 3), square("target", 1, 1, 3)], (7, 7))
    assert set(ground_truth[ground_truth > 0]) == {255}


def test_area_is_what_is_painted_within_the_image():
    # Most of the larger polygon lies outside, so it is painted last.
    ground_truth = paint([square("ignore", -20, -20, 22), square("target", 0, 0, 4)], (7, 7))
    assert (ground_truth[:3, :3] == 255).all()
    assert (ground_truth == 1).sum() == 5 * 5 - 3 * 3


def test_flags_are_left_out_and_nothing_is_background():
    assert paint([square("flag", 1, 1, 3), square("FLAG", 2, 2, 2)], (7, 7)).sum() == 0
    assert paint([], (3, 5)).tolist() == [[0] * 5] * 3
    assert paint([square("flagpole", 1, 1, 3)], (7, 7)).sum() == 16


def test_decimals_are_cut_off(tmp_path):
    points = [[1.9, 2.9], [4.9, 2.9], [4.9, 5.9]]
    (tmp_path / "a.json").write_text(json.dumps({"shapes": [{"label": "target", "points": points}], "text": "x"}))
    assert read_question(tmp_path / "a.json").shapes[0].points.tolist() == [[1, 2], [4, 2], [4, 5]]


def test_windows_text_is_read(tmp_path):
    content = '{"shapes": [], "text": ["le café", "autre"], "is_sentence": true}'
    for name, encoding in (("utf8", "utf-8"), ("windows", "cp1252"), ("bom", "utf-8-sig")):
        (tmp_path / f"{name}.json").write_bytes(content.encode(encoding))
        assert read_question(tmp_path / f"{name}.json") == Question("le café", "long", ())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is not JSON in UTF-8 or cp1252"),
        (b'{"text": "\x81"}', "is not JSON in UTF-8 or cp1252"),
        (b"[]", "holds list, expected a JSON object"),
        (b'{"shapes": []}', "has no text"),
        (b'{"shapes": [], "text": [" "]}', "has no text"),
        (b'{"text": "x"}', "no polygon"),
        (b'{"text": "x", "shapes": [{"label": "a", "points": [[1, 2, 3]]}]}', "expected \\(N, 2\\) finite numbers"),
        (b'{"text": "x", "shapes": [{"label": "a", "points": []}]}', "expected \\(N, 2\\) finite numbers"),
    ],
)
def test_other_files_are_refused(tmp_path, content, reason):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=reason):
        read_question(tmp_path / "a.json")


def test_only_the_first_text_counts():
    assert first_text(["a", "b"]) == first_text("a") == "a"
    assert first_text([]) is first_text(None) is first_text(["", "b"]) is first_text(3) is None


def test_answers_lie_with_or_without_the_split(tmp_path):
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "1.json").write_text('{"answers": ["A Cup", "mug"]}')
    (tmp_path / "2.json").write_text('{"answers": "Plate"}')
    (tmp_path / "3.json").write_text('{"answers": []}')
    assert read_answer(tmp_path, "val", "1") == "A Cup"
    assert read_answer(tmp_path, "val", "2") == "Plate"
    for name, reason in (("3", "has no answers"), ("4", "no file")):
        with pytest.raises(InputError, match=reason):
            read_answer(tmp_path, "val", name)


def test_target_words():
    assert target_words("A Cup", Question("What holds Tea?", "long", ())) == "a cup"
    assert target_words("A Cup", Question("Tea holder", "short", ())) == "a cup, tea holder"


def test_images_are_sorted_and_one_that_lacks_is_named(tmp_path):
    for name in ("b.jpg", "a.PNG", "c.json", "b.json", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in find_items(tmp_path)] == ["a.PNG", "b.jpg", "c.jpg"]


def test_folders(tmp_path):
    (tmp_path / "ReasonSeg" / "val").mkdir(parents=True)
    assert find_split(tmp_path, "val") == find_split(tmp_path / "ReasonSeg", "val")
    with pytest.raises(InputError, match="unpack ReasonSeg there"):
        find_split(tmp_path, "test")
    with pytest.raises(InputError, match="has no images"):
        find_items(tmp_path / "ReasonSeg" / "val")


def test_scores_of_three_items_by_hand():
    found = np.array([[1, 1, 0, 0, 1]], bool)
    ground_truth = np.array([[1, 0, 1, 0, 255]], np.uint8)
    assert overlap(found, ground_truth) == (1, 3), "the last pixel does not count"
    nothing, ignored = np.zeros((1, 5), bool), np.array([[0, 0, 0, 0, 255]], np.uint8)
    items = [(1, 3), overlap(nothing, ignored), (40, 50)]
    assert items[1] == (0, 0)
    assert item_iou(0, 0) == 1
    assert item_iou(0, 7) == 0
    scores = iou_metrics(items)
    assert scores["gIoU"] == pytest.approx(100 * (1 / 3.00001 + 1 + 40 / 50.00001) / 3)
    assert scores["cIoU"] == pytest.approx(100 * 41 / 53)


def test_empty_ground_truth_is_right_only_if_nothing_is_found():
    empty = np.zeros((1, 5), np.uint8)
    assert item_iou(*overlap(np.zeros((1, 5), bool), empty)) == 1
    assert item_iou(*overlap(np.array([[0, 0, 0, 0, 1]], bool), empty)) == 0


def test_without_items_there_is_no_score():
    assert all(math.isnan(value) for value in iou_metrics([]).values())


@pytest.mark.parametrize(
    ("query_type", "items"), [("overall", ["a.jpg", "b.jpg"]), ("short", ["a.jpg"]), ("long", ["b.jpg"])]
)
def test_the_kind_of_question_can_be_chosen(tmp_path, query_type, items):
    (tmp_path / "val").mkdir()
    for name, is_sentence in (("a", False), ("b", True)):
        content = {"shapes": [], "text": ["What?"], "is_sentence": is_sentence}
        (tmp_path / "val" / f"{name}.json").write_text(json.dumps(content))
    task = ReasoningTask(tmp_path, ["val"], query_type=query_type)
    assert task.items() == [f"val/{name}" for name in items]
    assert task.others == "background, any other thing"
    rows = ["val overall", "val short", "val long"] if query_type == "overall" else [f"val {query_type}"]
    assert list(task.parts({})) == rows


ITEM = {"text": ["What?"], "is_sentence": True, "shapes": [{"label": "target", "points": [[1, 1], [5, 1], [5, 5]]}]}


def split_with(folder, *names, item=ITEM):
    """A split of empty images and their annotations."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.jpg").touch()
        (folder / f"{name}.json").write_text(json.dumps(item))
    return folder


def test_hidden_files_are_no_items(tmp_path):
    folder = split_with(tmp_path / "val", "x")
    for name in ("._x.jpg", "._x.json", "._y.json", ".DS_Store", ".z.png"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    assert find_items(folder) == [folder / "x.jpg"]
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "._x.jpg").touch()
    with pytest.raises(InputError, match="has no images"):
        find_items(tmp_path / "test")


def test_two_images_of_one_annotation_are_told_and_neither_is_asked(tmp_path):
    (split_with(tmp_path / "val", "a", "b") / "a.png").touch()
    task = ReasoningTask(tmp_path, ["val"])
    assert task.items() == ["val/b.jpg"]
    assert [(one.id, one.kind) for one in task.unusable] == [
        ("val/a.jpg", "unusable annotation"),
        ("val/a.png", "unusable annotation"),
    ]
    assert "2 images have a.json" in task.unusable[0].reason


def test_an_answer_that_may_be_of_another_split_is_not_taken(tmp_path):
    for split in ("val", "test"):
        split_with(tmp_path / split, "a", f"only_{split}")
    answers = tmp_path / "answers"
    for name in ("a", "only_val", "only_test", "val/a"):
        (answers / name).parent.mkdir(parents=True, exist_ok=True)
        (answers / f"{name}.json").write_text(json.dumps({"answers": [name]}))
    task = ReasoningTask(tmp_path, ["val", "test"], answers)
    found = {name: item.target for name, item in task.items_by_name.items()}
    assert found == {"val/a.jpg": "val/a", "val/only_val.jpg": "only_val", "test/only_test.jpg": "only_test"}
    assert [(one.id, one.kind) for one in task.unusable] == [("test/a.jpg", "unusable annotation")]
    assert "a.json may be the answer to a of several splits" in task.unusable[0].reason


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_byte_order_marks_and_line_ends_do_not_matter(tmp_path, mark, end):
    path = tmp_path / "a.json"
    path.write_bytes(f"{mark}{json.dumps(ITEM, indent=1)}".replace("\n", end).encode())
    assert read_question(path).text == "What?"


@pytest.mark.parametrize(
    "changed",
    [{"text": None}, {"text": [None]}, {"shapes": None}]
    + [{"shapes": [{**ITEM["shapes"][0], name: None}]} for name in ("label", "points")],
)
def test_null_is_no_question_and_no_polygon(tmp_path, changed):
    (tmp_path / "a.json").write_text(json.dumps({**ITEM, **changed}))
    with pytest.raises(InputError, match=r"has no text|a shape that is no polygon"):
        read_question(tmp_path / "a.json")
