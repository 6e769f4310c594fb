import numpy as np
import torch

from textregion.tiny.captions import THINGS
from textregion.tiny.scenes import draw_scene
from utils.tiny.clip_losses import truth_matrix
from utils.tiny.scene_cache import HARD_EVERY, training_scenes
from utils.tiny.views import describe, random_view


def views(scene_set, count):
    return [random_view(scene_set, 96, np.random.default_rng(seed)) for seed in range(count)]


def test_scene_set_holds_the_training_scenes(scene_set):
    for seed in range(len(scene_set)):
        scene = draw_scene(seed, easy=seed % HARD_EVERY != 0)
        assert np.array_equal(scene_set.images[seed], scene.image)
        assert [THINGS[thing] for thing in scene_set.things[seed] if thing >= 0] == list(scene.regions)
        assert scene_set.areas[seed].sum() == 256 * 256
        top, left, bottom, right = scene_set.boxes[seed][0]
        assert scene.masks[0].sum() == scene.masks[0][top:bottom, left:right].sum()


def test_cache_draws_once(tmp_path):
    first = training_scenes(2, tmp_path)
    stamp = (tmp_path / "scenes-2" / "images.npy").stat().st_mtime_ns
    second = training_scenes(2, tmp_path)
    assert np.array_equal(first.images, second.images)
    assert (tmp_path / "scenes-2" / "images.npy").stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir()] == ["scenes-2"]


def test_views_are_windows(scene_set):
    for view in views(scene_set, 30):
        assert view.image.shape == (96, 96, 3)
        assert view.region_ids.shape == (96, 96)
        assert np.isclose(view.shares.sum(), 1)
        assert (view.visible <= 1).all()
        assert (view.things[np.unique(view.region_ids)] >= 0).all()


def test_captions_are_true_of_their_views(scene_set):
    drawn = views(scene_set, 40)
    told = [describe(view, np.random.default_rng(index)) for index, view in enumerate(drawn)]
    true = truth_matrix(np.stack([view.facts() for view in drawn]), [said for _, said in told])
    assert true.diagonal().all()
    assert not true.all()
    assert all(text for text, said in told if said)


def test_truth_matrix_by_hand(scene_set):
    facts = np.zeros((2, len(THINGS)), bool)
    facts[0, :2] = facts[1, 1] = True
    mention = describe(views(scene_set, 1)[0], np.random.default_rng(0))[1][0]
    first, second = (mention._replace(matches=np.arange(len(THINGS)) == index) for index in (0, 1))
    assert torch.equal(truth_matrix(facts, [[first, second], [second]]), torch.tensor([[True, True], [False, True]]))
