"""CLIP and SigLIP of the package transformers: its own files give open_clip's model with its embeddings."""

from pathlib import Path

import open_clip
import pytest
import tiny_models  # registers the small timm towers
import tiny_transformers
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from textregion.backbones import BackboneSpec
from textregion.backbones.loading import kind_of, load_backbone
from textregion.errors import InputError
from textregion.weights import CLIP_VARIABLE, Asset, locate

TEXT = {"context_length": 13, "vocab_size": 503, "width": 16, "heads": 2, "layers": 2}
VISION = tiny_models.CLIP_VISION | {"image_size": 40}
CLIP_CONFIG = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
SIGLIP_TEXT = {"context_length": 32, "vocab_size": 503, "width": 64, "heads": 2, "layers": 2, "no_causal_mask": True}
SIGLIP_TEXT |= {"proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
SIGLIP_TEXT |= {"act_kwargs": {"approximate": "tanh"}}
SIGLIP_VISION = {"image_size": 64, "timm_model_name": "golden_siglip_tiny_patch8_64", "timm_pool": "map"}
CONFIGS = {
    "hf-clip-quick": CLIP_CONFIG | {"quick_gelu": True},
    "hf-clip-gelu": CLIP_CONFIG,
    "hf-siglip": {
        "embed_dim": 64,
        "custom_text": True,
        "init_logit_bias": -10.0,
        "vision_cfg": SIGLIP_VISION | {"timm_proj": "none"},
        "text_cfg": SIGLIP_TEXT,
    },
}
QUICK, GELU, SIGLIP = (
    BackboneSpec(name, name.split("-")[1], (name, ""), side, width)
    for name, side, width in (("hf-clip-quick", 40, 24), ("hf-clip-gelu", 40, 24), ("hf-siglip", 64, 64))
)


@pytest.fixture(scope="module", autouse=True)
def small_models_known_to_open_clip(tmp_path_factory):
    with tiny_models.known_to_open_clip(CONFIGS, tmp_path_factory.mktemp("model_configs")):
        yield


def load(spec: BackboneSpec, path: Path):
    return load_backbone(spec, path, lambda texts: texts)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """To 1e-6 of the vectors' length."""
    ours, theirs = F.normalize(ours, dim=-1), F.normalize(theirs, dim=-1)
    assert (ours - theirs).norm(dim=-1).max() <= 1e-6


def saved(model, folder: Path, shard: str = "1GB") -> Path:
    model.save_pretrained(folder, max_shard_size=shard)
    files = [path for path in folder.iterdir() if path.suffix == ".safetensors"]
    assert (len(files) > 2) == (shard != "1GB")
    return next(folder.glob("*.index.json"), folder / "model.safetensors")


@pytest.mark.parametrize("shard", ["1GB", "40KB"])
@pytest.mark.parametrize(("act", "spec"), [("quick_gelu", QUICK), ("gelu", GELU)])
def test_a_clip_model_has_its_own_embeddings(tmp_path, shard, act, spec):
    model = tiny_transformers.clip(act)
    backbone = load(spec, saved(model, tmp_path, shard))
    images = torch.randn(3, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[1, 7, 5, 502, *[502] * 9], [1, *range(11, 22), 502]])
    with torch.no_grad():
        close(backbone.model.encode_image(images), model.get_image_features(images).pooler_output)
        close(backbone.model.encode_text(tokens), model.get_text_features(tokens).pooler_output)
    assert torch.equal(backbone.model.logit_scale, model.logit_scale)


@pytest.mark.parametrize("shard", ["1GB", "300KB"])
def test_a_siglip_model_has_its_own_embeddings(tmp_path, shard):
    model = tiny_transformers.siglip()
    backbone = load(SIGLIP, saved(model, tmp_path, shard))
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(503, (2, 32), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        close(backbone.model.encode_image(images), model.get_image_features(images).pooler_output)
        close(backbone.model.encode_text(tokens), model.get_text_features(tokens).pooler_output)
    assert backbone.logit_scale == pytest.approx(float(model.logit_scale.exp()))
    assert backbone.logit_bias == float(model.logit_bias)


def test_a_siglip2_model_of_free_sizes_has_its_embeddings_of_a_square(tmp_path):
    """Its processor flattens patches row by row, colours last."""
    model = tiny_transformers.siglip(naflex=True)
    backbone = load(SIGLIP, saved(model, tmp_path))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    corners = [(slice(y, y + 8), slice(x, x + 8)) for y in range(0, 64, 8) for x in range(0, 64, 8)]
    patches = torch.stack([images[:, :, y, x].permute(0, 2, 3, 1).flatten(1) for y, x in corners], 1)
    mask, shapes = torch.ones(2, 64, dtype=torch.int64), torch.full((2, 2), 8)
    with torch.no_grad():
        theirs = model.get_image_features(patches, mask, shapes).pooler_output
        close(backbone.model.encode_image(images), theirs)


def clip_as_transformers(state: dict) -> dict:
    """An open_clip CLIP's tensors, one by one, by the names that CLIPModel gives them."""
    found = {"logit_scale": state["logit_scale"]}
    found["visual_projection.weight"], found["text_projection.weight"] = (
        state["visual.proj"].T,
        state["text_projection"].T,
    )
    found["text_model.embeddings.position_ids"] = torch.arange(13)[None]
    for ours, theirs in (("visual.", "vision_model."), ("", "text_model.")):
        count = len(
            {name.split("resblocks.")[1].split(".")[0] for name in state if name.startswith(f"{ours}transformer.")}
        )
        for n in range(count):
            for kind in ("weight", "bias"):
                block, layer = f"{ours}transformer.resblocks.{n}.", f"{theirs}encoder.layers.{n}."
                for part, value in zip("qkv", state[f"{block}attn.in_proj_{kind}"].chunk(3), strict=True):
                    found[f"{layer}self_attn.{part}_proj.{kind}"] = value
                pairs = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
                for own, other in (pairs | {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}).items():
                    found[f"{layer}{other}.{kind}"] = state[f"{block}{own}.{kind}"]
    for kind in ("weight", "bias"):
        found[f"vision_model.pre_layrnorm.{kind}"] = state[f"visual.ln_pre.{kind}"]
        found[f"vision_model.post_layernorm.{kind}"] = state[f"visual.ln_post.{kind}"]
        found[f"text_model.final_layer_norm.{kind}"] = state[f"ln_final.{kind}"]
    found["vision_model.embeddings.class_embedding"] = state["visual.class_embedding"]
    found["vision_model.embeddings.patch_embedding.weight"] = state["visual.conv1.weight"]
    found["vision_model.embeddings.position_embedding.weight"] = state["visual.positional_embedding"]
    found["text_model.embeddings.token_embedding.weight"] = state["token_embedding.weight"]
    found["text_model.embeddings.position_embedding.weight"] = state["positional_embedding"]
    return found


def test_open_clips_model_under_transformers_names_comes_back_identical(tmp_path):
    model = tiny_transformers.enliven(open_clip.CLIP(24, VISION, TEXT, quick_gelu=True))
    state = clip_as_transformers(model.state_dict())
    assert state.keys() - tiny_transformers.clip().state_dict().keys() == {"text_model.embeddings.position_ids"}
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "model.safetensors")
    found = load(QUICK, tmp_path / "model.safetensors").model.state_dict()
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())


def test_a_configuration_beside_the_file_must_name_the_rows_gelu(tmp_path):
    path = saved(tiny_transformers.clip("gelu"), tmp_path)
    with pytest.raises(InputError, match=r"says hidden_act 'gelu', but hf-clip-quick takes quick_gelu"):
        load(QUICK, path)
    (tmp_path / "config.json").unlink()
    load(QUICK, path)  # a file alone does not tell


def test_the_family_of_a_file_is_told_and_another_is_refused(tmp_path):
    clip, siglip = saved(tiny_transformers.clip(), tmp_path / "c"), saved(tiny_transformers.siglip(), tmp_path / "s")
    assert (kind_of(load_file(clip)), kind_of(load_file(siglip))) == ("a CLIP", "a SigLIP")
    with pytest.raises(InputError, match="is a SigLIP, but hf-clip-quick is a CLIP"):
        load(QUICK, siglip)
    with pytest.raises(InputError, match="is a CLIP, but hf-siglip is a SigLIP"):
        load(SIGLIP, clip)


@pytest.mark.parametrize("change", ["missing", "shape", "type", "pool", "flat"])
def test_a_file_that_does_not_fit_is_one_line(tmp_path, change):
    spec = SIGLIP if change == "pool" else QUICK
    model = tiny_transformers.siglip() if change == "pool" else tiny_transformers.clip()
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    name = "vision_model.encoder.layers.1.self_attn.k_proj.weight"
    if change == "missing":
        del state[name]
    elif change == "shape":
        state[name] = torch.ones(7, 3)
    elif change == "type":
        state[name] = state[name].half()
    elif change == "flat":
        state["visual_projection.weight"] = torch.ones(5)
    else:
        state["vision_model.head.attention.in_proj_bias"] = torch.ones(())
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"does not fit|has no query, key and value bias"):
        load(spec, tmp_path / "w.safetensors")


def test_a_folder_in_transformers_layout_is_taken(tmp_path):
    asset = Asset("x", "owner/other-name", ("open_clip_model.safetensors",), CLIP_VARIABLE, "--clip_checkpoint")
    tokenizer = Asset("x", "owner/x", ("tokenizer.json",), CLIP_VARIABLE, "--clip_checkpoint", companion=True)
    index = saved(tiny_transformers.clip(), tmp_path, "40KB")
    (tmp_path / "tokenizer.json").write_text("{}")
    assert locate(asset, tmp_path) == index
    assert locate(tokenizer, tmp_path) == tmp_path / "tokenizer.json"
