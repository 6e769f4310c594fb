import json
from dataclasses import replace

import bounds
import numpy as np
import oracles
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from textregion.errors import InputError
from textregion.labeling import GroundingResult
from textregion.labels import as_labels
from textregion.types import RegionMasks, RegionTokens, Segmentation

sizes = st.integers(1, 31)


def soft_masks(seed: int = 0, group: tuple[int, ...] = (0, 1, 1, 2, 0), size=(13, 17), mask_size=(29, 23)):
    """Three regions of five parts, half of the values zero."""
    random = torch.Generator().manual_seed(seed)
    soft = (torch.rand(len(group), *size, generator=random) * 6 - 3).clamp(min=0)
    return RegionMasks(soft, (37, 41), mask_size, torch.tensor(group))


# ---------------------------------------------------------------- masks: values at full size


@given(st.integers(0, 10_000), sizes, sizes, sizes, sizes)
@example(0, 1, 1, 7, 5)
@example(0, 7, 5, 1, 1)
def test_full_equals_interpolate_and_group_maximum(seed, h, w, height, width):
    masks = soft_masks(seed, size=(h, w), mask_size=(height, width))
    expected = oracles.full_masks(masks.soft, [0, 1, 1, 2, 0], (height, width))
    torch.testing.assert_close(masks.full(), expected, rtol=0, atol=3e-5)


@given(st.integers(0, 10_000), st.lists(st.integers(0, 28), max_size=9), st.lists(st.integers(0, 22), max_size=9))
def test_pixels_equal_full_at_crossings(seed, rows, columns):
    masks = soft_masks(seed)
    crossings = masks.pixels(torch.tensor(rows, dtype=torch.long), torch.tensor(columns, dtype=torch.long))
    assert torch.equal(crossings, masks.full()[:, rows][:, :, columns])


@given(st.integers(0, 10_000), sizes, sizes, sizes, sizes)
def test_patch_grid_equals_two_resizes(seed, height, width, rows, columns):
    masks = soft_masks(seed, mask_size=(height, width))
    full = oracles.full_masks(masks.soft, [0, 1, 1, 2, 0], (height, width))
    torch.testing.assert_close(
        masks.patch_grid((rows, columns)), oracles.resize(full, (rows, columns)), rtol=0, atol=5e-5
    )


def test_hard_masks_are_one_where_soft_ones_are_positive():
    masks = soft_masks()
    hard = replace(masks, hard=True)
    assert torch.equal(hard.full(), (masks.full() > 0).float())
    assert torch.equal(hard.select(torch.tensor([2])).full(), hard.full()[[2]])


def test_half_and_boolean_parts_give_float32():
    boolean = RegionMasks(torch.tensor([[[True, False, True]]]), (1, 3))
    assert boolean.full().tolist() == [[[1.0, 0.0, 1.0]]]
    half = replace(soft_masks(), soft=soft_masks().soft.half())
    assert half.full().dtype == torch.float32


def test_half_masks_are_rounded_to_half():
    """What is too small for half precision is outside the mask, as in the published program (method 9.3, 9.6)."""
    soft = (torch.rand(5, 64, 64, generator=torch.Generator().manual_seed(1)) * 6 - 3).clamp(min=0).half()
    masks = RegionMasks(soft, (128, 192), (128, 192))
    expected = oracles.resize(soft, (128, 192)).half()
    full, expected_full = masks.full(), expected.float()  # 64 rows and columns, values to 3
    other = (full > 0) != (expected_full > 0)
    assert torch.maximum(full, expected_full)[other].le(bounds.positions(64, 2 * 3)).all()
    assert not (other.any() and bounds.rounds_positions_once())
    next_half = np.spacing(expected.numpy()).astype(np.float32)  # where a sum rounded otherwise may be rounded to
    assert ((full - expected_full).abs().numpy() <= next_half + bounds.positions(64, 2 * 3)).all()


def logits(seed: int = 0) -> RegionMasks:
    """Four parts of three regions, both signs, as SAM gives them: half precision, a sixth of the image's size."""
    soft = 9 * torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(seed))
    return RegionMasks(soft.half(), (37, 41), (29, 23), torch.tensor([0, 1, 1, 2]), cut=0.0)


@pytest.mark.parametrize("size", [(37, 41), (29, 23), (7, 5), (3, 2)])
def test_binary_enlarges_logits_before_it_cuts(size):
    masks = logits()
    large = oracles.resize(masks.soft.float(), size) > 0
    expected = torch.stack([large[0], large[1] | large[2], large[3]])
    assert torch.equal(masks.binary(size), expected)
    if size == masks.image_size:
        assert torch.equal(masks.binary(), expected)


def test_soft_values_are_cut_at_a_half():
    masks = RegionMasks(torch.tensor([[[0.0, 0.4, 0.6, 1.0]]]), (1, 4))
    assert masks.binary().tolist() == [[[False, False, True, True]]]
    assert masks.boxes.tolist() == [[2, 0, 4, 1]]


def test_the_method_sees_logits_clamped_before_they_are_enlarged():
    masks = logits()
    clamped = replace(masks, soft=masks.soft.clamp(0, 3))
    assert torch.equal(masks.full(), clamped.full())
    assert torch.equal(masks.patch_grid((4, 3)), clamped.patch_grid((4, 3)))
    assert torch.equal(masks.published(), oracles.resize(clamped.full(), (37, 41)) > 0)
    assert (masks.published() & ~masks.binary()).any()  # wider than the sharp masks
    same_size = replace(masks, mask_size=masks.image_size)
    assert torch.equal(same_size.published(), same_size.full() > 0)
    assert not (same_size.binary() & ~same_size.published()).any()


def test_memory_of_binary_does_not_change_the_result(monkeypatch):
    masks = logits()
    at_once = masks.binary()
    monkeypatch.setattr("textregion.types.PIXELS_AT_ONCE", 1)
    assert torch.equal(masks.binary(), at_once)


# ---------------------------------------------------------------- masks: boxes and scores


@given(st.integers(0, 10_000))
def test_boxes_are_tight(seed):
    random = torch.Generator().manual_seed(seed)
    on = torch.rand(4, 11, 13, generator=random) > 0.9
    boxes = RegionMasks(on.float(), (11, 13)).boxes
    for mask, box in zip(on, boxes, strict=True):
        if not mask.any():
            assert box.tolist() == [0, 0, 0, 0]
            continue
        y, x = mask.nonzero().T
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_boxes_are_in_image_pixels_and_span_all_parts():
    soft = torch.zeros(3, 4, 5)
    soft[0, 1, 2] = soft[1, 3, 4] = 1
    masks = RegionMasks(soft, (40, 100), group=torch.tensor([0, 0, 1]))
    assert masks.boxes.tolist() == [[40, 10, 100, 40], [0, 0, 0, 0]]


def test_scores_default_to_one():
    masks = soft_masks()
    assert masks.predicted_iou.tolist() == masks.stability.tolist() == [1, 1, 1]


# ---------------------------------------------------------------- masks: choosing, moving, keeping


@given(st.lists(st.integers(0, 2), max_size=5))
def test_select_keeps_order_and_repeats(index):
    masks = replace(soft_masks(), predicted_iou=torch.tensor([0.1, 0.2, 0.3]), boxes=torch.arange(12.0).reshape(3, 4))
    chosen = masks.select(torch.tensor(index, dtype=torch.long))
    assert len(chosen) == len(index)
    assert (chosen.image_size, chosen.mask_size) == (masks.image_size, masks.mask_size)
    assert torch.equal(chosen.full(), masks.full()[index])
    assert torch.equal(chosen.boxes, masks.boxes[index])
    assert torch.equal(chosen.predicted_iou, masks.predicted_iou[index])
    assert torch.equal(chosen.stability, masks.stability[index])


def test_another_full_size_changes_nothing_else():
    masks = soft_masks()
    assert replace(masks, mask_size=(5, 7)).full().shape == (3, 5, 7)
    assert torch.equal(replace(masks, mask_size=(5, 7)).soft, masks.soft)


def test_empty():
    masks = RegionMasks.empty((5, 7))
    assert len(masks) == len(masks.boxes) == len(masks.predicted_iou) == 0
    assert masks.full().shape == (0, 5, 7)
    assert masks.patch_grid((2, 3)).shape == (0, 2, 3)
    assert masks.binary().shape == (0, 5, 7)
    assert len(masks.select(torch.zeros(0, dtype=torch.long))) == 0


@pytest.mark.parametrize("masks", [soft_masks(), replace(soft_masks(), hard=True), RegionMasks.empty((5, 7))])
def test_masks_survive_saving(tmp_path, masks):
    masks.save(tmp_path / "masks.safetensors")
    back = RegionMasks.load(tmp_path / "masks.safetensors")
    assert (back.image_size, back.mask_size, back.hard) == (masks.image_size, masks.mask_size, masks.hard)
    for name in ("soft", "group", "boxes", "predicted_iou", "stability"):
        assert torch.equal(getattr(back, name), getattr(masks, name))
    assert torch.equal(back.full(), masks.full())


# ---------------------------------------------------------------- masks: what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"soft": torch.zeros(2, 3)}, r"shape \(2, 3\)"),
        ({"soft": torch.zeros(2, 0, 3)}, "h, w >= 1"),
        ({"soft": torch.zeros(2, 3, 3, dtype=torch.int64)}, "dtype int64"),
        ({"soft": torch.full((1, 2, 2), torch.nan)}, "NaN or infinite"),
        ({"soft": torch.full((1, 2, 2), torch.inf)}, "NaN or infinite"),
        ({"image_size": (0, 3)}, "image_size"),
        ({"image_size": (2**64, 5)}, "got image_size 18446744073709551616 x 5, expected at most 100 million pixels"),
        ({"image_size": (65_536, 1)}, "got image_size 65536 x 1, expected at most .* 65535 on a side"),
        ({"mask_size": (10_001, 10_000)}, "got mask_size 10001 x 10000, expected at most"),
        ({"group": torch.zeros(3, dtype=torch.long)}, r"groups int64 of shape \(3,\) for 2 mask parts"),
        ({"boxes": torch.zeros(3, 4)}, "3 boxes for 2 regions"),
        ({"boxes": torch.zeros(3, 4), "group": torch.tensor([0, 1])}, "3 boxes for 2 regions"),
        ({"predicted_iou": torch.zeros(1)}, "1 predicted_iou for 2 regions"),
        ({"stability": torch.zeros(5)}, "5 stability for 2 regions"),
    ],
)
def test_bad_masks_are_refused(untyped, options, message):
    with pytest.raises(InputError, match=message) as error:
        RegionMasks(**({"soft": torch.ones(2, 3, 5), "image_size": (3, 5)} | options)).checked()
    assert "\n" not in str(error.value)


def test_a_file_that_states_an_image_larger_than_any_is_refused(tmp_path):
    """Nothing else in the file need be large, but a label map would have that many pixels."""
    masks = RegionMasks(torch.ones(2, 3, 5), image_size=(3, 5))
    RegionTokens(torch.eye(2), masks, torch.arange(2), (1, 1)).save(tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    changed = header.replace(b"[3, 5], ", b"[200000000000, 5], ", 1)
    assert changed != header
    (tmp_path / "a.safetensors").write_bytes(len(changed).to_bytes(8, "little") + changed + data[8 + len(header) :])
    with pytest.raises(InputError, match="got image_size 200000000000 x 5, expected at most 100 million pixels"):
        RegionTokens.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "values",
    [
        np.array([[[0, 1], [2, 9]]] * 3, np.uint8),
        np.array([[[0, 1], [2, 9]]] * 3, np.int64),
        np.array([[[-4, 1], [2, 9.5]]] * 3, np.float64),
        np.array([[[-4, 1], [2, 9]]] * 3, np.float16),
        torch.tensor([[[-4, 1], [2, 9]]] * 3),
        [[[0, 1], [2, 9]]] * 3,
    ],
)
def test_given_masks_are_clamped_to_0_3(values):
    masks = RegionMasks.from_array(values, (20, 20))
    assert masks.full().tolist() == [[[0, 1], [2, 3]]] * 3
    assert masks.image_size == (20, 20)
    assert RegionMasks.from_array(np.array([[-4, 1], [2.5, 9]]), (20, 20)).full().tolist() == [[[0, 1], [2.5, 3]]]


def test_given_boolean_masks_and_views_are_taken():
    array = np.zeros((2, 6, 4), bool)[:, ::2, ::-1]
    array[1, 0, 0] = True
    masks = RegionMasks.from_array(array, (3, 4))
    assert masks.soft.dtype == torch.bool
    assert masks.full().sum((1, 2)).tolist() == [0, 1]


def test_given_masks_of_no_region():
    assert len(RegionMasks.from_array(np.zeros((0, 5, 7)), (5, 7))) == 0


def test_a_plane_of_labels_is_a_region_each_and_axes_are_told_by_the_image():
    labels = np.array([[0, 1, 1], [2, 2, 2]])
    expected = [(labels == n).tolist() for n in range(3)]
    assert RegionMasks.from_array(labels, (2, 3)).soft.tolist() == expected
    assert RegionMasks.from_array(np.moveaxis(np.array(expected[:2]), 0, 2), (2, 3)).soft.tolist() == expected[:2]


def test_given_masks_that_may_not_be_written_to_make_no_noise(recwarn):
    values = np.ones((1, 2, 2), np.float32)
    values.setflags(write=False)
    assert RegionMasks.from_array(values, (2, 2)).soft.sum() == 4
    assert not [w for w in recwarn if "writ" in str(w.message)]


def test_given_region_masks_pass_through():
    masks = soft_masks()
    assert torch.equal(RegionMasks.from_array(masks, (1, 1)).full(), masks.full())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((1, 2, 3, 4)), r"shape \(1, 2, 3, 4\)"),
        (np.zeros(7), r"shape \(7,\)"),
        (np.full((1, 2, 2), np.nan), "NaN"),
        (np.full((1, 2, 2), -np.inf), "NaN or infinite"),
        (np.array([[["a"]]]), "dtype <U1"),
        (np.zeros((1, 2, 2), complex), "dtype complex128"),
        (np.zeros((1, 2, 2), np.longdouble), "expected booleans or numbers of at most 64 bits"),
        (np.zeros((9, 2, 5)), r"shape \(9, 2, 5\) for an image of 2 x 2 pixels"),
    ],
)
def test_bad_given_masks_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        RegionMasks.from_array(values, (2, 2))


# ---------------------------------------------------------------- tokens


def region_tokens(**options) -> RegionTokens:
    random = torch.Generator().manual_seed(3)
    tokens = torch.nn.functional.normalize(torch.randn(3, 7, generator=random), dim=1)
    values = {"tokens": tokens, "masks": soft_masks(), "source_index": torch.tensor([0, 2, 5]), "grid": (2, 3)}
    return RegionTokens(**(values | options))


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {
            **{"backbone": "clip", "recipe": "demo", "logit_scale": 10.5, "logit_bias": -3.25},
            **{"patch_scores": torch.rand(2, 3), "dense": torch.rand(7, 2, 3)},
        },
        {
            "tokens": torch.zeros(0, 7),
            "masks": RegionMasks.empty((4, 5)),
            "source_index": torch.zeros(0, dtype=torch.long),
        },
    ],
)
def test_tokens_survive_saving(tmp_path, extra):
    tokens = region_tokens(**extra)
    tokens.save(tmp_path / "deep" / "tokens.safetensors")
    back = RegionTokens.load(tmp_path / "deep" / "tokens.safetensors")
    for name in ("grid", "backbone", "recipe", "logit_scale", "logit_bias"):
        assert getattr(back, name) == getattr(tokens, name)
    for name in ("tokens", "source_index", "patch_scores", "dense"):
        a, b = getattr(back, name), getattr(tokens, name)
        assert (a is None and b is None) or torch.equal(a, b)
    assert torch.equal(back.masks.full(), tokens.masks.full())


def test_similarity_is_the_dot_product_of_every_pair(random):
    tokens = region_tokens(logit_scale=10.0, logit_bias=-2.0)
    text = torch.nn.functional.normalize(torch.randn(5, 7, generator=random), dim=1)
    cosine = tokens.similarity(text)
    for r in range(3):
        for label in range(5):
            assert float(cosine[r, label]) == pytest.approx(float(tokens.tokens[r] @ text[label]), abs=1e-6)
    torch.testing.assert_close(tokens.logits(text), cosine * 10 - 2)


def test_text_of_another_width_is_refused():
    with pytest.raises(InputError, match=r"expected \(L, 7\).*clip"):
        region_tokens(backbone="clip").similarity(torch.zeros(2, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": torch.zeros(3)}, "expected"),
        ({"source_index": torch.tensor([0, 1])}, "2 source_index for 3 tokens"),
        ({"masks": RegionMasks.empty((4, 5))}, "0 masks for 3 tokens"),
    ],
)
def test_bad_tokens_are_refused(untyped, options, message):
    with pytest.raises(InputError, match=message):
        region_tokens(**options)


def test_moving_keeps_everything():
    tokens = region_tokens(patch_scores=torch.rand(2, 3), dense=torch.rand(7, 2, 3))
    moved = tokens.to("cpu")
    assert torch.equal(moved.tokens, tokens.tokens)
    assert torch.equal(moved.dense, tokens.dense)
    assert moved.grid == tokens.grid


# ---------------------------------------------------------------- segmentation

LABELS = ("wall", "cat", "cup")


def segmentation() -> Segmentation:
    label_map = np.zeros((5, 7), np.int64)
    label_map[1:4, 2:5] = 2
    confidence = np.linspace(0, 1, 35, dtype=np.float32).reshape(5, 7)
    return Segmentation(label_map, confidence, np.where(label_map, 0, -1), LABELS)


def test_shares_of_all_labels_sum_to_one():
    shares = segmentation().shares
    assert list(shares) == list(LABELS)
    assert shares == {"wall": pytest.approx(26 / 35), "cat": 0, "cup": pytest.approx(9 / 35)}


def test_mask_by_name_and_index():
    result = segmentation()
    np.testing.assert_array_equal(result.mask("cup"), result.label_map == 2)
    np.testing.assert_array_equal(result.mask(2), result.mask("cup"))
    assert not result.mask("cat").any()
    with pytest.raises(InputError, match="no label 'dog'; this segmentation has wall, cat, cup"):
        result.mask("dog")


def test_coco_rle_decodes_to_the_masks():
    result = segmentation()
    annotations = json.loads(json.dumps(result.to_coco_rle()))
    assert [a["category"] for a in annotations] == ["wall", "cup"]
    for annotation in annotations:
        mask = result.mask(annotation["category"])
        np.testing.assert_array_equal(coco_mask.decode(annotation["segmentation"]), mask)
        assert annotation["area"] == mask.sum()
        assert annotation["score"] == pytest.approx(float(result.confidence[mask].mean()))
    assert annotations[1]["bbox"] == [2, 1, 3, 3]
    assert annotations[1]["category_id"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": np.zeros((5, 6), np.float32)}, "expected one"),
        ({"label_map": np.full((5, 7), 3)}, "outside 0..2"),
        ({"label_map": np.full((5, 7), -2)}, "outside 0..2"),
    ],
)
def test_bad_maps_are_refused(untyped, options, message):
    with pytest.raises(InputError, match=message):
        replace(segmentation(), **options)


# ---------------------------------------------------------------- labels


def test_labels_pass_through_in_order():
    assert as_labels(["b", "a", "b"]) == ("b", "a", "b")


@pytest.mark.parametrize("labels", [[], ["a", ""], ["a", "  "], [" ; "], ["\t\n"]])
def test_bad_labels_are_refused(labels):
    with pytest.raises(InputError, match="expected"):
        as_labels(labels)


def test_a_lone_string_is_not_a_list_of_labels():
    with pytest.raises(InputError, match="single string 'dog'"):
        as_labels("dog")


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([[[1, 2], [3]]], "no array"),
        (torch.zeros(1, 3, 3, dtype=torch.complex64), "complex64"),
        (torch.eye(3).to_sparse()[None], "sparse"),
        (np.array([["a"]]), "dtype <U1"),
    ],
)
def test_what_is_no_array_of_real_numbers_is_refused(untyped, masks, message):
    with pytest.raises(InputError, match=message):
        RegionMasks.from_array(masks, (3, 3))


def test_arrays_of_other_byte_order_and_beyond_float32_are_taken():
    soft = np.array([[[0.5, 2.0]]])
    for masks in (soft.astype(">f4"), soft.astype(">f8")):
        assert RegionMasks.from_array(masks, (1, 2)).soft.tolist() == soft.tolist()
    assert RegionMasks.from_array(soft * 1e300, (1, 2)).soft.tolist() == [[[3.0, 3.0]]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": torch.full((2, 4), torch.nan)}, "with NaN"),
        ({"tokens": torch.zeros(2, 4, dtype=torch.uint8)}, "got tokens of uint8"),
        ({"source_index": torch.zeros(2, 1, dtype=torch.long)}, r"source_index of shape \(2, 1\), expected \(R\)"),
        ({"dense": torch.zeros(3)}, r"expected \(D, Ph, Pw\)"),
        ({"grid": "ab"}, "grid 'ab'"),
        ({"logit_scale": None}, "logit_scale None"),
    ],
)
def test_tokens_that_do_not_fit_together_are_refused(untyped, changes, message):
    masks = RegionMasks(torch.ones(2, 3, 3), (3, 3))
    whole = {"tokens": torch.eye(2, 4), "masks": masks, "source_index": torch.arange(2), "grid": (1, 1)}
    assert len(RegionTokens(**whole)) == 2
    with pytest.raises(InputError, match=message):
        RegionTokens(**{**whole, **changes}).checked()


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("x" * 1001, "1001 characters"),
        ("a\x1b[31m", "control characters"),
        ("nul\0", "control characters"),
        ("\ud800a", "broken text"),
        ("\u200b", "a word or phrase"),
        (" ;\t", "a word or phrase"),
    ],
)
def test_labels_nobody_can_read_are_refused(label, message):
    with pytest.raises(InputError, match=message) as error:
        as_labels(["sky", label])
    assert str(error.value).isprintable()


def test_labels_of_any_script_are_taken():
    labels = ("سماء", "天空", "👩‍👩‍👧", "e\u0301", "two\twords\n", "\u202esky")
    assert as_labels(labels) == labels


def test_types_say_their_facts_and_not_their_arrays():
    masks = RegionMasks(torch.ones(3, 5, 7, dtype=torch.float16), (211, 131))
    tokens = RegionTokens(torch.eye(3, 8), masks, torch.arange(3), (4, 6), "clip-vit-b16", "semantic")
    label_map = np.zeros((211, 131), np.int64)
    result = Segmentation(label_map, np.zeros((211, 131), np.float32), label_map, tuple(f"w{i}" for i in range(99)))
    grounding = GroundingResult(2, label_map > 0, (1.0, 2.0, 3.0, 4.0), 0.25)
    assert repr(masks) == "RegionMasks(3 regions in 131 x 211 pixels, stored 3x5x7 float16)"
    assert repr(tokens) == ("RegionTokens(3 regions in 131 x 211 pixels, D = 8, grid (4, 6), clip-vit-b16, semantic)")
    assert repr(result) == ("Segmentation(131 x 211 pixels, 99 labels: ('w0', 'w1', 'w2', 'w3', 'w4', 'w5', ...))")
    assert repr(grounding) == ("GroundingResult(region 2, box (1.0, 2.0, 3.0, 4.0), score 0.25, 131 x 211 pixels)")
    assert repr(RegionMasks.empty((2, 3))) == "RegionMasks(0 regions in 3 x 2 pixels, stored 0x1x1 float32)"


def test_savers_make_the_folders_that_are_missing(tmp_path):
    masks = RegionMasks(torch.ones(1, 5, 7), (5, 7))
    tokens = RegionTokens(torch.eye(1), masks, torch.arange(1), (2, 2))
    masks.save(tmp_path / "a" / "b" / "masks.safetensors")
    tokens.save(tmp_path / "c" / "d" / "tokens.safetensors")
    assert len(RegionMasks.load(tmp_path / "a" / "b" / "masks.safetensors")) == 1
    assert len(RegionTokens.load(tmp_path / "c" / "d" / "tokens.safetensors")) == 1
