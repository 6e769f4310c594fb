"""The training program: exact continuation, several processes, several data sets, bad input in one line."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from warm_start import run_warm

from textregion.regionspot.loading import load_head
from textregion.storage import file_hash
from utils.regionspot.train import main
from utils.regionspot.training import StepBatches, read_log

ROOT = Path(__file__).parents[3]
SMALL = ("--preset", "tiny", "--layers", "1", "--hidden", "16", "--batch", "4", "--lr", "1e-3", "--device", "cpu")


@pytest.fixture
def world(colour_world):
    """Two data sets of a few scenes as --data takes them, and a cache that all runs of the test share."""
    specs = []
    for name, first in (("one", 610_000), ("two", 620_000)):
        specs.append(f"{name}={colour_world.write(name, first, 6)}:{colour_world.folder / name}")
    return specs, ["--cache", str(colour_world.folder / "cache"), "--cache-maps"]


def arguments(world, output: Path, *more: str) -> list[str]:
    specs, cache = world
    return ["--data", *specs, *cache, *SMALL, "--output", str(output), *map(str, more)]


def stop_at(step: int, monkeypatch) -> None:
    """Ctrl-C while the batch of this step is made."""
    make = StepBatches.__getitem__

    def interrupted(self, place):
        if place == step:
            raise KeyboardInterrupt
        return make(self, place)

    monkeypatch.setattr(StepBatches, "__getitem__", interrupted)


def test_an_interrupted_run_goes_on_to_the_same_end(world, tmp_path, monkeypatch, capsys):
    steps = ("--steps", 9, "--save-every", 3, "--log-every", 2)
    assert main(arguments(world, tmp_path / "whole", *steps)) == 0
    with monkeypatch.context() as patch:
        stop_at(7, patch)
        assert main(arguments(world, tmp_path / "cut", *steps)) == 130
    (tmp_path / "cut/checkpoints/.step_00000009").mkdir()  # what a power cut while saving leaves
    assert [place.name for place in sorted((tmp_path / "cut/checkpoints").glob("step*"))][-1] == "step_00000006"
    assert main(arguments(world, tmp_path / "cut", *steps)) == 2
    assert "go on with --resume or choose another --output" in capsys.readouterr().err
    assert main(arguments(world, tmp_path / "cut", *steps, "--seed", 1, "--resume")) == 2
    assert "seed: was 40244023, now 1" in capsys.readouterr().err
    assert main(arguments(world, tmp_path / "cut", *steps, "--resume")) == 0
    whole, cut = ((tmp_path / name / "log.jsonl").read_text() for name in ("whole", "cut"))
    assert whole == cut
    assert [line["step"] for line in read_log(tmp_path / "cut")] == [2, 3, 4, 6, 8, 9]
    first, second = (
        load_head(tmp_path / name / "head.safetensors", "tiny", "sam2:tinyworld") for name in ("whole", "cut")
    )
    assert all(torch.equal(value, second[0].state_dict()[name]) for name, value in first[0].state_dict().items())
    data = first[1]["training"]["data"]
    assert {name: told["usable"] for name, told in data.items()} == {"one": 6, "two": 6}
    kept = sorted(place.name for place in (tmp_path / "cut/checkpoints").iterdir())
    assert kept == ["step_00000006", "step_00000009"]


def test_two_processes_equal_one(world, tmp_path):
    same = ("--steps", 3, "--log-every", 1, "--dropout", 0, "--clip-norm", 1e6, "--warm-up", 0)
    assert main(arguments(world, tmp_path / "one", *same)) == 0
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "utils.regionspot.train", *arguments(world, tmp_path / "two", *same)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = run_warm(command, ROOT, environment)
    assert done.returncode == 0, done.stderr
    one, two = (read_log(tmp_path / name) for name in ("one", "two"))
    assert len(one) == 3
    for first, second in zip(one, two, strict=True):
        assert first == pytest.approx(second, rel=1e-4)
    heads = [load_head(tmp_path / name / "head.safetensors")[0].state_dict() for name in ("one", "two")]
    for name, value in heads[0].items():
        if not name.endswith("in_proj_bias"):  # attention ignores a bias of its keys: AdamW turns noise into steps
            torch.testing.assert_close(value, heads[1][name], atol=2e-5, rtol=1e-3)


def test_a_second_stage_starts_from_the_first_and_maps_may_be_made_on_the_way(world, tmp_path, capsys):
    specs, cache = world
    first = ["--data", specs[0], *cache, *SMALL, "--output", str(tmp_path / "first"), "--steps", "2", "--half"]
    assert main([*first, "--val", specs[1], "--isolate"]) == 0
    assert "boxes recognised among 9 names" in capsys.readouterr().out
    second = ["--data", *specs, *cache[:2], *SMALL, "--output", str(tmp_path / "second"), "--steps", "2"]
    second += ["--init", str(tmp_path / "first/head.safetensors"), "--published-padding", "--published-augmentation"]
    assert main([*second, "--workers", "1"]) == 0
    assert "SAM's tokens are those of the unchanged image" in capsys.readouterr().err
    head, origin = load_head(tmp_path / "second/head.safetensors")
    assert not head.isolate
    assert origin["training"]["published_padding"]
    assert origin["training"]["init"] == file_hash(tmp_path / "first/head.safetensors")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--published-augmentation",), "--published-augmentation and --cache-maps"),
        (("--dropout", "1"), "--dropout 1.0, expected 0 to below 1"),
        (("--lr", "0"), "--lr 0.0, expected a number above 0"),
        (("--val", "x=only"), "data set 'x=only', expected NAME=annotations.json:images_folder"),
        (("--init", "none.safetensors"), "none.safetensors"),
        (("--device", "cuda"), "--device 'cuda', expected one of auto, cpu"),
        (("--dtype", "float16"), "--dtype 'float16', expected one of float32, fp32"),
        (("--preset", "siglip2-l16-256"), "siglip2-l16-256|CLIP models"),
    ],
)
def test_bad_options_end_in_one_line(world, tmp_path, capsys, more, said):
    assert main(arguments(world, tmp_path, "--steps", 1, *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert any(part in error for part in said.split("|"))


def test_a_head_of_random_weights_is_taken_for_no_other(world, tmp_path):
    assert main(arguments(world, tmp_path, "--steps", 1, "--random-weights")) == 0
    _, origin = load_head(tmp_path / "head.safetensors")
    assert (origin["clip"], origin["sam"]) == ("tiny (random weights)", "sam2:tinyworld (random weights)")


def test_training_without_accelerate_says_what_to_install(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert main(arguments(world, tmp_path, "--steps", 1)) == 2
    assert "bash setup_env.sh --eval" in capsys.readouterr().err


def test_data_of_one_name_and_missing_files_are_refused(world, tmp_path, capsys):
    specs, cache = world
    for data, said in (
        ([specs[0], specs[0]], "two data sets named 'one'"),
        (["x=none.json:."], "no file none.json"),
    ):
        assert main(["--data", *data, *cache, *SMALL, "--output", str(tmp_path), "--steps", "1"]) == 2
        assert said in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(world, tmp_path, capsys):
    steps = ("--steps", 2, "--save-every", 1)
    assert main(arguments(world, tmp_path, *steps)) == 0
    place = tmp_path / "checkpoints/step_00000002"
    (place / "optimizer.bin").write_bytes((place / "optimizer.bin").read_bytes()[:100])
    assert main(arguments(world, tmp_path, *steps, "--resume")) == 2
    assert "step_00000002 is damaged" in capsys.readouterr().err
    assert json.loads((place / "settings.json").read_text())["step"] == 2
