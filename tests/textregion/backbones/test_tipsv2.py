"""TIPSv2 on small random models of transformers' own class: patches and regions against the formula written naively."""

import json

import numpy as np
import pytest
import timm
import tiny_transformers
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from torch.nn import functional as F
from transformers import Tipsv2Config, Tipsv2Model

from textregion.backbones import SPECS, BackboneSpec
from textregion.backbones.loading import load_backbone, tokenizer_of
from textregion.backbones.tipsv2 import Tipsv2, Tipsv2Backbone
from textregion.errors import InputError
from textregion.pooling import PoolingRecipe
from TextRegionSegmenter import TextRegionSegmenter

SMALL = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION = SMALL | {"image_size": 70, "patch_size": 14, "mlp_ratio": 2}
TEXT = SMALL | {"intermediate_size": 40, "vocab_size": 61}
CROPS = torch.rand(2, 3, 70, 70, generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=[False, True], ids=["mlp", "swiglu"])
def backbone(request) -> Tipsv2Backbone:
    model = tiny_transformers.enliven(Tipsv2(VISION | {"use_swiglu_ffn": request.param}, TEXT), scale=1.5)
    return Tipsv2Backbone(model, lambda texts: torch.zeros(len(texts), 64, dtype=torch.long), "small", 70)


def last_input(visual, crops):
    """Patches before the last block, by transformers' own forward pass."""
    kept = []
    handle = visual.encoder.layer[-1].register_forward_pre_hook(lambda _module, given: kept.append(given[0]))
    with torch.no_grad():
        visual(crops)
    handle.remove()
    return kept[0][:, 2:]  # class token and register


def norm(x, layer):
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    return x * layer.weight + layer.bias


def naive(visual, x, values):
    """y = x + ls1(proj(V)), unit(norm(y + ls2(mlp(norm2(y)))))"""
    block = visual.encoder.layer[-1]
    y = x + block.layer_scale1.lambda1 * (values @ block.attention.o_proj.weight.T + block.attention.o_proj.bias)
    y = y + block.layer_scale2.lambda1 * block.mlp(norm(y, block.norm2))
    y = norm(y, visual.layernorm)
    return y / y.norm(dim=-1, keepdim=True)


def values_of(visual, x):
    block = visual.encoder.layer[-1]
    return norm(x, block.norm1) @ block.attention.v_proj.weight.T + block.attention.v_proj.bias


def test_dense_features_are_the_last_block_with_values_for_attention(backbone):
    visual = backbone.model.visual
    features = backbone.encode_crops(CROPS, dense=True)
    x = last_input(visual, CROPS)
    expected = naive(visual, x, values_of(visual, x))
    torch.testing.assert_close(features.dense.flatten(2).transpose(1, 2), expected, rtol=0, atol=1e-5)
    assert features.pooled.shape == (2, 48, 5, 5)


def test_regions_are_the_block_on_their_mean_values(backbone):
    visual = backbone.model.visual
    features = backbone.encode_crops(CROPS, dense=True)
    patches = features.pooled[0].flatten(1).T
    weights = torch.rand(3, 25, generator=torch.Generator().manual_seed(5))
    weights[1] = 0
    weights[1, 7] = 0.3
    found = backbone.pool(patches, weights, PoolingRecipe.named("demo"), unit_values=False)
    x = last_input(visual, CROPS[:1])[0]
    for row, token in zip(weights, found, strict=True):
        mean = sum(w * p for w, p in zip(row, x, strict=True)) / row.sum()
        value = sum(w * p for w, p in zip(row, values_of(visual, x), strict=True)) / row.sum()
        torch.testing.assert_close(token, naive(visual, mean, value), rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1], features.dense[0].flatten(1).T[7], rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="the ablation exists for CLIP only"):
        backbone.encode_crops(CROPS, pool_feature="input")


def timm_tower(visual) -> nn.Module:
    """timm's tower of the same weights: the class token has its position in it, q, k, v and both gates are joined."""
    state = {name: value for name, value in visual.state_dict().items() if "mask_token" not in name}
    swiglu = "encoder.layer.0.mlp.gate_proj.weight" in state
    hidden = len(state[f"encoder.layer.0.mlp.{'gate_proj' if swiglu else 'fc1'}.weight"]) * (1 + swiglu)
    size = {"img_size": 70, "embed_dim": 24, "depth": 3, "num_heads": 2, "mlp_ratio": hidden / 24}
    tower = timm.create_model(f"vit_{'giant' if swiglu else 'base'}_patch14_reg1_tipsv2", **size).eval()
    positions = state["embeddings.position_embeddings"]
    made = {"cls_token": state["embeddings.cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}
    made["reg_token"] = state["embeddings.register_tokens"]
    for part in ("weight", "bias"):
        made |= {f"patch_embed.proj.{part}": state[f"embeddings.patch_embeddings.projection.{part}"]}
        made |= {f"norm.{part}": state[f"layernorm.{part}"]}
        for n in range(3):
            old, new = f"encoder.layer.{n}.", f"blocks.{n}."
            qkv = [state[f"{old}attention.{letter}_proj.{part}"] for letter in "qkv"]
            made |= {
                f"{new}attn.qkv.{part}": torch.cat(qkv),
                f"{new}attn.proj.{part}": state[f"{old}attention.o_proj.{part}"],
            }
            made |= {f"{new}{norm}.{part}": state[f"{old}{norm}.{part}"] for norm in ("norm1", "norm2")}
            first, last = (["gate_proj", "up_proj"], "down_proj") if swiglu else (["fc1"], "fc2")
            made[f"{new}mlp.fc1.{part}"] = torch.cat([state[f"{old}mlp.{name}.{part}"] for name in first])
            made[f"{new}mlp.fc2.{part}"] = state[f"{old}mlp.{last}.{part}"]
    scales = {
        f"blocks.{n}.ls{i}.gamma": state[f"encoder.layer.{n}.layer_scale{i}.lambda1"] for n in range(3) for i in (1, 2)
    }
    tower.load_state_dict({**made, **scales}, strict=True)
    return tower


def test_the_tower_is_timms_on_the_same_weights(backbone):
    tower, kept = timm_tower(backbone.model.visual), []
    tower.blocks[-1].register_forward_pre_hook(lambda _module, given: kept.append(given[0]))
    with torch.no_grad():
        found = backbone.model.visual(CROPS).last_hidden_state
        torch.testing.assert_close(found, tower.forward_features(CROPS), rtol=0, atol=1e-5)
        block, x = tower.blocks[-1], kept[0]
        y = x + block.ls1(block.attn.proj(block.attn.qkv(block.norm1(x))[..., 48:]))
        y = F.normalize(tower.norm(y + block.ls2(block.mlp(block.norm2(y))))[:, 2:], dim=-1)
    dense = backbone.encode_crops(CROPS, dense=True).dense
    torch.testing.assert_close(dense.flatten(2).transpose(1, 2), y, rtol=0, atol=1e-5)


def test_an_image_goes_through_as_with_every_backbone(backbone):
    segmenter = TextRegionSegmenter(backbone, scale=(140, 70), dense_fallback=True, device="cpu")
    masks = np.zeros((2, 37, 53), bool)
    masks[0, :, :30] = masks[1, 20:] = True
    image = np.random.default_rng(3).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    tokens = segmenter.encode_image(image, masks)
    assert tokens.dense.shape[0] == 24
    torch.testing.assert_close(tokens.tokens.norm(dim=1), torch.ones(len(tokens)))
    assert (backbone.normalise(CROPS) == CROPS).all(), "the model sees 0..1"


def test_a_file_of_transformers_gives_its_words_and_its_tower(tmp_path, monkeypatch):
    spec = BackboneSpec("tipsv2-b14", "tipsv2", ("TIPSv2-B-14", "webli"), 70, 24, repository="google/tipsv2-b14")
    monkeypatch.setattr(Tipsv2Backbone, "build", classmethod(lambda cls, spec: Tipsv2(VISION, TEXT)))
    theirs = tiny_transformers.enliven(Tipsv2Model(Tipsv2Config(vision_config=VISION, text_config=TEXT)))
    state = {name: value for name, value in theirs.state_dict().items() if name != "temperature"}
    save_file(state, tmp_path / "model.safetensors")
    pieces = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "a": 2, "red": 3, "star": 4}, "<unk>"))
    pieces.normalizer, pieces.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    pieces.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>"}))
    tokenizer = tokenizer_of(spec, tmp_path / "tokenizer.json")
    loaded = load_backbone(spec, tmp_path / "model.safetensors", tokenizer)
    tokens = tokenizer(["A red   star", "star"])
    assert tokens.shape == (2, 64)
    assert tokens[0, :4].tolist() == [2, 3, 4, 0]
    with torch.no_grad():
        words = theirs.get_text_features(tokens, (tokens != 0).long()).pooler_output
        image = theirs.vision_model(CROPS).last_hidden_state
        torch.testing.assert_close(loaded.model.visual(CROPS).last_hidden_state, image, rtol=0, atol=0)
    torch.testing.assert_close(loaded.encode_prompts(["a red star", "star"]), F.normalize(words, dim=-1))
    save_file({**state, "text_model.more": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"other\.safetensors"):
        load_backbone(spec, tmp_path / "other.safetensors", tokenizer)


def test_the_rows_are_the_four_published_sizes():
    widths = {name: spec.width for name, spec in SPECS.items() if spec.family == "tipsv2"}
    assert widths == {"tipsv2-b14": 768, "tipsv2-l14": 1024, "tipsv2-so400m14": 1152, "tipsv2-g14": 1536}
