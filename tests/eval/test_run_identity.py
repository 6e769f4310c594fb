"""Every part of a run's identity, and every file that it is made of, changed in turn: refused, and named."""

import copy
import json

import numpy as np
import pytest
import torch
from open_clip.model import CLIP
from PIL import Image
from small_benchmark import bands, rooms

from eval import identity
from eval.journal import Journal
from eval.predictions import class_rows, image_row, save_confusion, save_map
from eval.results import Results
from eval.semantic import Evaluation, evaluate
from textregion.errors import InputError


def another(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return f"{value}x" if isinstance(value, str) else [*value, "x"] if isinstance(value, list) else "x"


def leaves(value, path=()):
    if isinstance(value, dict) and value:
        return [leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))]
    return [path]


@pytest.fixture
def evaluated(tmp_path, write_image, models):
    """A small benchmark that was run: (options, its results)."""
    config = rooms(tmp_path, write_image, [bands(0, 1), bands(1, 0), bands(0)])
    options = {"config": config, "work_dir": tmp_path / "w", "device": "cpu"}
    return options, evaluate(Evaluation(**options))


def test_every_field_of_an_identity_counts_and_is_named(evaluated):
    options, results = evaluated
    whole = json.loads(json.dumps(results.identity, default=str))
    assert {"settings", "data", "weights", "code", "versions", "journal"} == set(whole)
    assert {"commit", "changed", "sources"} == set(whole["code"])
    assert {"torch", "numpy", "timm", "open_clip_torch", "sam2"} <= set(whole["versions"])
    for path in leaves(whole):
        changed = copy.deepcopy(whole)
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = another(inner[path[-1]])
        with pytest.raises(InputError, match="made with other settings") as caught:
            Journal.start(options["work_dir"] / "journal", changed, resume=True)
        assert ".".join(path) in str(caught.value)


@pytest.mark.parametrize("name", ["images/0.png", "labels/2.png"])
def test_every_file_of_the_data_counts_and_is_named(name, evaluated, tmp_path):
    options, _ = evaluated
    before = {path: path.read_bytes() for path in (tmp_path / "w").rglob("*.json*")}
    path = tmp_path / "data" / name
    Image.fromarray(1 - np.asarray(Image.open(path))).save(path)
    number = path.stem
    with pytest.raises(InputError, match=rf"data\.images/{number}\.png: its files were other ones"):
        evaluate(Evaluation(**options, resume=True))
    assert {path: path.read_bytes() for path in before} == before, "a refused call changes nothing"
    results = evaluate(Evaluation(**options, resume_anyway=True))
    told = json.loads((tmp_path / "w/results.json").read_text())
    assert told["resumed_anyway"] == results.resumed_anyway == [f"data.images/{number}.png: its files were other ones"]
    assert "resumed with another identity" in told["marks"]


def test_another_root_or_number_of_images_is_refused(evaluated, tmp_path, write_image):
    options, _ = evaluated
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = {"test_dataloader.dataset.data_root": str(tmp_path / "moved")}
    with pytest.raises(InputError, match=r"data\.data_root: was .*/data\", now .*/moved"):
        evaluate(Evaluation(**options, cfg_options=moved, resume=True))
    (tmp_path / "moved").rename(tmp_path / "data")
    write_image(tmp_path / "data/images/3.png", (20, 13))
    write_image(tmp_path / "data/labels/3.png", bands(0, 1))
    with pytest.raises(InputError, match=r"data\.items: was 3, now 4"):
        evaluate(Evaluation(**options, resume=True))


def test_weights_count_by_their_content():
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 16, "patch_size": 16}
    model = CLIP(8, vision, {"context_length": 8, "vocab_size": 9, "width": 8, "heads": 1, "layers": 1})
    before = identity.state_hash(model)
    assert identity.state_hash(copy.deepcopy(model)) == before
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            changed = copy.deepcopy(model)
            changed.state_dict()[name].view(-1)[-1:].add_(1)
            assert identity.state_hash(changed) != before, name
    assert identity.state_hash(model.half()) != before


def test_a_skip_is_tried_again_and_memory_is_none(evaluated, tmp_path, models, monkeypatch):
    options, whole = evaluated
    image = tmp_path / "data/images/1.png"
    content = image.read_bytes()
    image.write_bytes(content[:60])
    again = {**options, "work_dir": tmp_path / "again"}
    part = evaluate(Evaluation(**again))
    assert (part.items, [one["id"] for one in part.skipped]) == (2, ["images/1.png"])
    image.write_bytes(content)
    results = evaluate(Evaluation(**again, resume=True))
    assert (results.items, results.measured, results.skipped) == (3, 1, [])
    assert results.metrics == whole.metrics

    def fails(self, sample, regions):
        raise InputError("out of memory on cuda:0 (tried to allocate 2 GiB); use less")

    monkeypatch.setattr("textregion.segmenter.TextRegionSegmenter.encode_images", fails)
    with pytest.raises(InputError, match="out of memory"):
        evaluate(Evaluation(**{**options, "work_dir": tmp_path / "third"}))
    assert not (tmp_path / "third/results.json").exists()


def test_a_subset_by_names_and_results_of_other_images_stay(evaluated, tmp_path):
    options, whole = evaluated
    (tmp_path / "list").write_text("2.png\n0\n")
    part = evaluate(Evaluation(**options, images=tmp_path / "list", resume=True))
    assert (part.items, part.measured, part.marks) == (2, 0, ["2 listed images"])
    assert [line.split(",")[0] for line in (tmp_path / "w/images.csv").read_text().splitlines()] == [
        *("id", "images/0.png", "images/2.png")
    ]
    assert json.loads((tmp_path / "w/results.json.old-1").read_text())["metrics"]["mIoU"] == whole.metrics["mIoU"]
    assert part.identity_hash == whole.identity_hash


def test_predictions_and_tables_agree_with_the_metrics(evaluated, tmp_path, models):
    options, whole = evaluated
    results = evaluate(Evaluation(**options, resume=True, save_predictions=True))
    assert (results.measured, results.metrics) == (3, whole.metrics), "label maps that are missing are made"
    for number in range(3):
        found = np.asarray(Image.open(tmp_path / f"w/predictions/images/{number}.png"))
        assert np.array_equal(found, models["small"].predictions[str(number)])
    rows = [line.split(",") for line in (tmp_path / "w/image_classes.csv").read_text().splitlines()[1:]]
    ious = []
    for name in ("grass", "sky"):
        shares = [(int(row[2]), int(row[3])) for row in rows if row[1] == name]
        ious.append(100 * sum(i for i, _ in shares) / sum(u for _, u in shares))
    assert results.metrics["mIoU"] == pytest.approx(np.mean(ious))
    table = [line.split(",") for line in (tmp_path / "w/confusion_counts.csv").read_text().splitlines()]
    assert table[0][1:] == ["grass", "sky"]
    assert sum(int(n) for row in table[1:] for n in row[1:]) == sum(row["pixels"] for row in results.per_class.values())


def test_rows_of_an_image_by_hand():
    pairs = [[0, 0, 6], [0, 1, 2], [1, 1, 4]]
    names = ["grass", "sky", "sea"]
    assert list(class_rows("a", pairs, names)) == [
        {"id": "a", "class": "grass", "intersection": 6, "union": 8, "true": 8, "predicted": 6},
        {"id": "a", "class": "sky", "intersection": 4, "union": 6, "true": 4, "predicted": 6},
    ]
    row = image_row("a", pairs, names)
    assert (row["id"], row["pixels"], row["right"], row["mAcc"]) == ("a", 12, 10, 87.5)
    assert (row["mIoU"], row["aAcc"]) == (pytest.approx(100 * (6 / 8 + 4 / 6) / 2), pytest.approx(1000 / 12))
    empty = image_row("a", [], names)
    assert empty["mIoU"] != empty["mIoU"]


def test_confusion_and_maps_of_many_classes(tmp_path):
    save_confusion(np.array([[3, 1], [0, 0]]), ["a", "b,c"], tmp_path)
    assert (tmp_path / "confusion.csv").read_text() == 'true \\ predicted,a,"b,c"\na,0.75,0.25\n"b,c",,\n'
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.size[0] > 100
    save_map(tmp_path / "m.png", np.array([[0, 299]]), 300)
    assert np.asarray(Image.open(tmp_path / "m.png")).tolist() == [[0, 299]]


def test_results_of_another_identity_are_set_aside(tmp_path):
    common = {"task": "t", "benchmark": "b", "backbone": "x", "items": 1, "config": {}}
    for number in (1.0, 2.0, 2.0):
        Results(**common, metrics={"mIoU": number}, identity={"n": number}).save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("images.csv", "images.csv.old-1", "results.json", "results.json.old-1", "results.md", "results.md.old-1")
    ]
    assert torch.tensor(json.loads((tmp_path / "results.json.old-1").read_text())["metrics"]["mIoU"]) == 1
