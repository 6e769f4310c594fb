import math

import numpy as np
import pytest
import torch

from textregion.regionspot.loading import load_head
from textregion.storage import file_hash
from textregion.tiny.models import CLIP_WEIGHTS, SAM2_WEIGHTS, load_clip, load_sam2
from utils.regionspot.training import read_log
from utils.tiny import train as program
from utils.tiny.clip_training import MUON_RATE, ClipTraining, patch_filters
from utils.tiny.sam2_training import Phase, Sam2Training, draw_batch
from utils.tiny.train import FINAL_RATE, WEIGHTS, Schedule, main, make_optimizers, means, rate, train_step

MINIATURE = ["--scenes", "3", "--clip_steps", "4", "--clip_batch", "8", "--sam2_steps", "4", "--sam2_batch", "1"]
MINIATURE += ["--box_scenes", "2", "--head_steps", "2", "--scored", "1", "--score_every", "4", "--one_process"]
MATRICES = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def clip_training(scene_set, weights=CLIP_WEIGHTS):
    torch.manual_seed(0)
    return ClipTraining(scene_set, weights, batch=8)


def sam2_training(scene_set, weights=SAM2_WEIGHTS):
    torch.manual_seed(0)
    return Sam2Training(scene_set, weights, batch=1)


@pytest.mark.parametrize("make", [clip_training, sam2_training])
@pytest.mark.parametrize("continued", [True, False])
def test_steps_stay_finite_and_move_weights(make, continued, scene_set):
    training = make(scene_set) if continued else make(scene_set, None)
    optimizers = make_optimizers(training)
    before = [parameter.detach().clone() for parameter in training.model.parameters()]
    for step, progress in enumerate((0.0, 0.2, 0.6)):  # all phases of a run from scratch
        shown = train_step(training, optimizers, progress, step, seed=0)
        assert all(math.isfinite(value) for value in shown.values())
    assert all(parameter.isfinite().all() for parameter in training.modules.parameters())
    after = training.model.parameters()
    assert any(not old.equal(new) for old, new in zip(before, after, strict=True))


def test_muon_trains_the_matrices_of_clips_blocks_and_adamw_all_else(scene_set):
    training = clip_training(scene_set, None)
    names = {id(parameter): name for name, parameter in training.modules.named_parameters()}
    adamw, muon = make_optimizers(training)
    trained = [
        [names[id(p)] for group in optimizer.param_groups for p in group["params"]] for optimizer in (adamw, muon)
    ]
    assert sorted(trained[0] + trained[1]) == sorted(names.values())
    vision, text = (
        {f"model.{tower}transformer.resblocks.{block}.{matrix}" for block in range(blocks) for matrix in MATRICES}
        for tower, blocks in (("visual.", 4), ("", 2))
    )
    assert set(trained[1]) == vision | text
    assert [group["peak"] for group in muon.param_groups] == [MUON_RATE]
    assert len(make_optimizers(sam2_training(scene_set, None))) == 1


def test_trained_weights_load(scene_set, tmp_path):
    clip_training(scene_set).save(tmp_path / "clip.safetensors")
    sam2_training(scene_set).save(tmp_path / "sam2.safetensors")
    load_clip(tmp_path / "clip.safetensors")
    load_sam2(tmp_path / "sam2.safetensors")


def test_clip_training_refuses_another_vocabulary(scene_set, monkeypatch):
    monkeypatch.setattr("utils.tiny.data.vocabulary", lambda: torch.arange(5))
    with pytest.raises(ValueError, match="another vocabulary"):
        clip_training(scene_set)


def test_phases(scene_set):
    assert sam2_training(scene_set).phase(0.0) is Phase.BEST
    scratch = sam2_training(scene_set, None)
    assert [scratch.phase(progress) for progress in (0.05, 0.2, 0.5)] == [*Phase]


def test_points_lie_on_their_targets(scene_set):
    images, points, _, target = draw_batch(scene_set, 2, 5, np.random.default_rng(1))
    assert images.shape == (2, 3, 256, 256)
    assert target.shape == (10, 1, 64, 64)
    x, y = (points.flatten(0, 1).long() // 4).T
    assert (target[torch.arange(10), 0, y, x] > 0).all()


def test_patch_filters_whiten():
    rng = np.random.default_rng(0)
    patches = torch.from_numpy(rng.normal(size=(4000, 12)) * np.geomspace(5, 0.5, 12)).float()
    filters = patch_filters(patches, 4)
    variance = (patches @ filters.T).var(0)
    assert filters.shape == (4, 12)
    assert (variance > 0.7).all()
    assert (variance < 1.05).all()


def test_rate_rises_and_falls():
    assert rate(0.0, 0, 100) == pytest.approx(0.01)
    assert rate(0.0, 99, 100) == 1
    assert rate(0.5, 500, 100) == pytest.approx(0.5)
    assert rate(1.0, 900, 100) == FINAL_RATE


def test_means_are_of_the_lines_that_have_a_number():
    assert means([{"a": 1.0}, {"a": 3.0, "b": 5.0}]) == {"a": 2.0, "b": 5.0}


class Killed(BaseException):
    """The end of a process, as far as files can tell."""


def killed_at(monkeypatch, model, step):
    """From now on the program dies before this step of a model."""

    def dying(training, optimizers, progress, number, seed):
        if isinstance(training, model) and number == step:
            raise Killed
        return train_step(training, optimizers, progress, number, seed)

    monkeypatch.setattr(program, "train_step", dying)


def hashes(folder):
    return [file_hash(folder / name) for name in WEIGHTS.values()]


def test_all_from_nothing_and_gone_on_with_gives_the_same_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "LOG_EVERY", 2)
    monkeypatch.setattr(program, "CHECKPOINT_SECONDS", -1)
    monkeypatch.setattr("utils.tiny.clip_training.PATCH_SAMPLES", 20)
    monkeypatch.setattr(program, "all_scores", lambda *paths_and_more: f"scores of {paths_and_more[:3]}")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["all", "--output", str(whole), *MINIATURE]) == 0
    report = (whole / "report.txt").read_text()
    assert capsys.readouterr().out.endswith(report)
    for name, digest in zip(WEIGHTS.values(), hashes(whole), strict=True):
        assert f"sha256 {digest}  {name}" in report
    assert f"scores of {tuple(whole / name for name in WEIGHTS.values())}" in report
    assert {"box IoU", "box boundary F"} < read_log(whole / "sam2")[-1].keys()
    assert "shape accuracy, equal colours" in read_log(whole / "clip")[-1]
    load_clip(whole / WEIGHTS["clip"])
    load_sam2(whole / WEIGHTS["sam2"])
    load_head(whole / WEIGHTS["head"])

    monkeypatch.setattr(program, "short_scores", lambda *_: {})
    for model, step in ((ClipTraining, 3), (Sam2Training, 3)):
        killed_at(monkeypatch, model, step)
        with pytest.raises(Killed):
            main(["all", "--output", str(killed), *MINIATURE])
    monkeypatch.setattr(program, "train_step", train_step)
    assert main(["all", "--output", str(killed), *MINIATURE]) == 0
    assert hashes(killed) == hashes(whole)
    for model in ("clip", "sam2"):
        logs = [[(line["step"], line["loss"]) for line in read_log(run / model)] for run in (whole, killed)]
        assert [step for step, _ in logs[0]] == [2, 4]
        assert logs[0] == logs[1]

    capsys.readouterr()
    assert main(["all", "--output", str(killed), *MINIATURE, "--seed", "1"]) == 2
    assert "is of another run (schedule.seed: was 0, now 1" in capsys.readouterr().err
    (killed / "clip" / "checkpoint.pt").write_bytes(b"damaged")
    assert main(["all", "--output", str(killed), *MINIATURE]) == 2
    assert "checkpoint.pt is damaged" in capsys.readouterr().err


def test_two_processes_train_beside_each_other_and_a_failure_is_told(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(program.sys, "executable", "false")
    assert main(["all", "--output", str(tmp_path), *MINIATURE[:-1]]) == 2
    assert "training of clip and sam2 stopped" in capfd.readouterr().err


def test_every_flag_is_a_field_of_the_schedule(tmp_path):
    options = program.make_parser_of_all().parse_args(["sam2", "--output", str(tmp_path), "--sam2_steps", "7"])
    assert options.sam2_steps == 7
    assert options.clip_steps == Schedule.clip_steps


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["all", "--init", "nothing.safetensors"], "got --init nothing.safetensors, expected a file"),
        (["clip", "--clip_batch", "7"], "got --clip_batch 7, expected at least 8"),
    ],
)
def test_bad_input_is_one_line(flags, told, capsys):
    assert main(flags) == 2
    assert capsys.readouterr().err.startswith(f"error: {told}")
