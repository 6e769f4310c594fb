"""Region pooling against the library's own attention pool in its slow form, and PE/SigLIP view splits (method 2.4)."""

from copy import deepcopy

import numpy as np
import oracles
import pytest
import torch
from torch.nn import functional as F

from textregion.crops import CropGrid, cut_crops
from textregion.pooling import RECIPES
from TextRegionSegmenter import TextRegionSegmenter

FAMILIES = ("tiny_siglip", "tiny_perception")


@pytest.fixture(params=FAMILIES)
def backbone(request):
    """A copy of its own: some tests change its weights."""
    return deepcopy(request.getfixturevalue(request.param))


def pooled_slowly(trunk, features, weights):
    """timm's AttentionPoolLatent once per region on its own patches, whose keys all are one constant.

    The key half of `kv` gets zero weights, so that every key is its bias; the pool's MLP is left out (method 7.3).
    """
    pool = trunk.attn_pool
    width = pool.kv.out_features // 2
    kept = pool.kv.weight.detach().clone()
    vectors = []
    with torch.no_grad():
        pool.kv.weight[:width] = 0
        mlp, pool.mlp = pool.mlp, Nothing()
        try:
            for row in weights:
                patches = features[row > 0]
                latent = pool(patches[None])
                vectors.append(trunk.head(trunk.fc_norm(latent))[0])
        finally:
            pool.kv.weight.copy_(kept)
            pool.mlp = mlp
    return F.normalize(torch.stack(vectors), dim=-1)


class Nothing(torch.nn.Module):
    """Adds nothing where a residual branch stood."""

    def forward(self, x):
        return torch.zeros_like(x)


@pytest.mark.parametrize("seed", range(3))
def test_masked_mean_is_attention_pooling_with_a_constant_key(backbone, seed):
    generator = torch.Generator().manual_seed(seed)
    trunk = backbone.model.visual.trunk
    with torch.no_grad():
        trunk.attn_pool.kv.bias.copy_(torch.randn(trunk.attn_pool.kv.bias.shape, generator=generator))
    width = trunk.attn_pool.kv.in_features
    features = torch.randn(23, width, generator=generator)
    weights = torch.rand(5, 23, generator=generator) * (torch.rand(5, 23, generator=generator) > 0.6)
    weights[0] = 1
    assert (weights > 0).any(1).all()
    for recipe in RECIPES.values():
        for unit_values in (False, True):
            fast = backbone.pool(features, weights, recipe, unit_values)
            torch.testing.assert_close(fast, pooled_slowly(trunk, features, weights), atol=1e-6, rtol=1e-5)


def test_the_constant_key_matters(backbone):
    """With its own keys the pool weighs patches unequally: the comparison above can fail."""
    trunk = backbone.model.visual.trunk
    generator = torch.Generator().manual_seed(7)
    features = 3 * torch.randn(23, trunk.attn_pool.kv.in_features, generator=generator)
    trunk_output = trunk.head(trunk.fc_norm(trunk.attn_pool(features[None])))
    fast = backbone.pool(features, torch.ones(1, 23), RECIPES["demo"], unit_values=False)
    assert F.cosine_similarity(fast, trunk_output).item() < 0.999


def test_the_released_pool_of_the_whole_image_is_the_models_own_embedding(backbone):
    """Our patch features are what the model itself pools: class token aside, its own path gives its embedding."""
    trunk = backbone.model.visual.trunk
    views = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    features = backbone.encode_crops(views).pooled.flatten(2).transpose(1, 2)
    own = trunk.forward_features(views)[:, trunk.num_prefix_tokens :]
    torch.testing.assert_close(features, own)


@pytest.mark.parametrize("splits", [(1, 2), (2, 1), (1, 1)])
def test_global_splits_are_fused_cell_by_cell(backbone, splits):
    image = np.random.default_rng(4).integers(0, 256, (130, 197, 3), dtype=np.uint8)
    segmenter = TextRegionSegmenter(
        backbone, scale=(200, 130), global_splits=splits, global_patch_threshold=None, device="cpu"
    )
    resized = segmenter.resize(image)
    grid = CropGrid(*resized.shape[:2], segmenter.config.crop_size, splits)
    features = segmenter.encode_crops([resized], [grid])[0]
    height, width = resized.shape[:2]
    pixels = torch.from_numpy(resized).permute(2, 0, 1).float() / 255
    expected = []
    for i in range(splits[0]):  # the whole image, split, comes first
        for j in range(splits[1]):
            y1, y2 = height * i // splits[0], height * (i + 1) // splits[0]
            x1, x2 = width * j // splits[1], width * (j + 1) // splits[1]
            expected.append(slowly(backbone, pixels[:, y1:y2, x1:x2]))
    rows, columns = height // 64, width // 64
    tall, wide = -(-height // rows), -(-width // columns)
    for i in range(rows):
        for j in range(columns):
            y2, x2 = min(i * tall + tall, height), min(j * wide + wide, width)
            expected.append(slowly(backbone, pixels[:, max(y2 - tall, 0) : y2, max(x2 - wide, 0) : x2]))
    expected = torch.cat(expected)
    torch.testing.assert_close(features.pooled, expected, atol=2e-5, rtol=1e-4)
    fused = oracles.fused_views(expected, (rows, columns), splits, 0.5)
    mask = np.zeros((1, 130, 197), bool)
    mask[:, 20:110, 30:90] = True
    regions = segmenter.encode_image(image, masks=mask)
    weights = oracles.resize(torch.from_numpy(mask).float(), tuple(fused.shape[1:])).flatten(1).clamp(0, 1)
    slow = pooled_slowly(backbone.model.visual.trunk, fused.flatten(1).T, weights)
    assert F.cosine_similarity(regions.tokens, slow).min() > 0.99999


def slowly(backbone, crop):
    """One view on its own: squashed, normalised, through the blocks one after the other."""
    view = cut_crops(crop, [(0, 0, *crop.shape[1:])], 64, backbone.interpolation, antialias=True)
    mean, std = (torch.tensor(v)[:, None, None] for v in (backbone.mean, backbone.std))
    with torch.no_grad():
        trunk = backbone.model.visual.trunk
        tokens = trunk.forward_features((view - mean) / std)[:, trunk.num_prefix_tokens :]
    return tokens.transpose(1, 2).unflatten(2, (8, 8))
