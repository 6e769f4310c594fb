"""The comparisons. Each class makes its inputs from Options and has `ours`, `obvious` and what they must agree on.

share: the part of the obvious form that fits into the memory limit and is run; own_share: the same for ours, where a
whole run would take too long. The results compared are of that part. operations, traffic: what the task needs at the
least, 2 per multiply-add and bytes moved.
"""

from typing import cast

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch import Tensor

from eval.bench.options import (
    Options,
    backbone_of,
    low_res_boxes,
    oracles,
    patch_grid,
    pooling_part,
    random_features,
    region_masks,
    segmenter_of,
)
from textregion.crops import CropGrid, cut_crops
from textregion.labeling import label_pixels
from textregion.masks import Sam2MaskGenerator, filters
from textregion.pooling import difference_scores, nonempty, patch_weights
from textregion.recipes import RECIPES
from textregion.text import TEMPLATES, LabelPrompts
from textregion.text_tower import prompt_lengths, reads_end_of_text

WORDS = ("dog", "traffic light", "swivel chair", "sky", "a red cup", "wooden kitchen table", "person", "river")

OPERATIONS_PER_CLICK = 3.64e9  # SAM 2.1's decoder at 1024 px, counted by torch's FlopCounterMode


class Case:
    """What the comparisons share."""

    name = ""
    of_preset = True
    has_obvious = True
    share = 1.0
    own_share = 1.0
    memory_scales = True  # whether the obvious form's memory grows with the part that is run
    operations = 0.0
    traffic = 0.0
    note = ""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.oracles = oracles()

    @classmethod
    def title(cls, options: Options) -> str:
        """The row's name."""
        return f"{cls.name} {options.preset}" if cls.of_preset else cls.name

    @staticmethod
    def difference(ours: list[np.ndarray], obvious: list[np.ndarray]) -> float:
        """Largest absolute difference, over what the obvious form has computed."""
        pairs = zip(ours, obvious, strict=True)
        return max(float(np.abs(a[tuple(map(slice, b.shape))].astype(np.float64) - b).max()) for a, b in pairs)


class Fusion(Case):
    """Groups of masks that are one region, at full size (method 9.8). Difference: share of masks in another group."""

    name = "fusion"
    of_preset = False
    resolution = "full"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.masks = region_masks(options)
        self.boxes = low_res_boxes(self.masks)
        pairs = len(filters.overlapping_pairs(self.boxes))
        self.operations = 2.0 * pairs * self.masks.soft[0].numel()
        self.traffic = float(self.masks.soft.numel() * self.masks.soft.element_size())
        self.note = f"{options.regions} masks, {pairs} pairs of overlapping boxes, {_size(options)}"

    def ours(self) -> Int[Tensor, " M"]:
        """The seed of each mask."""
        low = tuple(self.masks.soft.shape[1:])
        masks = self.masks if self.resolution == "full" else self.masks.at_size(low)
        return self._seeds(filters.fusion_groups(masks, self.boxes))

    def obvious(self) -> Int[Tensor, " M"]:
        """The same by full-size masks and a loop over pairs."""
        return self._seeds(self.oracles.fusion_groups_pair_by_pair(self.masks.soft, self.options.size, self.boxes, 0.8))

    def _seeds(self, groups: list[list[int]]) -> Int[Tensor, " M"]:
        seeds = torch.full((len(self.masks),), -1)
        for group in groups:
            seeds[group] = group[0]
        return seeds

    @staticmethod
    def difference(ours: list[np.ndarray], obvious: list[np.ndarray]) -> float:
        """Share of the masks that are in another group."""
        return float((ours[0] != obvious[0]).mean())


class LowFusion(Fusion):
    """The option fuse_resolution="low" against the same obvious form: its difference is the option's agreement."""

    name = 'fusion, fuse_resolution="low"'
    resolution = "low"


class Encode(Case):
    """Patch features of all crops of an image in one batch, against one crop at a time."""

    name = "encode"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.backbone = backbone_of(options)
        grid = CropGrid(*options.size, self.backbone.crop_size)
        image = torch.rand(3, *options.size, generator=torch.Generator().manual_seed(0)).to(options.device)
        crops = cut_crops(image, grid.crops, self.backbone.crop_size, self.backbone.interpolation)
        self.crops = self.backbone.normalise(crops)
        visual = self.backbone.model.visual
        weights = sum(p.numel() for p in visual.parameters())
        positions = len(self.crops) * self.backbone.patches_per_side**2
        self.operations = 2.0 * weights * positions
        self.traffic = float(weights * self.backbone.dtype.itemsize)
        self.note = f"{len(self.crops)} crops of {self.backbone.crop_size} px, {weights / 1e6:.0f} M weights"

    def ours(self) -> Float32[Tensor, "T C g g"]:
        """One batch."""
        return self.backbone.encode_crops(self.crops).pooled.float()

    def obvious(self) -> Float32[Tensor, "T C g g"]:
        """View by crop."""
        return torch.cat([self.backbone.encode_crops(crop[None]).pooled for crop in self.crops]).float()


class Sam2(Case):
    """SAM 2's network: image encoder and decoder. The clicks of a batch are bounded by memory; nothing to compare."""

    name = "SAM 2 network"
    has_obvious = False

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.generator = cast(Sam2MaskGenerator, segmenter_of(options).mask_generator)
        self.image = np.random.default_rng(0).integers(0, 255, (*options.size, 3), dtype=np.uint8)
        model = self.generator.model
        trunk = sum(p.numel() for p in model.image_encoder.parameters())
        clicks = self.generator.points_per_side**2
        self.operations = 2.0 * trunk * (model.image_size // 16) ** 2 + OPERATIONS_PER_CLICK * clicks
        self.traffic = 4.0 * trunk
        self.note = f"{self.generator.points_per_side}² clicks, {self.generator.prompts_at_once} at once"

    def ours(self) -> Float32[Tensor, "N 3"]:
        """Predicted IoU of every click's three masks."""
        points = filters.point_grid(self.generator.points_per_side)
        return self.generator.decode_points(self.generator.encode(self.image), points)[1]


class Pool(Case):
    """Region vectors from patch features: masked mean or soft sum, against patches repeated for every region."""

    name = "pool"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.backbone = pooling_part(options)
        self.clip = self.backbone.family == "clip"
        width = (self.backbone.model.visual.conv1.out_channels) if self.clip else self.backbone.trunk.embed_dim
        self.features = random_features(options, width)
        self.weights = region_weights(options)
        regions, patches = self.weights.shape
        bytes_per_region = patches * width * 4 * (2 if self.clip else 6)
        self.part = max(1, min(regions, options.limit // bytes_per_region))
        self.share = self.part / regions
        self.operations = 2.0 * regions * patches * width
        self.traffic = 4.0 * (patches * width + regions * patches + regions * self.backbone.width)
        self.note = f"{regions} regions, {patches} patches of {width}; obvious form run on {self.part} regions"

    def ours(self) -> Float32[Tensor, "R D"]:
        """As the segmenter does."""
        return self.backbone.pool(self.features, self.weights, RECIPES["semantic"], False)

    def obvious(self) -> Float32[Tensor, "R D"]:
        """Every patch for every region."""
        weights = self.weights[: self.part]
        if not self.clip:
            return self.oracles.attention_pool(self.backbone.trunk, self.features, weights)
        pooled = self.oracles.repeated_sum(self.features, weights)
        return self.backbone.project(self.backbone.last_block.attn.out_proj(pooled))


class Removal(Case):
    """Difference scores of all patches (method 6), against the P x P matrix of similarities."""

    name = "removal"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        width = pooling_width(options)
        self.features = random_features(options, width)
        self.weights = region_weights(options)
        regions, patches = self.weights.shape
        self.operations = 4.0 * regions * patches * width
        self.traffic = 4.0 * (patches * width + regions * patches)
        self.note = f"{regions} regions, {patches} patches of {width}"

    def ours(self) -> Float32[Tensor, " P"]:
        """Through the regions' mean unit features."""
        return difference_scores(self.features, self.weights)

    def obvious(self) -> Float32[Tensor, " P"]:
        """Through all pairs of patches."""
        return self.oracles.similarity_scores(self.features, self.weights)


class Postprocess(Case):
    """A label for every pixel, against the product of classes, regions and pixels. Difference: of the confidence.

    The obvious form is linear in pixels: it is run on the top rows that fit, or on a part of the first row, and scaled.
    """

    name = "postprocess"
    of_preset = False

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.masks = region_masks(options)
        generator = torch.Generator().manual_seed(1)
        self.logits = (torch.rand(options.regions, options.labels, generator=generator) * 0.3).to(options.device)
        self.prompts = LabelPrompts.parse([f"label {i}" for i in range(options.labels)])
        height, width = options.size
        pixels = options.limit // (4 * options.labels * (options.regions + 4))
        self.rows, columns = max(1, min(height, pixels // width)), max(1, min(width, pixels))
        self.share = self.rows * columns / (height * width)
        self.full = self.masks.pixels(torch.arange(self.rows), torch.arange(columns))
        product = 4 * height * width * options.regions * options.labels / 1e9
        self.operations = 2.0 * options.regions * options.labels * height * width
        self.traffic = float(self.masks.soft.numel() * 2 + 20 * height * width)
        sizes = f"{options.labels} labels, {options.regions} regions, {_size(options)}"
        part = f"{self.rows} x {columns} px"
        self.note = f"{sizes}; obvious form run on {part} (whole product: {product:.0f} GB)"

    def ours(self) -> Float32[np.ndarray, "H W"]:
        """As the segmenter does: labels, confidence, the region behind each pixel."""
        return label_pixels(self.logits, self.masks, self.prompts).confidence

    def obvious(self) -> Float32[Tensor, "y W"]:
        """Labels and confidence only, from full-size masks that are already there."""
        return self.oracles.pixel_labels(self.logits, self.full)[1]


class Text(Case):
    """Text embeddings of labels in large batches without padding, against one label at a time at the full context.

    Both are linear in labels: run on a few and scaled.
    """

    name = "text"
    memory_scales = False
    measured_labels = 16
    obvious_labels = 4

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.backbone = backbone_of(options)
        words = [f"{word} {i}" if i >= len(WORDS) else word for i, word in enumerate(WORDS * (options.labels // 8 + 1))]
        self.labels = words[: min(options.labels, self.measured_labels)]
        self.own_share = len(self.labels) / options.labels
        self.few = self.labels[: self.obvious_labels]
        self.share = len(self.few) / options.labels
        model = self.backbone.model
        weights = sum(
            p.numel() for n, p in model.named_parameters() if "resblocks" in n and not n.startswith("visual.")
        )
        tokens = self.backbone.tokenizer([template(label) for label in self.few for template in TEMPLATES])
        short = reads_end_of_text(model)
        length = float(prompt_lengths(model, tokens).float().mean()) if short else float(tokens.shape[1])
        self.operations = 2.0 * weights * options.labels * len(TEMPLATES) * length
        self.traffic = float(weights * self.backbone.dtype.itemsize)
        context = f"{length:.1f} of {tokens.shape[1]} positions a prompt on average" if short else "full context needed"
        ran = f"run on {len(self.labels)}, obvious form on {len(self.few)}"
        self.note = f"{options.labels} labels x {len(TEMPLATES)} templates ({ran}); {context}"

    def ours(self) -> Float32[Tensor, "L D"]:
        """Large batches."""
        return self.backbone.encode_labels(self.labels)

    def obvious(self) -> Float32[Tensor, "l D"]:
        """Label by label."""
        prompts = [[template(label) for template in TEMPLATES] for label in self.few]
        model, device = self.backbone.model, self.backbone.device
        return torch.stack(
            [self.oracles.label_embedding(model, lambda p: self.backbone.tokenizer(p).to(device), p) for p in prompts]
        )


def region_weights(options: Options) -> Float32[Tensor, "R P"]:
    """Patch weights of the regions that have any patch."""
    weights = patch_weights(region_masks(options).patch_grid(patch_grid(options)))
    return weights[nonempty(weights)]


def pooling_width(options: Options) -> int:
    """C of a preset's patch features."""
    backbone = pooling_part(options)
    return backbone.model.visual.conv1.out_channels if backbone.family == "clip" else backbone.trunk.embed_dim


def _size(options: Options) -> str:
    return f"{options.size[0]} x {options.size[1]} px"


CASES: dict[str, tuple[type[Case], ...]] = {
    "masks": (Fusion, LowFusion),
    "encode": (Encode,),
    "pool": (Pool, Removal),
    "postprocess": (Postprocess,),
    "text": (Text,),
    "end2end": (Sam2, Fusion, Encode, Removal, Pool, Postprocess),
}
