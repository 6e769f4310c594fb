"""Every registered row: its real size on the meta device, and the contract with a tiny stand-in."""

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.model import CustomTextCLIP
from open_clip.pretrained import get_pretrained_cfg

from textregion.backbones import FAMILIES, SPECS, find_spec
from textregion.backbones.loading import build_model, weight_asset, wrap
from textregion.backbones.tokenizers import stand_in_tokenizer, tokenizer_asset
from textregion.crops import CropGrid
from textregion.errors import InputError
from textregion.types import RegionMasks
from TextRegionSegmenter import TextRegionSegmenter

IMAGE = np.random.default_rng(3).integers(0, 256, (37, 53, 3), dtype=np.uint8)
SMALL_TEXT = {"width": 32, "heads": 2, "layers": 1}


@pytest.mark.parametrize("name", SPECS)
def test_the_real_size_is_built_by_open_clip_and_is_as_the_row_says(name):
    spec = SPECS[name]
    with torch.device("meta"):
        model = build_model(spec)
    backbone = wrap(spec, model, stand_in_tokenizer(model))
    assert backbone.width == spec.width
    assert backbone.crop_size == spec.crop_size
    backbone.check_crop_size(spec.crop_size)
    if spec.family != "clip":
        assert model.visual.image_size == (spec.crop_size, spec.crop_size), "these towers take their own size only"
    megabytes = sum(p.numel() for p in model.parameters()) * 4 / 1e6
    assert abs(spec.megabytes - megabytes) < 1, "published as float32"


@pytest.mark.parametrize("name", SPECS)
def test_weights_and_preprocessing_are_those_of_the_tag(name):
    spec = SPECS[name]
    entry = get_pretrained_cfg(*spec.open_clip)
    family = FAMILIES[spec.family]
    assert (spec.mean or family.mean) == tuple(entry["mean"])
    assert (spec.std or family.std) == tuple(entry["std"])
    assert (spec.interpolation or family.interpolation) == entry["interpolation"]
    config = open_clip.get_model_config(spec.open_clip[0])
    assert config.get("quick_gelu", False) == entry.get("quick_gelu", False)
    asset = weight_asset(spec)
    assert asset.repository == entry["hf_hub"].rstrip("/")
    assert asset.files[0].endswith(".safetensors")
    assert (tokenizer_asset(spec) is not None) == (spec.family == "siglip")


def test_every_siglip_and_perception_model_of_open_clip_with_weights_has_a_row():
    known = {spec.open_clip for spec in SPECS.values()}
    published = {
        pair
        for pair in open_clip.list_pretrained()
        if ("SigLIP" in pair[0] and pair[0].startswith("ViT")) or pair[0].startswith("PE-Core")
    }
    assert len(published) == 31
    assert published <= known


def stand_in(spec):
    """The row's own form with few and narrow layers: same input size, patches, class token, embedding width."""
    config = open_clip.get_model_config(spec.open_clip[0])
    narrow = {"layers": 1} if config["text_cfg"].get("proj_type") == "none" else SMALL_TEXT
    text, vision = config["text_cfg"] | narrow, dict(config["vision_cfg"])
    if spec.family == "clip":
        vision |= {"layers": 2, "width": 48, "head_width": 24}
        return open_clip.CLIP(spec.width, vision, text, quick_gelu=config.get("quick_gelu", False)).eval()
    text["vocab_size"] = 503  # the stand-in tokenizer folds into it
    real = real_trunk(vision)
    projected = vision["timm_proj"] is None
    own = {"num_heads": 4, "attn_pool_num_heads": 4, "embed_dim": 64}
    if spec.family == "siglip":
        own = {"num_heads": 8, "embed_dim": spec.width, "weight_init": "skip"}
    classes = spec.width if projected else 0
    trunk = timm.create_model(
        vision["timm_model_name"], global_pool="map", num_classes=classes, depth=1, mlp_ratio=0.25, **own
    )
    for parameter in trunk.parameters():  # quicker than the tower's own initialisation
        torch.nn.init.uniform_(parameter, -0.05, 0.05)
    assert type(trunk) is type(real)
    assert (trunk.cls_token is None) == (real.cls_token is None)
    assert trunk.patch_embed.grid_size == real.patch_embed.grid_size
    placeholder = vision | {"timm_model_name": "test_vit"}  # replaced at once; only the text tower is wanted
    model = CustomTextCLIP(spec.width, placeholder, text, init_logit_bias=config.get("init_logit_bias"))
    model.visual.trunk = trunk
    return model.eval()


def real_trunk(vision):
    """The tower of real size, without memory."""
    with torch.device("meta"):
        return timm.create_model(vision["timm_model_name"])


@pytest.mark.parametrize("name", SPECS)
def test_contract(name):
    spec = SPECS[name]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(11)
        model = stand_in(spec)
    backbone = wrap(spec, model, stand_in_tokenizer(model))
    segmenter = TextRegionSegmenter(
        backbone, scale=(spec.crop_size, spec.crop_size), global_patch_threshold=None, device="cpu"
    )
    resized = segmenter.resize(IMAGE)
    grid = CropGrid(*resized.shape[:2], spec.crop_size)
    features = segmenter.encode_crops(resized, grid)
    side = spec.crop_size // backbone.patch_size
    assert features.pooled.shape[2:] == (side, side)
    masks = np.zeros((4, 37, 53), bool)
    masks[0] = True  # a full mask
    masks[2, 5:30, 7:11] = True
    masks[3] = ~masks[2]  # and 1 is empty
    regions = segmenter.pool(features, RegionMasks.from_array(masks, (37, 53)), grid)
    text = backbone.encode_prompts(["a photo of a cat.", "the sky"])
    assert regions.source_index.tolist() == [0, 2, 3], "the empty mask has no token"
    assert regions.tokens.shape == (3, spec.width)
    assert text.shape == (2, spec.width)
    for vectors in (regions.tokens, text):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    assert regions.similarity(text).abs().max() <= 1 + 1e-5
    nothing = segmenter.pool(features, RegionMasks.from_array(masks[1:2], (37, 53)), grid)
    assert nothing.tokens.shape == (0, spec.width)
    expected = (float(model.logit_scale.exp()), -10.0) if spec.family == "siglip" else (1.0, 0.0)
    assert (regions.logit_scale, regions.logit_bias) == expected


def test_rows_with_and_without_class_token_exist():
    vision = {
        name: open_clip.get_model_config(spec.open_clip[0])["vision_cfg"]
        for name, spec in SPECS.items()
        if spec.family == "pe"
    }
    tokens = {name: real_trunk(config).cls_token for name, config in vision.items()}
    assert {name for name, token in tokens.items() if token is None} == {"pe-core-bigg14-448"}


@pytest.mark.parametrize(
    ("name", "model", "family", "tile"),
    [
        ("ViT-B-32/laion2b_s34b_b79k", "ViT-B-32", "clip", 224),
        ("ViT-B-16/metaclip_400m", "ViT-B-16-quickgelu", "clip", 336),
        ("ViT-H-14-378/dfn5b", "ViT-H-14-378-quickgelu", "clip", 378),
        ("ViT-L-14/datacomp_xl_s13b_b90k", "ViT-L-14", "clip", 336),
        ("PE-Core-T-16-384/meta", "PE-Core-T-16-384", "pe", 384),
        ("ViT-B-16-SigLIP-256/webli", "ViT-B-16-SigLIP-256", "siglip", 256),
    ],
)
def test_any_open_clip_model_is_a_row_without_new_code(name, model, family, tile):
    spec = find_spec(f"open_clip:{name}")
    assert (spec.open_clip[0], spec.family, spec.crop_size) == (model, family, tile)
    entry = get_pretrained_cfg(*spec.open_clip)
    assert open_clip.get_model_config(model).get("quick_gelu", False) == entry.get("quick_gelu", False)
    with torch.device("meta"):
        built = build_model(spec)
    backbone = wrap(spec, built, stand_in_tokenizer(built))
    assert backbone.width == spec.width
    assert (backbone.mean, backbone.std) == (tuple(entry["mean"]), tuple(entry["std"]))
    assert backbone.interpolation == entry["interpolation"]
    backbone.check_crop_size(tile)


def build(name: str):
    with torch.device("meta"):
        spec = find_spec(name)
        return wrap(spec, build_model(spec), lambda texts: texts)


def refusal(name: str) -> str:
    with pytest.raises(InputError) as error:
        build(name)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("RN50/openai", "the image tower is ModifiedResNet, expected open_clip's VisionTransformer"),
        ("ViT-L-14-CLIPA/datacomp1b", "pools by attention or average"),
        ("coca_ViT-B-32/laion2b_s13b_b90k", "caption decoder"),
        ("xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k", "text tower outside open_clip"),
        ("convnext_base/laion400m_s13b_b51k", "the image tower is TimmModel, expected open_clip's"),
        ("MobileCLIP-B/datacompdr", "the image tower is TimmModel, expected open_clip's"),
    ],
)
def test_models_of_another_form_are_refused_with_one_line_that_says_why(name, why):
    assert why in refusal(f"open_clip:{name}")


def test_unknown_names_list_the_valid_ones():
    assert "expected one of clip-vit-b16, " in refusal("clip-vit-b17")
    assert "open_clip has no model 'ViT-B-17'" in refusal("open_clip:ViT-B-17/openai")
    assert refusal("open_clip:ViT-H-14/openai").endswith(
        "for ViT-H-14; expected one of laion2b_s32b_b79k, metaclip_fullcc, metaclip_altogether, dfn5b"
    )
