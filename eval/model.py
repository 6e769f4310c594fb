"""The model mmseg sees: a shell around TextRegionSegmenter, registered under its name.

model = MODELS.build(dict(type="TextRegionSegmenter", preset="clip-vit-b16", classes="voc21"))
samples = model(inputs, data_samples, mode="predict")
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.structures import PixelData
from torch import Tensor

from eval.data import read_classes
from eval.mask_cache import CachedMasks
from eval.mm import MODELS, SegDataSample
from textregion.backbones import FAMILIES, ClipBackbone, find_spec
from textregion.concepts import LABELLERS, SAM3_CONCEPTS, ConceptLabeller
from textregion.devices import resolve_device
from textregion.errors import InputError, one_of, out_of_memory
from textregion.images import load_image
from textregion.index.memory import OWN_KEYS, RegionMemory
from textregion.labels import LabelPrompts
from textregion.masks import automatic_sources
from textregion.masks.given import GROUND_TRUTH, label_masks
from textregion.presets import DEFAULTS, TINY_WORLD, find_preset
from textregion.render import label_colours
from textregion.segmenter import TextRegionSegmenter
from textregion.types import RegionTokens


class Unchanged(BaseDataPreprocessor):
    """Hands the batch on as it is, arrays as tensors: the method resizes and normalises by its own rules."""

    def forward(self, data: dict, training: bool = False) -> dict:  # noqa: D102
        for sample in data.get("data_samples") or ():
            if "gt_sem_seg" in sample:
                sample.gt_sem_seg.data = _as_tensor(sample.gt_sem_seg.data)
        return {**data, "inputs": [_as_tensor(image) for image in data["inputs"]]}


def _as_tensor(values: np.ndarray | Tensor) -> Tensor:
    """A tensor of the same values; torch can do little with unsigned integers of more than 8 bits."""
    if isinstance(values, Tensor):
        return values
    return torch.from_numpy(values.astype(np.int32 if values.dtype == np.uint16 else values.dtype, copy=False))


@MODELS.register_module(name="TextRegionSegmenter")
class TextRegionModel(BaseModel):
    """mmseg's view of the method: images in, SegDataSamples with `pred_sem_seg` out; prediction only.

    preset: name of textregion/presets.py. segmenter: a TextRegionSegmenter instead of a preset.
    classes: a list of textregion/classes, a class file, or labels. names: "published" or "natural" spelling.
    probability_threshold: 0..1, less certain pixels become class 0 (method 8.4c).
    recipe: of method 7.2; "auto" is "semantic" for OpenAI's CLIP, "semantic-fp32" for others.
    dense_fallback: method 8.4a; "auto" is on where the family has it (CLIP).
    masks: "sam2", "ground-truth" (from gt_sem_seg; ablation), "slic" (ablation) or another source by name; None: the
        preset's.
    method: "textregion", or "sam3-concepts", SAM 3 asked with the words (textregion/concepts.py), for which all options
        of backbone, masks and regions are without meaning.
    concepts: its thresholds, {"score_thresh", "fallback_thresh"}. sam3_checkpoint: its folder; for label_filter too.
    mask_cache: folder that keeps the masks that are made, None for none.
    memory: a table of `textregion index` whose regions support an image's (memory_alpha, memory_neighbours are among
    the options), which are left out themselves by the hash of its file. memory_key: "token", or a timm tower;
    memory_key_checkpoint: its weights. memory_may_overlap: take a table that has images of the benchmark, too.
    return_probabilities: also `seg_logits`, the (K, H, W) class probabilities; costs K * H * W * 4 bytes.
    device: "auto" is the one that mmseg moves the model to, or the first that exists; a device's name stays.
    options: any other argument of TextRegionSegmenter.from_preset (scale, points_per_side, …).
    The arguments from `data_preprocessor` on are mmseg's, which hands them to every model; only None is taken.
    """

    def __init__(
        self,
        preset: str = "clip-vit-b16",
        segmenter: TextRegionSegmenter | None = None,
        classes: str | Sequence[str] = "voc21",
        names: str = "published",
        probability_threshold: float = 0.0,
        recipe: str = "auto",
        dense_fallback: bool | str = "auto",
        masks: str | None = None,
        method: str = "textregion",
        concepts: Mapping[str, float] | None = None,
        sam3_checkpoint: str | Path | None = None,
        mask_cache: str | Path | None = None,
        memory: str | Path | None = None,
        memory_key: str = OWN_KEYS,
        memory_key_checkpoint: str | Path | None = None,
        memory_may_overlap: bool = False,
        return_probabilities: bool = False,
        device: str = "auto",
        data_preprocessor: None = None,
        init_cfg: None = None,
        pretrained: None = None,
        train_cfg: None = None,
        test_cfg: None = None,
        **options: object,
    ) -> None:
        if any(given is not None for given in (data_preprocessor, init_cfg, pretrained, train_cfg, test_cfg)):
            raise InputError(
                "the method prepares images itself, is not trained, and its weights are the preset's; leave "
                "data_preprocessor, init_cfg, pretrained, train_cfg and test_cfg out"
            )
        super().__init__(data_preprocessor=Unchanged())
        one_of("method", method, LABELLERS)
        self.masks = masks or (find_preset(preset).mask_source if segmenter is None else "sam2")
        one_of("masks", self.masks, (*automatic_sources(), GROUND_TRUTH))
        self.prompts = LabelPrompts.parse(read_classes(classes, names))
        self.probability_threshold = probability_threshold
        self.method = method
        self.return_probabilities = return_probabilities
        self.mask_cache = mask_cache
        self.memory: RegionMemory | None = None
        self.memory_may_overlap = memory_may_overlap
        self._open_memory = None
        if memory is not None:
            made_by = preset if segmenter is None else None
            self._open_memory = partial(
                RegionMemory.open, memory, made_by, memory_key, key_checkpoint=memory_key_checkpoint
            )
        self._rebuild = None
        made: TextRegionSegmenter | ConceptLabeller | None = segmenter
        if made is None:
            root = options.get("clip_download_root")
            build = partial(_build_concepts, sam3_checkpoint, root, dict(concepts or {}))
            if method == "textregion":
                options = {**options, "sam3_checkpoint": sam3_checkpoint}
                build = partial(_build, preset, recipe, dense_fallback, self.masks, options)
            self._rebuild = build if device == "auto" else None
            made = build(device)
        self._use(made)

    def _use(self, segmenter: TextRegionSegmenter | ConceptLabeller) -> None:
        self.segmenter = segmenter
        if self._open_memory is not None:
            if not isinstance(segmenter, TextRegionSegmenter):
                raise InputError(
                    f"got memory with method {self.method}, which has no region tokens; leave one of them out"
                )
            self.memory = self._open_memory(device=segmenter.device)
            self.memory.check(segmenter)
        if self.mask_cache is not None and self.masks != GROUND_TRUTH and self.method != SAM3_CONCEPTS:
            segmenter.mask_generator = CachedMasks(segmenter.mask_generator, self.mask_cache)

    def to(self, *args: object, **kwargs: object) -> "TextRegionModel":
        """As torch's. A model of device "auto" is built anew there when it was on another kind of device.

        Where the device does not exist a warning says so and the model stays: mmseg's init_model asks for cuda:0.
        """
        device = kwargs.get("device", args[0] if args else None)
        if self._rebuild is not None and isinstance(device, (str, torch.device)):
            try:
                wanted = resolve_device(device)
            except InputError as error:
                warnings.warn(f"{error}; the model stays on {self.segmenter.device}", stacklevel=2)
                return self
            here = self.segmenter.device
            if wanted.type != here.type or wanted.index not in (None, here.index or 0):
                self._use(self._rebuild(str(device)))
        return super().to(*args, **kwargs)

    @property
    def cfg(self) -> Config | None:
        """A copy of the config that mmseg's init_model gave: its inference_model rewrites the pipeline in it."""
        return copy.deepcopy(self.__dict__.get("_cfg"))

    @cfg.setter
    def cfg(self, config: Config) -> None:
        self.__dict__["_cfg"] = config

    @property
    def dataset_meta(self) -> dict:
        """{"classes", "palette"}: the model's own labels, for mmseg's drawings."""
        return {"classes": list(self.prompts.names), "palette": label_colours(self.prompts.names).tolist()}

    @dataset_meta.setter
    def dataset_meta(self, value: object) -> None:
        """Nothing: mmseg gives every model without a checkpoint the names of Cityscapes."""

    def forward(
        self,
        inputs: "Sequence[UInt8[Tensor, '3 H W']] | UInt8[Tensor, 'B 3 H W']",
        data_samples: Sequence[SegDataSample] | None = None,
        mode: str = "predict",
    ) -> list[SegDataSample]:
        """Predictions for a batch of any size, images of any sizes.

        inputs: uint8 BGR, as mmseg's loading gives them; an image that a pipeline has resized or normalised is
        read again from its img_path. Results are on the CPU. InputError for another mode than "predict".
        """
        if mode != "predict":
            raise InputError(f"got mode {mode!r}; the method is not trained, only mode 'predict' exists")
        samples = list(data_samples) if data_samples is not None else [SegDataSample() for _ in inputs]
        ready = [ready for pair in zip(inputs, samples, strict=True) if (ready := self._prepare(*pair)) is not None]
        if self.method == SAM3_CONCEPTS:
            regions = [None] * len(ready)
        else:
            regions = self._encode([pixels for _, pixels, _ in ready], [masks for _, _, masks in ready])
        for (sample, pixels, _), encoded in zip(ready, regions, strict=True):
            self.label(sample, encoded, pixels)
        return samples

    def _prepare(self, image: Tensor, sample: SegDataSample) -> tuple | None:
        """(sample, pixels, given masks); None, with the reason as `unreadable`, for what cannot be read."""
        if "unreadable" in sample:
            return None
        try:
            pixels, masks = _original(image, sample), None
            if self.masks == GROUND_TRUTH:
                if "gt_sem_seg" not in sample:
                    raise InputError("masks 'ground-truth' need the label map of every image")
                masks, _ = label_masks(sample.gt_sem_seg.data[0].cpu().numpy())
            return sample, pixels, masks
        except InputError as error:
            sample.set_metainfo({"unreadable": str(error)})
            return None

    def _encode(self, images: list, masks: list) -> "list[RegionTokens | InputError]":
        """Tokens of all images, their crops encoded together; an image that cannot be encoded gives its error."""
        if not images:
            return []
        try:
            return list(self.segmenter.encode_images(images, masks))
        except InputError as error:
            if len(images) == 1 and not out_of_memory(error):  # which says nothing about the image: the run ends
                return [error]
            if len(images) == 1:
                raise
        return [self._encode([image], [own])[0] for image, own in zip(images, masks, strict=True)]

    def label(
        self, sample: SegDataSample, regions: "RegionTokens | InputError | None", pixels: np.ndarray | None = None
    ) -> None:
        """Add the prediction, or the reason why there is none. regions: None for a method that has none."""
        if isinstance(regions, InputError):
            sample.set_metainfo({"unreadable": str(regions)})
            return
        if self.method == SAM3_CONCEPTS:
            result = self.segmenter.segment(pixels, self.prompts, return_probabilities=self.return_probabilities)
        else:
            result = self.segmenter.segment(
                regions,
                self.prompts,
                self.probability_threshold,
                return_probabilities=self.return_probabilities,
                pixels=pixels,
                memory=self.memory,
                source=sample.get("img_path"),
            )
        sample.pred_sem_seg = PixelData(data=torch.from_numpy(result.label_map)[None])
        if result.probabilities is not None:
            sample.seg_logits = PixelData(data=torch.from_numpy(result.probabilities))


def _original(image: Tensor, sample: SegDataSample) -> np.ndarray:
    """(H, W, 3) uint8 RGB as the photograph is."""
    size = tuple(image.shape[1:])
    if image.dtype == torch.uint8 and tuple(sample.get("ori_shape", size)) == size:
        return image.flip(0).permute(1, 2, 0).contiguous().cpu().numpy()
    if not sample.get("img_path"):
        raise InputError("got a resized image without img_path; give the original as (3, H, W) uint8 BGR")
    return load_image(sample.img_path)


def _build(
    preset: str, recipe: str, dense_fallback: bool | str, masks: str, options: dict, device: str
) -> TextRegionSegmenter:
    """The preset's models; "auto" is what the published benchmark figures were made with, by whose weights they are.

    A preset that is no row of the registry (the tiny world) or names a recipe keeps its own.
    """
    chosen = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    found = find_preset(preset)
    spec = None if found.backbone == TINY_WORLD else find_spec(found.backbone)
    if recipe == "auto":
        published = "semantic" if spec and spec.open_clip[1] == "openai" else "semantic-fp32"
        recipe = published if spec and found.options["recipe"] == DEFAULTS["recipe"] else found.options["recipe"]
    if dense_fallback == "auto":
        dense_fallback = (FAMILIES[spec.family] if spec else ClipBackbone).has_dense_fallback
    if masks == GROUND_TRUTH:
        chosen["mask_generator"] = None
    else:
        chosen["mask_generator"] = masks
    chosen |= {"recipe": recipe, "dense_fallback": bool(dense_fallback), "device": device}
    return TextRegionSegmenter.from_preset(preset, **chosen)


def _build_concepts(
    weights: str | Path | None, root: str | Path | None, thresholds: dict[str, float], device: str
) -> ConceptLabeller:
    return ConceptLabeller.from_weights(weights, root, **thresholds).to(resolve_device(device))


def describe(model: TextRegionModel) -> dict:
    """What decides the model's numbers, JSON-able: for results.json and the journal's fingerprint."""
    return {
        **model.segmenter.settings(),
        "mask_source": model.masks if model.method != SAM3_CONCEPTS else None,
        "labels": list(model.prompts.names),
        "queries": list(model.prompts.queries),
        "probability_threshold": model.probability_threshold,
        "memory": model.memory and model.memory.settings(),
    }
