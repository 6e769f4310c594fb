"""The evaluations' shells on a second device (tests/fake_accelerator.py) without float64: the CPU's numbers."""

import json
from dataclasses import replace

import pytest
import task_worlds
import torch
from fake_accelerator import fake_accelerator

from eval.journal import Processes
from eval.mm import SegDataSample
from eval.model import TextRegionModel, describe
from eval.prepare.converters import draw_scenes
from eval.results import ROOT, describe_device
from eval.semantic import Evaluation, evaluate
from eval.tasks import build_segmenter, evaluate_with
from textregion.tiny.scenes import CLASS_NAMES, draw_scene

CONFIG = ROOT / "configs/cfg_ds/cfg_tiny.py"
SMALL = {"benchmark.scenes": 1, "benchmark.size": 64, "model.scale": (192, 96), "model.points_per_side": 3}


@pytest.fixture
def both():
    """run(work): its results on the CPU and on the device."""

    def run(work):
        with fake_accelerator(float64=False):
            return work("cpu"), work("acc")

    return run


def test_mmsegs_model(both):
    options = {"classes": ["sand", "red star; star"], "points_per_side": 3, "return_probabilities": True}
    scene = draw_scene(3, 64, 2).image
    inputs = torch.from_numpy(scene[..., ::-1].copy()).permute(2, 0, 1)

    def predict(device):
        model = TextRegionModel("tiny", **options, device=device)
        assert describe(model)["device"] == device
        (sample,) = model([inputs.to(device)], [SegDataSample()])
        assert sample.pred_sem_seg.data.device.type == sample.seg_logits.data.device.type == "cpu"
        return sample

    cpu, acc = both(predict)
    assert torch.equal(acc.pred_sem_seg.data, cpu.pred_sem_seg.data)
    torch.testing.assert_close(acc.seg_logits.data, cpu.seg_logits.data, rtol=0, atol=5e-3)


def test_the_semantic_program(both, tmp_path, monkeypatch):
    draw_scenes(tmp_path / "data" / "tiny_world", 1, 64)
    monkeypatch.setenv("TEXTREGION_DATA", str(tmp_path / "data"))
    cpu, acc = both(lambda name: evaluate(Evaluation(CONFIG, tmp_path / name, {}, device=name, cfg_options=SMALL)))
    assert acc.metrics == cpu.metrics
    assert set(acc.per_class) == set(CLASS_NAMES)
    assert (cpu.device["type"], acc.device["type"]) == ("cpu", "acc")


@pytest.mark.parametrize("name", ["referring", "reasoning"])
def test_tasks(name, both, tmp_path):
    world = task_worlds.draw(tmp_path / "world", **{name: 1})
    task = getattr(task_worlds, f"{name}_task")(world)

    def answer(device):
        run = replace(task_worlds.run(tmp_path / device, save_predictions=True, limit=1), model={"points_per_side": 4})
        segmenter = build_segmenter(task, run, device)
        results, skipped = evaluate_with(segmenter, task, run, Processes(device=device))
        assert describe_device(segmenter.device)["type"] == device
        lines = (run.work_dir / "predictions.jsonl").read_text().splitlines()
        return results, skipped, [json.loads(line) for line in lines]

    cpu, acc = both(answer)
    assert acc[0].metrics == cpu[0].metrics
    assert acc[1] == cpu[1]
    for ours, theirs in zip(acc[2], cpu[2], strict=True):
        assert ours.pop("score", 0) == pytest.approx(theirs.pop("score", 0), abs=1e-5)
        assert ours == theirs
