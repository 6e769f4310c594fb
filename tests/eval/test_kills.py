"""kill -9 at random moments of every evaluation, more than once in one folder: resumed equals uninterrupted."""

import json
import sys
from pathlib import Path

import pytest
import task_worlds
import torch
from kills import SEEDS, kill_at_moments, long_form

from eval import lvis, reasoning, referring, semantic_cli
from eval.prepare.tiny_lvis import write_tiny_lvis
from eval.results import ROOT
from textregion.regionspot.loading import save_head
from textregion.regionspot.model import RegionSpotHead

SCENES = 5
MODEL = ("--points_per_side", "4", "--device", "cpu")
MAINS = {"semantic": semantic_cli.main, "semantic_all": semantic_cli.main_all}
MAINS |= {"referring": referring.main, "reasoning": reasoning.main, "lvis": lvis.main}
PROGRAMS = {
    "semantic": ["eval_semantic.py"],
    "semantic_all": ["eval_all_semantic.py"],
    "referring": ["eval_referring.py"],
    "reasoning": ["eval_reason_seg.py"],
    "lvis": ["-m", "eval.lvis"],
}
pytestmark = [pytest.mark.slow, long_form, pytest.mark.usefixtures("one_thread")]


def draw_data(name: str, folder: Path) -> list[str]:
    """Draw what an evaluation asks; returns the flags that say so."""
    if name.startswith("semantic"):  # which draws for itself, into $TEXTREGION_DATA
        decided = [f"benchmark.scenes={SCENES}", "benchmark.size=64", "model.scale=[192,96]"]
        one = ["--config", str(ROOT / "configs/cfg_ds/cfg_tiny.py")]
        every = ["--presets", "tiny", "--datasets", "tiny"]
        return [*(one if name == "semantic" else every), *MODEL, "--cfg-options", *decided]
    flags: list[object] = ["--preset", "tiny"]
    if name == "lvis":
        write_tiny_lvis(folder, scenes=SCENES, names="colours")
        torch.manual_seed(2)
        head = RegionSpotHead(192, 128, 96, 16, 1)
        save_head(folder / "head.safetensors", head, {"clip": "tiny", "side": 96, "sam": "sam2:tinyworld"})
        flags += ["--annotations", folder / "lvis_tiny_val.json", "--image_root", folder / "images"]
        flags += ["--regionspot_checkpoint", folder / "head.safetensors", "--device", "cpu"]
        return list(map(str, flags))
    task_worlds.draw(folder, **{name: SCENES})
    if name == "referring":
        flags += ["--input_file_root", folder / "referring", "--image_root", folder / "referring" / "images"]
    else:
        flags += ["--dataset_dir", folder / "reasoning", "--interpreted_query_dir", folder / "answers"]
    return [*map(str, flags), *MODEL]


def records_on_disk(work_dir: Path) -> int:
    return sum(path.read_bytes().count(b"\n") - 1 for path in work_dir.rglob("run*.jsonl"))


def told(work_dir: Path) -> dict:
    """What a run says, but for its dates and speed: {folder: numbers, per-image table}."""
    keys = ("metrics", "per_class", "items", "skipped", "identity_hash", "selection")
    found = {}
    for path in work_dir.rglob("results.json"):
        results = json.loads(path.read_text())
        table = path.with_name("images.csv").read_text()
        found[path.parent.relative_to(work_dir).as_posix()] = ({key: results[key] for key in keys}, table)
    return found


@pytest.mark.parametrize("name", MAINS)
def test_killed_at_random_moments_and_resumed_equals_uninterrupted(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTREGION_DATA", str(tmp_path / "data"))
    flags = draw_data(name, tmp_path / "data")
    assert MAINS[name](["--work-dir", str(tmp_path / "whole"), *flags]) == 0
    whole = told(tmp_path / "whole")
    assert len(whole) == (2 if name == "lvis" else 1)
    for seed in SEEDS:
        work_dir = tmp_path / f"killed {seed}"
        command = [sys.executable, *PROGRAMS[name], *flags, "--work-dir", str(work_dir)]
        assert kill_at_moments(command, lambda folder=work_dir: records_on_disk(folder), seed) > 0
        assert MAINS[name](["--work-dir", str(work_dir), "--resume", *flags]) == 0
        assert told(work_dir) == whole
