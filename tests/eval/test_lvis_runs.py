"""LVIS end to end on drawn scenes: both methods, several processes, kill -9, odd data."""

import json
import os
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import task_worlds
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from warm_start import WarmProgram

from eval.journal import Processes
from eval.lvis import LvisTask, main, softmax_scale
from eval.lvis_data import read_annotations, read_boxes
from eval.prepare.tiny_lvis import write_tiny_lvis
from eval.tasks import Run, evaluate_with
from textregion.regionspot.loading import save_head
from textregion.regionspot.model import RegionSpotHead, encode_names
from textregion.render import from_rle
from TextRegionSegmenter import TextRegionSegmenter

ROOT = Path(__file__).resolve().parents[2]
SCENES = 4
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny_lvis")
    write_tiny_lvis(folder, scenes=SCENES, names="colours")
    torch.manual_seed(2)
    head = RegionSpotHead(192, 128, 96, 16, 1)  # of random weights: what is told of it is not how good it is
    save_head(folder / "head.safetensors", head, {"clip": "tiny", "side": 96, "sam": "sam2:tinyworld"})
    return folder


@pytest.fixture(scope="module")
def segmenter(world):
    with task_worlds.one_thread():
        return TextRegionSegmenter.from_preset(
            "tiny",
            device="cpu",
            dense_fallback=False,
            box_masks="sam",
            regionspot_checkpoint=world / "head.safetensors",
        )


def command_line(world, work_dir, *more):
    data = ["--annotations", world / "lvis_tiny_val.json", "--image_root", world / "images", "--work-dir", work_dir]
    models = ["--preset", "tiny", "--device", "cpu", "--regionspot_checkpoint", world / "head.safetensors"]
    models += ["--box_masks", "sam"]
    return [str(part) for part in (*data, *models, "--save-predictions", *more)]


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    """Work dir of one uninterrupted run of both methods on true boxes."""
    work_dir = tmp_path_factory.mktemp("alone")
    with task_worlds.one_thread():
        assert main(command_line(world, work_dir, "--visualize", "2")) == 0
    return work_dir


def results(work_dir, method):
    return json.loads((work_dir / method / "results.json").read_text())


def predictions(work_dir, method):
    return [json.loads(line) for line in (work_dir / method / "predictions.jsonl").read_text().splitlines()]


def journal(work_dir, method):
    lines = [line for path in (work_dir / method / "journal").iterdir() for line in path.read_text().splitlines()]
    return {record["id"]: record for record in map(json.loads, lines) if "id" in record}


def assert_same(one, other, methods=("textregion", "regionspot")):
    for method in methods:
        for key in ("metrics", "per_class", "items", "skipped", "config", "recipe"):
            assert results(one, method)[key] == results(other, method)[key], (method, key)
        assert predictions(one, method) == predictions(other, method)
    assert (one / "results.md").read_text() == (other / "results.md").read_text()


# ---------------------------------------------------------------------- one run


@pytest.mark.parametrize("method", ["textregion", "regionspot"])
def test_a_record_is_the_slow_form_of_the_rule(method, world, alone, segmenter):
    annotations = read_annotations(world / "lvis_tiny_val.json")
    image, boxes = next(iter(read_boxes("gt", annotations).of_image.items()))
    names = [category.name for category in annotations.categories]
    text = segmenter.encode_text(names) if method == "textregion" else encode_names(segmenter.backbone, names)
    regions = segmenter.encode_boxes(annotations.images[image].find(world / "images"), boxes.xyxy, method)
    scale = float(segmenter.backbone.model.logit_scale.exp())
    found = (regions.tokens @ text.T * scale).softmax(1)
    record = journal(alone, method)[str(image)]
    kept = regions.source_index.tolist()
    assert [record["named"][box] for box in kept] == found.argmax(1).tolist()
    assert [record["confidence"][box] for box in kept] == pytest.approx(found.amax(1).tolist(), rel=1e-4)
    assert record["right"] == sum(record["named"][box] == boxes.names[box] for box in kept)
    pairs = {(kept[row], name): float(found[row, name]) for row in range(len(kept)) for name in range(len(names))}
    told = zip(record["found"]["box"], record["found"]["category"], record["found"]["score"], strict=True)
    assert {(box, name): score for box, name, score in told} == pytest.approx(pairs, rel=1e-4)
    assert record["found"]["score"] == sorted(record["found"]["score"], reverse=True)
    full = regions.masks.binary().numpy()
    for row, box in enumerate(kept):
        assert (from_rle(record["masks"][str(box)]) == full[row]).all()


def test_files_and_table(world, alone):
    annotations = json.loads((world / "lvis_tiny_val.json").read_text())
    by_id = {category["id"]: category["frequency"] for category in annotations["categories"]}
    for method in ("textregion", "regionspot"):
        content = results(alone, method)
        assert content["items"] == content["measured"] == SCENES
        records = journal(alone, method)
        right, boxes = (sum(len(r["named"]) if k == "n" else r["right"] for r in records.values()) for k in "rn")
        assert content["metrics"]["top-1"] == pytest.approx(100 * right / boxes)
        assert boxes == len(annotations["annotations"]) == sum(row["boxes"] for row in content["per_class"].values())
        for letter, name in {"r": "rare", "c": "common", "f": "frequent"}.items():
            row = content["per_class"][name]
            assert row["boxes"] == sum(by_id[a["category_id"]] == letter for a in annotations["annotations"])
            assert row["categories"] == 3
            assert content["metrics"][f"top-1 {name}"] == pytest.approx(100 * row["right"] / row["boxes"])
        assert content["metrics"]["box APs"] is None, "no object is that small"
        data = content["config"]["data"]
        assert (data["method"], data["boxes"], data["names"], data["kept"]) == (method, "gt", "raw", 900)
        assert {"lvis", "pycocotools"} <= set(content["versions"])
    head = results(alone, "regionspot")["config"]["data"]["models"]
    assert (head["sam"], head["side"], len(head["head"]["weights"])) == ("sam2:tinyworld", 96, 16)
    text = (alone / "results.md").read_text()
    assert "| figure (%) | textregion | regionspot | RegionSpot BB (published) | RegionSpot BL (published) |" in text
    assert f"| box AP | {results(alone, 'textregion')['metrics']['box AP']:.2f} |" in text
    assert "| 20.90 | 23.70 | 25.00 |" in text
    assert "| box APs | – | – | – | – | – |" in text
    assert "not measured here" in text
    assert "9 names; LVIS v1 has 1203: the published figures are of other data" in text
    for method in ("textregion", "regionspot"):
        assert any((alone / method / f"{name}.png").is_file() for name in ("right", "wrong"))


def test_predictions_are_lvis_results(world, alone):
    annotations = read_annotations(world / "lvis_tiny_val.json")
    boxes = read_boxes("gt", annotations)
    lines = predictions(alone, "textregion")
    x, y, width, height = lines[0]["bbox"]
    assert (x, y, x + width, y + height) in boxes.of_image[lines[0]["image_id"]].xyxy
    assert lines[0]["segmentation"]["size"] == [256, 256]
    assert {line["category_id"] for line in lines} == {category.id for category in annotations.categories}


def test_coco_results_are_what_pycocotools_loads(world, alone, tmp_path):
    path = alone / "textregion" / "coco_results.json"
    rows = json.loads(path.read_text())
    assert rows == predictions(alone, "textregion")
    content = json.loads((world / "lvis_tiny_val.json").read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 0  # which LVIS does not have and COCO's evaluation asks for
    (tmp_path / "coco.json").write_text(json.dumps(content))
    coco = COCO(str(tmp_path / "coco.json"))
    loaded = coco.loadRes(str(path))
    assert len(loaded.anns) == len(rows)
    evaluation = COCOeval(coco, loaded, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    recall = evaluation.eval["recall"][:, :, 0, -1]  # of every category, all sizes, 100 detections an image
    assert set(recall.flat) == {1, -1}, (
        "-1: not annotated; every box of the annotations has every name, with some score"
    )
    assert loaded.annToMask(loaded.anns[1]).sum() == from_rle(rows[0]["segmentation"]).sum() > 0


@pytest.fixture(scope="module")
def more_scenes(tmp_path_factory):
    """Enough boxes for a score, none of them seen in training."""
    folder = tmp_path_factory.mktemp("more")
    write_tiny_lvis(folder, scenes=24, train_scenes=6, names="colours", seed=500)
    return folder


def compare(world, work_dir, methods, *more):
    """Top-1 accuracy in percent of each method on true boxes, with the preset's own models."""
    data = ["--annotations", world / "lvis_tiny_val.json", "--image_root", world / "images", "--work-dir", work_dir]
    arguments = [*data, "--preset", "tiny", "--device", "cpu", "--method", *methods, *more]
    assert main([str(argument) for argument in arguments]) == 0
    return {method: results(work_dir, method)["metrics"]["top-1"] for method in methods}


def test_textregion_is_above_chance(more_scenes, tmp_path):
    found = compare(more_scenes, tmp_path / "box", ["textregion"])
    assert found["textregion"] > 90, "chance is 1/9"
    assert not any("mask" in name for name in results(tmp_path / "box", "textregion")["metrics"]), "no model's masks"
    # The tiny SAM 2 was trained on clicks alone: its masks of boxes miss most of the things.
    by_sam = compare(more_scenes, tmp_path / "sam", ["textregion"], "--box_masks", "sam")
    assert 18 < by_sam["textregion"] < found["textregion"]
    assert results(tmp_path / "sam", "textregion")["config"]["model"]["config"]["box_masks"] == "sam"


def test_the_shipped_head_is_above_chance_on_the_same_boxes(more_scenes, tmp_path, capsys):
    found = compare(more_scenes, tmp_path, ["textregion", "regionspot"])
    assert found["regionspot"] > 55, "chance is 11; 47 can be had without looking where the box is"
    assert f"{found['textregion']:.2f}" in capsys.readouterr().out


# ---------------------------------------------------------------------- a detector's boxes


def detector_files(world, folder):
    """The true boxes with scores, in both layouts."""
    content = json.loads((world / "lvis_tiny_val.json").read_text())
    random = np.random.default_rng(3)
    rows = [
        {"image_id": a["image_id"], "bbox": a["bbox"], "score": round(random.uniform(0.1, 1), 3), "category_id": 1}
        for a in content["annotations"]
    ]
    by_image = {}
    for row in rows:
        entry = by_image.setdefault(str(row["image_id"]), {"boxes": [], "scores": [], "labels": []})
        x, y, width, height = row["bbox"]
        entry["boxes"].append([x, y, x + width, y + height])
        entry["scores"].append(row["score"])
        entry["labels"].append(1)
    (folder / "coco.json").write_text(json.dumps(rows))
    (folder / "published.json").write_text(json.dumps(by_image))
    return rows


def test_both_layouts_of_boxes_give_the_same_results(world, alone, tmp_path):
    rows = detector_files(world, tmp_path)
    for layout in ("coco", "published"):
        arguments = ["--boxes", str(tmp_path / f"{layout}.json"), "--method", "regionspot"]
        assert main(command_line(world, tmp_path / layout, *arguments)) == 0
    found = [results(tmp_path / layout, "regionspot") for layout in ("coco", "published")]
    assert found[0]["metrics"] == found[1]["metrics"]
    assert "top-1" not in found[0]["metrics"], "nobody says which name is right"
    assert predictions(tmp_path / "coco", "regionspot") == predictions(tmp_path / "published", "regionspot")
    # The same boxes without scores: every score is the probability alone.
    plain = {(p["image_id"], tuple(p["bbox"]), p["category_id"]): p["score"] for p in predictions(alone, "regionspot")}
    scores = {(row["image_id"], tuple(row["bbox"])): row["score"] for row in rows}
    for line in predictions(tmp_path / "coco", "regionspot"):
        box = (line["image_id"], tuple(line["bbox"]))
        assert line["score"] == pytest.approx(plain[(*box, line["category_id"])] * scores[box], rel=1e-5)


def test_other_boxes_are_not_resumed(world, alone, tmp_path, capsys):
    finished = shutil.copytree(alone, tmp_path / "finished")
    detector_files(world, tmp_path)
    more = ["--boxes", str(tmp_path / "coco.json"), "--resume"]
    assert main(command_line(world, finished, *more)) == 2
    assert 'data.boxes: was "gt", now' in capsys.readouterr().err


# ---------------------------------------------------------------------- interruptions and several processes


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_two_gloo_processes_equal_one(world, alone, tmp_path):
    members = []
    port = str(free_port())
    for number in range(2):
        environment = {**os.environ, "RANK": str(number), "WORLD_SIZE": "2", "LOCAL_RANK": str(number)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        command = ["-m", "eval.lvis", *command_line(world, tmp_path, "--launcher", "pytorch")]
        members.append(WarmProgram(command, ROOT, environment))
    ended = [member.wait(timeout=400) for member in members]
    said = [(member.stdout, member.stderr) for member in ended]
    assert [member.returncode for member in ended] == [0, 0], said
    assert said[1][0] == "", "only the first process tells the results"
    assert "RegionSpot BB (published)" in said[0][0]
    assert "top-1 " in said[0][1], "running accuracy"
    for method in ("textregion", "regionspot"):
        assert len(list((tmp_path / method / "journal").iterdir())) == 2
        assert results(tmp_path, method)["processes"] == 2
    assert_same(tmp_path, alone)


def test_resuming_after_kill_9_equals_an_uninterrupted_run(world, alone, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = WarmProgram(["-m", "eval.lvis", *command_line(world, tmp_path)], ROOT, environment)
    written = tmp_path / "textregion" / "journal" / "run000-process000.jsonl"
    deadline = time.monotonic() + 300
    while not written.exists() or written.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert not (tmp_path / "results.md").exists()
    done = written.read_bytes().count(b"\n") - 1
    with task_worlds.counted_calls() as calls:
        assert main(command_line(world, tmp_path, "--resume")) == 0
    assert calls["clip"] == SCENES - done, "TextRegion's; RegionSpot takes its map another way"
    assert results(tmp_path, "textregion")["measured"] == SCENES - done
    assert_same(tmp_path, alone)


def test_nothing_is_done_again(world, alone, tmp_path):
    finished = shutil.copytree(alone, tmp_path / "finished")
    before = results(alone, "textregion")["metrics"]
    with task_worlds.counted_calls() as calls:
        assert main(command_line(world, finished, "--resume")) == 0
    assert calls == {}
    assert results(finished, "textregion")["measured"] == 0
    assert results(finished, "textregion")["metrics"] == before


def test_a_method_can_be_added_later(world, tmp_path):
    data = ["--annotations", world / "lvis_tiny_val.json", "--image_root", world / "images", "--work-dir", tmp_path]
    first = [str(part) for part in (*data, "--preset", "tiny", "--device", "cpu", "--limit", "2")]
    assert main([*first, "--method", "textregion"]) == 0
    assert "regionspot |" not in (tmp_path / "results.md").read_text()
    assert main([*first, "--resume", "--regionspot_checkpoint", str(world / "head.safetensors")]) == 0
    assert [results(tmp_path, method)["measured"] for method in ("textregion", "regionspot")] == [0, 2]
    assert "| textregion | regionspot |" in (tmp_path / "results.md").read_text()


# ---------------------------------------------------------------------- odd data


def test_odd_images_are_told_and_left_out(world, segmenter, tmp_path):
    content = json.loads((world / "lvis_tiny_val.json").read_text())
    images = [image["id"] for image in content["images"]]
    for image in content["images"]:
        path = tmp_path / image["coco_url"]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((world / "images" / image["coco_url"]).read_bytes())
    (tmp_path / content["images"][0]["coco_url"]).unlink()
    broken = tmp_path / content["images"][1]["coco_url"]
    broken.write_bytes(broken.read_bytes()[:300])
    Image.new("RGB", (255, 256)).save(tmp_path / content["images"][2]["coco_url"])
    content["images"].append({**content["images"][3], "id": 7})
    (tmp_path / "odd.json").write_text(json.dumps(content))
    annotations = read_annotations(tmp_path / "odd.json")
    task = LvisTask(annotations, read_boxes("gt", annotations), tmp_path, "textregion")
    run = Run("tiny", tmp_path / "out")
    found, skipped = evaluate_with(segmenter, task, run, Processes())
    assert [(one.id, one.kind) for one in skipped] == [
        (f"image {images[0]}", "missing image"),
        (f"image {images[1]}", "unreadable image"),
        (f"image {images[2]}", "unreadable image"),
        ("image 7", "image without boxes"),
    ]
    assert "it has 255 x 256 pixels, the annotations say 256 x 256" in skipped[2].reason
    assert found.items == 2
    objects = sum(thing["image_id"] == images[3] for thing in annotations.objects)
    assert sum(row["boxes"] for row in found.per_class.values()) == objects
    assert found.metrics["box AP50"] > 0


@pytest.mark.parametrize("boxes", ["gt", "detector", "none"])
def test_a_run_that_names_no_box_tells_no_number(boxes, world, tmp_path, capsys):
    flags = command_line(world, tmp_path / "out", "--method", "textregion")
    if boxes != "none":
        flags[flags.index("--image_root") + 1] = str(tmp_path)  # of no image
    if boxes != "gt":  # the images without a detection would count as empty, with AP 0
        first = json.loads((world / "lvis_tiny_val.json").read_text())["images"][0]["id"]
        rows = [] if boxes == "none" else [{"image_id": first, "bbox": [1, 2, 30, 40], "score": 1}]
        (tmp_path / "boxes.json").write_text(json.dumps(rows))
        flags += ["--boxes", str(tmp_path / "boxes.json")]
    assert main(flags) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "nothing was measured" in line
    assert ("missing image" if boxes != "none" else "image without boxes") in line
    metrics = results(tmp_path / "out", "textregion")["metrics"]
    assert "box AP" in metrics
    assert set(metrics.values()) == {None}


def test_boxes_without_a_token_are_wrong_and_not_detected(world, segmenter, tmp_path, monkeypatch):
    config = replace(segmenter.config, global_patch_threshold=2.0)  # every patch is removed
    monkeypatch.setattr(segmenter, "config", config)
    annotations = read_annotations(world / "lvis_tiny_val.json")
    task = LvisTask(annotations, read_boxes("gt", annotations), world / "images", "textregion")
    found, skipped = evaluate_with(segmenter, task, Run("tiny", tmp_path, limit=1, visualize=1), Processes())
    first = next(iter(annotations.images))
    boxes = [thing for thing in annotations.objects if thing["image_id"] == first]
    assert [(one.id, one.kind, one.effect) for one in skipped] == [
        (f"image {first} box {place}", "box without a token", "scored as wrong") for place in range(1, len(boxes) + 1)
    ]
    assert (found.metrics["top-1"], found.metrics["box AP"], found.metrics["mask AP"]) == (0, 0, 0)
    assert not (tmp_path / "right.png").exists()


def test_without_masks_in_the_annotations_there_is_no_mask_ap(world, segmenter, tmp_path):
    content = json.loads((world / "lvis_tiny_val.json").read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    annotations = read_annotations(tmp_path / "boxes.json")
    task = LvisTask(annotations, read_boxes("gt", annotations), world / "images", "textregion")
    run = Run("tiny", tmp_path / "out", limit=1, save_predictions=True)
    found, _ = evaluate_with(segmenter, task, run, Processes())
    assert "box AP" in found.metrics
    assert not any(name.startswith("mask") for name in found.metrics)
    line = json.loads((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()[0])
    assert "segmentation" not in line


def test_clean_names_are_what_is_encoded(world, segmenter, tmp_path):
    content = json.loads((world / "lvis_tiny_val.json").read_text())
    raw = [category["name"] for category in content["categories"]]
    for category in content["categories"]:
        category["name"] = f"{category['name'].replace(' ', '_')}_(toy)"
    (tmp_path / "raw.json").write_text(json.dumps(content))
    annotations = read_annotations(tmp_path / "raw.json")
    boxes = read_boxes("gt", annotations)
    for method in ("textregion", "regionspot"):
        clean = LvisTask(annotations, boxes, tmp_path, method, clean_names=True).text(segmenter)
        as_is = LvisTask(annotations, boxes, tmp_path, method).text(segmenter)
        expected = segmenter.encode_text(raw) if method == "textregion" else encode_names(segmenter.backbone, raw)
        torch.testing.assert_close(clean, expected)
        assert not torch.allclose(as_is, expected, atol=1e-3)


def test_the_scale_is_the_models_own_for_both_methods(segmenter):
    assert softmax_scale(segmenter) == segmenter.regionspot.scale
    assert softmax_scale(segmenter) == pytest.approx(float(segmenter.backbone.model.logit_scale.exp()))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "the following arguments are required: --annotations, --image_root"),
        (
            ["--annotations", "nowhere.json", "--image_root", "x"],
            "no file nowhere.json; expected LVIS or COCO annotations",
        ),
        (["--annotations", "{world}/lvis_tiny_val.json", "--image_root", "nowhere"], "no folder nowhere"),
        (["--annotations", "{world}/lvis_tiny_val.json", "--image_root", "{world}", "--boxes", "no"], "no file no"),
        (["--annotations", "{world}/head.safetensors", "--image_root", "{world}"], "is not UTF-8 text"),
        (["--annotations", "{world}/lvis_tiny_val.json", "--image_root", "{world}", "--method", "x"], "choose from"),
        (
            ["--annotations", "{world}/lvis_tiny_val.json", "--image_root", "{world}", "--sam1_checkpoint", "no.pth"],
            "no file no.pth",
        ),
    ],
)
def test_bad_command_lines_are_one_line(arguments, reason, world, tmp_path, capsys):
    arguments = [argument.format(world=world) for argument in arguments]
    try:
        code = main([*arguments, "--work-dir", str(tmp_path)])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("error: ")
    assert reason in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "nothing was begun"
