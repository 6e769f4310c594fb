"""Referring expressions on drawn scenes, from files to results."""

import json

import numpy as np
import pytest
import task_worlds
from PIL import Image

from eval.referring import as_box, main, read_detections
from eval.tasks import evaluate
from textregion.labeling import box_ious, largest_component_box, snap
from textregion.masks import SlicMasks
from textregion.render import from_rle
from TextRegionSegmenter import TextRegionSegmenter

SCENES = 5
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return task_worlds.draw(tmp_path_factory.mktemp("world"), referring=SCENES)


@pytest.fixture(scope="module")
def evaluated(world, tmp_path_factory):
    """(results, summary, calls, work dir) of one run over everything."""
    work_dir = tmp_path_factory.mktemp("evaluated")
    with task_worlds.counted_calls() as calls, task_worlds.one_thread():
        task = task_worlds.referring_task(world)
        results, summary = evaluate(task, task_worlds.run(work_dir, save_predictions=True, visualize=4))
    return results, summary, calls, work_dir


def predictions(work_dir):
    lines = [json.loads(line) for line in (work_dir / "predictions.jsonl").read_text().splitlines()]
    return [{**line, "gold": [as_box(box) for box in line["gold"]]} for line in lines]


def test_far_above_chance(evaluated, world):
    results, _, _, work_dir = evaluated
    chances = []
    for answer in predictions(work_dir):
        dataset = answer["split"].rsplit("_", 1)[0]
        detections = read_detections(world / "referring" / f"{dataset}_dets_dict.json")
        boxes = detections[str(int(answer["image"][-16:-4]))]
        chances.append(np.mean([box_ious(box, answer["gold"]).max() > 0.5 for box in boxes]))
    assert len(chances) == 2 * SCENES * 4 * 2
    assert np.mean(chances) < 0.2, "a detection chosen at random"
    right = sum(part["right"] for part in results.per_class.values())
    assert right / len(chances) > 0.8


def test_both_encoders_see_every_image_once(evaluated):
    results, _, calls, _ = evaluated
    assert calls == {"sam2": 2 * SCENES, "clip": 2 * SCENES}
    assert results.items == results.measured == 2 * SCENES


def test_predictions_follow_the_rule(evaluated, world):
    results, _, _, work_dir = evaluated
    lines = predictions(work_dir)
    for split in ("refcoco_val", "refcocog_val"):
        share = [line["right"] for line in lines if line["split"] == split]
        assert results.metrics[f"{split} accuracy"] == pytest.approx(100 * np.mean(share))
        dataset = read_detections(world / "referring" / f"{split.rsplit('_', 1)[0]}_dets_dict.json")
        for line in (line for line in lines if line["split"] == split):
            box = largest_component_box(from_rle(line["mask"]))
            assert tuple(line["region_box"]) == box
            snapped = snap(box, dataset[str(int(line["image"][-16:-4]))])
            assert (tuple(line["box"]), line["detection"]) == snapped
            assert line["iou"] == box_ious(snapped[0], line["gold"]).max()
            assert line["right"] == (line["iou"] > 0.5)


def test_the_segmenters_own_answer_is_the_same(evaluated, world):
    lines = predictions(evaluated[3])
    first = [line for line in lines if line["image"] == lines[0]["image"]]
    segmenter = TextRegionSegmenter.from_preset("tiny", device="cpu", **task_worlds.MODEL)
    regions = segmenter.encode_image(world / "referring" / "images" / first[0]["image"])
    for line in first:
        found = segmenter.refer(regions, line["sentence"], published=True)
        assert (found.region, found.box) == (line["region"], tuple(line["region_box"]))
        assert (found.mask == from_rle(line["mask"])).all()
        assert found.score == pytest.approx(line["score"], abs=1e-5)


def test_files_and_summary(evaluated):
    results, summary, _, work_dir = evaluated
    content = json.loads((work_dir / "results.json").read_text())
    assert content["metrics"] == results.metrics
    assert content["config"]["data"]["proposals"] == "detections"
    terms = {"value": True, "spatial": False, "class_token": False}
    assert content["recipe"] == {"name": "semantic", "unit_values": False, "mlp_residual": False, **terms}
    assert content["published"] == []
    text = (work_dir / "results.md").read_text()
    assert "## By split" in text
    assert "Published" not in text
    assert "\n" not in summary
    assert "(10 images); nothing was skipped" in summary
    with Image.open(work_dir / "right.png") as sheet:
        assert sheet.width > 3 * 400


def test_ground_truth_boxes_and_no_snapping(world, tmp_path):
    for proposals in ("gt", "none"):
        task = task_worlds.referring_task(world, proposals)
        evaluate(task, task_worlds.run(tmp_path / proposals, limit=1, save_predictions=True))
        for line in predictions(tmp_path / proposals):
            if proposals == "none":
                assert (line["box"], line["detection"]) == (line["region_box"], None)
            else:
                assert line["detection"] is None or all(side == int(side) for side in line["box"])
                assert line["iou"] in (0.0, 1.0) or not line["right"]


@pytest.mark.parametrize("family", ["tiny_clip", "tiny_siglip", "tiny_perception"])
def test_all_families_answer(family, world, request):
    backbone = request.getfixturevalue(family)
    segmenter = TextRegionSegmenter(backbone, SlicMasks(segments=5), scale=(64, 64), device="cpu")
    task = task_worlds.referring_task(world)
    image = task.items()[0]
    record = task.answer(segmenter, image)
    regions = segmenter.encode_image(world / "referring" / "images" / image)
    sentences = [sentence for e in task.expressions[image] for sentence in e.sentences]
    assert [answer["sentence"] for answer in record["answers"]] == sentences
    scores = regions.similarity(segmenter.encode_text([sentence.lower() for sentence in sentences]))
    assert [answer["region"] for answer in record["answers"]] == scores.argmax(0).tolist()


def scene_line(image_id, sentences, **changes):
    name = f"COCO_train2014_{image_id:012d}_0.jpg"
    anns = [{"id": 1, "bbox": [0, 0, 256, 256]}]
    line = {"image_id": image_id, "file_name": name, "anns": anns, "ann_id": 1}
    return json.dumps({**line, "sentences": [{"raw": s} for s in sentences], **changes})


def test_odd_data_are_told_and_never_right(world, tmp_path):
    folder, images = tmp_path / "odd" / "referring", tmp_path / "odd" / "referring" / "images"
    images.mkdir(parents=True)
    good = sorted((world / "referring" / "images").iterdir())[0]
    for number in (1, 5, 7):
        (images / f"COCO_train2014_{number:012d}.jpg").write_bytes(good.read_bytes())
    (images / f"COCO_train2014_{2:012d}.jpg").write_bytes(good.read_bytes()[:300])
    Image.new("RGB", (64, 64)).save(images / f"COCO_train2014_{4:012d}.jpg")
    lines = [
        scene_line(1, ["the sky", " "]),
        scene_line(2, ["unreadable image", "again"]),
        scene_line(3, ["missing image"]),
        '{"image_id": 1, "file',
        scene_line(4, ["nothing to see in the dark"]),
        scene_line(5, []),
        scene_line(7, [" ".join(["the red star and the blue ring"] * 12)]),
    ]
    (folder / "refcoco_val.jsonl").write_text("\n".join(lines))
    (folder / "refcoco_dets_dict.json").write_text(json.dumps({n: [[0, 0, 256, 256]] for n in (1, 2, 3, 4)}))
    task = task_worlds.referring_task(tmp_path / "odd")
    settings = {**task_worlds.MODEL, "global_patch_threshold": 2.0}  # every patch is removed: no region is left
    with task_worlds.counted_calls() as calls:
        work_dir = tmp_path / "out"
        run = task_worlds.run(work_dir, save_predictions=True)
        results, summary = evaluate(task, type(run)(**{**vars(run), "model": settings}))
    told = {(one["id"], one["kind"], one["effect"]) for one in results.skipped}
    wrong, out, kept = "scored as wrong", "left out of the score", "scored as answered"
    assert told == {
        ("refcoco_val line 1, sentence 1", "no region found", wrong),
        ("refcoco_val line 1, sentence 2", "empty sentence", out),
        (f"COCO_train2014_{2:012d}.jpg", "unreadable image", out),
        (f"COCO_train2014_{3:012d}.jpg", "missing image", out),
        ("refcoco_val line 4", "broken line", out),
        ("refcoco_val line 5, sentence 1", "no region found", wrong),
        ("refcoco_val line 6", "no sentences", out),
        ("refcoco_val line 7", "no detections", kept),
        ("refcoco_val line 7, sentence 1", "long sentence", kept),
        ("refcoco_val line 7, sentence 1", "no region found", wrong),
    }
    assert results.per_class["refcoco_val"] == {
        "accuracy": 0.0,
        "accuracy, unscored as wrong": 0.0,
        "sentences": 7,
        "scored": 3,
        "right": 0,
    }
    assert "10 skipped or noted: " in summary
    assert "3 no region found (scored as wrong)" in summary
    assert calls["sam2"] == 3, "not for images that cannot be read"
    assert "missing image: no image file at" in (work_dir / "results.md").read_text()


def test_a_line_without_sentences_is_told(world, tmp_path):
    folder = tmp_path / "odd" / "referring"
    folder.mkdir(parents=True)
    (folder / "refcoco_val.jsonl").write_text(scene_line(5, []) + "\n" + scene_line(6, ["x"], anns=[]))
    task = task_worlds.referring_task(tmp_path / "odd", "gt")
    assert task.items() == []
    assert [one.kind for one in task.skipped({})] == ["no sentences", "broken line"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "the following arguments are required: --input_file_root, --image_root"),
        (["--input_file_root", "nowhere", "--image_root", "x"], "no folder nowhere"),
        (["--input_file_root", "{world}/referring", "--image_root", "x", "--splits", "refcoco_testa"], "there are: "),
        (["--input_file_root", "{world}/referring", "--image_root", "x", "--preset", "nope"], "unknown preset 'nope'"),
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
