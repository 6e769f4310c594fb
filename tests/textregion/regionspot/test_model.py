"""The joined model against its parts put together by hand."""

import numpy as np
import pytest
import torch
from tiny_models import sam1

from textregion.errors import InputError
from textregion.masks import Sam2MaskGenerator
from textregion.regionspot.box_tokens import Sam1BoxTokens, Sam2BoxTokens
from textregion.regionspot.model import RegionSpot, RegionSpotHead, clip_map, probabilities, squash
from textregion.types import RegionTokens
from TextRegionSegmenter import TextRegionSegmenter

IMAGE = np.random.default_rng(1).integers(0, 256, (61, 97, 3), dtype=np.uint8)
BOXES = [[3, 5, 60, 50], [0, 0, 97, 61], [40.5, 30, 44, 60]]


def make_head(token_width=64, **options) -> RegionSpotHead:
    torch.manual_seed(6)
    return RegionSpotHead(32, 24, token_width, hidden=16, layers=2, **options)


@pytest.fixture(scope="module")
def box_tokens(tiny_sam2):
    return Sam2BoxTokens(Sam2MaskGenerator(tiny_sam2))


@pytest.fixture(scope="module")
def model(tiny_clip, box_tokens):
    return RegionSpot(tiny_clip, box_tokens, make_head(box_tokens.token_width))


@torch.no_grad()
@pytest.mark.parametrize("side", [None, 56])
def test_encode_is_its_parts_by_hand(tiny_clip, box_tokens, side):
    model = RegionSpot(tiny_clip, box_tokens, make_head(box_tokens.token_width), side)
    square = squash(IMAGE, side or 32)
    mean, std = (torch.tensor(values)[:, None, None] for values in (tiny_clip.mean, tiny_clip.std))
    features = clip_map(tiny_clip.model.visual, ((square - mean) / std)[None])
    tokens, masks = box_tokens.encode(IMAGE, BOXES)
    embedded = model.head(tokens[None], features)[0]
    found = model.encode(IMAGE, BOXES)
    torch.testing.assert_close(found.tokens, embedded / embedded.norm(dim=1, keepdim=True), atol=1e-5, rtol=0)
    assert torch.equal(found.masks.soft, masks.soft)
    assert found.source_index.tolist() == [0, 1, 2]
    assert found.grid == ((side or 32) // 8,) * 2
    assert (found.backbone, found.recipe) == ("tiny", "regionspot")


def test_box_tokens_map_and_embed_are_the_steps_of_encode(model):
    tokens, features = model.box_tokens.encode(IMAGE, BOXES)[0], model.clip_map(IMAGE)
    assert features.shape == (17, 32)
    torch.testing.assert_close(model.embed(tokens, features), model.encode(IMAGE, BOXES).tokens)


def test_antialias_reaches_the_map(tiny_clip, box_tokens, model):
    smooth = RegionSpot(tiny_clip, box_tokens, model.head, antialias=True)
    assert not torch.allclose(smooth.clip_map(IMAGE), model.clip_map(IMAGE), atol=1e-2)


def test_a_token_depends_on_its_companions_unless_isolated(tiny_clip, box_tokens, model):
    isolated = RegionSpot(tiny_clip, box_tokens, make_head(box_tokens.token_width, isolate=True))
    alone = isolated.encode(IMAGE, BOXES[:1]).tokens
    torch.testing.assert_close(isolated.encode(IMAGE, BOXES).tokens[:1], alone, atol=1e-5, rtol=0)
    change = (model.encode(IMAGE, BOXES).tokens[:1] - model.encode(IMAGE, BOXES[:1]).tokens).abs().max()
    assert change > 1e-3


def test_no_box_is_a_normal_result(model):
    found = model.encode(IMAGE, [])
    assert found.tokens.shape == (0, 24)
    assert (len(found.masks), found.masks.image_size) == (0, (61, 97))


def test_tokens_are_compared_saved_and_segmented_like_all_others(model, tiny_clip, tmp_path):
    found = model.encode(IMAGE, BOXES)
    segmenter = TextRegionSegmenter(tiny_clip, device="cpu")
    similarity = found.similarity(segmenter.encode_text(["dog"]))
    assert similarity.shape == (3, 1)
    assert similarity.abs().max() <= 1 + 1e-5
    assert segmenter.segment(found, ["dog", "cat"]).label_map.shape == (61, 97)
    found.save(tmp_path / "tokens.safetensors")
    torch.testing.assert_close(RegionTokens.load(tmp_path / "tokens.safetensors").tokens, found.tokens)


def test_moving_returns_the_model(model):
    assert model.to("cpu") is model


def test_sam1_in_the_place_of_sam2(tiny_clip):
    model = RegionSpot(tiny_clip, Sam1BoxTokens(sam1()), make_head(64))
    found = model.encode(IMAGE, BOXES)
    torch.testing.assert_close(found.tokens.norm(dim=1), torch.ones(3))
    assert len(found.masks) == 3


@pytest.mark.gpu
def test_all_parts_move_to_the_device(tiny_clip, tiny_sam2):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    sam2 = Sam2BoxTokens(Sam2MaskGenerator(tiny_sam2, dtype=torch.float32))
    model = RegionSpot(tiny_clip, sam2, make_head(sam2.token_width))
    expected = model.encode(IMAGE, BOXES)
    try:
        found = model.to("cuda").encode(IMAGE, BOXES)
        assert found.tokens.device.type == found.masks.soft.device.type == "cuda"
        torch.testing.assert_close(found.tokens.cpu(), expected.tokens, atol=1e-2, rtol=0)
    finally:
        model.to("cpu")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"head": RegionSpotHead(16, 24, 64, 16, 1)}, "CLIP of widths 16 and 24, CLIP tiny has 32 and 24"),
        ({"head": RegionSpotHead(32, 16, 64, 16, 1)}, "CLIP of widths 32 and 16, CLIP tiny has 32 and 24"),
        ({"head": RegionSpotHead(32, 24, 48, 16, 1)}, "tokens of width 48, sam1:vit_b has 64"),
        ({"side": 33}, "expected a multiple of the patch size 8"),
        ({"side": 0}, "at least 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tiny_clip, options, line):
    with pytest.raises(InputError, match=line):
        RegionSpot(**{"backbone": tiny_clip, "box_tokens": Sam1BoxTokens(sam1()), "head": make_head(), **options})


def test_other_families_are_refused(tiny_siglip, untyped):
    with pytest.raises(InputError, match="RegionSpot works with CLIP models, got siglip"):
        RegionSpot(tiny_siglip, Sam1BoxTokens(sam1()), make_head())


def test_probabilities_by_hand():
    similarity = torch.tensor([[0.3, 0.1], [0.2, 0.2]])
    first = np.exp(3) / (np.exp(3) + np.exp(1))
    torch.testing.assert_close(probabilities(similarity, 10), torch.tensor([[first, 1 - first], [0.5, 0.5]]).float())
    scored = probabilities(similarity, 10, torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(scored, torch.tensor([[first / 2, (1 - first) / 2], [0.5, 0.5]]).float())
    assert probabilities(torch.zeros(0, 2), 10).shape == (0, 2)
