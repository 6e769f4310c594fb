import numpy as np
import pytest

from textregion.tiny.scenes import CLASS_NAMES, draw_scene
from utils.tiny.evaluate import (
    Vocabulary,
    best_overlaps,
    evaluation_scenes,
    generate_masks,
    mask_generator,
    mask_iou,
    mean_iou,
    score_clip,
    segment,
)


@pytest.fixture(scope="module")
def vocabulary(clip):
    return Vocabulary(*clip)


def test_mean_iou_by_hand():
    true = np.array([["a", "a", "b", "b"]])
    guess = np.array([["a", "b", "b", "c"]])
    assert mean_iou([(true, guess)]) == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert mean_iou([(true, guess), (true, true)]) == pytest.approx((3 / 4 + 3 / 5) / 2)


def test_mask_iou_by_hand():
    first = np.array([[True, True, False]])
    assert mask_iou(first, np.array([[False, True, True]])) == pytest.approx(1 / 3)
    assert mask_iou(~first & first, ~first & first) == 0


def test_evaluation_scenes_are_not_training_scenes():
    assert np.array_equal(evaluation_scenes(1)[0].image, draw_scene(900_000).image)


def test_true_masks_find_colours_and_grounds(vocabulary):
    scores = score_clip(vocabulary, 12, kinds=["colour", "ground"])
    assert scores["colour accuracy"] > 0.85
    assert scores["ground accuracy"] > 0.9


def test_generated_masks_cover_most_of_the_scene(sam2):
    generator, found = mask_generator(sam2), []
    for scene in evaluation_scenes(2):
        masks = generate_masks(generator, scene.image)
        assert masks.dtype == bool
        assert (np.diff(masks.sum((1, 2))) <= 0).all()
        found += [value for kind in best_overlaps(scene, masks).values() for value in kind]
    assert np.mean(found) > 0.7


def test_true_masks_give_a_good_map(vocabulary):
    pairs = []
    for scene in evaluation_scenes(6):
        guess = segment(vocabulary, scene.image, scene.masks, CLASS_NAMES)
        pairs.append((np.array(CLASS_NAMES)[scene.class_map], guess))
    assert mean_iou(pairs) > 0.7


def test_segment_without_masks_names_patches(vocabulary):
    scene = draw_scene(900_001, n_objects=0)
    guess = segment(vocabulary, scene.image, scene.masks[:0], scene.labels)
    assert guess.shape == (256, 256)
    assert (guess == np.array(scene.labels)[scene.label_map]).mean() > 0.8
