"""LVIS: average precision of hand-made predictions, the choice of detections, both layouts of boxes."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.lvis import as_text, best_detections, closer, overlapped_names, published_columns, side_by_side
from eval.lvis_data import (
    METRICS,
    Boxes,
    average_precision,
    clip,
    image_paths,
    lvis_package,
    read_annotations,
    read_boxes,
)
from textregion.errors import InputError

SIZE = 200  # sides of the images, pixels
APPLE, BEAR = 3, 7  # ids; no category is common


def image(number, negative=(), not_exhaustive=()):
    federated = {"neg_category_ids": list(negative), "not_exhaustive_category_ids": list(not_exhaustive)}
    return {"id": number, "file_name": f"{number}.png", "height": SIZE, "width": SIZE, **federated}


def thing(number, image_id, category, bbox):
    x, y, width, height = bbox
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    where = {"image_id": image_id, "bbox": list(bbox), "area": width * height, "segmentation": [polygon]}
    return {"id": number, "category_id": category, **where}


TOY = {
    "images": [image(1, [BEAR]), image(2)],
    "annotations": [
        thing(1, 1, APPLE, (10, 10, 20, 20)),  # small: below 32 x 32
        thing(2, 2, BEAR, (20, 20, 60, 60)),  # medium: below 96 x 96
        thing(3, 2, BEAR, (100, 100, 60, 60)),
    ],
    "categories": [
        {"id": BEAR, "name": "bear", "frequency": "f"},
        {"id": APPLE, "name": "apple", "frequency": "r"},
    ],
}


def write(folder, content, name="annotations.json"):
    path = folder / name
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def toy(tmp_path):
    return read_annotations(write(tmp_path, TOY))


def detection(image_id, category, score, bbox, kind="box"):
    found = {"image_id": image_id, "category_id": category, "score": score}
    if kind == "box":
        return {**found, "bbox": list(bbox)}
    from pycocotools import mask as coco_mask

    x, y, width, height = bbox
    mask = np.zeros((SIZE, SIZE), np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    return {**found, "segmentation": coco_mask.encode(mask)}


def perfect(kind):
    return [detection(t["image_id"], t["category_id"], 0.9, t["bbox"], kind) for t in TOY["annotations"]]


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_perfect_detections(toy, kind):
    metrics = average_precision(toy, perfect(kind), [1, 2], kind)
    assert {name for name, value in metrics.items() if np.isnan(value)} == {"APl", "APc"}
    assert [value for value in metrics.values() if not np.isnan(value)] == pytest.approx([100.0] * 7)


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_no_detections(toy, kind):
    metrics = average_precision(toy, [], [1, 2], kind)
    assert {name for name, value in metrics.items() if np.isnan(value)} == {"APl", "APc"}
    assert {value for value in metrics.values() if not np.isnan(value)} == {0.0}


def test_groups_of_which_nothing_is_annotated_are_absent(toy):
    metrics = average_precision(toy, perfect("box"), [2])  # the only apple is in image 1
    absent = {name for name, value in metrics.items() if np.isnan(value)}
    assert absent == {"APs", "APl", "APr", "APc"}
    assert set(metrics) == set(METRICS)
    assert all(np.isnan(value) for value in average_precision(toy, [], []).values())


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_half_wrong_by_hand(toy, kind):
    # Apples: right, AP 1. Bears: the best-scored is right, the other lies elsewhere: precision 1 up to recall 1/2,
    # which is 51 of the 101 recalls 0.00, 0.01, …, 1.00, then 0.
    wrong = [
        detection(1, APPLE, 0.4, (10, 10, 20, 20), kind),
        detection(2, BEAR, 0.9, (20, 20, 60, 60), kind),
        detection(2, BEAR, 0.8, (140, 20, 60, 60), kind),
    ]
    metrics = average_precision(toy, wrong, [1, 2], kind)
    bears = 100 * 51 / 101
    expected = {"AP": (100 + bears) / 2, "AP50": (100 + bears) / 2, "AP75": (100 + bears) / 2}
    expected |= {"APs": 100.0, "APm": bears, "APr": 100.0, "APf": bears}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    wrong[2]["score"] = 0.95  # now the wrong one comes first: precision 1/2 at best
    assert average_precision(toy, wrong, [1, 2], kind)["APf"] == pytest.approx(bears / 2)


def test_overlap_thresholds_by_hand(toy):
    # 60 x 60 against 60 x 43: IoU 43/60 = 0.717 is enough at 0.50, 0.55, …, 0.70: 5 of the 10 thresholds.
    found = [detection(2, BEAR, 0.9, (20, 20, 60, 43)), detection(2, BEAR, 0.8, (100, 100, 60, 43))]
    metrics = average_precision(toy, found, [2])
    assert (metrics["AP"], metrics["AP50"], metrics["AP75"]) == pytest.approx((50.0, 100.0, 0.0))


def test_what_is_not_known_to_be_absent_is_no_mistake(toy):
    # Image 1 is known to have no bear, image 2 says nothing of apples.
    more = [*perfect("box"), detection(2, APPLE, 1.0, (150, 0, 30, 30))]
    assert average_precision(toy, more, [1, 2])["AP"] == pytest.approx(100.0)
    more.append(detection(1, BEAR, 1.0, (150, 0, 60, 60)))
    # Bears: the false one comes first, so precisions are 1/2 at recall 1/2 and 2/3 at 1: 2/3 everywhere.
    assert average_precision(toy, more, [1, 2])["APf"] == pytest.approx(100 * 2 / 3)


def test_300_detections_of_an_image_count(toy):
    crowd = [detection(2, BEAR, 0.5, (0, 150, 10, 10)) for _ in range(299)]
    best = detection(2, BEAR, 0.9, (20, 20, 60, 60))
    late = detection(2, BEAR, 0.4, (100, 100, 60, 60))
    assert average_precision(toy, [*crowd, best, late], [2])["AP"] == pytest.approx(100 * 51 / 101)
    second = 2 / 300  # precision when the second bear comes last of 300
    metrics = average_precision(toy, [*crowd[1:], best, late], [2])
    assert metrics["AP"] == pytest.approx(100 * (51 + 50 * second) / 101)


def test_numpy_is_left_as_it_was():
    for _ in range(2):
        with lvis_package() as package:
            assert np.float is float
            assert package.LVISEval is not None
        assert not hasattr(np, "float")
    with pytest.raises(KeyError), lvis_package():
        raise KeyError
    assert not hasattr(np, "float")


# ---------------------------------------------------------------------- which pairs of box and name are kept


def test_pairs_are_chosen_by_probability_before_the_detector_speaks():
    probabilities = torch.tensor([[0.7, 0.3], [0.4, 0.6]])
    found = best_detections(probabilities, torch.tensor([0.1, 1.0]), kept=2)
    # 0.7 and 0.6 are chosen; by score, 0.07 and 0.6, box 1 comes first. 0.4 would score more than 0.07, but is out.
    assert (found.box.tolist(), found.category.tolist()) == ([1, 0], [1, 0])
    assert found.score.tolist() == pytest.approx([0.6, 0.07])
    alone = best_detections(probabilities, kept=3)
    assert (alone.box.tolist(), alone.category.tolist()) == ([0, 1, 1], [0, 1, 0])
    assert alone.score.tolist() == pytest.approx([0.7, 0.6, 0.4])


def test_900_are_chosen_and_300_count():
    probabilities = torch.full((1001, 1), 0.5)
    probabilities[900:] = 0.4  # not among the 900
    detector = torch.linspace(0.1, 0.9, 1001)
    detector[899], detector[900] = 0.95, 1.0
    found = best_detections(probabilities, detector)
    assert len(found.box) == 300
    assert found.box[0] == 899
    assert found.box[1:].tolist() == list(range(898, 599, -1))


def test_ties_fall_to_the_first_and_no_box_is_no_detection():
    found = best_detections(torch.full((3, 5), 0.2), kept=7)
    assert found.box.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert found.category.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert len(best_detections(torch.zeros(0, 5)).score) == 0


@given(st.integers(0, 7), st.integers(1, 11), st.integers(1, 90), st.booleans())
def test_the_slow_form_agrees(boxes, names, kept, detected):
    random = torch.Generator().manual_seed(boxes * 31 + names)
    probabilities = torch.rand(boxes, names, generator=random).softmax(1)
    detector = torch.rand(boxes, generator=random) if detected else None
    pairs = [(float(probabilities[b, k]), b, k) for b in range(boxes) for k in range(names)]
    chosen = sorted(pairs, key=lambda pair: -pair[0])[:kept]
    scored = [(p * (1.0 if detector is None else float(detector[b])), b, k) for p, b, k in chosen]
    scored.sort(key=lambda pair: -pair[0])
    found = best_detections(probabilities, detector, kept)
    assert list(zip(found.box.tolist(), found.category.tolist(), strict=True)) == [(b, k) for _, b, k in scored]
    assert found.score.tolist() == pytest.approx([score for score, _, _ in scored])


# ---------------------------------------------------------------------- annotations


def test_names_are_in_the_order_of_their_ids(toy):
    assert [(c.id, c.name, c.frequency) for c in toy.categories] == [(APPLE, "apple", "r"), (BEAR, "bear", "f")]
    assert toy.index == {APPLE: 0, BEAR: 1}
    assert toy.has_masks


def test_coco_counts_as_annotated_exhaustively(tmp_path):
    plain = [{key: row[key] for key in ("id", "file_name", "height", "width")} for row in TOY["images"]]
    things = [dict(TOY["annotations"][0], iscrowd=1), *TOY["annotations"][1:]]
    names = [{"id": row["id"], "name": row["name"]} for row in TOY["categories"]]
    annotations = read_annotations(write(tmp_path, {"images": plain, "annotations": things, "categories": names}))
    boxes = read_boxes("gt", annotations)
    assert sorted(boxes.of_image) == [2], "a crowd is no box to be named"
    metrics = average_precision(annotations, [*perfect("box"), detection(2, APPLE, 1.0, (150, 0, 30, 30))], [1, 2])
    assert metrics["AP"] == pytest.approx(100.0), "bears alone: apples are only a crowd"
    assert all(np.isnan(metrics[name]) for name in ("APr", "APc", "APf"))
    more = [detection(1, BEAR, 1.0, (0, 0, 30, 30)), *perfect("box")]
    assert average_precision(annotations, more, [1, 2])["AP"] == pytest.approx(100 * 2 / 3)


def test_where_images_may_lie():
    url = "http://images.cocodataset.org/train2017/000000391895.jpg"
    assert image_paths({"coco_url": url}) == ("train2017/000000391895.jpg", "000000391895.jpg")
    assert image_paths({"file_name": "a/b.jpg"}) == ("a/b.jpg", "b.jpg")
    assert image_paths({"file_name": "b.jpg", "coco_url": url})[:2] == ("b.jpg", "train2017/000000391895.jpg")
    with pytest.raises(KeyError):
        image_paths({"id": 1})


def test_images_are_found_in_folders_and_flat(tmp_path):
    content = {**TOY, "images": [dict(image(1), coco_url="http://x/val2017/1.png"), image(2)]}
    del content["images"][0]["file_name"]
    annotations = read_annotations(write(tmp_path, content))
    for folder in (tmp_path / "flat", tmp_path / "folders" / "val2017"):
        folder.mkdir(parents=True)
        (folder / "1.png").touch()
    assert annotations.images[1].find(tmp_path / "flat") == tmp_path / "flat" / "1.png"
    assert annotations.images[1].find(tmp_path / "folders") == tmp_path / "folders" / "val2017" / "1.png"
    assert annotations.images[1].find(tmp_path) == tmp_path / "val2017" / "1.png", "named in the message"


def test_odd_annotations_are_told_and_left_out(tmp_path):
    odd = [
        thing(4, 99, APPLE, (0, 0, 5, 5)),
        thing(5, 1, 42, (0, 0, 5, 5)),
        {"id": 6, "image_id": 1, "category_id": APPLE, "bbox": [0, 0, None, 5]},
        "nonsense",
        thing(8, 1, APPLE, (150, 150, 100, 20)),  # reaches over the edge
        thing(9, 1, APPLE, (250, 150, 100, 20)),
        thing(10, 1, APPLE, (50, 50, 0, 20)),
        thing(11, 1, APPLE, (199.5, 10, 1, 1)),  # half a pixel over it
    ]
    annotations = read_annotations(write(tmp_path, {**TOY, "annotations": [*TOY["annotations"], *odd]}))
    boxes = read_boxes("gt", annotations)
    assert [(one.id, one.kind) for one in [*annotations.skipped, *boxes.skipped]] == [
        ("annotation 4", "unknown image id"),
        ("annotation 5", "unknown category id"),
        ("annotation 6", "no box"),
        ("annotation number 7", "unknown image id"),
        ("annotation 8", "box cut at the image's edge"),
        ("annotation 9", "box outside the image"),
        ("annotation 10", "box without area"),
    ]
    assert boxes.of_image[1].xyxy == [(10, 10, 30, 30), (150, 150, 200, 170), (199.5, 10, 200, 11)]
    assert boxes.of_image[1].names == [0, 0, 0]
    assert boxes.of_image[2].names == [1, 1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"images": None}, "is not an LVIS or COCO json: it has no list 'images'"),
        ({"categories": {}}, "is not an LVIS or COCO json: it has no list 'categories'"),
        ({"categories": [{"id": 3}]}, "category 3 of .* has no name"),
        ({"categories": [{"id": 3, "name": " "}]}, "category 3 of .* has no name"),
        ({"categories": [{"name": "x"}]}, "expected one with an id"),
        ({"categories": [{"id": 3, "name": "x", "frequency": "q"}]}, "frequency 'q', expected r, c or f"),
        ({"categories": []}, "has 0 categories"),
        ({"categories": [{"id": 3, "name": "x"}, {"id": 3, "name": "y"}]}, "each with an id of its own"),
        ({"images": []}, "has no images"),
        ({"images": [{"id": 1, "height": 3, "width": 4}]}, "an image lacks or garbles a field .*coco_url"),
        ({"images": [{"id": 1, "file_name": "x", "width": 4}]}, "an image lacks or garbles a field .*height"),
    ],
)
def test_other_files_are_refused_in_one_line(change, reason, tmp_path):
    with pytest.raises(InputError, match=reason) as caught:
        read_annotations(write(tmp_path, {**TOY, **change}))
    assert "\n" not in str(caught.value)


def test_missing_files_and_other_formats_are_refused(tmp_path, toy):
    with pytest.raises(InputError, match=r"no file .*nowhere.json; expected LVIS or COCO annotations"):
        read_annotations(tmp_path / "nowhere.json")
    (tmp_path / "text").write_text("image,box")
    with pytest.raises(InputError, match="text is not valid JSON"):
        read_annotations(tmp_path / "text")
    with pytest.raises(InputError, match="is not an LVIS or COCO json"):
        read_annotations(write(tmp_path, [1, 2]))
    with pytest.raises(InputError, match=r"no file .*nowhere.json; expected boxes"):
        read_boxes(str(tmp_path / "nowhere.json"), toy)


def changed(ids=lambda number: number, **rows):
    """TOY with every id written in another way."""
    content = json.loads(json.dumps({**TOY, **rows}))
    for row in [*content["images"], *content["annotations"], *content["categories"]]:
        row.update({key: ids(value) for key, value in row.items() if key in ("id", "image_id", "category_id")})
    for row in content["images"]:
        row["neg_category_ids"] = [ids(number) for number in row["neg_category_ids"]]
    return content


@pytest.mark.parametrize("ids", [str, float, lambda number: f"{number}.0", lambda number: f"{number:06d}"])
def test_ids_may_be_text_or_float(tmp_path, toy, ids):
    read = read_annotations(write(tmp_path, changed(ids)))
    assert (read.images, read.objects, read.categories) == (toy.images, toy.objects, toy.categories)
    assert read.skipped == []


def test_a_byte_order_mark_is_passed_over(tmp_path, toy):
    (tmp_path / "bom.json").write_text("\ufeff" + json.dumps(TOY, indent=1), newline="\r\n")
    assert read_annotations(tmp_path / "bom.json").objects == toy.objects


def test_what_is_there_twice_is_counted_once(tmp_path, toy):
    again = {"images": [*TOY["images"], TOY["images"][0]], "annotations": [*TOY["annotations"], TOY["annotations"][1]]}
    read = read_annotations(write(tmp_path, {**TOY, **again}))
    assert (read.images, read.objects) == (toy.images, toy.objects)
    assert [(one.id, one.kind, one.effect) for one in read.skipped] == [
        ("image 1", "image listed twice", "counted once"),
        ("annotation 2", "annotation there twice", "counted once"),
    ]
    other = thing(2, 2, BEAR, (0, 0, 9, 9))  # another object of the same id
    assert len(read_annotations(write(tmp_path, {**TOY, "annotations": [*TOY["annotations"], other]})).objects) == 4
    with pytest.raises(InputError, match="two images of the id 1"):
        read_annotations(write(tmp_path, {**TOY, "images": [*TOY["images"], dict(image(1), file_name="other.png")]}))


@pytest.mark.parametrize("name", ["image_id", "category_id", "bbox", "area", "segmentation", "iscrowd", "id"])
def test_null_fields_are_counted_or_as_good_as_missing(tmp_path, toy, name):
    rows = [dict(TOY["annotations"][0], **{name: None}), *TOY["annotations"][1:]]
    read = read_annotations(write(tmp_path, {**TOY, "annotations": rows}))
    told = {
        "image_id": ("annotation 1", "unknown image id", "left out of the score"),
        "category_id": ("annotation 1", "unknown category id", "left out of the score"),
        "bbox": ("annotation 1", "no box", "left out of the score"),
        "segmentation": ("1 annotations", "no mask that can be read", "scored as answered"),
    }
    assert [(one.id, one.kind, one.effect) for one in read.skipped] == ([told[name]] if name in told else [])
    assert len(read.objects) == 3 - (name in ("image_id", "category_id", "bbox"))
    assert read.has_masks is (name != "segmentation")
    if name in ("area", "iscrowd", "id"):
        assert read.objects == toy.objects


@pytest.mark.parametrize("mask", [[], [[1, 2, 3, 4]], "rle", {"size": [3, 4], "counts": "1"}, [[1, 2, 3, 4, 5, None]]])
def test_masks_that_cannot_be_read_are_counted(tmp_path, mask):
    rows = [dict(TOY["annotations"][0], segmentation=mask), *TOY["annotations"][1:]]
    read = read_annotations(write(tmp_path, {**TOY, "annotations": rows}))
    assert not read.has_masks
    assert ("1 annotations", "no mask that can be read") in {(one.id, one.kind) for one in read.skipped}


def test_a_polygon_without_area_is_left_out_of_its_mask(tmp_path, toy):
    rows = [dict(TOY["annotations"][0], segmentation=[*TOY["annotations"][0]["segmentation"], [1, 2, 3, 4]])]
    read = read_annotations(write(tmp_path, {**TOY, "annotations": [*rows, *TOY["annotations"][1:]]}))
    assert (read.objects, read.has_masks) == (toy.objects, True)
    assert [(one.id, one.kind) for one in read.skipped] == [("annotation 1", "polygon that cannot be filled")]


def test_annotations_of_one_image_under_two_ids_are_refused(tmp_path):
    rows = [dict(image(n), file_name="f.png") for n in (1, 2)]
    with pytest.raises(InputError, match=r"images 1 and 2 of .* are both f.png"):
        read_annotations(write(tmp_path, {**TOY, "images": rows}))
    assert (
        len(read_annotations(write(tmp_path, {**TOY, "images": rows, "annotations": TOY["annotations"][1:]})).images)
        == 2
    )


def test_an_image_is_not_looked_for_where_one_of_another_folder_may_lie(tmp_path):
    rows = [dict(image(n), file_name=name) for n, name in enumerate(["cam1\\a.png", "cam2\\a.png", "cam2/b.png"], 1)]
    images = read_annotations(write(tmp_path, {**TOY, "images": rows})).images
    assert [images[n].paths for n in (1, 2, 3)] == [("cam1/a.png",), ("cam2/a.png",), ("cam2/b.png", "b.png")]


# ---------------------------------------------------------------------- a detector's boxes

XYXY = {1: [([10, 20, 30.5, 40], 0.5), ([-3, 0, 50, 220], 1.0)], 2: [([5, 6, 7, 8], 0.25), ([300, 0, 310, 9], 0.9)]}


def published(boxes):
    return {
        str(image_id): {"boxes": [b for b, _ in pairs], "scores": [s for _, s in pairs], "labels": [0] * len(pairs)}
        for image_id, pairs in boxes.items()
    }


def coco_results(boxes):
    return [
        {"image_id": number, "category_id": 5, "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]], "score": score}
        for number, pairs in boxes.items()
        for b, score in pairs
    ]


def test_both_layouts_say_the_same(toy, tmp_path):
    found = [read_boxes(str(write(tmp_path, layout(XYXY), "b.json")), toy) for layout in (published, coco_results)]
    assert found[0].of_image == found[1].of_image
    assert found[0].of_image[1].xyxy == [(10, 20, 30.5, 40), (0, 0, 50, 200)]
    assert found[0].of_image[1].scores == [0.5, 1.0]
    assert found[0].of_image[2].xyxy == [(5, 6, 7, 8)]
    assert found[0].skipped == found[1].skipped
    assert [(one.id, one.kind, one.effect) for one in found[0].skipped] == [
        ("image 1 box 2", "box cut at the image's edge", "scored as answered"),
        ("image 2 box 2", "box outside the image", "left out of the score"),
    ]
    assert not found[0].are_ground_truth
    assert found[0].source != found[1].source, "the hash of another file"


def test_a_detector_may_find_nothing(toy, tmp_path):
    for nothing in ([], {"1": {"boxes": [], "scores": [], "labels": []}}):
        assert read_boxes(str(write(tmp_path, nothing, "b.json")), toy).of_image == {}


def test_boxes_of_other_images(toy, tmp_path):
    mixed = {**XYXY, 99: XYXY[1]}
    found = read_boxes(str(write(tmp_path, published(mixed), "b.json")), toy)
    assert ("image 99", "unknown image id") in {(one.id, one.kind) for one in found.skipped}
    assert sorted(found.of_image) == [1, 2]
    with pytest.raises(InputError, match=r"none of the 1 images of .* is in the annotations"):
        read_boxes(str(write(tmp_path, published({99: XYXY[1]}), "b.json")), toy)


def test_a_detectors_images_are_matched_by_name_where_it_has_names(tmp_path):
    names = ["cam1/0001.png", "cam2/0001.png"]
    rows = [dict(image(n), file_name=name) for n, name in enumerate(names, 1)]
    annotations = read_annotations(write(tmp_path, {**TOY, "images": rows}))
    first, second = [10, 20, 5, 5], [30, 40, 5, 5]
    boxes = {"images": [{"id": 1, "file_name": "set\\cam2\\0001.png"}, {"id": 2, "file_name": "set\\cam1\\0001.png"}]}
    boxes["annotations"] = [{"image_id": 2, "bbox": first, "score": 1}, {"image_id": "1", "bbox": second, "score": 1}]
    named = [{"file_name": name, "bbox": box, "score": 1} for name, box in zip(names, (first, second), strict=True)]
    for content in (boxes, named):
        found = read_boxes(str(write(tmp_path, content, "b.json")), annotations)
        assert found.skipped == []
        assert {n: one.xyxy for n, one in found.of_image.items()} == {1: [(10, 20, 15, 25)], 2: [(30, 40, 35, 45)]}
    flat = [{"file_name": "0001.png", "bbox": first, "score": 1}, named[0]]
    found = read_boxes(str(write(tmp_path, flat, "b.json")), annotations)
    assert sorted(found.of_image) == [1]
    assert [(one.id, one.kind) for one in found.skipped] == [("image 0001.png", "unknown image id")]


@pytest.mark.parametrize("ids", [str, float])
def test_a_detectors_ids_may_be_text_or_float(toy, tmp_path, ids):
    rows = [{**row, "image_id": ids(row["image_id"])} for row in coco_results(XYXY)]
    plain = read_boxes(str(write(tmp_path, coco_results(XYXY), "a.json")), toy)
    assert read_boxes(str(write(tmp_path, rows, "b.json")), toy).of_image == plain.of_image


def test_detections_of_images_that_their_file_does_not_list_are_told(toy, tmp_path):
    images = [{"id": 1, "file_name": "1.png"}]
    path = write(tmp_path, {"images": images, "annotations": coco_results(XYXY)}, "b.json")
    with pytest.warns(UserWarning, match="2 of 4 annotations are of images that it does not list"):
        found = read_boxes(str(path), toy)
    assert next((one.id, one.kind) for one in found.skipped) == ("2 boxes", "unlisted image")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("text", "holds no boxes in a known layout"),
        ({"1": {"boxes": [[0, 0, 1, 1]]}}, "has no scores for image 1"),
        ({"1": {"boxes": [[0, 0, 1, 1]], "scores": []}}, "0 scores for 1 boxes"),
        (
            {"1": {"boxes": [[0, 0, 1, 1]], "scores": [1.5]}},
            "has scores from 1.5 to 1.5 for image 1; expected .* 0 to 1",
        ),
        ([{"image_id": 1, "bbox": [0, 0, 1, 1]}], "has no scores for image 1"),
        ([{"image_id": 1, "bbox": [0, None, 1, 1], "score": 1}], "expected 4 finite numbers"),
        ([[0, 0, 1, 1]], "does not say which image"),
        (TOY, "has no scores for image 1"),
    ],
)
def test_other_files_are_no_boxes(content, reason, toy, tmp_path):
    with pytest.raises(InputError, match=reason) as caught:
        read_boxes(str(write(tmp_path, content, "b.json")), toy)
    assert "\n" not in str(caught.value)


@given(*[st.floats(-50, 250, width=32)] * 4)
def test_clipped_boxes_lie_inside(x1, y1, x2, y2):
    clipped = clip((x1, y1, x2, y2), (100, 200))
    if clipped is None:
        assert min(x2, 200) <= max(x1, 0) or min(y2, 100) <= max(y1, 0)
    else:
        assert 0 <= clipped[0] < clipped[2] <= 200
        assert 0 <= clipped[1] < clipped[3] <= 100
        assert max(x1, 0) == clipped[0]
        assert min(y2, 100) == clipped[3]


# ---------------------------------------------------------------------- what is shown


def test_published_figures_are_in_columns_of_their_own():
    theirs = {
        "RegionSpot BB": {"box APr": 19.1, "box AP": 20.9, "mask APr": 17.5, "mask AP": 17.8},
        "RegionSpot BL": {"box APr": 26.0, "box AP": 23.7, "mask APr": 22.8, "mask AP": 20.2},
        "RegionSpot BL@336": {"box APr": 26.3, "box AP": 25.0, "mask APr": 23.4, "mask AP": 21.3},
    }
    assert published_columns() == theirs
    rows = side_by_side({"textregion": {"top-1": 12.5, "box AP": 5.0}, "regionspot": {"box AP": float("nan")}})
    assert rows[0][1:] == ["textregion", "regionspot", *(f"{name} (published)" for name in theirs)]
    assert rows[1] == ["top-1", "12.50", "–", "–", "–", "–"]
    assert rows[2] == ["box AP", "5.00", "–", "20.90", "23.70", "25.00"]
    lines = as_text(rows).splitlines()
    assert len({len(line) for line in lines}) == 1, "columns are aligned"


def test_a_detectors_box_has_the_name_of_the_object_it_overlaps_most(toy):
    boxes = Boxes([(20.0, 20.0, 80.0, 70.0), (80.0, 80.0, 140.0, 140.0), (100.0, 100.0, 161.0, 160.0)])
    assert overlapped_names(toy, 2, boxes) == [1, None, 1]
    assert overlapped_names(toy, 1, boxes) == [None] * 3
    assert overlapped_names(toy, 99, boxes) == [None] * 3


@given(*[st.integers(0, 96)] * 4)
def test_a_closer_look_has_the_images_size(x, y, width, height):
    image = np.zeros((97, 101, 3), np.uint8)
    look = closer(image, (x, y, min(x + width + 1, 101), min(y + height + 1, 97)))
    assert look.shape == image.shape
    assert (look == 0).any(), "some of the image is seen"
