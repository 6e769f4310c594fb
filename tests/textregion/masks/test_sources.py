"""The mask sources besides SAM 2's own grid: label maps, given files, superpixels, and their registry."""

import json
from dataclasses import fields

import contracts
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from textregion.errors import InputError
from textregion.masks import (
    SOURCES,
    BoxMaskGenerator,
    GroundTruthMasks,
    PrecomputedMasks,
    Sam2MaskGenerator,
    SlicMasks,
    automatic_sources,
    describe_source,
    find_source,
    read_masks,
)
from textregion.masks.coco_masks import pixels_covered
from textregion.masks.given import label_masks, read_label_map
from textregion.types import RegionMasks

SIZE = (31, 43)
IMAGE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def message(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def binary(masks: RegionMasks) -> np.ndarray:
    return masks.binary().numpy()


def label_map() -> np.ndarray:
    """Two squares of label 7 that do not touch, one of 3 touching the first by a corner, rows of 255 and 0."""
    labels = np.zeros(SIZE, np.uint8)
    labels[2:9, 3:8] = labels[17:23, 29:40] = 7
    labels[9:13, 8:17] = 3
    labels[-3:] = 255
    return labels


# ------------------------------------------------------------------ registry


def test_the_registry_knows_the_shipped_sources_and_lists_them():
    assert SOURCES.keys() >= {"sam2", "boxes", "points", "precomputed", "ground-truth", "slic"}
    assert find_source("sam2").generator is Sam2MaskGenerator
    assert {"sam2", "slic"} <= set(automatic_sources())
    assert not {"boxes", "points", "precomputed", "ground-truth"} & set(automatic_sources())
    with pytest.raises(InputError) as error:
        find_source("sam9")
    assert message(error).startswith("unknown mask source 'sam9'; expected one of ")


@pytest.mark.parametrize("name", SOURCES)
def test_contract(name, tiny_sam2):
    masks = contracts.mask_source(SOURCES[name], tiny_sam2)
    if name in ("precomputed", "ground-truth"):
        assert masks.mask_size == masks.image_size, "given ones"
    elif name in ("sam2", "boxes", "points", "slic"):
        assert masks.mask_size != masks.image_size, "generated at the size that is asked for"


# ------------------------------------------------------------------ what decides the masks


def test_sam2_is_described_by_every_option_but_those_of_speed(tiny_sam2):
    described = describe_source(Sam2MaskGenerator(tiny_sam2, 7, min_size=3))
    expected = {"source": "sam2", "points_per_side": 7, "min_size": 3, "dtype": "bfloat16", "fuse_mask": True}
    assert expected.items() <= described.items()
    options = {field.name for field in fields(Sam2MaskGenerator)} - {"model", "points_per_batch"}
    assert described.keys() == {"source"} | options
    assert describe_source(Sam2MaskGenerator(tiny_sam2, 7, 13, min_size=3)) == described
    compiled = describe_source(Sam2MaskGenerator(tiny_sam2, 7, 13, min_size=3, compile="eager"))
    assert compiled == described | {"compile": "eager"}  # rounds otherwise: other masks may survive
    assert json.loads(json.dumps(described)) == described


@pytest.mark.parametrize(("option", "other"), [("segments", 5), ("compactness", 1.0), ("long_side", 99)])
def test_every_option_of_superpixels_decides(option, other):
    assert describe_source(SlicMasks(**{option: other})) == describe_source(SlicMasks()) | {option: other}


def test_given_content_counts_and_the_next_images_name_does_not(tmp_path):
    first, second = (PrecomputedMasks(np.full((1, 3, 5), value)) for value in (False, True))
    assert describe_source(first) != describe_source(second)
    assert describe_source(first) == describe_source(PrecomputedMasks(np.zeros((1, 3, 5), bool), "a"))
    assert describe_source(PrecomputedMasks(tmp_path)) == {"source": "precomputed", "masks": str(tmp_path)}
    assert describe_source(None) == {"source": "given"}


def test_prompts_tell_of_their_sam2(tiny_sam2):
    described = describe_source(BoxMaskGenerator(Sam2MaskGenerator(tiny_sam2, 3), [[0, 0, 5, 7]]))
    assert described["sam2"] == describe_source(Sam2MaskGenerator(tiny_sam2, 3))
    assert described != describe_source(BoxMaskGenerator(Sam2MaskGenerator(tiny_sam2, 3), [[0, 0, 5, 8]]))


class Own:
    """A source of somebody's own: no dataclass, not registered."""

    def __init__(self, generator=None):
        self.size, self.names, self.model, self._seen = 3, ["a", None], torch.nn.Linear(1, 1), 7
        if generator is not None:
            self.generator = generator

    def to(self, device):
        return self

    def generate(self, image, image_size=None, mask_size=None):
        return RegionMasks.empty(image_size)


def test_any_other_source_tells_its_public_plain_attributes_and_a_wrapper_what_it_wraps():
    assert describe_source(Own()) == {"source": "Own", "size": 3, "names": ["a", None]}
    assert describe_source(Own(SlicMasks())) == describe_source(SlicMasks())


# ------------------------------------------------------------------ label maps


def test_one_mask_per_class_in_the_order_of_the_labels():
    masks, owners = label_masks(label_map())
    assert owners.tolist() == [0, 3, 7]
    assert masks.sum((1, 2)).tolist() == [31 * 43 - 3 * 43 - 36 - 35 - 66, 36, 35 + 66]


def test_one_mask_per_component_with_corners_touching():
    labels = label_map()
    labels[13:15, 17:19] = 3  # touches the square of 3 by a corner only: one component
    masks, owners = label_masks(labels, part="component")
    assert owners.tolist() == [0, 3, 7, 7]
    assert masks[1:].sum((1, 2)).tolist() == [40, 35, 66]


def test_the_ignored_value_is_nobodys_and_may_be_switched_off():
    assert label_masks(label_map(), ignored=None)[1].tolist() == [0, 3, 7, 255]
    nobody = np.full(SIZE, 255)
    assert len(GroundTruthMasks(nobody).generate(IMAGE)) == 0


@given(st.integers(1, 5), st.integers(0, 10**6))
def test_masks_of_a_label_map_cover_every_pixel_once(count, seed):
    labels = np.random.default_rng(seed).integers(0, count, (7, 11))
    for part in ("class", "component"):
        masks, owners = label_masks(labels, part=part)
        assert (masks.sum(0) == 1).all()
        assert (owners[masks.argmax(0)] == labels).all()


def test_a_ground_truth_is_read_from_a_png(tmp_path):
    Image.fromarray(label_map()).save(tmp_path / "a.png")
    assert (read_label_map(tmp_path / "a.png") == label_map()).all()
    masks = GroundTruthMasks(tmp_path / "a.png").generate(IMAGE)
    assert (binary(masks) == label_masks(label_map())[0]).all()
    Image.fromarray(label_map().astype(np.uint16) * 100).save(tmp_path / "deep.png")
    assert read_label_map(tmp_path / "deep.png").max() == 25500


def test_bad_label_maps_are_one_line(tmp_path):
    with pytest.raises(InputError, match=r"size \(31, 43\), expected the image's \(5, 7\)"):
        GroundTruthMasks(label_map()).generate(IMAGE, image_size=(5, 7))
    with pytest.raises(InputError, match="got a label map of float64 of shape"):
        GroundTruthMasks(np.zeros(SIZE))
    with pytest.raises(InputError, match="expected one of class, component"):
        GroundTruthMasks(label_map(), part="thing")
    with pytest.raises(InputError, match="no label map at"):
        read_label_map(tmp_path / "none.png")
    Image.fromarray(IMAGE).save(tmp_path / "rgb.png")
    with pytest.raises(InputError, match="has 3 channels"):
        read_label_map(tmp_path / "rgb.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match="is not an image that can be read"):
        read_label_map(tmp_path / "text.png")


# ------------------------------------------------------------------ given files


def rle(mask: np.ndarray) -> dict:
    coded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(coded["size"]), "counts": coded["counts"].decode()}


def plain_counts(mask: np.ndarray) -> dict:
    flat = mask.T.ravel().astype(int)
    edges = [*np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist(), flat.size]
    return {"size": list(mask.shape), "counts": np.diff([0, *edges]).tolist()}


def write(path, masks: np.ndarray) -> None:
    """The masks in the form that the file's ending names."""
    if path.suffix == ".npy":
        np.save(path, masks)
    elif path.suffix == ".npz":
        np.savez(path, masks=masks)
    elif path.suffix == ".safetensors":
        RegionMasks.from_array(masks, SIZE).save(path)
    else:
        path.write_text(json.dumps([{"segmentation": rle(mask)} for mask in masks]))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".json"])
def test_files_of_every_kind_give_their_masks(tmp_path, suffix):
    masks = label_masks(label_map())[0]
    path = tmp_path / f"photo{suffix}"
    write(path, masks)
    for found in (read_masks(path, SIZE), read_masks(tmp_path, SIZE, "photo")):
        assert (binary(found) == masks).all()
        assert found.image_size == SIZE
    assert (binary(PrecomputedMasks(tmp_path, "photo").generate(IMAGE)) == masks).all()


def test_a_png_gives_one_mask_per_label(tmp_path):
    Image.fromarray(label_map()).save(tmp_path / "photo.png")
    assert (binary(read_masks(tmp_path, SIZE, "photo")) == label_masks(label_map(), ignored=None)[0]).all()


@pytest.mark.parametrize("form", ["list of rle", "annotations", "plain counts"])
def test_the_forms_of_coco_masks(tmp_path, form):
    masks = label_masks(label_map())[0]
    content = {
        "list of rle": [rle(mask) for mask in masks],
        "annotations": {"images": [], "annotations": [{"id": 1, "segmentation": rle(mask)} for mask in masks]},
        "plain counts": [{"segmentation": plain_counts(mask)} for mask in masks],
    }[form]
    (tmp_path / "m.json").write_text(json.dumps(content))
    assert (binary(read_masks(tmp_path / "m.json", SIZE)) == masks).all()


def test_a_coco_polygon_is_filled(tmp_path):
    (tmp_path / "m.json").write_text(json.dumps([{"segmentation": [[5, 3, 15, 3, 15, 13, 5, 13]]}]))
    expected = np.zeros((1, *SIZE), bool)
    expected[0, 3:13, 5:15] = True
    assert (binary(read_masks(tmp_path / "m.json", SIZE)) == expected).all()


def test_arrays_may_be_soft_and_of_any_resolution():
    soft = np.random.default_rng(2).random((2, 11, 15)).astype(np.float32) * 3
    masks = PrecomputedMasks(soft).generate(IMAGE, image_size=SIZE)
    assert torch.equal(masks.soft, torch.from_numpy(soft))
    same = RegionMasks.from_array(soft, SIZE)
    assert torch.equal(PrecomputedMasks(same).generate(IMAGE).soft, same.soft)


def test_bad_mask_files_are_one_line(tmp_path):
    def refusal(path, name=None):
        with pytest.raises(InputError) as error:
            read_masks(path, SIZE, name)
        return message(error)

    def written(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    assert "no mask file at" in refusal(tmp_path / "none.npy")
    assert "the image needs a file name" in refusal(tmp_path)
    assert f"no masks for photo in {tmp_path}; expected photo with one of" in refusal(tmp_path, "photo")
    assert "expected one of .safetensors, " in refusal(written("m.txt", "x"))
    assert "is not a readable array file" in refusal(written("m.npy", "x"))
    assert "is not a readable array file" in refusal(written("m.npz", "x"))
    assert "is not valid JSON" in refusal(written("m.json", "{"))
    assert "no list of annotations" in refusal(written("m.json", "3"))
    assert "entry 0 (no COCO mask" in refusal(written("m.json", '[{"segmentation": {"size": [31, 43]}}]'))
    assert "entry 0 (no COCO mask" in refusal(written("m.json", '["x"]'))
    np.savez(tmp_path / "other.npz", other=np.zeros(3))
    assert "has no array named masks" in refusal(tmp_path / "other.npz")
    np.save(tmp_path / "flat.npy", np.zeros(3))
    assert "expected (R, h, w)" in refusal(tmp_path / "flat.npy")
    np.save(tmp_path / "code.npy", np.array([{}]), allow_pickle=True)
    assert "code.npy holds object, expected booleans or numbers" in refusal(tmp_path / "code.npy")
    write(tmp_path / "m.json", np.ones((1, 5, 9), bool))
    assert "has masks of an image of size [5, 9], expected the image's [31, 43]" in refusal(tmp_path / "m.json")
    Image.fromarray(np.zeros((5, 9), np.uint8)).save(tmp_path / "m.png")
    assert "has size (5, 9), expected the image's (31, 43)" in refusal(tmp_path / "m.png")
    RegionMasks.from_array(np.ones((1, 5, 7), bool), (5, 7)).save(tmp_path / "m.safetensors")
    assert "of size (5, 7), expected (31, 43)" in refusal(tmp_path / "m.safetensors")


def test_a_mask_file_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "m.json").write_text("[]")
    monkeypatch.setattr("pathlib.Path.read_text", forbidden)
    with pytest.raises(InputError) as error:
        read_masks(tmp_path / "m.json", SIZE)
    expected = "expected COCO annotations with RLE masks"
    assert message(error) == f"cannot read {tmp_path / 'm.json'} (Permission denied); {expected}"


# ------------------------------------------------------------------ superpixels


def test_superpixels_cover_the_image_once_and_follow_its_edges():
    image = np.zeros((60, 90, 3), np.uint8)
    image[:, :37] = (200, 30, 30)
    image[:, 37:] = (20, 60, 220)
    masks = SlicMasks(segments=12, compactness=1.0).generate(image)
    assert 4 <= len(masks) <= 24
    assert torch.equal(masks.soft.sum(0), torch.ones(60, 90, dtype=torch.int64))
    left = masks.soft[:, :, :37].flatten(1).sum(1)
    areas = masks.soft.flatten(1).sum(1)
    assert ((left == 0) | (left == areas)).all(), "no superpixel crosses the edge between the two colours"


def test_superpixels_are_found_on_a_small_copy():
    image = np.random.default_rng(5).integers(0, 256, (40, 120, 3), dtype=np.uint8)
    masks = SlicMasks(segments=5, long_side=60).generate(image, image_size=(80, 240))
    assert masks.soft.shape[1:] == (20, 60)
    assert (masks.mask_size, masks.image_size) == ((40, 120), (80, 240))


@pytest.mark.parametrize("option", [{"segments": 0}, {"compactness": 0.0}, {"long_side": 0}])
def test_bad_superpixel_options_are_one_line(option):
    with pytest.raises(InputError, match=f"got {next(iter(option))} 0"):
        SlicMasks(**option)


def test_without_scikit_image_the_line_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "skimage.segmentation", None)
    with pytest.raises(InputError, match=r"needs skimage, .*: bash setup_env\.sh --eval, or pip"):
        SlicMasks()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"size": [4, 5], "counts": [5]}, "do not add up"),
        ({"size": [4, 5], "counts": [5, 10**9]}, "damaged: its runs do not add up"),
        ({"size": [4, 5], "counts": [5, 10**99]}, "negative or too long"),
        ({"size": [4, 5], "counts": [-5, 25]}, "negative or too long"),
        ({"size": [4, 5], "counts": "~~~é"}, "foreign character"),
        ({"size": [4, 5], "counts": "o"}, "cut off"),
        ({"size": [4, 5], "counts": [True, 19]}, "no COCO mask"),
        ([[float("nan"), 1, 3, 1, 3, 3]], "far outside"),
        ([[1e30, 1, 3, 1, 3, 3]], "far outside"),
    ],
)
def test_damaged_coco_masks_are_refused(tmp_path, entry, message):
    (tmp_path / "a.json").write_text(json.dumps([entry]))
    with pytest.raises(InputError, match=message):
        read_masks(tmp_path / "a.json", (4, 5))


@given(st.integers(0, 2**35 - 1))
def test_run_lengths_of_compressed_masks_are_read_as_the_library_writes_them(bits):
    mask = np.array([bits >> i & 1 for i in range(35)], np.uint8).reshape(5, 7)
    rle = coco_mask.encode(np.asfortranarray(mask))
    assert pixels_covered(rle) == 35
    assert pixels_covered({"counts": rle["counts"].decode()}) == 35
