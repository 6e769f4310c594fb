"""Label maps as they are read, and what is refused of them before anything is encoded."""

import re
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image

from eval import data
from eval.data import (
    CHECKED,
    ChosenImages,
    LoadLabelMap,
    LoadOriginalImage,
    PackOriginal,
    check_label_maps,
    check_labels_of_model,
    load_labels,
)
from textregion.errors import InputError

CLASSES = ("grass", "sky", "water")


def save_palette(values, path):
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    image.save(path)


def entries(folder, maps):
    """Entries of a data set with these label maps."""
    for number, values in enumerate(maps):
        Image.fromarray(np.array(values, np.uint8, ndmin=2)).save(folder / f"{number:03d}.png")
    return [{"seg_map_path": str(folder / f"{number:03d}.png")} for number in range(len(maps))]


@settings(deadline=None, max_examples=30)
@given(arrays.arrays(np.uint16, (3, 5), elements=st.integers(0, 65535)))
def test_labels_of_16_bits_keep_their_values(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("maps") / "map.png"
    Image.fromarray(values).save(path)
    read = load_labels({"seg_map_path": str(path)})
    assert np.array_equal(read, values)
    assert read.dtype == (np.uint8 if values.max() < 256 else np.uint16)


@settings(deadline=None, max_examples=30)
@given(
    arrays.arrays(np.uint8, (3, 5), elements=st.sampled_from([0, 1, 2, 7, 254, 255])),
    st.booleans(),
    st.sampled_from([None, {0: 255, 1: 0, 2: 1}, {0: 2, 1: 0, 2: 255}]),
)
def test_labels_of_8_bits_are_as_mmseg_reads_them(tmp_path_factory, values, reduce_zero_label, label_map):
    path = tmp_path_factory.mktemp("maps") / "map.png"
    entry = {"seg_map_path": str(path), "reduce_zero_label": reduce_zero_label, "label_map": label_map}
    for save in (save_palette, lambda array, target: Image.fromarray(array).save(target)):
        save(values, path)
        theirs = LoadAnnotations().transform({**entry, "seg_fields": []})["gt_seg_map"]
        assert np.array_equal(load_labels(entry), theirs)


def test_zero_label_reduction_with_more_classes_than_255(tmp_path):
    Image.fromarray(np.array([[0, 1, 255, 256, 65535]], np.uint16)).save(tmp_path / "map.png")
    entry = {"seg_map_path": str(tmp_path / "map.png"), "reduce_zero_label": True}
    assert load_labels(entry, 65535).tolist() == [[65535, 0, 254, 255, 65535]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_picture_is_no_label_map(mode, tmp_path):
    path = tmp_path / "map.png"
    Image.new(mode, (4, 3)).save(path)
    with pytest.raises(InputError, match=re.escape(f"{path} has {len(mode)} channels, expected one")):
        load_labels({"seg_map_path": str(path)})
    loaded = LoadLabelMap().transform({"seg_map_path": str(path), "ori_shape": (3, 4)})
    assert loaded["unreadable"].startswith(f"label map: {path} has")
    with pytest.raises(InputError, match="none of 1 label maps can be read"):
        check_label_maps([{"seg_map_path": str(path)}], CLASSES)


@pytest.mark.parametrize(
    ("maps", "options", "said"),
    [
        ([[0, 1], [20, 21]], {}, "1 of 2 label maps .*001.png first: 20, 21; expected 0..2 .3 classes.*raw ids"),
        ([[0, 1], [1, 7]], {"prepare": "city_scapes"}, "run bash process_dataset.sh city_scapes"),
        ([[1, 2, 3]], {}, "first: 3; .*count from 1; set reduce_zero_label=True"),
        ([[0, 255]], {"ignore": 65535}, "first: 255; .*a 0/255 mask; write 1 for 255"),
        ([range(200)], {}, r"3, 4, 5, 6, 7, 8, 9, 10, … \(197 in all\).* a picture"),
        ([[255, 255]] * 3, {}, "all pixels of all 3 label maps are 255"),
    ],
)
def test_impossible_ground_truth_is_refused(maps, options, said, tmp_path):
    with pytest.raises(InputError, match=said):
        check_label_maps(entries(tmp_path, maps), CLASSES, **options)


def test_large_data_sets_are_sampled_evenly(tmp_path, monkeypatch):
    read = []
    original = data.load_labels
    monkeypatch.setattr(
        data, "load_labels", lambda e, i: (read.append(int(e["seg_map_path"][-7:-4])), original(e, i))[1]
    )
    check_label_maps(entries(tmp_path, [[0, 1]] * 200), CLASSES)
    assert len(read) == CHECKED
    assert (read[0], read[-1]) == (0, 199)
    assert set(np.diff(read)) == {3, 4}


def test_all_maps_are_read_before_it_is_said_that_nothing_counts(tmp_path):
    maps = [[255]] * 150
    with pytest.raises(InputError, match="all 150 label maps"):
        check_label_maps(entries(tmp_path, maps), CLASSES)
    maps[1] = [2]  # not of the sample
    check_label_maps(entries(tmp_path, maps), CLASSES)


def test_a_mask_of_0_and_255_is_told(tmp_path):
    with pytest.warns(UserWarning, match=r"hold only 0 \(grass\) and 255.*write 1 for 255"):
        check_label_maps(entries(tmp_path, [[0, 255]]), CLASSES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_label_maps(entries(tmp_path, [[0, 255], [1, 0]]), CLASSES)


@pytest.mark.parametrize(
    ("labels", "surplus"),
    [((), "classes .*: grass, sky, water"), (CLASSES[:2], "classes .*: water"), ((*CLASSES, "it"), "labels .*: it")],
)
def test_another_number_of_labels_than_classes_is_refused(labels, surplus):
    check_labels_of_model(["a", "b", "c"], CLASSES)
    with pytest.raises(InputError, match=f"{len(labels)} labels, the data set 3 classes .the {surplus}.;"):
        check_labels_of_model(labels, CLASSES)


def test_what_workers_hand_over_holds_no_tensors(tmp_path, write_image):
    write_image(tmp_path / "a.png", (5, 7))
    write_image(tmp_path / "map.png", np.full((5, 7), 3, np.uint8))
    results = {"img_path": str(tmp_path / "a.png"), "seg_map_path": str(tmp_path / "map.png")}
    for step in (LoadOriginalImage(), LoadLabelMap(), PackOriginal()):
        results = step.transform(results)
    held = [results["inputs"], *(value.data for value in results["data_samples"].values())]
    assert [(type(v), v.dtype, v.shape) for v in held] == [
        (np.ndarray, np.uint8, (3, 5, 7)),
        (np.ndarray, np.uint8, (1, 5, 7)),
    ]
    assert not any(isinstance(value, torch.Tensor) for value in held)


def test_an_inferencers_input_that_is_no_image_is_an_error(tmp_path):
    load = LoadOriginalImage().transform
    grey = np.arange(35, dtype=np.uint8).reshape(5, 7)
    assert np.array_equal(load({"img": grey, "img_path": None})["img"], np.repeat(grey[..., None], 3, 2))
    with pytest.raises(InputError, match=r"expected \(H, W, 3\) uint8"):
        load({"img": np.zeros((5, 7, 3))})
    with pytest.raises(InputError, match="no image file"):
        load({"img_path": str(tmp_path / "none.png")})
    assert "no image file" in load({"img_path": str(tmp_path / "none.png"), "seg_map_path": "map.png"})["unreadable"]


def test_each_process_has_its_share_of_the_images(monkeypatch):
    shares = []
    for rank in range(3):
        monkeypatch.setattr(data, "get_dist_info", partial(tuple, (rank, 3)))
        shares.append(list(ChosenImages(range(8))))
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5]]
