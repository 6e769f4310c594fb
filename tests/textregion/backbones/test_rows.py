"""Every registered row asked by the contract: its real size on the meta device, and a tiny stand-in."""

import contracts
import open_clip
import pytest
import timm
import torch
from open_clip.pretrained import get_pretrained_cfg

from textregion.backbones import SPECS, find_spec
from textregion.backbones.loading import build_model, stand_in_tokenizer, tokenizer_asset, wrap
from textregion.errors import InputError


@pytest.mark.parametrize("name", SPECS)
def test_contract(name):
    spec = SPECS[name]
    real = contracts.real_size(spec)
    backbone, regions = contracts.stand_in(spec, real)
    if spec.family == "siglip":
        assert (regions.logit_scale, regions.logit_bias) == (float(backbone.model.logit_scale.exp()), -10.0)
    if spec.family in ("pe", "siglip"):
        assert backbone.model.visual.trunk.patch_embed.grid_size == real.model.visual.trunk.patch_embed.grid_size
        with pytest.raises(InputError, match="the input size of"):  # these towers take their own size only
            backbone.check_crop_size(2 * spec.crop_size)


@pytest.mark.parametrize("name", SPECS)
def test_weights_and_preprocessing_are_those_of_the_tag(name):
    contracts.published(SPECS[name])


def test_siglip_needs_a_tokenizer_file():
    needing = {spec.family for spec in SPECS.values() if tokenizer_asset(spec) is not None}
    without = {spec.family for spec in SPECS.values() if tokenizer_asset(spec) is None}
    assert "siglip" in needing - without
    assert {"clip", "pe"} <= without - needing


def test_a_model_of_another_form_than_any_family_is_refused_by_name():
    with pytest.raises(InputError, match=r"convnext_base, expected .*: convnext_base is of none of clip, pe, siglip"):
        find_spec("open_clip:convnext_base/laion400m_s13b_b51k")


def test_every_siglip_and_perception_model_of_open_clip_with_weights_has_a_row():
    known = {spec.open_clip for spec in SPECS.values()}
    published = {
        pair
        for pair in open_clip.list_pretrained()
        if ("SigLIP" in pair[0] and pair[0].startswith("ViT")) or pair[0].startswith("PE-Core")
    }
    assert len(published) == 31
    assert published <= known


def test_rows_with_and_without_class_token_exist():
    vision = {
        name: open_clip.get_model_config(spec.open_clip[0])["vision_cfg"]
        for name, spec in SPECS.items()
        if spec.family == "pe"
    }
    with torch.device("meta"):
        tokens = {name: timm.create_model(c["timm_model_name"]).cls_token for name, c in vision.items()}
    assert tokens["pe-core-bigg14-448"] is None
    assert tokens["pe-core-b16"] is not None


@pytest.mark.parametrize(
    ("name", "model", "family", "crop_size"),
    [
        ("ViT-B-32/laion2b_s34b_b79k", "ViT-B-32", "clip", 224),
        ("ViT-B-16/metaclip_400m", "ViT-B-16-quickgelu", "clip", 336),
        ("ViT-H-14-378/dfn5b", "ViT-H-14-378-quickgelu", "clip", 378),
        ("ViT-L-14/datacomp_xl_s13b_b90k", "ViT-L-14", "clip", 336),
        ("PE-Core-T-16-384/meta", "PE-Core-T-16-384", "pe", 384),
        ("ViT-B-16-SigLIP-256/webli", "ViT-B-16-SigLIP-256", "siglip", 256),
    ],
)
def test_any_open_clip_model_is_a_row_without_new_code(name, model, family, crop_size):
    spec = find_spec(f"open_clip:{name}")
    assert (spec.open_clip[0], spec.family, spec.crop_size) == (model, family, crop_size)
    entry = get_pretrained_cfg(*spec.open_clip)
    assert open_clip.get_model_config(model).get("quick_gelu", False) == entry.get("quick_gelu", False)
    with torch.device("meta"):
        built = build_model(spec)
    backbone = wrap(spec, built, stand_in_tokenizer(built))
    assert backbone.width == spec.width
    assert (backbone.mean, backbone.std) == (tuple(entry["mean"]), tuple(entry["std"]))
    assert backbone.interpolation == entry["interpolation"]
    backbone.check_crop_size(crop_size)


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
        ("convnext_base/laion400m_s13b_b51k", "the image tower is convnext_base, expected open_clip's"),
        ("MobileCLIP-B/datacompdr", "the image tower is vit_base_mci_224, expected open_clip's"),
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
