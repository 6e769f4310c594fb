"""SLIC superpixels of scikit-image as regions (the paper's lower bound for mask sources)."""

from dataclasses import dataclass

import cv2
import torch
from torch import nn

from textregion.config import option
from textregion.errors import InputError, at_least, needs
from textregion.masks.base import Pixels, Size, SourceWithoutModel, register_mask_source
from textregion.masks.given import label_masks
from textregion.types import RegionMasks


@register_mask_source("slic")
@dataclass(eq=False)
class SlicMasks(SourceWithoutModel):
    """Superpixels: connected patches of similar colour, which together cover the image once (clustered on the CPU).

    Needs scikit-image: InputError says so when it is missing.
    """

    segments: int = option(100, "about how many superpixels, at least 1")
    compactness: float = option(10.0, "above 0; large values give squares, small ones follow colours")
    long_side: int = option(512, "the image is shrunk to this many pixels for the clustering; time grows with it")

    def __post_init__(self) -> None:
        at_least("segments", self.segments)
        at_least("long_side", self.long_side)
        if not self.compactness > 0:
            raise InputError(f"got compactness {self.compactness!r}, expected a number above 0")
        with needs("the mask source slic", layer="eval", extra="slic"):
            from skimage.segmentation import slic
        self.slic = slic

    @classmethod
    def example(cls, sam2: nn.Module, image_size: Size) -> "SlicMasks":
        """A few superpixels."""
        return cls(segments=13)

    def generate(self, image: Pixels, image_size: Size | None = None, mask_size: Size | None = None) -> RegionMasks:
        """Superpixels in reading order, stored at the clustering's size; sizes as for every mask generator."""
        size = tuple(image.shape[:2])
        factor = min(1.0, self.long_side / max(size))
        height, width = (max(1, round(side * factor)) for side in size)
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) if factor < 1 else image
        labels = self.slic(small, self.segments, self.compactness, start_label=0, channel_axis=-1)
        masks = torch.from_numpy(label_masks(labels, ignored=None)[0]).to(self.device)
        return RegionMasks(masks, tuple(image_size or size), tuple(mask_size or size))
