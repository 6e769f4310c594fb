"""What every registered backbone and mask source must do: the shipped ones, worked examples, and plug-ins alike.

Each function takes what the registry knows and asserts; it returns what it made, for further questions.
"""

import numpy as np
import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg
from torch import nn

from textregion.backbones import FAMILIES, Backbone, BackboneSpec, find_spec
from textregion.backbones.base import find_family
from textregion.backbones.loading import (
    build_model,
    kind_of,
    stand_in_tokenizer,
    to_open_clip,
    tokenizer_asset,
    tokenizer_of,
    weight_asset,
    wrap,
)
from textregion.crops import CropGrid
from textregion.masks import MaskGenerator, MaskSource
from textregion.types import RegionMasks, RegionTokens
from TextRegionSegmenter import TextRegionSegmenter

IMAGE = np.random.default_rng(3).integers(0, 256, (37, 53, 3), dtype=np.uint8)


def tower(model: nn.Module) -> nn.Module:
    """The image tower itself, without open_clip's wrapper around timm's."""
    return getattr(model.visual, "trunk", model.visual)


def real_size(spec: BackboneSpec) -> Backbone:
    """The row is what open_clip builds and publishes: sizes (without memory), download, names."""
    with torch.device("meta"):
        model = build_model(spec)
    backbone = wrap(spec, model, stand_in_tokenizer(model))
    assert backbone.width == spec.width
    assert backbone.crop_size == spec.crop_size
    backbone.check_crop_size(spec.crop_size)
    megabytes = sum(p.numel() for p in model.parameters()) * 4 / 1e6
    assert abs(spec.megabytes - megabytes) < 1, "published as float32"
    family = FAMILIES[spec.family]
    if spec.repository:
        assert open_clip.get_model_config(spec.open_clip[0]) is None
        assert kind_of(model.state_dict()) == family.kind
        return backbone
    assert find_family(spec.open_clip[0], open_clip.get_model_config(spec.open_clip[0])) is family
    assert find_spec(f"open_clip:{'/'.join(spec.open_clip)}").family == spec.family
    state = model.state_dict()
    assert kind_of(state) == family.kind
    assert to_open_clip(state, model, family).keys() == state.keys(), "open_clip's own layout stays"
    return backbone


def published(spec: BackboneSpec) -> None:
    """Preprocessing, weights and tokenizer are those of open_clip's tag; or are in the row's own repository."""
    if spec.repository:
        assert {weight_asset(spec).repository, tokenizer_asset(spec).repository} == {spec.repository}
        return
    entry, family = get_pretrained_cfg(*spec.open_clip), FAMILIES[spec.family]
    assert (spec.mean or family.mean) == tuple(entry["mean"])
    assert (spec.std or family.std) == tuple(entry["std"])
    assert (spec.interpolation or family.interpolation) == entry["interpolation"]
    config = open_clip.get_model_config(spec.open_clip[0])
    assert config.get("quick_gelu", False) == entry.get("quick_gelu", False)
    asset = weight_asset(spec)
    assert asset.repository == entry["hf_hub"].rstrip("/")
    assert asset.files[0].endswith(".safetensors")
    if tokenizer_asset(spec) is None:
        ids = tokenizer_of(spec)(["a photo of a cat.", "sky"])
        assert ids.shape == (2, config["text_cfg"]["context_length"])


def stand_in(spec: BackboneSpec, real: Backbone) -> tuple[Backbone, RegionTokens]:
    """Shapes, unit length, empty regions on the family's small model, which must have the row's own form."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(11)
        model = FAMILIES[spec.family].stand_in(spec)
    backbone = wrap(spec, model, stand_in_tokenizer(model))
    assert type(tower(model)) is type(tower(real.model))
    assert (backbone.width, backbone.crop_size, backbone.patch_size) == (real.width, real.crop_size, real.patch_size)
    assert kind_of(model.state_dict()) == backbone.kind
    class_tokens = [getattr(tower(m), "cls_token", None) is None for m in (model, real.model)]
    assert class_tokens[0] == class_tokens[1]
    scale = (spec.crop_size, spec.crop_size)
    segmenter = TextRegionSegmenter(backbone, scale=scale, global_patch_threshold=None, device="cpu")
    resized = segmenter.resize(IMAGE)
    grid = CropGrid(*resized.shape[:2], spec.crop_size)
    features = segmenter.encode_crops([resized], [grid])[0]
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
    assert (regions.logit_scale, regions.logit_bias) == (backbone.logit_scale, backbone.logit_bias)
    return backbone, regions


def mask_source(source: MaskSource, sam2: nn.Module) -> RegionMasks:
    """Masks of the original image at one of the two sizes, from a small instance, the same every time."""
    size, resized_size = (31, 43), (62, 86)
    generator = source.generator.example(sam2, size)
    assert isinstance(generator, source.generator)
    assert isinstance(generator, MaskGenerator)
    assert generator.to("cpu") is generator
    resized = np.random.default_rng(1).integers(0, 256, (*resized_size, 3), dtype=np.uint8)
    first, masks = (generator.generate(resized, image_size=size, mask_size=resized_size) for _ in range(2))
    assert isinstance(masks, RegionMasks)
    assert torch.equal(first.soft, masks.soft)
    assert masks.image_size == size
    assert masks.mask_size in (size, resized_size)
    assert masks.boxes.shape == (len(masks), 4)
    if not source.needs:
        assert isinstance(source.generator(), source.generator), "made by its defaults"
    return masks
