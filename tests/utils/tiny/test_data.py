import numpy as np
import torch

from textregion.tiny.scenes import draw_scene
from utils.tiny.clip_training import caption_matches
from utils.tiny.data import HARD_EVERY, IS_OBJECT, THINGS, describe, random_crop, training_scenes


def crops(scene_set, count):
    return [random_crop(scene_set, 96, np.random.default_rng(seed)) for seed in range(count)]


def test_scene_set_holds_the_training_scenes(scene_set):
    for seed in range(len(scene_set)):
        scene = draw_scene(seed, easy=seed % HARD_EVERY != 0)
        assert np.array_equal(scene_set.images[seed], scene.image)
        assert [THINGS[thing] for thing in scene_set.things[seed] if thing >= 0] == list(scene.regions)
        assert np.array_equal(scene_set.region_ids[seed], scene.region_ids)


def test_cache_draws_once(tmp_path):
    first = training_scenes(2, tmp_path)
    stamp = (tmp_path / "scenes-2" / "images.npy").stat().st_mtime_ns
    second = training_scenes(2, tmp_path)
    assert np.array_equal(first.images, second.images)
    assert (tmp_path / "scenes-2" / "images.npy").stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir()] == ["scenes-2"]


def test_crops_are_squares_of_scenes(scene_set):
    for crop in crops(scene_set, 30):
        assert crop.image.shape == (96, 96, 3)
        assert crop.region_ids.shape == (96, 96)
        assert np.isclose(crop.shares.sum(), 1)
        assert (crop.visible <= 1).all()
        assert (crop.things[np.unique(crop.region_ids)] >= 0).all()


def test_captions_are_true_of_their_crops(scene_set):
    drawn = crops(scene_set, 40)
    told = [describe(crop, np.random.default_rng(index)) for index, crop in enumerate(drawn)]
    matches = caption_matches(np.stack([crop.facts() for crop in drawn]), [said for _, said in told])
    assert matches.diagonal().all()
    assert not matches.all()
    assert all(text for text, said in told if said)


def test_caption_matches_by_hand(scene_set):
    facts = np.zeros((2, len(THINGS)), bool)
    facts[0, :2] = facts[1, 1] = True
    mention = describe(crops(scene_set, 1)[0], np.random.default_rng(0))[1][0]
    first, second = (mention._replace(matches=np.arange(len(THINGS)) == index) for index in (0, 1))
    assert torch.equal(caption_matches(facts, [[first, second], [second]]), torch.tensor([[True, True], [False, True]]))


def test_crops_around_objects_hold_most_of_one(scene_set, monkeypatch):
    monkeypatch.setattr("utils.tiny.data.OBJECT_CROPS", 1.0)
    for crop in crops(scene_set, 20):
        assert crop.visible[IS_OBJECT[crop.things]].max() > 0.7
