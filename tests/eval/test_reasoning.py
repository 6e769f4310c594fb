"""Reasoning segmentation on drawn scenes, from files to results."""

import json

import numpy as np
import pytest
import task_worlds
from PIL import Image

from eval import reasoning
from eval.prepare.tiny_tasks import FIRST_SEED, OBJECTS
from eval.reasoning import iou_metrics, item_iou, overlap, paint, read_question
from eval.results import skipped_line
from eval.tasks import build_segmenter, evaluate
from textregion.render import from_rle
from textregion.tiny.scenes import draw_scene

SCENES = 5
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return task_worlds.draw(tmp_path_factory.mktemp("world"), reasoning=SCENES)


@pytest.fixture(scope="module")
def evaluated(world, tmp_path_factory):
    """(results, summary, calls, work dir) of one run over everything."""
    work_dir = tmp_path_factory.mktemp("evaluated")
    with task_worlds.counted_calls() as calls, task_worlds.one_thread():
        task = task_worlds.reasoning_task(world)
        results, summary = evaluate(task, task_worlds.run(work_dir, save_predictions=True, visualize=4))
    return results, summary, calls, work_dir


def predictions(work_dir):
    return [json.loads(line) for line in (work_dir / "predictions.jsonl").read_text().splitlines()]


def ground_truth_of(world, line):
    path = (world / "reasoning" / line["image"]).with_suffix(".json")
    return paint(read_question(path).shapes, (256, 256))


def test_far_above_chance(evaluated, world):
    lines = predictions(evaluated[3])
    chances = []
    for line in lines:
        ground_truth = ground_truth_of(world, line)
        seed = int(line["image"].split("/")[1].removesuffix(".jpg"))
        assert seed > FIRST_SEED
        masks = draw_scene(seed, 256, OBJECTS, distinct_colours=True).masks
        chances.append(np.mean([item_iou(*overlap(mask, ground_truth)) for mask in masks]))
    assert np.mean(chances) < 0.22, "a thing chosen at random, with its exact mask"
    everything = [overlap(np.ones((256, 256), bool), ground_truth_of(world, line)) for line in lines]
    assert iou_metrics(everything)["cIoU"] < 15
    scores = iou_metrics([(line["intersection"], line["union"]) for line in lines])
    assert scores["gIoU"] > 55
    assert scores["cIoU"] > 50


def test_both_encoders_see_every_image_once(evaluated):
    results, _, calls, _ = evaluated
    assert calls == {"sam2": 2 * SCENES, "clip": 2 * SCENES}
    assert results.items == results.measured == 2 * SCENES


def test_short_long_and_overall_come_from_one_pass(evaluated, world):
    results, _, _, work_dir = evaluated
    lines = predictions(work_dir)
    for line in lines:
        found = from_rle(line["mask"])
        assert (line["intersection"], line["union"]) == overlap(found, ground_truth_of(world, line))
    for split in ("val", "test"):
        for kind in ("overall", "short", "long"):
            chosen = [line for line in lines if line["image"].startswith(split) and kind in ("overall", line["kind"])]
            scores = iou_metrics([(line["intersection"], line["union"]) for line in chosen])
            assert results.metrics[f"{split} {kind} gIoU"] == pytest.approx(scores["gIoU"])
            assert results.metrics[f"{split} {kind} cIoU"] == pytest.approx(scores["cIoU"])
            assert results.per_class[f"{split} {kind}"]["items"] == len(chosen)
    assert {line["kind"] for line in lines} == {"short", "long"}


def test_the_segmenters_own_answer_is_the_same(evaluated, world):
    (line, *_) = predictions(evaluated[3])
    task, run = task_worlds.reasoning_task(world), task_worlds.run(world)
    segmenter = build_segmenter(task, run, "cpu")
    assert segmenter.mask_generator.min_size == 0
    name = line["target"].split(",")[0]
    assert line["target"] == f"{name}, {line['sentence']}".lower(), "a short question"
    found = segmenter.reason(world / "reasoning" / line["image"], line["target"], "background, any other thing")
    assert (found.mask(1) == from_rle(line["mask"])).all()


def test_questions_without_interpreted_answers(world, tmp_path):
    task = task_worlds.reasoning_task(world, interpreted=False)
    evaluate(task, task_worlds.run(tmp_path, limit=2, save_predictions=True))
    lines = predictions(tmp_path)
    assert [line["target"] for line in lines] == [line["sentence"].lower() for line in lines]


def test_files_and_summary(evaluated):
    results, summary, _, work_dir = evaluated
    content = json.loads((work_dir / "results.json").read_text())
    assert content["config"]["data"]["asked"] == "interpreted answers"
    assert content["config"]["data"]["others"] == "background, any other thing"
    assert content["metrics"] == results.metrics
    assert "(10 images); nothing was skipped" in summary
    with Image.open(work_dir / "right.png") as sheet:
        assert sheet.width > 3 * 400


def write(folder, name, content, image=None):
    (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    if image is not None:
        (folder / f"{name}.jpg").write_bytes(image)


def test_odd_data_are_told(world, tmp_path):
    folder, answers = tmp_path / "reasoning" / "val", tmp_path / "answers"
    folder.mkdir(parents=True)
    answers.mkdir()
    image = next((world / "reasoning" / "val").glob("*.jpg")).read_bytes()
    question = {"shapes": [], "text": ["What?"], "is_sentence": True}
    write(folder, "a", question, image)
    write(folder, "b", question)
    write(folder, "c", question, image[:300])
    write(folder, "d", "{broken", image)
    write(folder, "e", {**question, "text": []}, image)
    write(folder, "f", question, image)
    (folder / "g.jpg").write_bytes(image)
    for name in "abcde":
        (answers / f"{name}.json").write_text(json.dumps({"answers": ["the red star " * 30]}))
    task = task_worlds.ReasoningTask(tmp_path / "reasoning", ["val"], answers)
    run = task_worlds.run(tmp_path / "out")
    model = {**task_worlds.MODEL, "global_patch_threshold": 2.0}  # every patch is removed: no region is left
    results, summary = evaluate(task, type(run)(**{**vars(run), "model": model}))
    told = [(one["id"], one["kind"]) for one in results.skipped]
    assert sorted(told) == [
        ("val/a.jpg", "long sentence"),
        ("val/a.jpg", "no region found"),
        ("val/b.jpg", "missing image"),
        ("val/c.jpg", "unreadable image"),
        ("val/d.jpg", "unusable annotation"),
        ("val/e.jpg", "unusable annotation"),
        ("val/f.jpg", "unusable annotation"),
        ("val/g.jpg", "unusable annotation"),
    ]
    assert results.per_class["val overall"]["scored"] == 1
    assert results.metrics["val overall gIoU"] == 100, "nothing was meant and nothing was found"
    assert "8 skipped or noted: 4 unusable annotation (left out of the score)" in summary
    reasons = {one["id"]: one["reason"] for one in results.skipped}
    assert "no file" in reasons["val/f.jpg"]


def test_nothing_skipped():
    assert skipped_line([]) == "nothing was skipped"


@pytest.mark.parametrize(
    ("arguments", "others", "interpreted"),
    [
        ([], "background, any other thing", False),
        (["--interpreted_query_dir", "{world}/answers"], "background, anything but {{target}}", True),
        (["--interpreted_query_dir", "{world}/answers", "--preset", "tiny"], "background, any other thing", True),
        (["--interpreted_query_dir", "{world}/answers", "--use_interpreted_query", "False"], "background, any", False),
        (["--placeholder", "not the {{target}}"], "not the {{target}}", False),
    ],
)
def test_flags_choose_the_words(arguments, others, interpreted, world):
    arguments = [argument.format(world=world) for argument in arguments]
    options = reasoning.parser().parse_args(["--dataset_dir", str(world / "reasoning"), *arguments])
    task = reasoning.make_task(options)
    assert task.others.startswith(others.format())
    assert (task.answers is not None) == interpreted


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--dataset_dir", "nowhere"], "no folder nowhere"),
        (["--dataset_dir", "{world}/reasoning", "--use_interpreted_query"], "without --interpreted_query_dir"),
        (["--dataset_dir", "{world}/reasoning", "--interpreted_query_dir", "nowhere"], "no folder nowhere"),
        (["--dataset_dir", "{world}/reasoning", "--limit", "0"], "expected at least 1"),
    ],
)
def test_bad_command_lines_are_one_line(arguments, reason, world, tmp_path, capsys):
    arguments = [argument.format(world=world) for argument in arguments]
    try:
        code = reasoning.main([*arguments, "--work-dir", str(tmp_path)])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("error: ")
    assert reason in error
    assert error.count("\n") == 1
