"""What a source of regions must offer."""

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8

from textregion.types import RegionMasks


@runtime_checkable
class MaskGenerator(Protocol):
    """Anything that proposes regions for an image."""

    def to(self, device: torch.device | str) -> "MaskGenerator":
        """Move to a device; returns self."""
        ...

    def generate(
        self,
        image: UInt8[np.ndarray, "h w 3"],
        image_size: tuple[int, int] | None = None,
        mask_size: tuple[int, int] | None = None,
    ) -> RegionMasks:
        """Masks of the image. image_size: the original's (H, W); mask_size: at which masks are meant; both default
        to the given image's own.
        """
        ...
