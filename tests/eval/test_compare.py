"""Two runs side by side: metrics, classes, images, the bootstrap interval, warnings, the picture."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from eval.compare import bootstrap, compare, main, read_run, report
from eval.journalled_iou import add_up, count_pairs, mean_iou
from eval.predictions import image_row
from eval.results import Results
from eval.run_images import class_counts, image_scores, per_class_iou
from textregion.errors import InputError

CLASSES = ("grass", "sky", "lava")


def save(folder, maps, recipe="semantic", table=True, config=None, **content):
    """A run with the given (prediction, ground truth) pairs; its images as a table, or in a journal as of old."""
    pairs = {f"images/{number}.png": count_pairs(a, b, len(CLASSES)) for number, (a, b) in enumerate(maps)}
    metrics, per_class = mean_iou(add_up(pairs.values(), len(CLASSES)), CLASSES)
    config = {"model": {"preset": "tiny"}, "resolved": {"config": {"recipe": {"name": recipe}}}, **(config or {})}
    about = {"per_class": per_class, "versions": {"torch": "2"}, "commit": {"hash": "1", "changed": False}}
    results = Results("semantic segmentation", "rooms", "tiny", metrics, len(maps), config, {"name": recipe}, **about)
    results.save(folder, [image_row(item, one, CLASSES) for item, one in pairs.items()])
    path = folder / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **content}))
    if not table:
        (folder / "images.csv").unlink()
        (folder / "journal").mkdir()
        lines = [{"settings": {}}, *({"id": item, "pairs": one} for item, one in pairs.items())]
        text = "".join(json.dumps(line) + "\n" for line in lines) + '{"id": "torn'
        (folder / "journal" / "run000-process000.jsonl").write_text(text)
        return
    with (folder / "image_classes.csv").open("w") as file:
        print("id,class,intersection,union,true,predicted", file=file)
        for item, one in pairs.items():
            total = add_up([one], len(CLASSES))
            right, true, predicted = np.diag(total), total.sum(1), total.sum(0)
            for name, i, t, p in zip(CLASSES, right, true, predicted, strict=True):
                if t or p:
                    print(f"{item},{name},{i},{t + p - i},{t},{p}", file=file)


def noisy(count, wrong, seed, size=24):
    """(prediction, ground truth) of images; a share `wrong` of the pixels has another class drawn for it."""
    random = np.random.default_rng(seed)
    maps = []
    for _ in range(count):
        truth = random.integers(0, 3, (size, size))
        share = np.clip(random.normal(wrong, 0.1), 0, 1)  # images differ in how hard they are
        maps.append((np.where(random.random((size, size)) < share, random.integers(0, 3, (size, size)), truth), truth))
    return maps


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_run_against_itself_is_0_everywhere(table, seed, tmp_path):
    save(tmp_path / "a", noisy(7, 0.3, seed), table=table)
    found = compare(read_run(tmp_path / "a"), read_run(tmp_path / "a"), samples=300, seed=seed)
    rows = [*found["metrics"].values(), *found["images"].values(), found["bootstrap"]["mIoU"]]
    rows += [pair for row in found["classes"].values() for pair in row.values()]
    assert len(found["images"]) == 7
    assert {row["difference"] for row in rows} == {0.0}
    assert (found["bootstrap"]["low"], found["bootstrap"]["high"]) == (0.0, 0.0)
    assert (found["options"], found["warnings"]) == ([], [])


def test_numbers_are_those_of_the_runs_and_images_are_sorted(tmp_path):
    truth = np.array([[0, 0, 1, 1]])
    save(tmp_path / "a", [(truth, truth), (truth, truth), (1 - truth, truth)])
    save(tmp_path / "b", [(truth, truth), (np.array([[0, 1, 1, 1]]), truth), (truth, truth)], "demo")
    a, b = read_run(tmp_path / "a"), read_run(tmp_path / "b")
    found = compare(a, b)
    assert found["metrics"]["mIoU"]["a"] == a.content["metrics"]["mIoU"] == 50.0
    assert found["bootstrap"]["mIoU"] == found["metrics"]["mIoU"]
    half = pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    lost = pytest.approx(100 * (1 / 2 + 2 / 3) / 2 - 100)
    assert list(found["images"].items()) == [
        ("images/2.png", {"a": 0.0, "b": 100.0, "difference": 100.0}),
        ("images/1.png", {"a": 100.0, "b": half, "difference": lost}),
        ("images/0.png", {"a": 100.0, "b": 100.0, "difference": 0.0}),
    ]
    assert found["classes"]["lava"]["IoU"] == {"a": None, "b": None, "difference": None}
    assert found["options"] == ['recipe: was "semantic", now "demo"']


def test_the_bootstrap_is_what_a_loop_over_draws_gives():
    random = np.random.default_rng(5)
    sides = []
    for _ in range(2):
        true, predicted = random.integers(20, 90, (2, 9, 4))
        right = np.minimum(true, predicted) - random.integers(0, 20, (9, 4))
        sides.append(np.stack([right, true, predicted], -1).astype(float))
    found = bootstrap(*sides, samples=150, seed=3)
    draws = np.random.default_rng(3)
    expected = []
    for size in (100, 50):
        for counts in draws.multinomial(9, [1 / 9] * 9, size):
            images = np.repeat(np.arange(9), counts)
            ious = [per_class_iou(side[images].sum(0)).mean() for side in sides]
            expected.append(ious[1] - ious[0])
    assert found == pytest.approx(np.array(expected))
    assert np.array_equal(found, bootstrap(*sides, samples=150, seed=3))
    assert not np.array_equal(found, bootstrap(*sides, samples=150, seed=4))


def test_the_interval_covers_a_planted_difference():
    """Of 40 experiments, each of 30 images, at least 34 intervals of 95 % hold the difference of 4000 images."""

    def counts(wrong, count, seed):
        made = []
        for prediction, truth in noisy(count, wrong, seed, size=12):
            total = add_up([count_pairs(prediction, truth, 3)], 3)
            made.append(np.stack([np.diag(total), total.sum(1), total.sum(0)], -1))
        return np.stack(made).astype(float)

    def miou(side):
        return per_class_iou(side.sum(0)).mean()

    planted = miou(counts(0.2, 4000, 1)) - miou(counts(0.3, 4000, 1))
    assert 8 < planted < 15
    covered = 0
    for seed in range(100, 140):
        drawn = bootstrap(counts(0.3, 30, seed), counts(0.2, 30, seed), 400, seed)
        low, high = np.percentile(drawn, [2.5, 97.5])
        covered += low <= planted <= high
        assert low > 0, "a difference this large is seen"
    assert covered >= 34


def test_what_else_differs_is_told(tmp_path):
    maps = noisy(3, 0.3, 1)
    other = {"model": {"preset": "tiny", "masks": "slic"}, "resolved": {"config": {}, "labels": ["a"]}}
    save(tmp_path / "a", maps, marks=["first 3 images", "masks=sam2"])
    save(tmp_path / "b", maps[:2], config=other, commit={"hash": "2"}, versions={"torch": "3"}, skipped=[{"id": "x"}])
    found = compare(read_run(tmp_path / "a"), read_run(tmp_path / "b"))
    assert found["options"] == ['masks: was null, now "slic"']
    assert found["warnings"] == [
        "commit.changed: was false, now null",
        'commit.hash: was "1", now "2"',
        'versions.torch: was "2", now "3"',
        'labels: was null, now ["a"]',
        "A marked: first 3 images",
        "1 images are in A only (images/2.png first) and not compared",
        "B has skipped 1 images",
    ]
    assert found["bootstrap"]["images"] == 2
    assert "- warning: A marked: first 3 images" in report(found)


def test_the_parts_of_an_identity_are_compared_but_its_settings_are_not(tmp_path):
    maps = noisy(2, 0.3, 1)
    files = {f"images/{number}.png": "1" for number in range(30)}
    identity = {"settings": {"recipe": "a"}, "data": {"files": files}, "weights": {"clip": "1"}}
    save(tmp_path / "a", maps, identity=identity)
    later = {"settings": {"recipe": "b"}, "data": {"files": dict.fromkeys(files, "2")}, "weights": {"clip": "2"}}
    save(tmp_path / "b", maps, identity=later)
    told = compare(read_run(tmp_path / "a"), read_run(tmp_path / "b"))["warnings"]
    assert len(told) == 12
    assert told[0].startswith("data.files.images/")
    assert told[10:] == ["data: 20 more differences", 'weights.clip: was "1", now "2"']


def test_runs_of_different_benchmarks_are_refused(tmp_path, capsys):
    save(tmp_path / "a", noisy(2, 0.3, 1))
    save(tmp_path / "b", noisy(2, 0.3, 1), benchmark="streets")
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "is of benchmark 'rooms', " in capsys.readouterr().err
    assert main([str(tmp_path / "a"), str(tmp_path / "none")]) == 2
    assert "error: no file " in capsys.readouterr().err


def test_journals_and_tables_say_the_same(tmp_path):
    maps = noisy(4, 0.3, 1)
    save(tmp_path / "a", maps)
    save(tmp_path / "b", maps, table=False)
    a, b = (class_counts(tmp_path / name, CLASSES) for name in "ab")
    assert list(a) == list(b)
    assert all(np.array_equal(a[item], b[item]) for item in a)
    assert image_scores(tmp_path / "a", a) == pytest.approx(image_scores(tmp_path / "b", b))


def test_scores_of_other_tasks_are_read_from_their_table(tmp_path):
    for name, lines in (("a", ("1.jpg,25.0,4", "2.jpg,,0")), ("b", ("1.jpg,75.0,4", "2.jpg,100,1"))):
        Results("referring expressions", "refcoco", "tiny", {"accuracy": 5.0}, 2, {}, part="split").save(
            tmp_path / name
        )
        (tmp_path / name / "images.csv").write_text("\n".join(["id,accuracy,sentences", *lines]) + "\n")
    found = compare(read_run(tmp_path / "a"), read_run(tmp_path / "b"))
    assert found["images"] == {
        "1.jpg": {"a": 25.0, "b": 75.0, "difference": 50.0},
        "2.jpg": {"a": None, "b": 100.0, "difference": None},
    }
    assert found["bootstrap"] is None


@pytest.mark.parametrize("line", ["images/0.png,mud,1,1,1,1", "images/0.png,sky,1,1,x,1", "images/0.png,sky,1"])
def test_a_damaged_table_is_named(line, tmp_path):
    save(tmp_path / "a", noisy(2, 0.3, 1))
    with (tmp_path / "a" / "image_classes.csv").open("a") as file:
        print(line, file=file)
    with pytest.raises(InputError, match=r"image_classes\.csv has the row"):
        read_run(tmp_path / "a")


@pytest.mark.parametrize("predictions", [False, True])
def test_what_is_written(predictions, tmp_path, write_image):
    maps = [(np.full((20, 30), number), np.repeat([[0] * 15 + [1] * 15], 20, 0)) for number in (0, 1, 0)]
    others = [(truth, truth) for _, truth in maps[:1]] + maps[1:]
    dataset = {
        "type": "BaseSegDataset",
        "data_root": str(tmp_path / "data"),
        "data_prefix": {"img_path": "images", "seg_map_path": "labels"},
        "img_suffix": ".png",
        "seg_map_suffix": ".png",
        "metainfo": {"classes": list(CLASSES)},
    }
    config = {"test_dataloader": {"dataset": dataset}, "benchmark": {"name": "rooms"}}
    for number, (_, truth) in enumerate(maps):
        write_image(tmp_path / f"data/images/{number}.png", (20, 30))
        write_image(tmp_path / f"data/labels/{number}.png", truth.astype(np.uint8))
    for name, run in (("a", maps), ("b", others)):
        save(tmp_path / name, run, config=config)
        for number, (prediction, _) in enumerate(run if predictions else ()):
            write_image(tmp_path / name / f"predictions/images/{number}.png", prediction.astype(np.uint8))
    runs, output = [str(tmp_path / name) for name in "ab"], tmp_path / "out"
    assert main([*runs, "--output", str(output), "--count", "2"]) == 0
    with (output / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["id"], rows[0]["difference"]) == ("images/0.png", "75.0")
    with (output / "classes.csv").open() as file:
        assert {row["class"] for row in csv.DictReader(file)} == set(CLASSES)
    assert json.loads((output / "compare.json").read_text())["metrics"]["mIoU"]["difference"] > 0
    with Image.open(output / "differences.png") as picture:
        assert picture.width > 800
    (tmp_path / "data/images/0.png").unlink()
    assert main([*runs, "--output", str(tmp_path / "later")]) == 0
    assert not (tmp_path / "later/differences.png").exists()
    assert (tmp_path / "later/compare.md").exists()
