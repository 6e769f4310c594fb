"""The paper's ablation switches on CLIP against slow forms (method 4, 5.1, 7.6), and their refusal elsewhere."""

import numpy as np
import oracles
import pytest
import torch
from torch.nn import functional as F

from textregion.errors import InputError
from TextRegionSegmenter import TextRegionSegmenter

IMAGE = np.random.default_rng(4).integers(0, 256, (47, 83, 3), dtype=np.uint8)
MASKS = np.zeros((3, 47, 83), np.float32)
MASKS[0, 5:31, 7:43] = 0.4
MASKS[1, 20:, 30:71] = 2.5
MASKS[2] = np.linspace(0, 1, 83)


def segmenter(backbone, **options) -> TextRegionSegmenter:
    return TextRegionSegmenter(backbone, scale=(83, 47), global_patch_threshold=None, device="cpu", **options)


def slow_maps(backbone, views, pool_feature):
    """Every block in turn on the model's own modules; the wanted tokens of the last one, class token dropped."""
    visual = backbone.model.visual
    with torch.no_grad():
        tokens = visual.conv1(views).flatten(2).transpose(1, 2)
        start = visual.class_embedding.expand(len(views), 1, -1)
        tokens = visual.ln_pre(torch.cat([start, tokens], 1) + visual.positional_embedding)
        blocks = list(visual.transformer.resblocks)
        for block in blocks[:-1]:
            tokens = block(tokens)
        last = blocks[-1]
        wanted = {
            "input": lambda: tokens,
            "output": lambda: last(tokens),
            "value": lambda: F.linear(last.ln_1(tokens), last.attn.in_proj_weight[-32:], last.attn.in_proj_bias[-32:]),
        }[pool_feature]()
    return wanted[:, 1:].transpose(1, 2).unflatten(2, (4, 4))


def slow_tokens(backbone, options, views):
    """The whole way in plain steps: maps, upsampling, fusion, weights, sum, projection."""
    feature, times = options.get("pool_feature", "value"), options.get("upsample_times", 1)
    maps = slow_maps(backbone, views, feature)
    maps = oracles.resize(maps.flatten(0, 1), (4 * times, 4 * times)).unflatten(0, maps.shape[:2])
    fused = oracles.fused_views(maps, (1, 2), (1, 1), 1.0)
    grid = oracles.resize(torch.from_numpy(MASKS), tuple(fused.shape[1:])).flatten(1)
    weights = (grid > 0).float() if options.get("mask_type") == "hard" else grid.clamp(0, 1)
    pooled = oracles.weighted_sum(fused.flatten(1).T, weights)
    visual, last = backbone.model.visual, backbone.model.visual.transformer.resblocks[-1]
    with torch.no_grad():
        if feature == "value":
            pooled = last.attn.out_proj(pooled)
            pooled = pooled + last.mlp(last.ln_2(pooled))
        return F.normalize(visual.ln_post(pooled) @ visual.proj, dim=-1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool_feature": "input"},
        {"pool_feature": "output"},
        {"upsample_times": 2},
        {"upsample_times": 3},
        {"mask_type": "hard"},
        {"upsample_times": 2, "pool_feature": "output", "mask_type": "hard"},
    ],
    ids=str,
)
def test_every_switch_is_its_slow_form(tiny_clip, options):
    ours = segmenter(tiny_clip, **options)
    regions = ours.encode_image(IMAGE, masks=MASKS)
    resized = torch.from_numpy(ours.resize(IMAGE)).permute(2, 0, 1).float() / 255
    height, width = resized.shape[1:]
    assert (height // 32, width // 32) == (1, 2)
    half = -(-width // 2)
    crops = [resized, resized[:, :, :half], resized[:, :, width - half :]]
    views = [F.interpolate(c[None], (32, 32), mode="bicubic", align_corners=False, antialias=True) for c in crops]
    slow = slow_tokens(tiny_clip, options, tiny_clip.normalise(torch.cat(views)))
    assert regions.grid == (4 * ours.config.upsample_times, 8 * ours.config.upsample_times)
    torch.testing.assert_close(regions.tokens, slow, atol=2e-5, rtol=1e-4)


def test_the_switches_differ_from_one_another(tiny_clip):
    options = [{}, {"pool_feature": "input"}, {"pool_feature": "output"}, {"upsample_times": 2}, {"mask_type": "hard"}]
    tokens = [segmenter(tiny_clip, **o).encode_image(IMAGE, masks=MASKS).tokens for o in options]
    for i in range(len(tokens)):
        for j in range(i):
            assert (tokens[i] - tokens[j]).abs().max() > 1e-4, (options[i], options[j])


@pytest.mark.parametrize("family", ["tiny_siglip", "tiny_perception"])
def test_pool_feature_is_refused_outside_clip(request, family):
    ours = segmenter(request.getfixturevalue(family), pool_feature="output")
    with pytest.raises(InputError, match="expected 'value': the ablation exists for CLIP only"):
        ours.encode_image(IMAGE, masks=MASKS)


@pytest.mark.parametrize(
    "option",
    [{"pool_feature": "keys"}, {"upsample_times": 0}, {"mask_type": "medium"}, {"resize_method": "crop"}],
    ids=str,
)
def test_bad_switches_are_one_line(tiny_clip, option):
    (name,) = option
    with pytest.raises(InputError, match=f"got {name} ") as error:
        segmenter(tiny_clip, **option)
    assert "\n" not in str(error.value)
