import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from textregion.errors import InputError
from textregion.masks import PrecomputedMasks, coco_masks, read_masks
from textregion.masks.coco_masks import pixels_covered, run_lengths

SIZE = (48, 64)
GOOD = [[3, 2, 20, 2, 20, 10, 3, 10]]
GOOD_BOX = [3.0, 2.0, 20.0, 10.0]


def square(x: int, y: int, side: int = 8) -> list[list[int]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def rle(mask: np.ndarray, plain: bool = False) -> dict:
    if not plain:
        coded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": list(coded["size"]), "counts": coded["counts"].decode()}
    flat = mask.T.ravel().astype(int)
    edges = [0, *np.flatnonzero(np.diff([0, *flat])).tolist(), flat.size]
    return {"size": list(mask.shape), "counts": np.diff(edges).tolist()}


def annotation(number: int, image: object, segmentation: object) -> dict:
    return {"id": number, "image_id": image, "category_id": 1, "iscrowd": 0, "segmentation": segmentation}


def write(folder, content: object):
    path = folder / "m.json"
    path.write_text(json.dumps(content))
    return path


def boxes(path, name=None, size=SIZE) -> list[list[float]]:
    return read_masks(path, size, name).boxes.tolist()


def quiet(recwarn) -> bool:
    return not [w for w in recwarn if issubclass(w.category, UserWarning)]


# ---------------------------------------------------------------- one file, many images

NAMES = {1: "cam1/0001.jpg", 2: "cam2/0001.jpg", 3: "cam2\\0002.jpg", 4: "empty.jpg"}
MANY = {
    "images": [{"id": n, "file_name": name, "height": 48, "width": 64} for n, name in NAMES.items()],
    "annotations": [annotation(10 * n, n, square(10 * n, n)) for n in (1, 2, 3)] + [annotation(21, 2.0, square(0, 0))],
}
OWN = {"cam1/0001.jpg": [10], "cam2/0001.jpg": [20, 0], "cam2/0002.jpg": [30], "empty.jpg": []}


@pytest.mark.parametrize("ids", [int, str, float])
@pytest.mark.parametrize("name", OWN)
def test_every_image_has_its_own_annotations_only(tmp_path, recwarn, name, ids):
    content = json.loads(json.dumps(MANY))
    for row in content["images"]:
        row["id"] = ids(row["id"])
    for asked in (name, f"photos/{name}", tmp_path / name, name.replace("/", "\\")):
        path = write(tmp_path, content)  # anew: of two folders with an empty.jpg, one file gives to the first only
        assert [box[0] for box in boxes(path, asked)] == OWN[name]
    assert [box[0] for box in PrecomputedMasks(path, name).generate(np.zeros((*SIZE, 3), np.uint8)).boxes] == OWN[name]
    assert quiet(recwarn)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "holds masks of 4 images; say of which one"),
        ("0001.jpg", "2 images that 0001.jpg may be"),
        ("cam3/0001.jpg", "lists no image cam3/0001.jpg"),
        ("1.jpg", "lists no image 1.jpg"),
        ("other.jpg", "lists no image other.jpg; it lists 4 images: cam1/0001.jpg"),
    ],
)
def test_what_is_no_image_of_the_file_is_refused(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        boxes(write(tmp_path, MANY), name)


def test_a_file_without_names_is_matched_by_ids_or_refused(tmp_path):
    rows = [annotation(1, 7, square(10, 1)), annotation(2, "8.0", square(20, 1))]
    for content in (rows, {"annotations": rows}, {"images": [{"id": 7}, {"id": 8}], "annotations": rows}):
        path = write(tmp_path, content)
        assert [boxes(path, name)[0][0] for name in ("7.jpg", "x/0008.png")] == [10, 20]
        for name in (None, "scene.jpg"):
            with pytest.raises(InputError, match=r"holds masks of 2 images|lists no image scene.jpg"):
                boxes(path, name)


@pytest.mark.parametrize(
    "content",
    [
        [annotation(1, 7, GOOD)],
        {"images": [], "annotations": [{"segmentation": GOOD}]},
        {"images": [{"id": 7}], "annotations": [annotation(1, 7, GOOD)]},
        {"images": [{"id": 7}], "annotations": [{"segmentation": GOOD}]},
        [{"segmentation": GOOD}],
        [GOOD],
    ],
)
def test_masks_of_one_unnamed_image_are_of_any(tmp_path, content):
    assert boxes(write(tmp_path, content)) == boxes(write(tmp_path, content), "scene.jpg") == [GOOD_BOX]


def test_a_file_in_a_folder_is_of_the_image_it_is_named_after(tmp_path):
    content = {"images": [{"id": 1, "file_name": "export-1.png"}], "annotations": [annotation(1, 1, GOOD)]}
    (tmp_path / "scene.json").write_text(json.dumps(content))
    assert boxes(tmp_path, "photos/scene.jpg") == [GOOD_BOX]
    with pytest.raises(InputError, match=r"lists no image scene.jpg; it lists 1 images: export-1.png"):
        boxes(tmp_path / "scene.json", "scene.jpg")
    (tmp_path / "scene.json").write_text(json.dumps(MANY))
    with pytest.raises(InputError, match=r"lists no image scene.jpg; it lists 4 images"):
        boxes(tmp_path, "scene.jpg")


def test_results_that_name_files_are_matched_by_them(tmp_path):
    rows = [{"file_name": f"{name}.jpg", "segmentation": square(x, 0)} for name, x in (("a", 1), ("b", 9))]
    assert boxes(write(tmp_path, rows), "photos/b.jpg")[0][0] == 9


def test_annotations_of_no_listed_image_are_counted(tmp_path):
    content = {**MANY, "annotations": [*MANY["annotations"], annotation(5, 99, GOOD), annotation(6, [1], GOOD), 7]}
    with pytest.warns(UserWarning, match="3 of 7 annotations name no image that the file lists; they are passed over"):
        assert len(boxes(write(tmp_path, content), "cam1/0001.jpg")) == 1
    with pytest.raises(InputError, match="1 of 1 annotations name no image that the file lists"):
        boxes(write(tmp_path, {**MANY, "annotations": [annotation(5, 99, GOOD)]}), "cam1/0001.jpg")


def test_a_key_given_twice_is_refused_as_in_every_json_file(tmp_path):
    path = tmp_path / "m.json"
    path.write_text('{"annotations": [], "annotations": []}')
    with pytest.raises(InputError, match=r"m\.json is not valid JSON \(the key 'annotations' is there twice\)"):
        read_masks(path, SIZE)


def test_a_file_that_changes_is_read_again_and_one_that_does_not_is_not(tmp_path, monkeypatch):
    path, parsed = write(tmp_path, MANY), []
    real = coco_masks.read_json
    monkeypatch.setattr(coco_masks, "read_json", lambda *given: parsed.append(1) or real(*given))
    for name in OWN:
        boxes(path, name)
    assert len(parsed) == 1
    assert boxes(write(tmp_path, [annotation(1, 7, GOOD)])) == [GOOD_BOX]


# ---------------------------------------------------------------- another size

THING = np.zeros(SIZE, bool)
THING[10:30, 20:40] = True


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("factor", [2, 10])
def test_runs_of_another_size_are_sampled(tmp_path, factor, plain):
    large = np.kron(THING, np.ones((factor, factor), bool))
    path = write(tmp_path, [rle(large, plain)])
    assert (read_masks(path, SIZE).soft.numpy() == THING).all()
    small = write(tmp_path, [rle(THING, plain)])
    assert (read_masks(small, large.shape).soft.numpy() == large).all()


@given(st.integers(1, 12), st.integers(1, 12), st.integers(2, 4), st.integers(0, 2**32))
def test_enlarged_runs_are_the_enlarged_mask(height, width, factor, seed):
    mask = np.random.default_rng(seed).random((height, width)) > 0.5
    found = coco_masks._mask_of_runs(rle(mask), (height * factor, width * factor))
    assert (found == np.kron(mask, np.ones((factor, factor), bool))).all()


@pytest.mark.parametrize("form", [int, float, str])
def test_polygons_of_another_size_are_scaled(tmp_path, form):
    row = {"id": 1, "file_name": "a.jpg", "height": form(96), "width": form(128)}
    polygon = [2 * n for n in GOOD[0]]
    path = write(tmp_path, {"images": [row], "annotations": [annotation(1, 1, [polygon])]})
    assert boxes(path, "a.jpg") == [GOOD_BOX]
    crowd = annotation(2, 1, rle(np.kron(THING, np.ones((2, 2)))))
    path = write(tmp_path, [annotation(1, 1, [polygon]), crowd])
    assert boxes(path) == [GOOD_BOX, [20.0, 10.0, 40.0, 30.0]], "polygons are meant at the size of the crowd's runs"


def test_other_aspects_are_refused(tmp_path):
    row = {"id": 1, "file_name": "a.jpg", "height": 64, "width": 48}
    with pytest.raises(
        InputError, match=r"m\.json, a\.jpg: has masks of an image of size \[64, 48\], expected the ima"
    ):
        boxes(write(tmp_path, {"images": [row], "annotations": [annotation(1, 1, GOOD)]}), "a.jpg")
    for size in ([64, 48], [48, 60], [10**9, 3]):
        with pytest.raises(InputError, match=r"has masks of an image of size|expected \[height, width\]"):
            boxes(write(tmp_path, [{"size": size, "counts": [math.prod(size)]}]))
    with pytest.raises(
        InputError, match=r"entry 1 has a mask of size \[9, 9\], expected the image's \[48, 64\] or its"
    ):
        boxes(write(tmp_path, [rle(THING), rle(np.ones((9, 9)))]))


# ---------------------------------------------------------------- broken annotations

FAR, NAN = [[5, 5, 1e9, 5, 5, 9]], [[5, 5, math.nan, 5, 5, 9]]
BROKEN = {
    "two points": [[5, 5, 6, 6]],
    "no point": [[]],
    "seven numbers": [[1, 2, 3, 4, 5, 6, 7]],
    "empty": [],
    "null": None,
    "text": "polygon",
    "number": 7,
    "words": [["a", "b", "c", "d", "e", "f"]],
    "flat": [1, 1, 9, 1, 9, 9],
    "booleans": [[True, 1, 9, 1, 9, 9]],
    "points": [[[1, 1], [9, 1], [9, 9]]],
    "far": FAR,
    "NaN": NAN,
    "infinite": [[5, 5, math.inf, 5, 5, 9]],
    "huge integer": [[5, 5, 10**400, 5, 5, 9]],
    "long outline": [[0, 0, 250, 250] * 10_000],
    "no counts": {"size": [48, 64]},
    "no size": {"counts": [3072]},
    "odd size": {"size": ["a", 64], "counts": [3072]},
    "three sizes": {"size": [48, 64, 1], "counts": [3072]},
    "null counts": {"size": [48, 64], "counts": None},
    "text counts": {"size": [48, 64], "counts": ["3072"]},
    "short": {"size": [48, 64], "counts": [3]},
    "negative": {"size": [48, 64], "counts": [-1, 3073]},
    "huge": {"size": [48, 64], "counts": [10**40, 3072 - 10**40]},
    "cut off": {"size": [48, 64], "counts": "o"},
    "long number": {"size": [48, 64], "counts": "o" * 5000 + "0"},
    "foreign": {"size": [48, 64], "counts": "é\0\n"},
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_annotation_is_named_and_the_others_are_read(tmp_path, what):
    rows = [annotation(n, 1, segmentation) for n, segmentation in ((70, GOOD), (71, BROKEN[what]), (72, rle(THING)))]
    with pytest.warns(UserWarning, match=r"passed over 1 broken masks or polygons: annotation 71 \(") as warned:
        assert boxes(write(tmp_path, rows)) == [GOOD_BOX, [20.0, 10.0, 40.0, 30.0]]
    told = [str(w.message) for w in warned if w.category is UserWarning]
    assert len(told) == 1
    assert len(told[0]) < 400
    with pytest.raises(InputError, match=r"none of 1 annotations is a usable mask: annotation 71 \("):
        boxes(write(tmp_path, rows[1:2]))


@pytest.mark.parametrize("what", ["two points", "no point", "far", "NaN", "words"])
def test_a_broken_part_is_named_and_the_rest_of_its_annotation_is_read(tmp_path, what):
    rows = [annotation(70, 1, [*BROKEN[what], *GOOD]), annotation(71, 1, [*square(30, 30), *square(40, 30)])]
    with pytest.warns(UserWarning, match=r"passed over 1 broken masks or polygons: annotation 70 \("):
        assert boxes(write(tmp_path, rows)) == [GOOD_BOX, [30.0, 30.0, 48.0, 38.0]]


def test_entries_without_an_id_are_named_by_their_number_and_only_some_are_told(tmp_path):
    with pytest.warns(UserWarning, match=r"over 9 broken .*: entry 1 \(.*, entry 5 \(.*\) and 4 more$"):
        boxes(write(tmp_path, [GOOD, *[[]] * 9]))


def test_a_damaged_image_of_many_does_not_hinder_the_others(tmp_path, recwarn):
    path = write(tmp_path, {**MANY, "annotations": [*MANY["annotations"], annotation(40, 4, [])]})
    assert len(boxes(path, "cam2/0001.jpg")) == 2
    assert quiet(recwarn)
    with pytest.raises(InputError, match=r"m\.json, empty\.jpg: none of 1 annotations is a usable mask: annotation 40"):
        boxes(path, "empty.jpg")


def test_many_masks_need_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("textregion.mask_arrays.MOST_BYTES", 2 * 48 * 64)
    assert len(boxes(write(tmp_path, [GOOD] * 2))) == 2
    with pytest.raises(InputError, match="of 3 regions of 48 x 64 pixels needs more than"):
        boxes(write(tmp_path, [GOOD] * 3))


# ---------------------------------------------------------------- run lengths


def test_crowds_of_plain_runs_are_read(tmp_path, recwarn):
    path = write(tmp_path, [{**annotation(1, 1, rle(THING, plain=True)), "iscrowd": 1}, rle(THING)])
    assert (read_masks(path, SIZE).soft.numpy() == THING).all()
    assert quiet(recwarn)


@given(st.lists(st.integers(0, 2**31), max_size=9))
def test_run_lengths_are_what_the_library_wrote(runs):
    """Compressed by hand: five bits a character, from the fourth on differences to the one before the last."""
    text = ""
    for i, run in enumerate(runs):
        rest = run - (runs[i - 2] if i > 2 else 0)
        more = True
        while more:
            digit, rest = rest & 31, rest >> 5
            more = rest != (-1 if digit & 16 else 0)
            text += chr(digit + 32 * more + 48)
    assert run_lengths(text) == run_lengths(text.encode()) == run_lengths(runs) == runs
    assert pixels_covered({"counts": text}) == sum(runs)


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=40))
def test_any_text_is_refused_or_of_plausible_runs(text):
    try:
        runs = run_lengths(text)
    except ValueError:
        return
    assert all(0 <= run <= 2**32 for run in runs)
