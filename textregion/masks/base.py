"""What a source of regions must offer."""

from typing import Any, Protocol, runtime_checkable

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


def describe_source(source: "MaskGenerator | None") -> dict[str, Any]:
    """What decides a source's masks, JSON-able."""
    source = getattr(source, "generator", source)
    if source is None:
        return {"source": "given"}
    plain = {k: v for k, v in vars(source).items() if isinstance(v, (int, float, str, bool)) or v is None}
    ignored = ("points_per_batch", "compile")
    return {"source": type(source).__name__, **{k: v for k, v in plain.items() if k not in ignored}}
