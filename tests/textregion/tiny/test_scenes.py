import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textregion.tiny.painting import COLOURS, GROUNDS
from textregion.tiny.scenes import CLASS_NAMES, Scene, SceneRegion, draw_scene

GRASS, STAR = SceneRegion("grass", "ground"), SceneRegion("red star", "object", "star", "red", "striped")


def same(first, second):
    return (
        np.array_equal(first.image, second.image)
        and np.array_equal(first.region_ids, second.region_ids)
        and first.regions == second.regions
    )


def test_the_same_seed_gives_the_same_scene_whatever_happened_before():
    first = draw_scene(5)
    np.random.seed(1)
    cv2.setRNGSeed(3)
    draw_scene(6, easy=False)
    assert same(first, draw_scene(5))


def test_seeds_and_worlds_differ():
    assert not same(draw_scene(5), draw_scene(6))
    assert not same(draw_scene(5), draw_scene(5, easy=False))


def test_golden_scene():
    scene = draw_scene(7)
    assert scene.image.shape == (256, 256, 3)
    assert scene.image.dtype == scene.region_ids.dtype == np.uint8
    assert scene.labels == [
        "wood",
        "snow",
        "red ring",
        "orange square",
        "yellow cross",
        "green triangle",
        "yellow circle",
        "orange arrow",
    ]
    assert scene.masks.mean((1, 2)) == pytest.approx([0.395, 0.156, 0.04, 0.043, 0.103, 0.08, 0.125, 0.056], abs=0.01)
    assert scene.image.mean() == pytest.approx(111.2, abs=1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n_objects=st.integers(0, 6), easy=st.booleans())
def test_masks_divide_the_picture_and_agree_with_the_maps(seed, n_objects, easy):
    scene = draw_scene(seed, 64, n_objects, easy)
    masks, labels = scene.masks, scene.labels
    assert (masks.sum(0) == 1).all()
    assert masks.any((1, 2)).all()
    assert len(set(labels)) == len(labels)
    for region, mask in zip(scene.regions, masks, strict=True):
        assert (np.array(labels)[scene.label_map[mask]] == region.name).all()
        assert (np.array(CLASS_NAMES)[scene.class_map[mask]] == region.class_name).all()
    assert sum(region.kind == "object" for region in scene.regions) == n_objects


def test_objects_lie_over_grounds_and_over_each_other():
    """Removing the front object uncovers what it hid, and changes no other pixel's owner."""
    hidden = 0
    for seed in range(12):
        fewer, more = draw_scene(seed, n_objects=4), draw_scene(seed, n_objects=5)
        if fewer.regions != more.regions[:-1]:
            continue  # a ground vanished under the fifth object
        front = more.masks[-1]
        assert np.array_equal(fewer.region_ids[~front], more.region_ids[~front])
        hidden += any(fewer.regions[index].kind == "object" for index in np.unique(fewer.region_ids[front]))
    assert hidden > 0


def test_no_object_is_mostly_hidden():
    for seed in range(6):
        scene = draw_scene(seed, n_objects=6, easy=False)
        objects = [mask.sum() for mask, region in zip(scene.masks, scene.regions, strict=True) if region.shape]
        assert min(objects) >= 0.55 * 150


def test_masks_hold_the_named_colours():
    hits = []
    for seed in range(20):
        scene = draw_scene(seed)
        for region, mask in zip(scene.regions, scene.masks, strict=True):
            if region.texture == "plain":
                colour = np.median(scene.image[mask], axis=0)
                distances = {name: np.abs(colour - rgb).sum() for name, rgb in COLOURS.items()}
                hits.append(min(distances, key=distances.get) == region.colour)
    assert len(hits) > 10
    assert np.mean(hits) > 0.9


def test_distinct_colours():
    for seed in range(5):
        colours = [region.colour for region in draw_scene(seed, 64, 6, distinct_colours=True).regions if region.colour]
        assert len(colours) == len(set(colours)) == 6


def test_without_objects_only_grounds_remain():
    assert {region.kind for region in draw_scene(3, n_objects=0).regions} == {"ground"}


@pytest.mark.parametrize("size", [64, 100, 320])
def test_sizes(size):
    assert draw_scene(2, size).image.shape == (size, size, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "got seed -1, expected 0 or more"),
        ({"seed": 0, "size": 60}, "got size 60, expected a multiple of 4"),
        ({"seed": 0, "size": 66}, "got size 66, expected a multiple of 4"),
        ({"seed": 0, "n_objects": 7}, "got n_objects 7, expected 0 to 6"),
        ({"seed": 0, "n_objects": -1}, "got n_objects -1, expected 0 to 6"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_scene(**arguments)


def test_scene_refuses_arrays_that_do_not_fit():
    ids, image = np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="expected"):
        Scene(image[:4], ids, (GRASS,))
    with pytest.raises(ValueError, match="expected 0 to 1"):
        Scene(image, ids, (GRASS, STAR))


def test_names_by_hand():
    ids = np.zeros((4, 4), np.uint8)
    ids[1:3, 1:3] = 1
    ids[3] = 2
    scene = Scene(np.zeros((4, 4, 3), np.uint8), ids, (GRASS, STAR, STAR))
    assert scene.labels == ["grass", "red star"]
    assert scene.label_map.tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [1, 1, 1, 1]]
    assert scene.class_map[1, 1] == CLASS_NAMES.index("red shape")


def test_class_names():
    assert len(CLASS_NAMES) == 17
    assert CLASS_NAMES[0] == "red shape"
    assert CLASS_NAMES[9:] == GROUNDS
