"""The comparisons: each makes its inputs from Options and returns our formulation and the obvious one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float16, Float32
from torch import Tensor, nn
from torch.nn import functional as F

from textregion.backbones import Backbone, BackboneSpec, find_spec
from textregion.backbones.loading import build_model, stand_in_tokenizer, wrap
from textregion.crops import CropGrid, cut_crops
from textregion.labeling import label_pixels
from textregion.labels import LabelPrompts
from textregion.masks import Sam2MaskGenerator, filters
from textregion.masks.click_decoder import SharedImageDecoder
from textregion.masks.clicks import ImageFeatures
from textregion.pooling import RECIPES, difference_scores, nonempty, patch_weights
from textregion.presets import build, find_preset
from textregion.segmenter import TextRegionSegmenter, crops_at_once
from textregion.text import TEMPLATES
from textregion.text_tower import prompt_lengths, reads_end_of_text
from textregion.types import RegionMasks

ORACLES = Path(__file__).parents[2] / "tests" / "oracles.py"
LOW_RES = 256  # side of SAM 2's masks
SEED = 0
WORDS = ("dog", "traffic light", "swivel chair", "sky", "a red cup", "wooden kitchen table", "person", "river")
MEASURED_LABELS, OBVIOUS_LABELS = 16, 4
OPERATIONS_PER_CLICK = 1.8e9  # SAM 2.1's decoder at 1024 px with shared parts made once, of 3.64e9 in the package


@dataclass(frozen=True)
class Options:
    """One benchmark's sizes.

    preset: whose architecture. size: (H, W) of the resized image. regions, labels: R and L. device: torch's name.
    random_weights: real architecture, no file. threads: of the CPU, 0 for all. points: clicks a side. limit: bytes the
    obvious form may take; a larger one is measured on the part that fits and scaled. sam2: a size of SAM 2.1, None for
    the preset's.
    """

    preset: str
    size: tuple[int, int] = (672, 1008)
    regions: int = 100
    labels: int = 150
    device: str = "cpu"
    random_weights: bool = True
    threads: int = 0
    limit: int = 2 * 2**30
    points: int = 16
    sam2: str | None = None

    @property
    def spec(self) -> BackboneSpec:
        """The preset's row in the registry of backbones."""
        return find_spec(find_preset(self.preset).backbone)


def largest_difference(ours: np.ndarray, obvious: np.ndarray) -> float:
    """Largest absolute difference, over what the obvious form has computed."""
    return float(np.abs(ours[tuple(map(slice, obvious.shape))].astype(np.float64) - obvious).max())


def relative_difference(ours: np.ndarray, obvious: np.ndarray) -> float:
    """Largest absolute difference, over the range of the obvious form's values."""
    return largest_difference(ours, obvious) / float(np.ptp(obvious))


def share_of_different(ours: np.ndarray, obvious: np.ndarray) -> float:
    """Share of the entries that differ."""
    return float((ours != obvious).mean())


@dataclass(frozen=True)
class Facts:
    """What is known of a comparison before it is run.

    operations, traffic: what the task needs at the least, 2 per multiply-add and bytes moved. note: what is compared
    and at which sizes. share: the part of the obvious form that fits into the memory limit and is run; own_share: the
    same for ours, where a whole run would take too long. memory_scales: whether the obvious form's memory grows with
    the part that is run. difference: how the two results are compared.
    """

    operations: float
    traffic: float
    note: str
    share: float = 1.0
    own_share: float = 1.0
    memory_scales: bool = True
    difference: Callable[[np.ndarray, np.ndarray], float] = largest_difference


Formulations = tuple[Callable, Callable | None, Facts]  # ours, the obvious one: no arguments, one array


class Comparison(NamedTuple):
    """A line of the table. make: both formulations, around their inputs.

    of_preset: whether they depend on the preset. compared: whether there is an obvious one.
    """

    name: str
    make: Callable[[Options], Formulations]
    of_preset: bool = True
    compared: bool = True

    def title(self, options: Options) -> str:
        """The line's name."""
        return f"{self.name} {options.preset}" if self.of_preset else self.name


# ---------------------------------------------------------------- inputs, the same in every process


@cache
def oracles() -> SimpleNamespace:
    """The obvious formulations: they live with the tests, which is no package."""
    return SimpleNamespace(**run_path(str(ORACLES)))


def segmenter_of(options: Options, **parts) -> TextRegionSegmenter:
    """The preset as everybody gets it: random weights, or those that textregion/weights.py finds."""
    return build(
        TextRegionSegmenter,
        options.preset,
        device=options.device,
        random_weights=options.random_weights,
        model_cfg=options.sam2,
        **parts,
    )


def backbone_of(options: Options) -> Backbone:
    """The complete model."""
    return segmenter_of(options, mask_generator=None).backbone


def pooling_inputs(options: Options) -> tuple[Backbone, Float32[Tensor, "P C"], Float32[Tensor, "R P"]]:
    """A backbone, patch features (normal numbers with a common part, as real ones have), and the patch weights of the
    regions that have any patch.

    The backbone has real widths but one block per tower: all that pooling needs, built in a second.
    """
    with torch.device("meta"):
        model = build_model(options.spec)
    trunk = getattr(model.visual, "trunk", None)
    tower = trunk or model.visual.transformer
    name = "blocks" if hasattr(tower, "blocks") else "resblocks"
    setattr(tower, name, nn.Sequential(getattr(tower, name)[-1]))
    text = getattr(model, "text", model)
    text.transformer.resblocks = nn.ModuleList()
    model.to_empty(device=options.device)
    generator = torch.Generator().manual_seed(SEED)
    for parameter in model.parameters():
        fan_in = parameter.shape[-1] if parameter.ndim else 1
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
    backbone = wrap(options.spec, model, stand_in_tokenizer(model))
    return backbone, *patches_of(backbone, options)


def patches_of(backbone: Backbone, options: Options) -> tuple[Float32[Tensor, "P C"], Float32[Tensor, "R P"]]:
    """Patch features as `pooling_inputs` has them, and patch weights."""
    visual = backbone.model.visual
    trunk = getattr(visual, "trunk", None)
    width = visual.conv1.out_channels if trunk is None else trunk.embed_dim
    grid = CropGrid(*options.size, backbone.crop_size).patch_shape(backbone.crop_size // backbone.patch_size)
    generator = torch.Generator().manual_seed(SEED)
    features = torch.randn(grid[0] * grid[1], width, generator=generator) + torch.randn(width, generator=generator)
    weights = patch_weights(region_masks(options).patch_grid(grid))
    return features.to(options.device), weights[nonempty(weights)]


def soft_masks(count: int, side: int = LOW_RES, seed: int = SEED) -> Float16[Tensor, "M side side"]:
    """Ellipses with soft wavy borders, values 0..3, many of them near copies or parts of an earlier one.

    Made like what is left of SAM 2's candidates: families of one to five, from 0.2 % to about half of the image.
    """
    random = torch.Generator().manual_seed(seed)
    number = lambda low, high: low + (high - low) * float(torch.rand((), generator=random))  # noqa: E731
    y, x = torch.meshgrid(*[(torch.arange(side) + 0.5) / side] * 2, indexing="ij")
    masks: list[Tensor] = []
    while len(masks) < count:
        centre, axes = (number(0, 1), number(0, 1)), (number(0.03, 0.4), number(0.03, 0.4))
        for _ in range(1 + int(number(0, 5))):
            grow, shift = number(0.5, 1.15), number(-0.03, 0.03)
            distance = ((y - centre[0] - shift) / axes[0]) ** 2 + ((x - centre[1] + shift) / axes[1]) ** 2
            waves = 0.1 * torch.sin(number(5, 60) * x + number(0, 6)) * torch.sin(number(5, 60) * y)
            masks.append(((grow - distance.sqrt() + waves) * 20).clamp(0, 3))
    masks = [mask for mask in masks if bool((mask > 0).sum() > side * side / 500)] or masks
    while len(masks) < count:
        masks.extend(masks[: count - len(masks)])
    return torch.stack(masks[:count]).half()


def region_masks(options: Options) -> RegionMasks:
    """R masks stored at SAM 2's low resolution, meant at the image's size."""
    return RegionMasks(soft_masks(options.regions), options.size, options.size).to(options.device)


# ---------------------------------------------------------------- the comparisons


def fusion(options: Options) -> Formulations:
    """Groups of masks that are one region, at full size (method 9.8), against full-size masks and a loop over pairs.

    The result is the seed of each mask; difference: share of masks in another group.
    """
    masks, (height, width) = region_masks(options), options.size
    boxes = filters.inclusive_boxes(masks.soft > 0)  # as the mask generator has them at hand
    pairs = len(filters.overlapping_pairs(boxes))

    def seeds(groups: list[list[int]]) -> Tensor:
        found = torch.full((len(masks),), -1)
        for group in groups:
            found[group] = group[0]
        return found

    facts = Facts(
        operations=2.0 * pairs * masks.soft[0].numel(),
        traffic=float(masks.soft.numel() * masks.soft.element_size()),
        note=f"{options.regions} masks, {pairs} pairs of overlapping boxes, {height} x {width} px",
        difference=share_of_different,
    )
    return (
        lambda: seeds(filters.fusion_groups(masks, boxes)),
        lambda: seeds(oracles().fusion_groups_pair_by_pair(masks.soft, options.size, boxes, 0.8)),
        facts,
    )


def encode(options: Options) -> Formulations:
    """Patch features of all crops, (T, C, g, g), as many at once as on this device, against one crop at a time."""
    return encode_with(backbone_of(options), options)


def encode_with(backbone: Backbone, options: Options) -> Formulations:
    """The same with a model that is there."""
    grid = CropGrid(*options.size, backbone.crop_size)
    image = torch.rand(3, *options.size, generator=torch.Generator().manual_seed(0)).to(options.device)
    crops = backbone.normalise(cut_crops(image, grid.crops, backbone.crop_size, backbone.interpolation))
    weights = sum(p.numel() for p in backbone.model.visual.parameters())
    note = f"{len(crops)} crops of {backbone.crop_size} px, {weights / 1e6:.0f} M weights"
    operations = 2.0 * weights * len(crops) * (backbone.crop_size // backbone.patch_size) ** 2
    facts = Facts(operations, float(weights * backbone.dtype.itemsize), note)
    at_once = crops_at_once(torch.device(options.device), len(crops))
    return (
        lambda: torch.cat([backbone.encode_crops(part).pooled for part in crops.split(at_once)]).float(),
        lambda: torch.cat([backbone.encode_crops(crop[None]).pooled for crop in crops]).float(),
        facts,
    )


def sam2(options: Options) -> Formulations:
    """SAM 2's network: image encoder and decoder. The clicks of a batch are bounded by memory; nothing to compare."""
    generator = cast(Sam2MaskGenerator, segmenter_of(options).mask_generator)
    image = np.random.default_rng(0).integers(0, 255, (*options.size, 3), dtype=np.uint8)
    clicks = generator.points_per_side
    points = filters.point_grid(clicks)[:, None]
    trunk = sum(p.numel() for p in generator.model.image_encoder.parameters())
    operations = 2.0 * trunk * (generator.model.image_size // 16) ** 2 + OPERATIONS_PER_CLICK * clicks**2
    facts = Facts(operations, 4.0 * trunk, f"{clicks}² clicks, {generator.prompts_at_once} at once")
    return lambda: generator.decode_with_tokens(generator.encode(image), points)[1], None, facts


def decoder(options: Options) -> Formulations:
    """SAM 2's mask decoder for 64 clicks on one image, what they share computed once, against the package's own.

    Both in float32 with the same number of clicks at once. Difference: of the logits, relative to their range.
    """
    generator, points, features = clicks_on_noise(options, 8)
    model, shared = generator.model, SharedImageDecoder(generator.model)
    labels = torch.ones(len(points), 1, dtype=torch.int, device=generator.device)
    sparse, dense = model.sam_prompt_encoder((points * model.image_size, labels), None, None)
    at_once = generator.prompts_at_once

    def ours() -> Tensor:
        image = shared.image(features.embedding, features.high_resolution)
        return torch.cat([shared.masks(image, shared.attend(image, part)) for part in sparse.split(at_once)])

    def package() -> Tensor:
        asked = zip(sparse.split(at_once), dense.split(at_once), strict=True)
        pe, high = model.sam_prompt_encoder.get_dense_pe(), features.high_resolution
        decode = model.sam_mask_decoder
        return torch.cat([decode(features.embedding, pe, *part, True, True, high)[0] for part in asked])

    facts = Facts(
        operations=OPERATIONS_PER_CLICK * len(points),
        traffic=4.0 * sum(p.numel() for p in model.sam_mask_decoder.parameters()),
        note=f"{len(points)} clicks, {at_once} at once, float32; difference relative to the range of the logits",
        difference=relative_difference,
    )
    return ours, package, facts


def candidates(options: Options) -> Formulations:
    """Candidates of s x s clicks, filtered batch by batch, against all logits kept and filtered then.

    Random weights pass no filter, so the thresholds are set at what half of the clicks' masks reach: predicted IoU
    only. Difference: of the survivors' predicted IoU.
    """
    return candidates_from(*clicks_on_noise(options, options.points), half_pass=True)


def candidates_from(
    generator: Sam2MaskGenerator, points: Tensor, features: ImageFeatures, half_pass: bool
) -> Formulations:
    """The same for clicks on an image that is encoded. half_pass: with thresholds set so, else with the generator's."""
    if half_pass:
        some = generator.decode_with_tokens(features, points[:: max(1, len(points) // 16)])[1]
        generator.pred_iou_thresh, generator.stability_score_thresh = float(some.median()), 0.0
    package = Sam2MaskGenerator(generator.model, decoder="sam2", dtype=generator.dtype)

    def ours() -> Tensor:
        return generator.candidates_of(features, points).predicted_iou

    def whole() -> Tensor:
        logits, predicted_iou, _ = package.decode_with_tokens(features, points)
        ordered, scores = filters.order_candidates(logits), filters.order_candidates(predicted_iou)
        good = (scores > generator.pred_iou_thresh).nonzero()[:, 0]
        stable = filters.stability_scores(ordered[good]) >= generator.stability_score_thresh
        return scores[good[stable]]

    facts = Facts(
        operations=OPERATIONS_PER_CLICK * len(points),
        traffic=0.0,
        note=f"{len(points)} clicks{', half of whose masks pass' * half_pass}",
    )
    return ours, whole, facts


def clicks_on_noise(options: Options, side: int) -> tuple[Sam2MaskGenerator, Tensor, ImageFeatures]:
    """The preset's SAM 2, side x side clicks, and the features of a noise image."""
    generator = cast(Sam2MaskGenerator, segmenter_of(options).mask_generator)
    generator.dtype = torch.float32
    image = np.random.default_rng(0).integers(0, 255, (*options.size, 3), dtype=np.uint8)
    return generator, filters.point_grid(side)[:, None].to(generator.device), generator.encode(image)


def pool(options: Options) -> Formulations:
    """Region vectors (R, D) by masked mean or soft sum, against patches repeated for every region."""
    return pool_with(*pooling_inputs(options), options)


def pool_with(backbone: Backbone, features: Tensor, weights: Tensor, options: Options) -> Formulations:
    """The same for patches that are there."""
    visual = backbone.model.visual
    trunk = getattr(visual, "trunk", None)  # what pools by attention
    (regions, patches), width = weights.shape, features.shape[1]
    part = max(1, min(regions, options.limit // (patches * width * 4 * (2 if trunk is None else 6))))

    def obvious() -> Tensor:
        if trunk is not None:
            return oracles().attention_pool(trunk, features, weights[:part])
        pooled = oracles().repeated_sum(features, weights[:part])
        pooled = visual.transformer.resblocks[-1].attn.out_proj(pooled)
        return F.normalize((visual.ln_post(pooled) @ visual.proj).float(), dim=-1)

    facts = Facts(
        operations=2.0 * regions * patches * width,
        traffic=4.0 * (patches * width + regions * patches + regions * backbone.width),
        note=f"{regions} regions, {patches} patches of {width}; obvious form run on {part} regions",
        share=part / regions,
    )
    return lambda: backbone.pool(features, weights, RECIPES["semantic"], False), obvious, facts


def removal(options: Options) -> Formulations:
    """Difference scores of all patches (method 6), against the P x P matrix of similarities."""
    return removal_with(*pooling_inputs(options)[1:])


def removal_with(features: Tensor, weights: Tensor) -> Formulations:
    """The same for patches that are there."""
    (regions, patches), width = weights.shape, features.shape[1]
    note = f"{regions} regions, {patches} patches of {width}"
    facts = Facts(4.0 * regions * patches * width, 4.0 * (patches * width + regions * patches), note)
    return lambda: difference_scores(features, weights), lambda: oracles().similarity_scores(features, weights), facts


def postprocess(options: Options) -> Formulations:
    """A label for every pixel, against the product of classes, regions and pixels. Difference: of the confidence.

    The obvious form has no region map and gets full-size masks that are already there. It is linear in pixels: it is
    run on the top rows that fit, or on a part of the first row, and scaled.
    """
    masks = region_masks(options)
    generator = torch.Generator().manual_seed(1)
    logits = (torch.rand(options.regions, options.labels, generator=generator) * 0.3).to(options.device)
    prompts = LabelPrompts.parse([f"label {i}" for i in range(options.labels)])
    height, width = options.size
    pixels = options.limit // (4 * options.labels * (options.regions + 4))
    rows, columns = max(1, min(height, pixels // width)), max(1, min(width, pixels))
    full = masks.pixels(torch.arange(rows), torch.arange(columns))
    products = options.regions * options.labels * height * width
    facts = Facts(
        operations=2.0 * products,
        traffic=float(masks.soft.numel() * 2 + 20 * height * width),
        note=f"{options.labels} labels, {options.regions} regions, {height} x {width} px; "
        f"obvious form run on {rows} x {columns} px (whole product: {4 * products / 1e9:.0f} GB)",
        share=rows * columns / (height * width),
    )
    return (
        lambda: label_pixels(logits, masks, prompts).confidence,
        lambda: oracles().pixel_labels(logits, full)[1],
        facts,
    )


def text(options: Options) -> Formulations:
    """Text embeddings (L, D) without padding and with what templates share, against one label at a time at the full
    context. Both are linear in labels: run on a few and scaled.
    """
    return text_with(backbone_of(options), options)


def text_with(backbone: Backbone, options: Options) -> Formulations:
    """The same with a model that is there."""
    model = backbone.model
    few = label_words(min(options.labels, OBVIOUS_LABELS))

    def embed(label: str) -> Tensor:
        prompts = [template(label) for template in TEMPLATES]
        return oracles().label_embedding(model, lambda texts: backbone.tokenizer(texts).to(backbone.device), prompts)

    facts = text_facts(options, backbone, len(few))
    labels = label_words(min(options.labels, MEASURED_LABELS))
    return lambda: backbone.encode_labels(labels), lambda: torch.stack([embed(label) for label in few]), facts


def prefixes(options: Options) -> Formulations:
    """The same, against large batches without padding in which every prompt is computed from its first token."""
    backbone, labels = backbone_of(options), label_words(min(options.labels, MEASURED_LABELS))

    def whole() -> Tensor:
        prompts = [template(label) for label in labels for template in TEMPLATES]
        unit = backbone.encode_prompts(prompts).unflatten(0, (len(labels), len(TEMPLATES)))
        return F.normalize(unit.mean(1), dim=-1)

    return lambda: backbone.encode_labels(labels), whole, text_facts(options, backbone, len(labels))


def label_words(count: int) -> list[str]:
    """So many labels of one to four words."""
    return [f"{WORDS[i % len(WORDS)]} {i}" if i >= len(WORDS) else WORDS[i] for i in range(count)]


def text_facts(options: Options, backbone: Backbone, obvious_labels: int) -> Facts:
    """What is known of both comparisons of text."""
    model, labels = backbone.model, label_words(min(options.labels, MEASURED_LABELS))
    weights = sum(p.numel() for n, p in model.named_parameters() if "resblocks" in n and not n.startswith("visual."))
    tokens = backbone.tokenizer([template(label) for label in labels for template in TEMPLATES])
    short = reads_end_of_text(model)
    length = float(prompt_lengths(model, tokens).float().mean()) if short else float(tokens.shape[1])
    context = f"{length:.1f} of {tokens.shape[1]} positions a prompt on average" if short else "full context needed"
    if (prefixes := backbone.prefixes_of(TEMPLATES)) is not None:
        shared = float(prefixes.lengths.float().mean())
        context, length = f"{context}, {shared:.1f} of them shared by all labels", length - shared
    return Facts(
        operations=2.0 * weights * options.labels * len(TEMPLATES) * length,
        traffic=float(weights * backbone.dtype.itemsize),
        note=f"{options.labels} labels x {len(TEMPLATES)} templates "
        f"(run on {len(labels)}, the other form on {obvious_labels}); {context}",
        share=obvious_labels / options.labels,
        own_share=len(labels) / options.labels,
        memory_scales=False,
    )


FUSION = Comparison("fusion", fusion, of_preset=False)
ENCODE = Comparison("encode", encode)
POOL, REMOVAL = Comparison("pool", pool), Comparison("removal", removal)
POSTPROCESS = Comparison("postprocess", postprocess, of_preset=False)
COMPARISONS: dict[str, tuple[Comparison, ...]] = {
    "masks": (FUSION,),
    "decoder": (Comparison("decoder", decoder), Comparison("candidates", candidates)),
    "encode": (ENCODE,),
    "pool": (POOL, REMOVAL),
    "postprocess": (POSTPROCESS,),
    "text": (Comparison("text", text), Comparison("text, prefixes shared", prefixes)),
    "end2end": (Comparison("SAM 2 network", sam2, compared=False), FUSION, ENCODE, REMOVAL, POOL, POSTPROCESS),
}
