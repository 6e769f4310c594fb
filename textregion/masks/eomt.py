"""EoMT's panoptic segments as regions: one forward pass instead of 256 clicks, and no pixel in two of them."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from textregion.config import option
from textregion.devices import autocast
from textregion.errors import fraction
from textregion.masks.base import Pixels, Size, register_mask_source
from textregion.masks.hub import load_model, transformers_class
from textregion.types import RegionMasks

WHAT = "the mask source eomt"
THRESHOLDS = ("score_thresh", "mask_thresh", "overlap_thresh")


@register_mask_source(
    "eomt", needs="an EomtForUniversalSegmentation of transformers", repository="tue-mps/coco_panoptic_eomt_large_640"
)
@dataclass(eq=False)
class EomtMasks:
    """Proposes regions with an EomtForUniversalSegmentation of transformers; its classes are not looked at.

    Preparing the image and the rule are transformers' own (EomtImageProcessor): the image's longer side at the model's
    input size (640), padded with black; of the queries whose best class is a real one with a probability p of at least
    `score_thresh`, a pixel belongs to the one of the largest p * sigmoid(mask); a region is what a query has won where
    its own sigmoid(mask) >= `mask_thresh`, if it has won more than `overlap_thresh` of the pixels where that holds.
    """

    model: nn.Module = field(repr=False)
    score_thresh: float = option(0.8, "0..1, segments whose class is less probable are dropped")
    mask_thresh: float = option(0.5, "0..1, least probability of a pixel of a segment")
    overlap_thresh: float = option(0.8, "0..1, segments that keep at most this share of their pixels are dropped")
    dtype: torch.dtype = option(torch.bfloat16, "autocast type on CUDA; a CPU always computes in float32")

    def __post_init__(self) -> None:
        for name in THRESHOLDS:
            fraction(name, getattr(self, name))
        self.model = self.model.eval().requires_grad_(False)
        side = self.model.config.image_size
        size = {"shortest_edge": side, "longest_edge": side}
        self._processor = transformers_class("EomtImageProcessor", WHAT)(size=size, do_pad=True)

    @classmethod
    def from_weights(cls, where: str | Path, root: str | Path | None = None, **options: Any) -> "EomtMasks":
        """where: a folder in the hub's layout or the hub's "owner/name". InputError: as of `load_model`."""
        return cls(load_model("EomtForUniversalSegmentation", where, WHAT, root), **options)

    @classmethod
    def example(cls, sam2: nn.Module, image_size: Size) -> "EomtMasks":
        """A small random model, all of whose queries are taken."""
        sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 96, "num_blocks": 2}
        config = transformers_class("EomtConfig", WHAT)(**sizes, num_queries=13, num_labels=7)
        model = transformers_class("EomtForUniversalSegmentation", WHAT)(config)
        return cls(model, score_thresh=0.0, overlap_thresh=0.0)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> "EomtMasks":
        """Move the model; returns self."""
        self.model.to(device)
        return self

    @torch.inference_mode()
    def generate(self, image: Pixels, image_size: Size | None = None, mask_size: Size | None = None) -> RegionMasks:
        """Segments at `mask_size`, in the order of the queries, p as predicted IoU; R = 0 is a normal result."""
        height, width = image.shape[:2]
        image_size = image_size or (height, width)
        mask_size = mask_size or (height, width)
        pixels = self._processor(images=image, return_tensors="pt")["pixel_values"].to(self.device)
        with autocast(self.device, self.dtype):
            found = self.model(pixels)
        classes, masks = found.class_queries_logits.float(), found.masks_queries_logits.float()
        score, label = classes[0].softmax(-1).max(-1)
        kept = (score >= self.score_thresh) & (label < classes.shape[-1] - 1)  # the last one is "no object"
        if not kept.any():
            return RegionMasks.empty(image_size, self.device)
        # What is dropped here would be dropped there, after having been enlarged; -1: its bound is exclusive.
        chosen = SimpleNamespace(class_queries_logits=classes[:, kept], masks_queries_logits=masks[:, kept])
        panoptic = self._processor.post_process_panoptic_segmentation(
            chosen, [mask_size], -1.0, self.mask_thresh, self.overlap_thresh
        )[0]
        labels, segments = panoptic["segmentation"].to(self.device), panoptic["segments_info"]
        if not segments:
            return RegionMasks.empty(image_size, self.device)
        regions = labels == torch.tensor([s["id"] for s in segments], device=self.device)[:, None, None]
        scores = torch.tensor([s["score"] for s in segments], device=self.device)
        return RegionMasks(regions, image_size, mask_size, predicted_iou=scores)
