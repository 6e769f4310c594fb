"""SLIC superpixels of scikit-image as regions (the paper's lower bound for mask sources)."""

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from textregion.errors import InputError, needs
from textregion.masks.ground_truth import label_masks
from textregion.masks.registry import register
from textregion.types import RegionMasks


@register("slic")
class SlicMasks:
    """Superpixels: connected patches of similar colour, which together cover the image once.

    segments: about how many, at least 1. compactness: above 0; large values give squares, small ones follow
    colours (10). long_side: the image is shrunk to this many pixels for the clustering; time grows with it.
    Needs scikit-image: InputError says so when it is missing.
    """

    def __init__(self, segments: int = 100, compactness: float = 10.0, long_side: int = 512) -> None:
        for name, value in (("segments", segments), ("long_side", long_side)):
            if not isinstance(value, int) or value < 1:
                raise InputError(f"got {name} {value!r}, expected a whole number of at least 1")
        if not compactness > 0:
            raise InputError(f"got compactness {compactness!r}, expected a number above 0")
        with needs("the mask source slic", layer="eval", extra="slic"):
            from skimage.segmentation import slic
        self.slic = slic
        self.segments = segments
        self.compactness = compactness
        self.long_side = long_side
        self.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> "SlicMasks":
        """Where the masks shall be put (the clustering itself runs on the CPU); returns self."""
        self.device = torch.device(device)
        return self

    def generate(
        self,
        image: UInt8[np.ndarray, "h w 3"],
        image_size: tuple[int, int] | None = None,
        mask_size: tuple[int, int] | None = None,
    ) -> RegionMasks:
        """Superpixels in reading order, stored at the clustering's size; sizes as for every mask generator."""
        size = tuple(image.shape[:2])
        factor = min(1.0, self.long_side / max(size))
        height, width = (max(1, round(side * factor)) for side in size)
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) if factor < 1 else image
        labels = self.slic(small, self.segments, self.compactness, start_label=0, channel_axis=-1)
        masks = torch.from_numpy(label_masks(labels, ignored=None)[0]).to(self.device)
        return RegionMasks(masks, tuple(image_size or size), tuple(mask_size or size))
