"""kill -9 at random moments of a training after its first checkpoint: resumed equals uninterrupted."""

import sys
from pathlib import Path

import pytest
import torch
from kills import SEEDS, kill_at_moments, long_form

from textregion.regionspot.loading import load_head
from utils.regionspot.train import main
from utils.regionspot.training import checkpoints

EVERY = 5  # steps between checkpoints
PLAN = ("--steps", "100", "--save-every", str(EVERY), "--log-every", "2", "--batch", "4", "--lr", "1e-3")


def saved(output: Path) -> int:
    """How many checkpoints a training has made."""
    found = checkpoints(output)
    return int(found[-1].name.removeprefix("step_")) // EVERY if found else 0


@pytest.mark.slow
@long_form
def test_killed_at_random_moments_and_resumed_equals_uninterrupted(colour_world, tmp_path):
    data = f"one={colour_world.write('one', 610_000, 6)}:{colour_world.folder / 'one'}"
    flags = ["--data", data, "--cache", str(tmp_path / "cache"), "--cache-maps", "--preset", "tiny", "--device", "cpu"]
    flags += ["--layers", "1", "--hidden", "16", *PLAN]
    assert main([*flags, "--output", str(tmp_path / "whole")]) == 0
    whole = load_head(tmp_path / "whole/head.safetensors")[0].state_dict()
    for seed in SEEDS:
        output = tmp_path / f"killed {seed}"
        command = [sys.executable, "-m", "utils.regionspot.train", *flags, "--output", str(output)]
        assert kill_at_moments(command, lambda folder=output: saved(folder), seed, most=4) > 0
        assert main([*flags, "--output", str(output), "--resume"]) == 0
        assert (output / "log.jsonl").read_text() == (tmp_path / "whole/log.jsonl").read_text()
        killed = load_head(output / "head.safetensors")[0].state_dict()
        assert all(torch.equal(value, killed[name]) for name, value in whole.items())
