"""The program as its users meet it: interrupted, resumed, on two processes, with a cache, with damaged data."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import time
from copy import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import task_worlds
import torch
from small_benchmark import bands, rooms
from warm_start import WARM, WarmProgram

from eval import semantic_cli
from eval.journal import Journal
from eval.mm import MODELS, TRANSFORMS, SegDataSample
from eval.model import TextRegionModel
from eval.prepare.converters import draw_scenes, scenes_folder
from eval.results import ROOT
from eval.semantic import LOADER_PATIENCE, Evaluation, evaluate, load_config, loader_options, loading
from eval.semantic_cli import BENCHMARKS, main, main_all, overview
from textregion.errors import InputError
from textregion.masks import SlicMasks
from textregion.tiny.scenes import CLASS_NAMES
from TextRegionSegmenter import TextRegionSegmenter

CONFIG = ROOT / "configs/cfg_ds/cfg_tiny.py"
SCENES = 5
# The tiny world made smaller still: 64 px scenes, few clicks, one row of tiles; its last class has a synonym.
SMALL = {
    "benchmark.scenes": SCENES,
    "benchmark.size": 64,
    "model.scale": (192, 96),
    "model.points_per_side": 3,
    "model.classes": "",  # a class file, written by `data`
}


def as_flags(options):
    """Options as --cfg-options takes them."""
    texts = {k: f"[{','.join(map(str, v))}]" if isinstance(v, (list, tuple)) else v for k, v in options.items()}
    return [f"{key}={text}" for key, text in texts.items()]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Scenes and a class file, which the tests only read."""
    root = tmp_path_factory.mktemp("data")
    draw_scenes(scenes_folder(root / "tiny_world", SCENES, SMALL["benchmark.size"]), SCENES, SMALL["benchmark.size"])
    SMALL["model.classes"] = str(root / "classes.txt")
    (root / "classes.txt").write_text("\n".join(CLASS_NAMES) + "; rock\n")
    return root


@pytest.fixture(autouse=True)
def data_root(data, monkeypatch):
    """The programs find the scenes."""
    monkeypatch.setenv("TEXTREGION_DATA", str(data))


def run(work_dir, model=None, **options):
    options.setdefault("cfg_options", SMALL)
    return evaluate(Evaluation(CONFIG, work_dir, model or {}, device="cpu", **options))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """An uninterrupted run in one process."""
    work_dir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEXTREGION_DATA", str(data))
        return run(work_dir), work_dir


@pytest.fixture
def finished(whole, tmp_path):
    """A copy of that run's work dir, to be written to."""
    return shutil.copytree(whole[1], tmp_path / "finished")


def command(work_dir, *flags):
    program = [str(ROOT / "eval_semantic.py"), "--config", str(CONFIG), "--work-dir", str(work_dir)]
    return [*program, "--device", "cpu", *flags, "--cfg-options", *as_flags(SMALL)]


def environment(data):
    return {**os.environ, "TEXTREGION_DATA": str(data), "OMP_NUM_THREADS": str(torch.get_num_threads())}


def test_results_say_what_made_them(whole):
    results, work_dir = whole
    content = json.loads((work_dir / "results.json").read_text())
    assert content["metrics"]["mIoU"] == results.metrics["mIoU"]
    assert (content["items"], content["measured"], content["skipped"]) == (SCENES, SCENES, [])
    assert set(content["per_class"]) == set(CLASS_NAMES)
    assert content["recipe"]["name"] == "semantic"
    assert content["config"]["model"]["points_per_side"] == 3
    assert content["config"]["resolved"]["queries"] == [*CLASS_NAMES, "rock"]
    assert {"resize", "masks", "encode", "pool", "postprocess"} <= set(content["seconds"]["per_stage"])
    assert content["images_per_second"] == pytest.approx(SCENES / content["seconds"]["total"])
    assert content["device"]["type"] == "cpu"
    assert "| mIoU |" in (work_dir / "results.md").read_text()


def test_a_finished_run_resumes_to_the_same_numbers(whole, finished):
    results, _ = whole
    again = run(finished, resume=True)
    assert (again.metrics, again.measured) == (results.metrics, 0)
    assert json.dumps(again.per_class) == json.dumps(results.per_class)
    part = run(finished, resume=True, limit=2)
    assert part.items == 2


def test_other_settings_are_refused_on_resume(finished, capsys):
    flags = ["--resume", "--device", "cpu", "--recipe", "demo", "--cfg-options", *as_flags(SMALL)]
    assert main(["--config", str(CONFIG), "--work-dir", str(finished), *flags]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert 'model.recipe: was "auto", now "demo"' in said


def test_after_kill_9_at_most_one_image_is_repeated(whole, data, tmp_path):
    results, _ = whole
    work_dir = tmp_path / "killed"
    process = WarmProgram(command(work_dir), ROOT, environment(data))
    journal = work_dir / "journal" / "run000-process000.jsonl"
    deadline = time.monotonic() + 300
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    before = journal.read_bytes().count(b"\n") - 1
    assert 2 <= before < SCENES, "killed too late or too early to show anything"
    resumed = run(work_dir, resume=True)
    assert resumed.measured == SCENES - before
    assert resumed.metrics == results.metrics
    assert resumed.items == SCENES


def test_two_gloo_processes_give_the_numbers_of_one(whole, data, tmp_path):
    results, _ = whole
    work_dir = tmp_path / "two"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    members = []
    for number in map(str, range(2)):  # as torchrun starts them
        told = {**environment(data), **shared, "RANK": number, "LOCAL_RANK": number}
        members.append(WarmProgram(command(work_dir, "--launcher", "pytorch"), ROOT, told))
    ended = [member.wait() for member in members]
    assert [done.returncode for done in ended] == [0, 0], [done.stderr[-2000:] for done in ended]
    content = json.loads((work_dir / "results.json").read_text())
    assert content["metrics"] == results.metrics
    assert (content["processes"], content["items"]) == (2, SCENES)
    files = sorted(path.name for path in (work_dir / "journal").iterdir())
    assert files == ["run000-process000.jsonl", "run000-process001.jsonl"]
    assert [path.read_bytes().count(b"\n") for path in sorted((work_dir / "journal").iterdir())] == [4, 3]


def test_the_mask_cache_changes_nothing_but_the_time(whole, tmp_path):
    results, _ = whole
    model = {"mask_cache": str(tmp_path / "cache")}
    first = run(tmp_path / "first", model)
    files = sorted((tmp_path / "cache").rglob("*.safetensors"))
    assert len(files) == SCENES
    stamps = [path.stat().st_mtime_ns for path in files]
    with task_worlds.counted_calls() as calls:
        second = run(tmp_path / "second", model)
    assert calls["sam2"] == 0
    assert first.metrics == second.metrics == results.metrics
    assert [path.stat().st_mtime_ns for path in files] == stamps


@cache
def tiny_segmenter():
    return TextRegionSegmenter.from_preset(
        "tiny", points_per_side=8, antialias=False, mask_size="original", device="cpu"
    )


@MODELS.register_module()
class SharedTiny(TextRegionModel):
    """The tiny world's model with its preset's settings; one segmenter, so that texts are encoded once."""

    def __init__(self, masks="sam2", pool_feature="value", **_):
        super().__init__(segmenter=copy(tiny_segmenter()), classes="tiny", masks=masks)
        self.segmenter.config = replace(self.segmenter.config, pool_feature=pool_feature)
        if masks == "slic":
            self.segmenter.mask_generator = SlicMasks()


def test_the_method_works_on_the_tiny_world_and_ablations_behave(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTREGION_DATA", str(tmp_path / "data"))
    options = {"benchmark.scenes": 4, "model.type": "SharedTiny"}

    def score(name, **model):
        return run(tmp_path / name, model, cfg_options=options).metrics["mIoU"]

    truth, sam2, slic = (score(masks, masks=masks) for masks in ("ground-truth", "sam2", "slic"))
    input_pooling = score("input", masks="ground-truth", pool_feature="input")
    assert sam2 > 70
    assert truth >= sam2 >= slic
    assert truth > input_pooling + 30


def test_damaged_files_are_skipped_with_their_reason(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TEXTREGION_DATA", str(tmp_path))
    options = {**SMALL, "benchmark.scenes": 3, "model.masks": "slic"}
    world = scenes_folder(tmp_path / "tiny_world", 3, 64)
    draw_scenes(world, 3, 64)
    image, other, _ = sorted((world / "images/val").iterdir())
    image.write_bytes(image.read_bytes()[:200])
    label_map = world / "annotations/val" / other.name
    label_map.write_bytes(b"no PNG")
    work_dir = tmp_path / "second"
    assert (
        main(
            [
                "--config",
                str(CONFIG),
                "--work-dir",
                str(work_dir),
                "--device",
                "cpu",
                "--cfg-options",
                *as_flags(options),
            ]
        )
        == 1
    )
    assert "2 images were skipped" in capsys.readouterr().out
    content = json.loads((work_dir / "results.json").read_text())
    assert (content["items"], [Path(s["id"]).name for s in content["skipped"]]) == (1, [image.name, other.name])
    assert "damaged" in content["skipped"][0]["reason"]
    assert "label map" in content["skipped"][1]["reason"]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ((bands(0, 1), bands(20, 21)), "1 of 2 label maps.*hold labels that are no class.*20, 21.*raw ids"),
        ((bands(255, 255),), "all pixels of all 1 label maps are 255"),
        ((np.zeros((9, 13, 3), np.uint8),), "none of 1 label maps can be read"),
    ],
)
def test_impossible_ground_truth_ends_the_run_before_it_begins(labels, said, tmp_path, write_image, models, capsys):
    config = rooms(tmp_path, write_image, [bands(0) for _ in labels])
    for number, values in enumerate(labels):
        write_image(tmp_path / f"data/labels/{number}.png", values)
    assert main(["--config", str(config), "--work-dir", str(tmp_path / "w"), "--device", "cpu"]) == 2
    assert re.search(said, capsys.readouterr().err.strip().splitlines()[-1])
    assert not models["small"].predictions
    assert not (tmp_path / "w/journal").exists()


def test_a_bad_label_map_beyond_the_sample_ends_the_run(tmp_path, write_image, models, capsys, monkeypatch):
    monkeypatch.setattr("eval.data.CHECKED", 2)
    config = rooms(tmp_path, write_image, [bands(0, 1), bands(0, 20), bands(1, 0)])
    assert main(["--config", str(config), "--work-dir", str(tmp_path / "w"), "--device", "cpu"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{tmp_path / 'data/labels/1.png'}: the label map has labels [20] beyond the 2 classes" in said
    assert "images before it are kept" in said
    (journal,) = (tmp_path / "w/journal").iterdir()
    assert [json.loads(line)["id"] for line in journal.read_text().splitlines()[1:]] == ["images/0.png"]


def test_a_class_that_never_occurs_is_told(tmp_path, write_image, models, capsys):
    config = rooms(tmp_path, write_image, [bands(0, 255), bands(0)], ("grass", "sky"))
    assert main(["--config", str(config), "--work-dir", str(tmp_path / "w"), "--device", "cpu"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "0/255" in line or "no pixel" in line]
    assert "hold only 0 (grass) and 255, which is ignored; if they are 0/255 masks" in said[0]
    assert said[1].startswith("warning: no pixel of the ground truth is of sky (1 of 2 classes are absent)")


def test_more_classes_than_8_bits_hold(tmp_path, write_image, models):
    classes = [f"thing {number}" for number in range(260)]
    maps = [np.array([[255, 259, 65535]] * 9, np.uint16)]
    with pytest.raises(InputError, match="260 classes, and label 255, which is one of them, is ignored"):
        evaluate(Evaluation(rooms(tmp_path, write_image, maps, classes), tmp_path / "w", device="cpu"))
    config = rooms(tmp_path, write_image, maps, classes, ignore_index=65535)
    results = evaluate(Evaluation(config, tmp_path / "w", device="cpu"))
    counted = {name: row["pixels"] for name, row in results.per_class.items() if row["pixels"]}
    assert counted == {"thing 255": 9, "thing 259": 9}


@pytest.mark.parametrize("labels", [["grass"], ["grass", "sky", "lava"]])
def test_another_number_of_labels_than_classes_is_refused(labels, tmp_path, write_image, models, capsys):
    config = rooms(tmp_path, write_image, [bands(0, 1)])
    flags = [
        "--work-dir",
        str(tmp_path / "w"),
        "--device",
        "cpu",
        "--cfg-options",
        f"model.classes=[{','.join(labels)}]",
    ]
    assert main(["--config", str(config), *flags]) == 2
    assert f"error: the model has {len(labels)} labels" in capsys.readouterr().err
    assert not models["small"].predictions


ODD = [
    '5" disk',
    "it's",
    "back\\slash",
    "back\\new",
    "{{$HOME:x}}",
    "{{_base_.model}}",
    "100%s %d",
    "Größe 量",
    "two\nlines",
]


@pytest.mark.parametrize("name", ODD)
def test_any_folder_may_be_the_data_root(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TEXTREGION_DATA", "nowhere")
    config = str(ROOT / "configs/cfg_ds/cfg_voc21.py")
    assert main(["--config", config, "--work-dir", str(tmp_path / "w"), "--data-root", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: no folder ")
    assert load_config(config).test_dataloader.dataset.data_root == f"{tmp_path / name}/VOCdevkit/VOC2012"


def test_a_run_below_an_odd_data_root(tmp_path, write_image, models):
    config = rooms(tmp_path / 'a "b" \\n {{c}} %s', write_image, [bands(0, 1)])
    assert evaluate(Evaluation(config, config.parent / "w", device="cpu")).items == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model = dict(", "SyntaxError"),
        ("model = nothing", "NameError: name 'nothing'"),
        ("_base_ = 'no_such.py'", "no_such.py"),
        ("_base_ = []\nimport no_such_module", "ModuleNotFoundError"),
        ("number = 1 / 0", "ZeroDivisionError"),
        ("import no_such_module\n_base_ = 'other.py'", "ConfigParsingError"),
        ("root = '{{$TEXTREGION_DATA:data}}'", "write os.environ"),
    ],
)
def test_a_config_that_cannot_be_read_is_one_line(text, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TEXTREGION_DATA", "it's \\s")
    (tmp_path / "cfg.py").write_text(text)
    assert main(["--config", str(tmp_path / "cfg.py"), "--work-dir", str(tmp_path / "w")]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"error: the config {tmp_path / 'cfg.py'} cannot be read (")
    assert said in line


@TRANSFORMS.register_module()
class KilledAtTheThird:
    """Ends its process, as the kernel does where memory runs out."""

    def __call__(self, results):
        if results["img_path"].endswith("2.png") and multiprocessing.parent_process():
            os.kill(os.getpid(), signal.SIGKILL)
        return results


def test_a_killed_loading_process_ends_the_run_with_what_is_kept(tmp_path, write_image, models, capsys):
    config = rooms(tmp_path, write_image, [bands(0, 1)] * 4)
    steps = ["LoadOriginalImage", "KilledAtTheThird", "LoadLabelMap", "PackOriginal"]
    step = f"[{', '.join(f'dict(type={name!r})' for name in steps)}]"
    config.write_text(config.read_text().replace('type="BaseSegDataset"', f'type="BaseSegDataset", pipeline={step}'))
    flags = ["--config", str(config), "--work-dir", str(tmp_path / "w"), "--device", "cpu"]
    assert main([*flags, "--cfg-options", "test_dataloader.num_workers=1"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(r"error: loading images failed \(DataLoader worker .*; [012] images are done and kept", said)
    assert main([*flags, "--resume"]) == 0
    assert "(4 images)" in capsys.readouterr().out


@pytest.mark.parametrize("raised", [RuntimeError, TypeError, InputError])
def test_a_loading_process_may_die_anywhere_in_the_program(raised, tmp_path):
    def work():
        try:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
        except RuntimeError as error:
            raise raised("something else") from error

    with Journal.start(tmp_path, {}) as journal:
        journal.add("a", {})
        said = r"worker \(pid 7\) is killed .*1 images are done and kept"
        with pytest.raises(InputError, match=said), loading(journal):
            work()
        with pytest.raises(raised, match=r"^mine$"), loading(journal):
            raise raised("mine")


def test_loading_needs_no_shared_memory(monkeypatch):
    given = {"num_workers": 2, "persistent_workers": False, "dataset": {"pipeline": [{"type": "LoadOriginalImage"}]}}
    assert loader_options(given) == {**given, "timeout": LOADER_PATIENCE}

    def no_lock():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(multiprocessing, "Lock", no_lock)
    with pytest.warns(UserWarning, match="without workers: no shared memory for them .*No space left"):
        assert loader_options(given) == {**given, "num_workers": 0}
    assert given["num_workers"] == 2


@pytest.mark.parametrize(
    ("name", "missing", "remedy"),
    [("voc21", "VOCdevkit/VOC2012", "see"), ("city_scapes", "cityscapes", "process_dataset.sh city_scapes")],
)
def test_missing_data_is_one_line(name, missing, remedy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TEXTREGION_DATA", "nowhere")
    config = str(ROOT / "configs/cfg_ds" / f"cfg_{name}.py")
    assert main(["--config", config, "--work-dir", str(tmp_path / "w"), "--data-root", str(tmp_path)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"error: no folder {tmp_path / missing}")
    assert remedy in said
    assert "see docs/benchmarks.md" in said


def test_half_prepared_data_names_what_lacks(tmp_path, monkeypatch, capsys, write_image):
    monkeypatch.setenv("TEXTREGION_DATA", "nowhere")
    write_image(tmp_path / "coco_stuff164k/images/val2017/000000000139.jpg", (13, 17))
    write_image(tmp_path / "coco_stuff164k/images/val2017/000000000285.jpg", (13, 17))
    config = str(ROOT / "configs/cfg_ds/cfg_coco_stuff164k.py")
    flags = ["--config", config, "--work-dir", str(tmp_path / "w"), "--data-root", str(tmp_path), "--device", "cpu"]
    assert main(flags) == 2
    assert f"{tmp_path / 'coco_stuff164k'} has no annotations/val2017" in capsys.readouterr().err
    maps = tmp_path / "coco_stuff164k/annotations/val2017"
    write_image(maps / "000000000139.png", np.zeros((13, 17), np.uint8))
    write_image(maps / "000000000139_labelTrainIds.png", np.zeros((13, 17), np.uint8))
    small = ["--cfg-options", "model.type=SmallModel"]
    assert main([*flags, *small]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "annotations/val2017 lacks 1 of 2 label maps (000000000285_labelTrainIds.png first)" in said
    assert "process_dataset.sh coco_stuff164k" in said


def test_pictures_are_drawn_through_mmseg(data, tmp_path):
    run(tmp_path / "drawn", {"masks": "slic"}, draw=True, limit=2)
    assert len(list((tmp_path / "drawn").rglob("vis_image/*.png"))) == 2


def test_unknown_model_arguments_are_refused(data, tmp_path):
    with pytest.raises(InputError, match="unknown options colour, shade"):
        run(tmp_path, {"shade": 1, "colour": 2})


@pytest.fixture
def shell(models):
    return MODELS.build({"type": "SmallModel", "classes": ["grass", "sky; water"]})


def test_batches_of_any_size_and_without_samples(shell):
    sizes = [(31, 43), (40, 23), (1, 1)]
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
    together = shell(images, mode="predict")
    assert [tuple(sample.pred_sem_seg.data.shape) for sample in together] == [(1, *size) for size in sizes]
    for image, sample in zip(images, together, strict=True):
        alone = shell.test_step({"inputs": image[None]})[0]
        assert torch.equal(alone.pred_sem_seg.data, sample.pred_sem_seg.data)
    assert shell([], mode="predict") == []


def test_probabilities_and_channel_order(shell):
    shell.return_probabilities = True
    image = torch.randint(0, 256, (3, 31, 43), dtype=torch.uint8)
    (sample,) = shell([image])
    direct = shell.segmenter.segment(image.flip(0).permute(1, 2, 0).numpy(), ["grass", "sky; water"])
    assert np.array_equal(sample.pred_sem_seg.data[0].numpy(), direct.label_map)
    assert tuple(sample.seg_logits.data.shape) == (2, 31, 43)
    assert torch.equal(sample.seg_logits.data.argmax(0), sample.pred_sem_seg.data[0])


def test_an_image_a_pipeline_has_resized_is_read_again(shell, tmp_path, write_image):
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(1).integers(0, 256, (31, 43, 3), np.uint8)
    write_image(path, pixels)
    sample = SegDataSample(metainfo={"img_path": str(path), "ori_shape": (31, 43)})
    (resized,) = shell([torch.zeros(3, 62, 86, dtype=torch.uint8)], [sample])
    (original,) = shell([torch.from_numpy(pixels[..., ::-1].copy()).permute(2, 0, 1)])
    assert torch.equal(resized.pred_sem_seg.data, original.pred_sem_seg.data)


def test_only_prediction_exists(shell):
    with pytest.raises(InputError, match="only mode 'predict'"):
        shell([], mode="loss")


@pytest.fixture
def warm(monkeypatch):
    """The runs of eval_all_semantic.py, each still a process of its own, have their imports behind them."""
    monkeypatch.setattr(semantic_cli, "subprocess", WARM)


def test_all_benchmarks_skip_what_is_missing_and_save_the_table(warm, data, tmp_path, capsys):
    flags = ["--presets", "tiny", "--datasets", "voc21", "tiny", "--work-dir", str(tmp_path), "--device", "cpu"]
    assert main_all([*flags, "--limit", "2", "--masks", "slic", "--cfg-options", *as_flags(SMALL)]) == 0
    said = capsys.readouterr().out
    assert f"skipped: voc21: no folder {data / 'VOCdevkit/VOC2012'}" in said
    assert "| tiny (first 2 images, benchmark.scenes=5, " in said
    assert "TextRegion, clip-vit-b16 (published) | sam2 |  |  | 70.9 |" in said
    stored = json.loads((tmp_path / "table.json").read_text())
    assert stored["mIoU"]["tiny"]["tiny"] >= 0
    assert (tmp_path / "table.md").read_text().startswith("| backbone | masks | recipe | memory | voc21 |")
    (row,) = stored["rows"]
    assert row["marks"][:2] == ["first 2 images", "masks=slic"]
    finished = (tmp_path / "tiny/tiny/results.json").read_bytes()
    assert main_all([*flags, "--limit", "2", "--resume", "--cfg-options", *as_flags(SMALL)]) == 1
    assert 'model.masks: was "slic", now null' in capsys.readouterr().err
    assert (tmp_path / "tiny/tiny/results.json").read_bytes() == finished
    assert json.loads((tmp_path / "table.json").read_text())["rows"] == [row], "rows of earlier calls stay"


def test_a_run_that_measured_nothing_tells_no_number(warm, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TEXTREGION_DATA", str(tmp_path / "data"))
    world = scenes_folder(tmp_path / "data" / "tiny_world", 2, 64)
    draw_scenes(world, 2, 64)
    for path in (world / "images" / "val").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    small = {**SMALL, "benchmark.scenes": 2}
    flags = ["--device", "cpu", "--masks", "slic", "--cfg-options", *as_flags(small)]
    assert main(["--config", str(CONFIG), "--work-dir", str(tmp_path / "one"), *flags]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "nothing was measured: 2 could not be used, first images/val/900000.png" in line
    assert set(json.loads((tmp_path / "one" / "results.json").read_text())["metrics"].values()) == {None}
    assert main_all(["--presets", "tiny", "--datasets", "tiny", "--work-dir", str(tmp_path / "all"), *flags]) == 1
    assert "failed: tiny, tiny: error: nothing was measured" in capsys.readouterr().err
    assert json.loads((tmp_path / "all" / "table.json").read_text())["mIoU"] == {}
    assert main_all(["--datasets", "voc21", "--work-dir", str(tmp_path / "none"), "--device", "cpu"]) == 2
    assert "error: nothing was measured: 1 data sets were skipped" in capsys.readouterr().err


def test_a_failed_run_does_not_stop_the_others(warm, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TEXTREGION_DATA", str(tmp_path / "data"))
    flags = ["--presets", "clip-vit-b16", "--datasets", "tiny", "--work-dir", str(tmp_path), "--device", "cpu"]
    absent = ["--clip_checkpoint", str(tmp_path / "none.pt")]
    assert main_all([*flags, *absent, "--cfg-options", *as_flags(SMALL)]) == 1
    said = capsys.readouterr().err
    assert "failed: tiny, clip-vit-b16: error: --clip_checkpoint names" in said
    assert main_all(["--datasets", "imagenet"]) == 2
    assert "unknown data set 'imagenet'" in capsys.readouterr().err


def test_the_average_needs_all_eight():
    seven = dict.fromkeys(BENCHMARKS[:-1], 40.0)
    lines = overview({("ours", "", "", ""): seven, ("more", "", "", ""): {**seven, BENCHMARKS[-1]: 48.0}})
    ours, more = (next(line for line in lines if line.startswith(f"| {name} |")) for name in ("ours", "more"))
    assert ours.endswith("|  |")
    assert more.endswith("| 41.0 |")


def test_a_journal_is_readable_json_lines(whole):
    _, work_dir = whole
    (path, *_) = sorted((work_dir / "journal").iterdir())
    header, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert header["settings"]["settings"]["resolved"]["backbone"] == "tiny"
    assert len(lines) == SCENES
    assert all(sum(n for _, _, n in line["pairs"]) == 64 * 64 for line in lines)
    assert isinstance(Journal(work_dir / "journal", header["settings"]).read(), dict)
