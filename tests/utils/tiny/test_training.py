import math

import numpy as np
import pytest
import torch

from textregion.tiny.models import CLIP_WEIGHTS, SAM2_WEIGHTS, load_clip, load_sam2
from utils.tiny.clip_training import ClipTraining, patch_filters
from utils.tiny.sam2_training import Phase, Sam2Training, draw_batch
from utils.tiny.train import (
    FINAL_RATE,
    main,
    make_optimizer,
    parse_arguments,
    rate,
    starting_weights,
    train,
    train_step,
)


def clip_training(scene_set, weights=CLIP_WEIGHTS):
    return ClipTraining(scene_set, weights, batch=4)


def sam2_training(scene_set, weights=SAM2_WEIGHTS):
    torch.manual_seed(0)
    return Sam2Training(scene_set, weights, images=1, points=3)


def assert_finite(training):
    assert all(parameter.isfinite().all() for parameter in training.modules.parameters())


@pytest.mark.parametrize("make", [clip_training, sam2_training])
@pytest.mark.parametrize("continued", [True, False])
def test_steps_stay_finite_and_move_weights(make, continued, scene_set):
    training = make(scene_set) if continued else make(scene_set, None)
    optimizer = make_optimizer(training)
    before = [parameter.detach().clone() for parameter in training.model.parameters()]
    for step, progress in enumerate((0.0, 0.2, 0.6)):  # all phases of a run from scratch
        shown = train_step(training, optimizer, progress, step, seed=0)
        assert all(math.isfinite(value) for value in shown.values())
    assert_finite(training)
    after = training.model.parameters()
    assert any(not old.equal(new) for old, new in zip(before, after, strict=True))


def test_checkpoint_resumes_where_it_stopped(scene_set, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.tiny.train.CHECKPOINT_SECONDS", -1)
    checkpoint = tmp_path / "sam2.checkpoint.pt"
    first = sam2_training(scene_set)
    assert train(first, 0, 60.0, checkpoint, steps=2) == 2
    second = sam2_training(scene_set)
    assert train(second, 0, 60.0, checkpoint, resume=True, steps=2) == 2
    state = second.modules.state_dict()
    assert all(state[name].equal(value) for name, value in first.modules.state_dict().items())


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
    assert [scratch.phase(progress) for progress in (0.1, 0.2, 0.5)] == [*Phase]


def test_points_lie_on_their_targets(scene_set):
    images, points, target = draw_batch(scene_set, 2, 5, np.random.default_rng(1))
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


def test_command_line(tmp_path):
    options = parse_arguments(["clip", "--minutes", "3", "--init", "none"])
    assert (options.minutes, options.threads, options.scenes) == (3, 1, 4000)
    assert starting_weights("clip", options.init) is None
    assert starting_weights("sam2", None) == SAM2_WEIGHTS
    with pytest.raises(FileNotFoundError, match="expected a file"):
        starting_weights("clip", str(tmp_path / "nothing.safetensors"))


@pytest.mark.parametrize("model", ["clip", "sam2"])
def test_program_trains_saves_and_scores(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("utils.tiny.train.SCORED_SCENES", 1)
    assert main([model, "--minutes", "0.01", "--scenes", "4", "--cache", str(tmp_path)]) == 0
    assert (tmp_path / f"tiny_{model}.safetensors").is_file()
    steps, scores = capsys.readouterr().out.splitlines()
    assert "steps, saved" in steps
    assert ("colour accuracy" if model == "clip" else "objects covered") in scores
