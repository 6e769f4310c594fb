import bounds
import oracles
import pytest
import tiny_models
import torch
from open_clip.model import CLIP
from torch import nn
from torch.nn import functional as F

from textregion.backbones import ClipBackbone
from textregion.errors import InputError
from textregion.pooling import RECIPES
from textregion.text import TEMPLATES

VISION = tiny_models.CLIP_VISION


@pytest.fixture
def views(random) -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=random)


def reference(backbone: ClipBackbone, views: torch.Tensor):
    """Tokens at the input of the last block, seen by a hook while open_clip runs its own forward."""
    seen = []
    block = backbone.model.visual.transformer.resblocks[-1]
    handle = block.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    with torch.inference_mode():
        backbone.model.encode_image(views)
    handle.remove()
    return seen[0] if backbone.model.visual.transformer.batch_first else seen[0].transpose(0, 1)


def patches(maps: torch.Tensor) -> torch.Tensor:
    """(T, C, g, g) to (T, P, C)."""
    return maps.flatten(2).transpose(1, 2)


# ---------------------------------------------------------------- features


def test_input_tokens_are_those_of_open_clip(tiny_clip, views):
    maps = tiny_clip.encode_crops(views, "input").pooled
    assert maps.shape == (3, 32, 4, 4)
    torch.testing.assert_close(patches(maps), reference(tiny_clip, views)[:, 1:], rtol=0, atol=2e-5)


def test_output_tokens_are_those_of_the_last_block(tiny_clip, views):
    tokens = reference(tiny_clip, views)
    with torch.inference_mode():
        block = tiny_clip.model.visual.transformer.resblocks[-1]
        expected = block(tokens if tiny_clip.model.visual.transformer.batch_first else tokens.transpose(0, 1))
    expected = expected if tiny_clip.model.visual.transformer.batch_first else expected.transpose(0, 1)
    maps = tiny_clip.encode_crops(views, "output").pooled
    torch.testing.assert_close(patches(maps), expected[:, 1:], rtol=0, atol=5e-5)


def test_values_are_the_last_third_of_the_in_projection(tiny_clip, views):
    block = tiny_clip.model.visual.transformer.resblocks[-1]
    with torch.inference_mode():
        packed = block.ln_1(reference(tiny_clip, views)) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
    maps = tiny_clip.encode_crops(views).pooled
    torch.testing.assert_close(patches(maps), packed[:, 1:, 64:], rtol=0, atol=5e-5)


def test_patches_lie_where_they_were_in_the_image():
    """Before the only block nothing is mixed: a change of one patch shows in its own cell only."""
    views = torch.zeros(2, 3, 32, 32)
    views[1, :, 8:16, 24:32] = 3.0
    maps = tiny_models.clip(layers=1).encode_crops(views, "input").pooled
    change = (maps[1] - maps[0]).norm(dim=0)
    assert (change > 0).nonzero().tolist() == [[1, 3]]


# ---------------------------------------------------------------- positions at another size


def test_positions_at_the_own_size_are_untouched(tiny_clip):
    assert tiny_clip.position_embedding(4) is tiny_clip.model.visual.positional_embedding


@pytest.mark.parametrize("side", [2, 3, 5, 7, 11])
def test_positions_at_another_size(tiny_clip, side):
    own = tiny_clip.model.visual.positional_embedding
    grid = own[1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    expected = F.interpolate(
        grid, scale_factor=((side + 0.1) / 4, (side + 0.1) / 4), mode="bicubic", align_corners=False, antialias=False
    )
    resized = tiny_clip.position_embedding(side)
    assert resized.shape == (side * side + 1, 32)
    assert torch.equal(resized[0], own[0])
    torch.testing.assert_close(resized[1:], expected[0].permute(1, 2, 0).reshape(-1, 32))
    by_size = F.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
    assert not torch.allclose(expected, by_size, atol=1e-4)  # scale_factor, not size


def test_larger_views_have_more_patches(tiny_clip):
    features = tiny_clip.encode_crops(torch.randn(1, 3, 56, 56), dense=True)
    assert features.pooled.shape == (1, 32, 7, 7)
    assert features.dense.shape == (1, 24, 7, 7)


# ---------------------------------------------------------------- dense fallback


def test_dense_features_equal_loops_over_heads(tiny_clip, views):
    visual, block = tiny_clip.model.visual, tiny_clip.model.visual.transformer.resblocks[-1]
    dense = patches(tiny_clip.encode_crops(views, dense=True).dense)
    with torch.inference_mode():
        for tokens, actual in zip(reference(tiny_clip, views), dense, strict=True):
            packed = F.linear(block.ln_1(tokens), block.attn.in_proj_weight, block.attn.in_proj_bias)
            query, key, value = packed.chunk(3, 1)
            heads = []
            for h in range(block.attn.num_heads):
                part = slice(16 * h, 16 * h + 16)
                heads.append(
                    oracles.self_attention(query[:, part], value[:, part])
                    + oracles.self_attention(key[:, part], value[:, part])
                )
            out = tokens + block.attn.out_proj(torch.cat(heads, 1))
            out = out + block.mlp(block.ln_2(out))
            out = visual.ln_post(out) @ visual.proj
            expected = out / out.norm(dim=1, keepdim=True)
            torch.testing.assert_close(actual, expected[1:], rtol=0, atol=2e-5)


# ---------------------------------------------------------------- pooling


@pytest.mark.parametrize("recipe", [name for name in RECIPES if not RECIPES[name].further_terms])
@pytest.mark.parametrize("unit_values", [False, True])
def test_pooling_equals_region_by_region(tiny_clip, recipe, unit_values, random):
    visual, block = tiny_clip.model.visual, tiny_clip.model.visual.transformer.resblocks[-1]
    values = torch.randn(13, 32, generator=random)
    weights = torch.rand(5, 13, generator=random) * (torch.rand(5, 13, generator=random) > 0.5)
    tokens = tiny_clip.pool(values, weights, RECIPES[recipe], unit_values)
    assert tokens.shape == (5, 24)
    for row, actual in zip(weights, tokens, strict=True):
        with torch.inference_mode():
            unit = values / values.norm(dim=1, keepdim=True) if unit_values else values
            pooled = block.attn.out_proj(sum(row[p] * unit[p] for p in range(13)))
            if recipe == "demo":
                pooled = pooled + block.mlp(block.ln_2(pooled))
            out = visual.ln_post(pooled) @ visual.proj
        torch.testing.assert_close(actual, out / out.norm(), rtol=0, atol=2e-5)


def test_recipes_differ(tiny_clip, random):
    values, weights = torch.randn(13, 32, generator=random), torch.rand(5, 13, generator=random)
    tokens = [tiny_clip.pool(values, weights, RECIPES[r], u) for r in ("demo", "semantic") for u in (False, True)]
    for i in range(4):
        for j in range(i):
            assert F.cosine_similarity(tokens[i], tokens[j]).min() < 0.999


@pytest.mark.parametrize("feature", ["input", "output"])
def test_pooling_other_features_skips_the_out_projection(tiny_clip, feature, random):
    visual = tiny_clip.model.visual
    features, weights = torch.randn(13, 32, generator=random), torch.rand(5, 13, generator=random)
    tokens = tiny_clip.pool(features, weights, RECIPES["demo"], False, feature)
    with torch.inference_mode():
        expected = F.normalize(visual.ln_post(weights @ features) @ visual.proj, dim=1)
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5)


def test_no_region(tiny_clip):
    assert tiny_clip.pool(torch.ones(13, 32), torch.zeros(0, 13), RECIPES["demo"], True).shape == (0, 24)


# ---------------------------------------------------------------- words


def test_labels_are_the_mean_of_unit_prompts(tiny_clip):
    (embedding,) = tiny_clip.encode_labels(["dog"])
    unit = []
    for template in TEMPLATES:
        with torch.inference_mode():
            vector = tiny_clip.model.encode_text(tiny_clip.tokenizer([template("dog")]))[0]
        unit.append(vector / vector.norm())
    mean = sum(unit) / 80
    torch.testing.assert_close(embedding, mean / mean.norm(), rtol=0, atol=1e-5)


# ---------------------------------------------------------------- shape and refusals


def test_properties(tiny_clip):
    assert (tiny_clip.patch_size, tiny_clip.width, tiny_clip.crop_size) == (8, 24, 32)
    assert tiny_clip.has_dense_fallback
    assert (tiny_clip.logit_scale, tiny_clip.logit_bias) == (1.0, 0.0)
    assert not any(p.requires_grad for p in tiny_clip.model.parameters())


def test_normalising(tiny_clip):
    views = tiny_clip.normalise(torch.full((1, 3, 2, 2), 0.5))
    expected = [(0.5 - m) / s for m, s in zip(tiny_clip.mean, tiny_clip.std, strict=True)]
    rounding = bounds.steps(1.0, torch.float32, 8)  # of numbers near 0.5, of which little is left, divided by 0.27
    assert views[0, :, 0, 0].tolist() == pytest.approx(expected, rel=0, abs=rounding)
    assert tiny_clip.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)


@pytest.mark.parametrize("size", [0, 7, 33, -8])
def test_bad_crop_sizes(tiny_clip, size):
    with pytest.raises(InputError, match="multiple of the patch size 8"):
        tiny_clip.check_crop_size(size)


def refused(model: nn.Module) -> str:
    with pytest.raises(InputError) as error:
        ClipBackbone.from_model(model, lambda texts: torch.zeros(len(texts), 24, dtype=torch.long))
    assert "\n" not in str(error.value)
    return str(error.value)


def model_with(**vision) -> CLIP:
    return CLIP(24, VISION | vision, tiny_models.CLIP_TEXT)


def test_attention_pooling_is_refused():
    assert "pools by attention" in refused(model_with(attentional_pool=True, attn_pooler_heads=2))


@pytest.mark.parametrize("options", [{"pool_type": "avg"}, {"final_ln_after_pool": True}])
def test_other_pooling_is_refused(options):
    assert "class token" in refused(model_with(**options))


def test_timm_towers_are_refused():
    assert "SiglipBackbone" in refused(tiny_models.timm_model("golden_siglip_tiny_patch8_64", 64))


def test_convolutional_towers_are_refused():
    model = CLIP(24, {"image_size": 32, "layers": (1, 1, 1, 1), "width": 8}, tiny_models.CLIP_TEXT)
    assert "ModifiedResNet" in refused(model)


def test_layer_scale_is_refused():
    assert "LayerScale" in refused(model_with(ls_init_value=0.1))


def test_custom_blocks_are_refused():
    assert "CustomResidualAttentionBlock" in refused(model_with(block_type="custom", qk_norm=True))


def test_models_without_an_image_tower_are_refused():
    assert "NoneType" in refused(nn.Linear(2, 2))
