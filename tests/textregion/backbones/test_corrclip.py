"""Recipe corrclip: its three terms against the sentence of method 7.7, token by token; each term off."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from textregion.backbones.clip import middle_blocks
from textregion.config import SegmenterConfig
from textregion.errors import InputError
from textregion.pooling import RECIPES, PoolingRecipe
from textregion.segmenter import TextRegionSegmenter
from textregion.types import RegionMasks

CORRCLIP = RECIPES["corrclip"]
clip = cache(tiny_models.clip)


def test_middle_blocks_are_those_of_the_description():
    assert list(middle_blocks(12)) == [5, 6, 7, 8, 9]
    assert list(middle_blocks(24)) == list(range(10, 22))
    assert list(middle_blocks(32)) == list(range(2, 30))
    assert list(middle_blocks(7)) == [2, 3, 4]
    assert list(middle_blocks(3)) == [0]
    with pytest.raises(InputError, match="has 2 blocks; recipe corrclip needs 3, take corrclip-no-spatial"):
        middle_blocks(2)


def slow_attention(block, query, tokens):
    """One query over some tokens, head by head, with the packed weights of the block."""
    attention = block.attn
    width, heads = attention.embed_dim, attention.num_heads
    weights, biases = attention.in_proj_weight.split(width), attention.in_proj_bias.split(width)
    normed = block.ln_1(tokens)
    q, keys, values = (
        F.linear(x, w, b) for x, w, b in zip((block.ln_1(query), normed, normed), weights, biases, strict=True)
    )
    out = []
    for part in torch.arange(width).split(width // heads):
        shares = torch.softmax(torch.stack([q[part] @ key[part] for key in keys]) / len(part) ** 0.5, 0)
        out.append(sum(share * value[part] for share, value in zip(shares, values, strict=True)))
    return attention.out_proj(torch.cat(out))


def slow_terms(backbone, crop, masks):
    """(values (P, C), spatial values (P, C), class tokens (R, C) after the final norm) of one crop.

    masks: (R, P) bool.
    """
    visual = backbone.model.visual
    blocks = list(visual.transformer.resblocks)
    seen = []
    tokens = visual.conv1(crop[None]).flatten(2).transpose(1, 2)[0]
    tokens = torch.cat([visual.class_embedding[None], tokens]) + visual.positional_embedding
    tokens = visual.ln_pre(tokens)
    for block in blocks:
        seen.append(tokens)  # the input of every block
        tokens = backbone._block_by_block([block], tokens[None])[0]
    outputs = [*seen[1:], tokens]
    middle = sum(outputs[n] for n in middle_blocks(len(blocks))) / len(middle_blocks(len(blocks)))
    width = tokens.shape[1]
    last = blocks[-1]
    weight, bias = last.attn.in_proj_weight[2 * width :], last.attn.in_proj_bias[2 * width :]
    values, spatial = (F.linear(last.ln_1(x), weight, bias)[1:] for x in (seen[-1], middle))
    classes = []
    for mask in masks:
        copy = seen[0][0]
        for block, inputs in zip(blocks, seen, strict=True):
            allowed = inputs[torch.cat([torch.tensor([True]), mask])]
            copy = copy + slow_attention(block, copy, allowed)
            copy = copy + block.mlp(block.ln_2(copy))
        classes.append(visual.ln_post(copy))
    return values, spatial, torch.stack(classes)


@given(st.integers(0, 999), st.integers(1, 4), st.booleans(), st.booleans(), st.booleans())
def test_tokens_are_the_sentence_written_out(seed, regions, value, spatial, class_token):
    """One squashed crop of 4 x 4 patches; without removal of global patches."""
    backbone, random = clip(), torch.Generator().manual_seed(seed)
    if not (value or spatial or class_token):
        value = True
    recipe = PoolingRecipe(False, False, "own", value, spatial, class_token)
    options = {"recipe": recipe, "resize_method": "resize", "global_patch_threshold": None, "antialias": False}
    segmenter = TextRegionSegmenter(backbone, device="cpu", **options)
    masks = torch.rand(regions, 4, 4, generator=random) > 0.5
    masks[:, 1, 2] = True
    image = torch.randint(0, 256, (32, 32, 3), generator=random).numpy().astype(np.uint8)
    found = segmenter.encode_image(image, RegionMasks(masks, (32, 32), mask_size=(4, 4)))
    crop = backbone.normalise(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)[0]
    visual, inside = backbone.model.visual, masks.flatten(1)
    with torch.inference_mode():
        values, middle, classes = slow_terms(backbone, crop, inside)
        for r in range(regions):
            total = torch.zeros(32)
            for wanted, features in ((value, values), (spatial, middle)):
                if wanted:
                    pooled = sum(features[p] for p in range(16) if inside[r, p])
                    total = total + visual.ln_post(backbone.last_block.attn.out_proj(pooled))
            if class_token:
                total = total + classes[r] / 2
            expected = total @ visual.proj
            torch.testing.assert_close(found.tokens[r], expected / expected.norm(), atol=2e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def photo():
    """(image, masks): 96 x 64 noise and three regions at another resolution, so that there are tiles."""
    random = np.random.default_rng(5)
    masks = np.zeros((3, 48, 32), bool)
    masks[0, :20, :17], masks[1, 20:], masks[2, 3:9, 5:11] = True, True, True
    return random.integers(0, 256, (96, 64, 3), np.uint8), masks


def encode(recipe, photo, **options):
    segmenter = TextRegionSegmenter(clip(), device="cpu", recipe=recipe, scale=(96, 64), **options)
    return segmenter.encode_image(*photo)


def test_with_the_last_two_terms_off_it_is_semantic(photo):
    only = replace(CORRCLIP, spatial=False, class_token=False)
    assert torch.equal(encode(only, photo).tokens, encode("semantic", photo).tokens)
    assert not torch.allclose(encode("corrclip", photo).tokens, encode("semantic", photo).tokens, atol=1e-3)


def test_class_tokens_of_crops_are_averaged_by_their_patches(photo):
    segmenter = TextRegionSegmenter(clip(), device="cpu", recipe=PoolingRecipe(False, False, "own", False, False, True))
    segmenter = TextRegionSegmenter(
        clip(), config=replace(segmenter.config, scale=(96, 64), global_patch_threshold=None), device="cpu"
    )
    resized = segmenter.resize(photo[0])
    grid = segmenter.crop_grid(*resized.shape[:2])
    masks = RegionMasks.from_array(photo[1], photo[0].shape[:2])
    (features,) = segmenter.encode_crops([resized], [grid], [masks])
    assert len(grid.crops) == 7
    total, patches = torch.zeros(3, 32), torch.zeros(3)
    full = torch.from_numpy(photo[1]).repeat_interleave(2, 1).repeat_interleave(2, 2)
    with torch.inference_mode():
        for (y1, x1, y2, x2), classes in zip(grid.crops, features.classes, strict=True):
            rows = [y1 + int((i + 0.5) * (y2 - y1) / 4) for i in range(4)]
            columns = [x1 + int((i + 0.5) * (x2 - x1) / 4) for i in range(4)]
            count = full[:, rows][:, :, columns].flatten(1).sum(1)
            total, patches = total + count[:, None] * classes, patches + count
        expected = F.normalize(total / patches[:, None] @ clip().model.visual.proj, dim=1)
    torch.testing.assert_close(segmenter.pool(features, masks, grid).tokens, expected, atol=2e-5, rtol=1e-4)


def test_a_region_that_no_crop_samples_goes_without_a_class_token(photo):
    image, masks = photo
    masks = np.zeros((1, 96, 64), bool)
    masks[0, 0, 0] = True  # no patch's middle
    options = {"global_patch_threshold": None, "resize_method": "resize"}
    without = encode("corrclip-no-class", (image, masks), **options)
    torch.testing.assert_close(encode("corrclip", (image, masks), **options).tokens, without.tokens)


def test_images_of_a_batch_are_as_alone_and_parts_change_nothing(photo):
    image, masks = photo
    segmenter = TextRegionSegmenter(clip(), device="cpu", recipe="corrclip", scale=(96, 64))
    together = segmenter.encode_images([image, image[::-1].copy()], [masks, masks[:2]])
    assert torch.equal(together[0].tokens, encode("corrclip", photo).tokens)
    assert len(together[1]) == 2
    resized = segmenter.resize(image)
    with pytest.raises(InputError, match="recipe corrclip needs the regions while crops are encoded"):
        segmenter.encode_crops([resized], [segmenter.crop_grid(*resized.shape[:2])])


def test_what_cannot_have_the_terms_is_refused(tiny_siglip):
    with pytest.raises(InputError, match="the siglip family has no recipe corrclip, which is CLIP's"):
        TextRegionSegmenter(tiny_siglip, device="cpu", recipe="corrclip")
    with pytest.raises(InputError, match="has 2 blocks"):
        TextRegionSegmenter(tiny_models.clip(layers=2), device="cpu", recipe="corrclip")
    assert TextRegionSegmenter(tiny_models.clip(layers=2), device="cpu", recipe="corrclip-no-spatial")
    with pytest.raises(InputError, match="pool_feature 'input' with recipe corrclip"):
        SegmenterConfig(recipe="corrclip", pool_feature="input")
    with pytest.raises(InputError, match="a recipe without any term"):
        PoolingRecipe(False, False, value=False)


def test_terms_have_names_for_flags():
    terms = {name: (r.value, r.spatial, r.class_token) for name, r in RECIPES.items() if r.name.startswith("corrclip")}
    assert terms == {
        "corrclip": (True, True, True),
        "corrclip-no-value": (False, True, True),
        "corrclip-no-spatial": (True, False, True),
        "corrclip-no-class": (True, True, False),
    }
