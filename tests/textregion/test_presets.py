"""Presets: what each name builds, the published programs' flags, the table, and files in their original formats."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import tiny_models
import torch
from huggingface_hub import constants

from textregion import presets, weights
from textregion.backbones import SPECS, ClipBackbone, find_spec
from textregion.backbones.loading import build_model
from textregion.errors import InputError
from textregion.masks import Sam2MaskGenerator, SlicMasks
from textregion.masks.sam2_model import build_sam2
from textregion.pooling import RECIPES
from textregion.presets import assets_of, find_preset, preset_for, preset_names
from TextRegionSegmenter import TextRegionSegmenter

IMAGE = np.random.default_rng(6).integers(0, 256, (61, 97, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def offline_and_empty(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(weights, "OLD_CLIP_CACHE", tmp_path / "old")
    for name in (weights.CLIP_VARIABLE, weights.SAM2_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def refusal(name: str, **options) -> str:
    with pytest.raises(InputError) as error:
        TextRegionSegmenter.from_preset(name, device="cpu", **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_backbone_row_is_a_preset_and_every_preset_is_complete():
    assert preset_names()[0] == "tiny"
    assert set(SPECS) <= set(preset_names())
    for name in preset_names():
        preset = find_preset(name)
        assert preset.options["recipe"] in RECIPES
        assert preset.masks["points_per_side"] == 16
        if name != "tiny":
            assert find_spec(preset.backbone).name == preset.backbone
            assert preset.sam2 == "large"
        if name in SPECS:
            assert preset.backbone == name
            assert (preset.mask_source, preset.options["recipe"]) == ("sam2", "demo")


def test_a_presets_own_mask_source_is_made_and_another_wins_over_it(monkeypatch):
    combined = replace(find_preset("tiny"), mask_source="slic")
    monkeypatch.setattr(presets, "find_preset", lambda name: combined)
    assert isinstance(TextRegionSegmenter.from_preset("x", device="cpu").mask_generator, SlicMasks)
    explicit = TextRegionSegmenter.from_preset("x", device="cpu", mask_generator="sam2")
    assert isinstance(explicit.mask_generator, Sam2MaskGenerator)
    assert TextRegionSegmenter.from_preset("x", device="cpu", mask_generator=None).mask_generator is None


def test_combinations_name_published_methods_pieces():
    for name, backbone, source in (
        ("clip-vit-b16-eomt", "clip-vit-b16", "eomt"),
        ("clip-vit-l14-336-eomt", "clip-vit-l14-336", "eomt"),
        ("pe-core-l14-336-sam3", "pe-core-l14-336", "sam3"),
    ):
        preset = find_preset(name)
        assert (preset.backbone, preset.mask_source, preset.with_memory) == (backbone, source, True)
        assert preset.options["mode_per_mask"] is True
        assert assets_of(name) == assets_of(backbone)[:-1], "no SAM 2.1 is fetched"
    assert find_preset("clip-vit-b16-eomt").options["recipe"] == "corrclip"
    assert "random weights are not for the mask source eomt" in refusal("clip-vit-b16-eomt", random_weights=True)


def test_an_unknown_preset_lists_the_valid_ones():
    text = refusal("clip-vit-l15")
    assert text.startswith("unknown preset 'clip-vit-l15'; expected one of tiny, clip-vit-l14-336, ")
    assert text.endswith(", or open_clip:MODEL/TAG")
    assert find_preset("open_clip:ViT-B-32/laion2b_s34b_b79k").sam2 == "large"


def test_tiny_needs_no_file_and_segments():
    segmenter = TextRegionSegmenter.from_preset("tiny", device="cpu", points_per_side=3)
    config = segmenter.config
    assert (config.scale, config.crop_size, config.dense_fallback) == ((768, 256), 96, True)
    assert config.recipe.name == "semantic"
    assert isinstance(segmenter.mask_generator, Sam2MaskGenerator)
    assert segmenter.mask_generator.model.image_size == 256
    assert segmenter.mask_generator.points_per_side == 3
    result = segmenter.segment(IMAGE, ["red square", "sky"])
    assert result.label_map.shape == (61, 97)


def test_options_override_the_preset():
    segmenter = TextRegionSegmenter.from_preset(
        "tiny",
        device="cpu",
        recipe="semantic-fp32",
        scale=(192, 96),
        dense_fallback=False,
        min_size=7,
        return_non_overlapping=True,
        global_patch_threshold=None,
    )
    config = segmenter.config
    assert (config.recipe.name, config.scale, config.dense_fallback) == ("semantic-fp32", (192, 96), False)
    assert config.global_patch_threshold is None
    generator = segmenter.mask_generator
    assert (generator.min_size, generator.return_non_overlapping, generator.points_per_side) == (7, True, 16)


def test_the_mask_generator_may_be_none_named_or_an_own_object():
    def made(generator):
        return TextRegionSegmenter.from_preset("tiny", device="cpu", mask_generator=generator).mask_generator

    own = SlicMasks(5)
    assert made(None) is None
    assert isinstance(made("slic"), SlicMasks)
    assert isinstance(made("sam2"), Sam2MaskGenerator)
    assert made(own) is own
    assert "unknown mask source 'sam9'" in refusal("tiny", mask_generator="sam9")
    assert "the mask source boxes must be given a Sam2MaskGenerator" in refusal("tiny", mask_generator="boxes")


def test_random_weights_need_no_file_are_repeatable_and_leave_the_random_state_alone():
    before = torch.get_rng_state()
    first, second = (
        TextRegionSegmenter.from_preset(
            "pe-core-t16-384",
            random_weights=True,
            model_cfg="tiny",
            device="cpu",
            scale=(384, 384),
            global_patch_threshold=None,
        )
        for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert first.mask_generator.model.image_size == 1024
    for part in (lambda s: s.backbone.model, lambda s: s.mask_generator.model):
        theirs = part(second).state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in part(first).state_dict().items())
    regions = first.encode_image(IMAGE, masks=np.ones((1, 61, 97), bool))
    assert regions.tokens.shape == (1, 512)


def test_random_weights_and_a_file_exclude_each_other():
    text = refusal("clip-vit-b16", random_weights=True, clip_checkpoint="w.pt")
    assert text == "got --clip_checkpoint and random weights, which exclude each other; leave one out"


def test_nothing_found_is_one_line_for_all_files_before_anything_is_loaded():
    text = refusal("siglip2-l16-256")
    for file in (
        "open_clip_model.safetensors of timm/ViT-L-16-SigLIP2-256",
        "tokenizer.json of timm/ViT-L-16-SigLIP2-256",
        "sam2.1_hiera_large.pt of facebook/sam2.1-hiera-large",
    ):
        assert file in text
    assert weights.CLIP_VARIABLE in text
    assert weights.SAM2_VARIABLE in text
    assert "sam2.1_hiera_large" not in refusal("clip-vit-b16", mask_generator=None)
    assert "sam2.1_hiera_tiny.pt" in refusal("clip-vit-b16", model_cfg="configs/sam2.1/sam2.1_hiera_t.yaml")


def test_explicit_paths_must_exist_and_fit(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"")
    assert "--clip_checkpoint names" in refusal("clip-vit-b16", clip_checkpoint=tmp_path / "none.pt")
    files = {"clip_checkpoint": tmp_path / "w.pt", "sam2_checkpoint": tmp_path / "none.pt"}
    assert "--sam2_checkpoint names" in refusal("clip-vit-b16", **files)
    files["sam2_checkpoint"] = tmp_path / "w.pt"
    assert f"{tmp_path / 'w.pt'} " in refusal("clip-vit-b16", **files)
    assert "brings its own image-text model" in refusal("tiny", clip_checkpoint=tmp_path / "w.pt")
    text = refusal("clip-vit-b16", clip_checkpoint=tmp_path / "w.pt", model_cfg=tiny_models.SAM2_CONFIG)
    assert text.endswith("is not a published size; give its weights as --sam2_checkpoint")


@pytest.fixture(scope="module")
def original_files(tmp_path_factory):
    """Real sizes in the formats of their first publication: OpenAI's ViT-B/32, SAM 2.1 tiny, random weights."""
    folder = tmp_path_factory.mktemp("originals")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        clip, sam2 = build_model(SPECS["clip-vit-b32"]), build_sam2("tiny")
    sizes = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    state = {name: value.half() for name, value in clip.state_dict().items()}
    torch.save(state | {name: torch.tensor(n) for name, n in sizes.items()}, folder / "ViT-B-32.pt")
    torch.save({"model": sam2.state_dict()}, folder / "sam2.1_hiera_tiny.pt")
    return folder, clip, sam2


@pytest.mark.parametrize("how", ["explicit", "download root", "environment"])
def test_original_files_become_a_segmenter(original_files, monkeypatch, how):
    folder, clip, sam2 = original_files
    options = {"model_cfg": "tiny"}
    if how == "explicit":
        paths = {"clip_checkpoint": "ViT-B-32.pt", "sam2_checkpoint": "sam2.1_hiera_tiny.pt"}
        options = {name: folder / path for name, path in paths.items()}  # the size is found in the file
    elif how == "download root":
        options["clip_download_root"] = folder
    else:
        monkeypatch.setenv(weights.CLIP_VARIABLE, str(folder / "ViT-B-32.pt"))
        monkeypatch.setenv(weights.SAM2_VARIABLE, str(folder))
    segmenter = TextRegionSegmenter.from_preset("clip-vit-b32", device="cpu", scale=(224, 224), **options)
    assert torch.equal(segmenter.backbone.model.visual.proj, clip.visual.proj.half().float())
    loaded = segmenter.mask_generator.model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in sam2.state_dict().items())
    if how == "explicit":
        regions = segmenter.encode_image(IMAGE, masks=np.ones((1, 61, 97), bool))
        expected = ClipBackbone.from_model(
            deepcopy(clip).half().float(), open_clip.get_tokenizer("ViT-B-32"), crop_size=224
        )
        own = TextRegionSegmenter(expected, scale=(224, 224), device="cpu")
        torch.testing.assert_close(regions.tokens, own.encode_image(IMAGE, masks=np.ones((1, 61, 97), bool)).tokens)


@pytest.mark.parametrize(
    ("pretrained", "architecture", "preset"),
    [
        (None, None, "clip-vit-l14-336"),
        ("openai", None, "clip-vit-l14-336"),
        ("openai", "ViT-L/14@336px", "clip-vit-l14-336"),
        ("openai", "ViT-L-14-336", "clip-vit-l14-336"),
        ("openai", "ViT-L/14", "clip-vit-l14"),
        ("openai", "ViT-B/16", "clip-vit-b16"),
        (None, "ViT-B/16", "clip-vit-b16"),
        ("laion2b_s32b_b79k", None, "openclip-vit-h14"),
        ("laion2b_s32b_b79k", "ViT-H-14", "openclip-vit-h14"),
        ("laion2b_s32b_b79k", "ViT-H/14", "openclip-vit-h14"),
        ("siglip2", None, "siglip2-l16-256"),
        ("siglip2", "ViT-L-16-SigLIP2-256", "siglip2-l16-256"),
        ("siglip2", "ViT-B-16-SigLIP2-512", "siglip2-b16-512"),
        ("meta", None, "pe-core-l14-336"),
        ("meta", "PE-Core-L14-336", "pe-core-l14-336"),
        ("meta", "PE-Core-L-14-336", "pe-core-l14-336"),
        ("meta", "PE-Core-B16-224", "pe-core-b16"),
        ("meta", "PE-Core-G14-448", "pe-core-bigg14-448"),
        ("laion2b_s34b_b88k", "ViT-B-16", "openclip-vit-b16"),
        ("datacomp_xl_s13b_b90k", "ViT-B-16", "open_clip:ViT-B-16/datacomp_xl_s13b_b90k"),
    ],
)
def test_the_published_flags_mean_a_preset(pretrained, architecture, preset):
    assert preset_for(pretrained, architecture) == preset
    assert find_preset(preset).name == preset


@pytest.mark.parametrize(
    ("pretrained", "architecture"),
    [("meta", "ViT-B/16"), ("openai", "ViT-H-14"), ("siglip2", "ViT-L-16-SigLIP-256"), ("nobody", None)],
)
def test_an_impossible_pair_lists_the_valid_ones(pretrained, architecture):
    with pytest.raises(InputError) as error:
        preset_for(pretrained, architecture)
    text = str(error.value)
    assert text.startswith(f"no model {architecture!r} with weights {pretrained!r}; expected one of openai: ")
    for pair in ("laion2b_s32b_b79k: ViT-H-14;", "siglip2: ViT-B-32-SigLIP2-256,", "meta: PE-Core-T-16-384,"):
        assert pair in text
