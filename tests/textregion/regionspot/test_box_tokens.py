"""Box tokens against the packages' own predictors; masks that lie where the image lies; bad boxes."""

import copy
import sys

import numpy as np
import pytest
import torch
from sam2.sam2_image_predictor import SAM2ImagePredictor
from segment_anything import SamPredictor
from tiny_models import sam1
from torch.nn import functional as F

from textregion.errors import InputError
from textregion.masks import Sam2MaskGenerator
from textregion.masks.prompts import masks_from_boxes
from textregion.regionspot.box_tokens import Sam1BoxTokens, Sam2BoxTokens, load_sam1, segment_anything, without_padding
from textregion.tiny import models as tinyworld

RANDOM = np.random.default_rng(0)
SQUARE = RANDOM.integers(0, 256, (256, 256, 3), dtype=np.uint8)
WIDE = RANDOM.integers(0, 256, (61, 97, 3), dtype=np.uint8)
BOXES = [[10, 20, 130, 201], [0, 0, 256, 256], [100.5, 3, 113, 30.25]]
SMALL = [[3, 5, 60, 50], [0, 0, 97, 61], [40.5, 30, 44, 60]]


@pytest.fixture(scope="module")
def sam2_tokens(tiny_sam2):
    return Sam2BoxTokens(Sam2MaskGenerator(tiny_sam2))


@pytest.fixture(scope="module")
def sam1_tokens():
    return Sam1BoxTokens(sam1())


@pytest.fixture(params=["sam1", "sam2"])
def source(request, sam1_tokens, sam2_tokens):
    return {"sam1": sam1_tokens, "sam2": sam2_tokens}[request.param]


# ---------------------------------------------------------------------- SAM 2


@torch.inference_mode()
def test_sam2_is_what_a_hook_sees_in_the_package_s_own_predictor(tiny_sam2, sam2_tokens):
    predictor, seen = SAM2ImagePredictor(tiny_sam2), []
    predictor._bb_feat_sizes = [(64, 64), (32, 32), (16, 16)]
    predictor.set_image(SQUARE)
    hook = tiny_sam2.sam_mask_decoder.register_forward_hook(lambda module, inputs, output: seen.append(output[2]))
    _, scores, logits = predictor.predict(box=np.array(BOXES), multimask_output=False, return_logits=True)
    hook.remove()
    tokens, masks = sam2_tokens.encode(SQUARE, BOXES)
    assert tokens.shape == (3, sam2_tokens.token_width)
    torch.testing.assert_close(tokens, seen[0][:, 0], atol=1e-4, rtol=1e-4)
    same, low_res, predicted_iou = sam2_tokens.decode(SQUARE, torch.tensor(BOXES))
    assert torch.equal(same, tokens)
    np.testing.assert_allclose(low_res.float().numpy(), logits[:, 0], atol=0.02)
    np.testing.assert_allclose(predicted_iou.numpy(), scores[:, 0], atol=1e-4)
    assert (masks.image_size, masks.mask_size) == ((256, 256), (256, 256))


def test_sam2_masks_are_those_of_boxes_everywhere_else(tiny_sam2, sam2_tokens):
    masks, same = sam2_tokens.encode(WIDE, SMALL)[1], masks_from_boxes(sam2_tokens.sam, WIDE, SMALL)
    assert torch.equal(masks.soft, same.soft)
    assert torch.equal(masks.stability, same.stability)


def test_sam2_that_may_swap_masks_is_refused(tiny_sam2):
    model = copy.copy(tiny_sam2)
    model._modules = {**tiny_sam2._modules, "sam_mask_decoder": copy.copy(tiny_sam2.sam_mask_decoder)}
    model.sam_mask_decoder.dynamic_multimask_via_stability = True
    with pytest.raises(InputError, match="apply_postprocessing=False"):
        Sam2BoxTokens(Sam2MaskGenerator(model))


def test_sam2_says_which_one_it_is(sam2_tokens, tiny_sam2):
    assert Sam2BoxTokens(Sam2MaskGenerator(tinyworld.build_sam2())).name == "sam2:tinyworld"
    assert sam2_tokens.name.startswith("sam2:")
    assert sam2_tokens.name != "sam2:tinyworld"
    assert Sam2BoxTokens(Sam2MaskGenerator(tiny_sam2), name="sam2:mine").name == "sam2:mine"


# ---------------------------------------------------------------------- SAM v1


@torch.inference_mode()
def test_sam1_is_the_second_row_of_the_package_s_own_decoder(sam1_tokens):
    predictor, seen = SamPredictor(sam1()), []
    predictor.set_image(WIDE)
    boxes = predictor.transform.apply_boxes_torch(torch.tensor(SMALL), WIDE.shape[:2])
    hook = sam1().mask_decoder.transformer.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    full, scores, _ = predictor.predict_torch(None, None, boxes, multimask_output=False, return_logits=True)
    hook.remove()
    tokens, low_res, predicted_iou = sam1_tokens.decode(WIDE, torch.tensor(SMALL))
    assert seen[0].shape == (3, 1 + 4 + 2, 64)
    torch.testing.assert_close(tokens, seen[0][:, 1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(predicted_iou, scores[:, 0], atol=1e-5, rtol=1e-5)
    brought = F.interpolate(low_res[:, None].float(), WIDE.shape[:2], mode="bilinear")
    error, shifted = (brought - full).abs().mean(), (brought[..., 3:] - full[..., :-3]).abs().mean()
    assert error < 0.1 * full.std()  # one interpolation instead of two, of maps that are mostly noise
    assert shifted > 5 * error  # a shift by one low-res pixel
    same, masks = sam1_tokens.encode(WIDE, SMALL)
    assert torch.equal(same, tokens)
    assert masks.image_size == (61, 97)


@torch.inference_mode()
def test_the_token_makes_the_mask(sam1_tokens):
    """The token is the row that the decoder turns into the very mask that comes with it."""
    decoder, seen = sam1().mask_decoder, []
    hook = decoder.output_upscaling.register_forward_hook(lambda module, inputs, output: seen.append(output))
    tokens, logits, _ = sam1_tokens.decode(SQUARE, torch.tensor(BOXES))
    hook.remove()
    weights = decoder.output_hypernetworks_mlps[0](tokens)
    torch.testing.assert_close(
        torch.einsum("nc,nchw->nhw", weights, seen[0]).clamp(-32, 32), logits.float(), atol=0.02, rtol=0
    )


@pytest.mark.parametrize("filled", [(20, 32), (17, 32), (32, 29), (1, 32)])
def test_padding_is_cut_where_the_image_ends(filled):
    y, x = torch.meshgrid((torch.arange(8) + 0.5) * 4, (torch.arange(8) + 0.5) * 4, indexing="ij")
    ramp = (2 * y - x)[None, None]  # a plane in pixels of the frame stays one
    cut = without_padding(ramp, filled, 32)[0, 0]
    height, width = cut.shape
    assert (height, width) == (-(-filled[0] // 4), -(-filled[1] // 4))
    rows, columns = ((torch.arange(n) + 0.5) * length / n for n, length in zip((height, width), filled, strict=True))
    rows, columns = rows.clamp(2, 30), columns.clamp(2, 30)  # beyond the outermost centres the map is flat
    torch.testing.assert_close(cut, 2 * rows[:, None] - columns[None])


def test_whole_rows_are_the_map_s_own(random):
    logits = torch.randn(2, 1, 8, 8, generator=random)
    torch.testing.assert_close(without_padding(logits, (20, 32), 32), logits[:, :, :5])


def test_a_published_file_is_loaded_strictly(tmp_path, monkeypatch):
    monkeypatch.setattr("segment_anything.sam_model_registry", {"vit_b": lambda: copy.deepcopy(sam1(5))})
    torch.save(sam1().state_dict(), tmp_path / "sam.pth")
    loaded = load_sam1(tmp_path / "sam.pth")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in sam1().state_dict().items())
    state = sam1().state_dict()
    state.pop("mask_decoder.iou_token.weight")
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(InputError, match=r"1 missing: mask_decoder\.iou_token\.weight"):
        load_sam1(tmp_path / "less.pth")
    with pytest.raises(InputError, match="expected one of vit_b"):
        load_sam1(tmp_path / "sam.pth", "vit_x")


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "segment_anything", None)
    with pytest.raises(InputError, match=r"setup_env\.sh --eval, or pip install 'textregion\[regionspot\]'"):
        segment_anything()


def test_an_image_too_thin_for_sam1(sam1_tokens):
    with pytest.raises(InputError, match="too thin"):
        sam1_tokens.encode(np.zeros((1, 3 * 128, 3), np.uint8), [[0, 0, 5, 1]])


# ---------------------------------------------------------------------- both


def test_no_box_is_a_normal_result(source):
    tokens, masks = source.encode(WIDE, [])
    assert tokens.shape == (0, source.token_width)
    assert (len(masks), masks.image_size) == (0, (61, 97))


def test_boxes_come_in_order_whatever_the_batch(tiny_sam2, sam1_tokens, sam2_tokens):
    one_by_one = Sam1BoxTokens(sam1(), boxes_at_once=1), Sam2BoxTokens(Sam2MaskGenerator(tiny_sam2, points_per_batch=1))
    for together, apart in zip((sam1_tokens, sam2_tokens), one_by_one, strict=True):
        (tokens, masks), (same, same_masks) = together.encode(WIDE, SMALL), apart.encode(WIDE, SMALL)
        torch.testing.assert_close(tokens, same, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(masks.soft.float(), same_masks.soft.float(), atol=0.02, rtol=0)
        turned = together.encode(WIDE, SMALL[::-1])[0].flip(0)
        torch.testing.assert_close(turned, tokens, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(tokens[0], tokens[2], atol=1e-2)


def test_moving_returns_the_source(source):
    assert source.to("cpu") is source


@pytest.mark.parametrize(
    ("boxes", "line"),
    [
        ([[0, 0, 9, 9], [5, 5, 5, 9]], "box 1 at .* expected x1 < x2"),
        ([[0, 0, 99, 9]], "box 0 at .* lies outside the image of 97 x 61"),
        ([[0, 0, 9, float("inf")]], "box 0 at .* expected finite numbers"),
    ],
)
def test_bad_boxes_are_one_line(source, boxes, line):
    with pytest.raises(InputError, match=line):
        source.encode(WIDE, boxes)
