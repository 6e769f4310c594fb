"""TextRegion: an image becomes region tokens, one vector per segment, comparable with text; no training.

    segmenter = TextRegionSegmenter.from_preset("clip-vit-l14-336")
    result = segmenter.segment("photo.jpg", ["dog", "sofa", "floor"])

Run as a program it is the demo: `python TextRegionSegmenter.py --help`.
Paper: arXiv 2505.23769. The way of the data is written in docs/method.md; the maths lives in the modules beside this.
"""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from cachetools import LRUCache
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from torch.nn import functional as F

from textregion.backbones import Backbone
from textregion.backbones.base import CropFeatures
from textregion.concepts import ConceptLabeller, labels_present
from textregion.config import SegmenterConfig
from textregion.crops import CropGrid, cut_crops, fuse_crops
from textregion.devices import dtype_name, read, resolve_device, resolve_dtype, to_device
from textregion.errors import InputError, at_least, one_of
from textregion.images import ImageInput, load_image, resize_keep_ratio
from textregion.labeling import (
    GroundingResult,
    among_all,
    label_pixels,
    label_target,
    largest_component_box,
    mode_per_mask,
    target_prompts,
    unlabel,
)
from textregion.labels import CONTROL_WORDS, LabelPrompts, absent_labels, as_labels, as_sentence
from textregion.masks.base import MaskGenerator, describe_source
from textregion.masks.prompts import masks_from_boxes, rectangle_masks
from textregion.masks.sam2 import Sam2MaskGenerator
from textregion.pooling import difference_scores, mean_over_crops, nonempty, patch_weights, remove_patches
from textregion.presets import build
from textregion.regionspot.loading import METHODS, load_regionspot
from textregion.regionspot.model import RegionSpot
from textregion.runtime import (
    Timer,
    compile_backend,
    compile_blocks,
    enough_memory,
    in_parts,
)
from textregion.text import TEMPLATE_SETS, TextCache, fills_context
from textregion.text_tower import Progress
from textregion.types import RegionMasks, RegionTokens, Segmentation

if TYPE_CHECKING:
    from textregion.index.memory import RegionMemory

REMEMBERED_LABELS = 20_000  # text embeddings kept in memory, about 60 MB at D = 768
AnyMasks = RegionMasks | np.ndarray | Tensor | None
CPU_CROPS = 1  # on a CPU more at once are slower and take more memory
PROMPTS_PER_BATCH = 2048  # of whole labels, after which the cache on disk is told


def crops_at_once(device: torch.device, most: int) -> int:
    """How many crops are encoded together: on a CPU one, which fills the machine and stays nearer its caches."""
    return min(most, CPU_CROPS) if device.type == "cpu" else most


class TextRegionSegmenter:
    """A frozen image-text model and a mask source, joined as the method says.

    backbone: ClipBackbone, SiglipBackbone or PerceptionBackbone.
    mask_generator: what proposes regions, e.g. Sam2MaskGenerator; None is fine when masks are always given.
    config: every option that decides the results; options: fields of it by name (scale, recipe, …), which come last.
    crops_per_batch: most crops encoded at once, at least 1; fewer are taken on a CPU and where memory does not suffice.
    text_cache: folder that keeps text embeddings between runs, one small file per model and label; None for none.
    compile: torch.compile of the image encoder's blocks and of a Sam2MaskGenerator; the first image then takes minutes
        and results differ in rounding, so it is off by default and for benchmarks. True, False or a backend's name.
    concepts: the SAM 3 that option label_filter asks.
    device: "auto", "cpu", "cuda", "cuda:N" or "mps". dtype: "auto", "float32", "float16" or "bfloat16" of the
        encoders; pooling is float32 always.
    InputError says which option was got and what is expected. timer: seconds of every stage, summed.
    """

    def __init__(
        self,
        backbone: Backbone,
        mask_generator: MaskGenerator | None = None,
        config: SegmenterConfig | None = None,
        *,
        crops_per_batch: int = 32,
        text_cache: str | Path | None = None,
        compile: bool | str = False,
        concepts: ConceptLabeller | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        **options: Any,
    ) -> None:
        if not isinstance(backbone, Backbone):
            raise InputError(f"got a backbone of type {type(backbone).__name__}, expected ClipBackbone or another")
        self.backbone = backbone
        self.config = replace(_checked(SegmenterConfig() if config is None else config), **options)
        config = self.config
        if config.dense_fallback and not backbone.has_dense_fallback:
            raise InputError(f"the {backbone.family} family has no dense features; leave dense_fallback off")
        if config.label_filter == "presence" and concepts is None:
            raise InputError("label_filter presence asks a SAM 3; give its ConceptLabeller as concepts")
        self.crops_per_batch = at_least("crops_per_batch", crops_per_batch)
        self.device = resolve_device(device)
        self.backbone = backbone.to(self.device, resolve_dtype(dtype, self.device))
        self.mask_generator = mask_generator.to(self.device) if mask_generator is not None else None
        self.concepts = concepts.to(self.device) if concepts is not None else None
        self.regionspot: RegionSpot | None = None  # encode_boxes(method="regionspot") fills it where a head is shipped
        if (compiler := compile_backend(compile)) is not None:
            compile_blocks(self.backbone.model.visual, compiler)
            if isinstance(mask_generator, Sam2MaskGenerator):
                mask_generator.compile_model(compiler)
        self.timer = Timer(device=self.device)
        self.remembered_labels: LRUCache = LRUCache(REMEMBERED_LABELS)
        self.templates = TEMPLATE_SETS[self.config.templates]
        self.text_cache = TextCache(text_cache, self.backbone, self.templates) if text_cache is not None else None

    @property
    def config(self) -> SegmenterConfig:
        """Every option that decides the results. To change one: `segmenter.config = replace(segmenter.config, …)`."""
        return self._config

    @config.setter
    def config(self, config: SegmenterConfig) -> None:
        config = replace(_checked(config), crop_size=config.crop_size or self.backbone.crop_size)
        self.backbone.check_crop_size(config.crop_size)
        self.backbone.check_terms(config.recipe)
        self._config = config

    def __repr__(self) -> str:
        source = "masks are given" if self.mask_generator is None else type(self.mask_generator).__name__
        return f"TextRegionSegmenter({self.backbone!r}, {source}, {self.device})"

    def settings(self) -> dict[str, Any]:
        """All that decides the results but images and words, as JSON has it: the record of a run, and its identity."""
        settings = {
            "backbone": self.backbone.name,
            "device": self.device.type,
            "dtype": dtype_name(self.backbone.dtype),
            "config": asdict(self.config),
            "masks": describe_source(self.mask_generator),
        }
        return json.loads(json.dumps(settings))

    @classmethod
    def from_preset(cls, name: str = "clip-vit-l14-336", **options) -> "TextRegionSegmenter":
        """Backbone, SAM 2 size, points and recipe under one name; weights are found or fetched (textregion/presets.py).

        options: any argument of the constructor but the parts, and the preset loader's own
        (clip_checkpoint, clip_download_root, sam2_checkpoint, points_per_side, random_weights, …).
        """
        return build(cls, name, **options)

    # ------------------------------------------------------------------ image -> region tokens

    def encode_image(self, image: ImageInput, masks: AnyMasks = None) -> RegionTokens:
        """One unit vector per region of the image.

        image: path, PIL image, (H, W, 3) uint8 RGB array or encoded bytes.
        masks: own masks (R, h, w), soft or boolean, of any resolution; None asks the mask generator.
        Regions without any patch (left) get no token; `source_index` says which masks the tokens belong to. R = 0 is a
        normal result. Raises InputError for an unreadable image, bad masks, or no masks and no generator.
        """
        return self.encode_images([image], [masks])[0]

    @torch.inference_mode()
    def encode_images(
        self, images: Sequence[ImageInput], masks: Sequence[AnyMasks] | None = None
    ) -> list[RegionTokens]:
        """Several images as `encode_image`, their crops encoded together, `crops_per_batch` at a time.

        masks: one entry per image, or None to ask the mask generator for all. InputError as for one image.
        """
        if len(images) == 0:
            return []
        if masks is not None and not isinstance(masks, Iterable):
            raise InputError(f"got masks of type {type(masks).__name__} for {len(images)} images, expected a list")
        given = [None] * len(images) if masks is None else list(masks)
        if len(given) != len(images):
            raise InputError(f"got {len(given)} sets of masks for {len(images)} images, expected one each")
        with enough_memory(self.device):
            pixels = [load_image(image) for image in images]
            with self.timer("resize"):
                resized = [self.resize(image) for image in pixels]
            grids = [self.crop_grid(*image.shape[:2]) for image in resized]
            with self.timer("masks"):
                regions = [self._masks(*parts) for parts in zip(pixels, resized, given, strict=True)]
            with self.timer("encode"):
                features = self.encode_crops(resized, grids, regions)
            with self.timer("pool"):
                return [self.pool(*parts) for parts in zip(features, regions, grids, strict=True)]

    @torch.inference_mode()
    def encode_boxes(
        self, image: ImageInput, boxes: "np.ndarray | Tensor | Sequence", method: str = "textregion"
    ) -> RegionTokens:
        """One unit vector per box, comparable with text; the masks are SAM's of these boxes (or as `box_masks` says).

        boxes: (n, 4) numbers, x1 y1 x2 y2 in pixels of the image; n = 0 is a normal result. method: "textregion" pools
        patches as for every other mask, and `source_index` says which boxes had any; "regionspot" asks the trained head
        `self.regionspot`, which comes with preset `tiny`, and elsewhere from from_preset(regionspot_checkpoint=…).
        InputError names the first bad box: x1 < x2, y1 < y2, within the image but for a pixel of rounding.
        """
        pixels = load_image(image)
        if one_of("method", method, METHODS) == "textregion":
            with self.timer("masks of boxes"):
                whole = self.config.box_masks == "box"
                masks = rectangle_masks(boxes, pixels.shape[:2]) if whole else masks_from_boxes(self, pixels, boxes)
            return self.encode_image(pixels, masks)
        if self.regionspot is None:
            self.regionspot = load_regionspot(self.backbone, self.mask_generator)
        with self.timer("regionspot"):
            return self.regionspot.encode(pixels, boxes)

    def crop_grid(self, height: int, width: int) -> CropGrid:
        """The crops of a resized image."""
        config = self.config
        return CropGrid(height, width, config.crop_size, config.global_splits, tiles=config.resize_method != "resize")

    def resize(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The image as the mask generator and the crops see it (method 1.2, 1.3)."""
        if self.config.resize_method == "resize":
            side = self.config.crop_size
            return cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
        return resize_keep_ratio(image, self.config.scale)

    def mask_full_size(self, image_size: tuple[int, int], resized_size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) at which generated masks are meant, of the two sizes (H, W) that an image has (method 5.2)."""
        return image_size if self.config.mask_size == "original" else resized_size

    def _masks(self, image: np.ndarray, resized: np.ndarray, masks: AnyMasks) -> RegionMasks:
        """The given or generated masks, in the ablation's form if asked for."""
        size = image.shape[:2]
        if masks is not None:
            found = RegionMasks.from_array(masks, size, self.device)
        elif self.mask_generator is None:
            raise InputError("this segmenter has no mask_generator; give encode_image(image, masks=…)")
        else:
            found = self.mask_generator.generate(resized, size, self.mask_full_size(size, resized.shape[:2]))
        return replace(found, hard=self.config.mask_type == "hard")

    @torch.inference_mode()
    def encode_crops(
        self, images: Sequence[np.ndarray], grids: Sequence[CropGrid], masks: Sequence[RegionMasks] | None = None
    ) -> list[CropFeatures]:
        """Patch features of every crop of resized images (h, w, 3), for each image in the order of its grid.crops.

        `crops_per_batch` are encoded at a time, identical crops of an image only once. masks: of every image, which a
        recipe with class tokens needs; with one each image is encoded on its own.
        """
        if self.config.recipe.class_token:
            if masks is None:
                raise InputError(
                    f"recipe {self.config.recipe.name} needs the regions while crops are encoded; give masks"
                )
            each = zip(images, grids, masks, strict=True)
            return [self._encode_crops([image], [grid], own)[0] for image, grid, own in each]
        return self._encode_crops(images, grids)

    def _encode_crops(
        self, images: Sequence[np.ndarray], grids: Sequence[CropGrid], masks: RegionMasks | None = None
    ) -> list[CropFeatures]:
        """masks: of the only image."""
        config, cut = self.config, []
        boxes = [list(dict.fromkeys(grid.crops)) for grid in grids]
        for image, own in zip(images, boxes, strict=True):
            pixels = to_device(image, self.device).permute(2, 0, 1).float() / 255
            cut.append(cut_crops(pixels, own, config.crop_size, self.backbone.interpolation, config.antialias))
        crops = self.backbone.normalise(torch.cat(cut))
        inside = None
        if masks is not None:
            side = grids[0].crop_size // self.backbone.patch_size
            inside = masks.in_crops(boxes[0], images[0].shape[:2], side)

        def encode(start: int, stop: int) -> CropFeatures:
            more = {}
            if config.recipe.further_terms:
                more = {"spatial": config.recipe.spatial, "inside": None if inside is None else inside[start:stop]}
            return self.backbone.encode_crops(crops[start:stop], config.pool_feature, config.dense_fallback, **more)

        parts = in_parts(encode, len(crops), crops_at_once(self.device, self.crops_per_batch), self.device)
        joined = {}
        for name in (field.name for field in fields(CropFeatures)):
            values = [getattr(part, name) for part in parts]
            joined[name] = None if values[0] is None else torch.cat(values)
        features, start = [], 0
        for own, grid in zip(boxes, grids, strict=True):
            order = [start + own.index(box) for box in grid.crops]
            of_image = {
                name: None if values is None else torch.stack([values[n] for n in order])
                for name, values in joined.items()
            }
            features.append(CropFeatures(**of_image))
            start += len(own)
        return features

    @torch.inference_mode()
    def pool(self, features: CropFeatures, masks: RegionMasks, grid: CropGrid) -> RegionTokens:
        """Fuse the crops, weigh the patches, remove global ones, pool: R rows (method 4 to 7)."""
        config = self.config
        fused = self._fused(features.pooled, grid)
        shape = tuple(fused.shape[1:])
        patches = fused.flatten(1).T
        weights = patch_weights(masks.patch_grid(shape), config.mask_type)
        kept = nonempty(weights).nonzero()[:, 0]
        weights, scores = weights[kept], None
        if config.global_patch_threshold is not None:
            scores = difference_scores(patches, weights)
            weights = remove_patches(weights, scores, config.global_patch_threshold)
            left = nonempty(weights).nonzero()[:, 0]
            weights, kept = weights[left], kept[left]
        unit_values = config.recipe.unit_values and scores is not None and grid.tiles
        more = {}
        if features.spatial is not None:
            more["spatial"] = self._fused(features.spatial, grid).flatten(1).T
        if features.classes is not None and features.patches is not None:
            more["classes"] = mean_over_crops(features.classes, features.patches)[kept]
        tokens = self.backbone.pool(patches, weights, config.recipe, unit_values, config.pool_feature, **more)
        dense = None if features.dense is None else fuse_crops(features.dense, grid, self.backbone.global_weight)
        origin = (self.backbone.name, config.recipe.name, self.backbone.logit_scale, self.backbone.logit_bias)
        scores = None if scores is None else scores.unflatten(0, shape)
        return RegionTokens(tokens, masks.select(kept), kept, shape, *origin, scores, dense).checked()

    def _fused(self, maps: Float[Tensor, "T C g g"], grid: CropGrid) -> Float32[Tensor, "C Ph Pw"]:
        """All crops' maps as one, upsampled first where that is asked for."""
        maps = maps.float()
        if self.config.upsample_times > 1:
            maps = F.interpolate(maps, scale_factor=self.config.upsample_times, mode="bilinear")
        return fuse_crops(maps, grid, self.backbone.global_weight)

    # ------------------------------------------------------------------ words -> vectors

    @torch.inference_mode()
    def encode_text(self, labels: Sequence[str], progress: Progress | None = None) -> Float32[Tensor, "L D"]:
        """Unit text embeddings: every label in the templates of the option `templates`, averaged (method 8.1).

        The REMEMBERED_LABELS used last are kept in memory, so asking again costs nothing. progress: called with the
        number of prompts done since the last call, of `new_prompts` in all. InputError for an empty list or a blank
        label; a label longer than the model's context is cut with a warning.
        """
        labels = as_labels(labels)
        found = {label: self.remembered_labels[label] for label in labels if label in self.remembered_labels}
        new = [label for label in dict.fromkeys(labels) if label not in found]
        for label in new:
            if fills_context(label, self.backbone.tokenizer, self.templates):
                warnings.warn(f"the label {label[:40]!r}… is longer than the model reads; its end is cut", stacklevel=2)
        with self.timer("text"):
            found.update(self._embed_new(new, progress))
        self.remembered_labels.update(found)
        return torch.stack([found[label] for label in labels])

    def _embed_new(self, labels: Sequence[str], progress: Progress | None) -> Mapping[str, Tensor]:
        """Embeddings from the cache on disk where it has them, else from the model, which the cache is then told."""
        found = self.text_cache.load(labels) if self.text_cache is not None else {}
        new = [label for label in labels if label not in found]
        at_once = PROMPTS_PER_BATCH // len(self.templates)
        for start in range(0, len(new), at_once):
            batch = new[start : start + at_once]
            embeddings = self.backbone.encode_labels(batch, self.templates, progress)
            found.update({label: row.clone() for label, row in zip(batch, embeddings, strict=True)})
            if self.text_cache is not None:
                self.text_cache.save(batch, embeddings)
        return found

    # ------------------------------------------------------------------ tasks

    @torch.inference_mode()
    def segment(
        self,
        image: "ImageInput | RegionTokens",
        labels: "Sequence[str] | LabelPrompts",
        probability_threshold: float = 0.0,
        output_size: tuple[int, int] | None = None,
        return_probabilities: bool = False,
        unlabelled: bool = False,
        absent: bool = False,
        pixels: ImageInput | None = None,
        memory: "RegionMemory | None" = None,
        source: ImageInput | None = None,
    ) -> Segmentation:
        """A label for every pixel (method 8.3, 8.4). With tokens instead of an image nothing is encoded again.

        labels: words or phrases; synonyms of one label separated by ";".
        probability_threshold: 0..1; less certain pixels get the first label (method 8.4c). output_size: (H, W),
        default the image's own. return_probabilities: keep (L, H, W). unlabelled: pixels below the threshold have no
        label instead, nor have those in no region. absent: nor have those of labels that
        `absent_labels` finds nowhere in the image; the other labels win nothing by it. pixels: the image of given
        tokens, which option label_filter needs. memory: regions of unlabelled images that support this one's, with the
        options memory_alpha and memory_neighbours (`index/memory.py`). source: the image's file where its tokens or
        pixels are given, by which the memory leaves out the image's own regions.
        """
        prompts = LabelPrompts.parse(labels)
        regions = self._regions(image)
        text, asked = self.encode_text(prompts.queries), prompts
        kept = self._labels_present(image if pixels is None else pixels, prompts)
        if len(kept) < len(prompts.names):
            asked, queries = prompts.select(kept)
            text = text[queries]
        nowhere = self.absent_labels(regions, prompts) if absent else []
        with self.timer("memory") if memory else nullcontext(), enough_memory(self.device):
            source = image if source is None and not isinstance(image, RegionTokens) else source
            logits = memory.logits(self, regions, asked, text, source) if memory else regions.logits(text)
        with self.timer("postprocess"), enough_memory(self.device):
            masks, uncovered = regions.masks, None
            if self.config.dense_fallback and regions.dense is not None:
                uncovered = torch.einsum("qd,dyx->qyx", text, regions.dense)
            result = label_pixels(
                logits, masks, asked, output_size, uncovered, probability_threshold, return_probabilities
            )
            if len(kept) < len(prompts.names):
                result = among_all(result, kept, prompts.names)
            if self.config.mode_per_mask:
                result = mode_per_mask(result, masks)
            if unlabelled:
                result = unlabel(result, (result.confidence < probability_threshold) | (result.region_map < 0))
            return unlabel(result, np.isin(result.label_map, nowhere)) if nowhere else result

    def _labels_present(self, image: "ImageInput | RegionTokens", prompts: LabelPrompts) -> list[int]:
        """Places of the labels that option label_filter leaves."""
        if self.config.label_filter == "none" or self.concepts is None:
            return list(range(len(prompts.names)))
        if isinstance(image, RegionTokens):
            raise InputError("label_filter presence looks at the image itself; give its pixels beside its tokens")
        with self.timer("presence"):
            presence = self.concepts.presence(image, prompts.queries)
            return labels_present(presence, prompts, self.config.presence_threshold)

    @torch.inference_mode()
    def absent_labels(self, image: "ImageInput | RegionTokens", labels: "Sequence[str] | LabelPrompts") -> list[int]:
        """Places of the labels that score no better in this image than CONTROL_WORDS (`labels.absent_labels`).

        Control words that are asked for as labels do not count.
        """
        prompts, regions = LabelPrompts.parse(labels), self._regions(image)
        control = [word for word in CONTROL_WORDS if word not in prompts.queries]
        return absent_labels(regions, self.encode_text(prompts.queries), self.encode_text(control), prompts)

    @torch.inference_mode()
    def refer(self, image: "ImageInput | RegionTokens", sentence: str, published: bool = False) -> GroundingResult:
        """The region a sentence refers to: the largest cosine; its mask and its largest component's box (method 10).

        published: take the wider mask of the paper's verdicts (`RegionMasks.published`), not the sharp one. InputError
        for a sentence that is anything but one string.
        """
        sentence, regions = as_sentence(sentence), self._regions(image)
        if len(regions) == 0:
            return GroundingResult(None, np.zeros(regions.masks.image_size, bool), None, None)
        (scores,) = read(regions.similarity(self.encode_text([sentence.lower()]))[:, 0])
        best = int(scores.argmax())
        chosen = regions.masks.select(torch.tensor([best]))
        mask = (chosen.published() if published else chosen.binary())[0].cpu().numpy()
        return GroundingResult(best, mask, largest_component_box(mask), float(scores[best]))

    @torch.inference_mode()
    def reason(
        self, image: "ImageInput | RegionTokens", target: str, others: "str | Sequence[str] | None" = None
    ) -> Segmentation:
        """Where a described thing is: label 1 of the result is the target, 0 everything else (method 11).

        others: words for everything else, default "background, anything but {target}"; several are synonyms.
        Pixels in no region are everything else. The published evaluation used recipe "semantic-fp32", min_size 0.
        """
        regions, prompts = self._regions(image), target_prompts(target, others)
        text = self.encode_text(prompts.queries)
        with self.timer("postprocess"):
            return label_target(regions, text, prompts)

    def _regions(self, image: "ImageInput | RegionTokens") -> RegionTokens:
        if isinstance(image, RegionTokens):
            return replace(image).to(self.device)
        return self.encode_image(image)


def _checked(config: Any) -> SegmenterConfig:
    """The config itself; InputError for anything else."""
    if not isinstance(config, SegmenterConfig):
        raise InputError(
            f"got a config of type {type(config).__name__}, expected SegmenterConfig, "
            "as dataclasses.replace(segmenter.config, scale=(672, 336))"
        )
    return config
