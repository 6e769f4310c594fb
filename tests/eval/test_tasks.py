"""Both tasks over several processes, and after kill -9."""

import json
import os
import shutil
import socket
import time
from pathlib import Path

import pytest
import task_worlds
from warm_start import WarmProgram

from eval import reasoning, referring
from eval.tasks import Task, evaluate, image_file
from textregion.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
SCENES = 3
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return task_worlds.draw(tmp_path_factory.mktemp("world"), referring=SCENES, reasoning=SCENES)


TASKS = {"referring": task_worlds.referring_task, "reasoning": task_worlds.reasoning_task}


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    """Work dir of each task, evaluated by one process without interruption."""
    folders = {}
    for name, make in TASKS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        with task_worlds.one_thread():
            evaluate(make(world), task_worlds.run(folders[name], save_predictions=True))
    return folders


def command_line(name, world, work_dir):
    data = {
        "referring": ["--input_file_root", world / "referring", "--image_root", world / "referring" / "images"],
        "reasoning": ["--dataset_dir", world / "reasoning", "--interpreted_query_dir", world / "answers"],
    }[name]
    models = ["--preset", "tiny", "--points_per_side", "8", "--device", "cpu"]
    return [str(part) for part in (*data, *models, "--work-dir", work_dir, "--save-predictions")]


def assert_same(one, other):
    """The same figures, and the same answer to every sentence."""
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, other)]
    for key in ("metrics", "per_class", "items", "skipped", "config", "recipe"):
        assert results[0][key] == results[1][key], key
    assert (one / "predictions.jsonl").read_text() == (other / "predictions.jsonl").read_text()


MEMBER = """
import os, sys
from eval import reasoning
from eval import referring
ports, first, second = sys.argv[1].split(","), sys.argv[2].split("\\n"), sys.argv[3].split("\\n")
for program, port, arguments in ((referring, ports[0], first), (reasoning, ports[1], second)):
    os.environ["MASTER_PORT"] = port
    if code := program.main([*arguments, "--launcher", "pytorch"]):
        sys.exit(code)
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def test_two_gloo_processes_equal_one(world, alone, tmp_path):
    folders = {name: tmp_path / name for name in TASKS}
    arguments = ["\n".join(command_line(name, world, folder)) for name, folder in folders.items()]
    ports = ",".join(map(str, free_ports(2)))
    members = []
    for number in range(2):
        environment = {**os.environ, "RANK": str(number), "WORLD_SIZE": "2", "LOCAL_RANK": str(number)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        members.append(WarmProgram(["-c", MEMBER, ports, *arguments], ROOT, environment))
    ended = [member.wait(timeout=400) for member in members]
    said = [(member.stdout, member.stderr) for member in ended]
    assert [member.returncode for member in ended] == [0, 0], said
    assert said[1][0] == "", "only the first process tells the results"
    assert "referring expressions, tiny: refcoco_val accuracy" in said[0][0]
    assert f" of {SCENES * 8}]" in said[0][1], "running accuracy over its own sentences"
    assert "gIoU" in said[0][1]
    for name, folder in folders.items():
        assert len(list((folder / "journal").iterdir())) == 2
        assert json.loads((folder / "results.json").read_text())["processes"] == 2
        assert_same(folder, alone[name])


@pytest.mark.parametrize("name", TASKS)
def test_resuming_after_kill_9_equals_an_uninterrupted_run(name, world, alone, tmp_path):
    module = {"referring": "eval.referring", "reasoning": "eval.reasoning"}[name]
    command = ["-c", f"import sys; from {module} import main; sys.exit(main(sys.argv[1:]))"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = WarmProgram([*command, *command_line(name, world, tmp_path)], ROOT, environment)
    journal = tmp_path / "journal" / "run000-process000.jsonl"
    deadline = time.monotonic() + 300
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    assert not (tmp_path / "results.json").exists()
    done = journal.read_bytes().count(b"\n") - 1
    assert 2 <= done < 2 * SCENES
    with task_worlds.counted_calls() as calls:
        results, _ = evaluate(TASKS[name](world), task_worlds.run(tmp_path, resume=True, save_predictions=True))
    assert calls == {"sam2": 2 * SCENES - done, "clip": 2 * SCENES - done}
    assert results.measured == 2 * SCENES - done
    assert_same(tmp_path, alone[name])


def test_nothing_is_done_again_and_other_settings_are_refused(world, alone, tmp_path):
    finished = shutil.copytree(alone["referring"], tmp_path / "finished")
    with task_worlds.counted_calls() as calls:
        task, run = task_worlds.referring_task(world), task_worlds.run(finished, resume=True)
        results, _ = evaluate(task, run)
    assert calls == {}
    assert results.measured == 0
    with pytest.raises(InputError, match=r'settings\.data\.proposals: was "detections", now "gt"'):
        evaluate(task_worlds.referring_task(world, "gt"), run)


def test_an_image_that_was_missing_is_tried_again_on_resume(world, tmp_path):
    task = task_worlds.referring_task(world)
    there, task.images = task.images, tmp_path / "later"
    results, _ = evaluate(task, task_worlds.run(tmp_path / "out", limit=2))
    assert [one["kind"] for one in results.skipped] == ["missing image"] * 2
    assert (results.items, results.per_class["refcoco_val"]["scored"]) == (0, 0)
    shutil.copytree(there, task.images)
    results, _ = evaluate(task, task_worlds.run(tmp_path / "out", limit=2, resume=True))
    assert results.skipped == []
    assert (results.items, results.per_class["refcoco_val"]["scored"]) == (2, 16)


@pytest.mark.parametrize("name", TASKS)
def test_a_run_that_measured_nothing_tells_no_number(name, world, tmp_path, capsys):
    folder = tmp_path / "images of none"
    for path in (world / "reasoning").rglob("*.json"):
        copy = folder / path.relative_to(world / "reasoning")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    flags = command_line(name, world, tmp_path / "out")
    flags[flags.index("--image_root" if name == "referring" else "--dataset_dir") + 1] = str(folder)
    main = {"referring": referring.main, "reasoning": reasoning.main}[name]
    assert main(flags) == 2
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert f"nothing was measured: {2 * SCENES} could not be used, first" in line
    assert "missing image" in line
    assert said.out == ""
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(content["metrics"].values()) == {None}
    assert len(content["skipped"]) == 2 * SCENES


def test_a_split_of_broken_lines_alone_measures_nothing(world, tmp_path, capsys):
    (tmp_path / "refcoco_val.jsonl").write_text("{broken\n")
    data = ["--input_file_root", tmp_path, "--image_root", world / "referring" / "images", "--proposals", "none"]
    flags = [*data, "--preset", "tiny", "--device", "cpu", "--work-dir", tmp_path / "out"]
    assert referring.main([str(flag) for flag in flags]) == 2
    assert "nothing was measured: 1 could not be used, first refcoco_val line 1: broken line" in capsys.readouterr().err


def test_masks_can_be_kept_for_another_backbone(world, tmp_path):
    calls = []
    for name in ("first", "second"):
        with task_worlds.counted_calls() as counted:
            run = task_worlds.run(tmp_path / name, limit=2, mask_cache=tmp_path / "masks", save_predictions=True)
            evaluate(task_worlds.referring_task(world), run)
        calls.append(dict(counted))
    assert calls == [{"sam2": 2, "clip": 2}, {"clip": 2}]
    assert_same(tmp_path / "first", tmp_path / "second")


def test_a_work_dir_that_cannot_be_written_is_one_line(world, tmp_path, capsys):
    from eval.referring import main

    (tmp_path / "file").touch()
    assert main(command_line("referring", world, tmp_path / "file" / "x")) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot write to {tmp_path / 'file' / 'x'}")
    assert error.endswith("choose another --work-dir\n")


def test_real_presets_are_evaluated_as_published(world, tmp_path):
    from eval.tasks import build_segmenter, describe

    for make, scale, recipe, antialias in (
        (task_worlds.referring_task, (2016, 2016), "demo", True),
        (task_worlds.reasoning_task, (2016, 672), "semantic-fp32", False),
    ):
        run = type(task_worlds.run(tmp_path))("clip-vit-b16", tmp_path, {"random_weights": True, "model_cfg": "tiny"})
        segmenter = build_segmenter(make(world), run, "cpu")
        assert segmenter.config.scale == scale
        assert segmenter.config.recipe.name == recipe
        assert segmenter.config.antialias is antialias
        assert not segmenter.config.dense_fallback
        assert segmenter.mask_generator.min_size == (0 if recipe == "semantic-fp32" else 100)
        assert tuple(describe(segmenter, run)["config"]["scale"]) == scale


class RegionCount(Task):
    """A task with nothing but what every task must have."""

    name = "region count"
    benchmark = "folder"

    def __init__(self, folder, items):
        self.folder, self.names = folder, items

    def items(self):
        return self.names

    def answer(self, segmenter, item):
        with image_file(self.folder / item):
            return {"regions": len(segmenter.encode_image(self.folder / item)), "notes": [["small", "few regions"]]}

    def metrics(self, records):
        return {"images": float(sum("regions" in record for record in records.values()))}


def test_a_new_task_is_items_answer_and_metrics(world, tmp_path):
    folder = world / "referring" / "images"
    image = min(path.name for path in folder.iterdir())
    run = task_worlds.run(tmp_path, save_predictions=True, visualize=1)
    results, summary = evaluate(RegionCount(folder, [image, "nowhere.jpg"]), run)
    assert (results.items, results.metrics, results.per_class) == (1, {"images": 1.0}, {})
    told = [(one["id"], one["kind"], one["effect"]) for one in results.skipped]
    assert told == [
        (image, "small", "left out of the score"),
        ("nowhere.jpg", "missing image", "left out of the score"),
    ]
    assert summary.startswith("region count, tiny: images 1.00 (1 images); 2 skipped or noted: ")
    (line,) = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert json.loads(line)["image"] == image
    assert not list(tmp_path.glob("*.png")), "there are no right and wrong answers"
    with pytest.raises(TypeError, match="abstract"):
        Task()
