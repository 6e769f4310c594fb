"""From a region's mask to a box, as referring expressions are scored (spec 10)."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Referral:
    """The region a sentence refers to.

    region: index into the tokens, or None when the image has no region. mask: (H, W) bool.
    box: (x, y, width, height) of the mask's largest component in pixels, or None. score: cosine in [-1, 1].
    """

    region: int | None
    mask: Bool[np.ndarray, "H W"]
    box: Box | None
    score: float | None


def largest_component_box(mask: Bool[np.ndarray, "H W"]) -> Box | None:
    """(xmin, ymin, xmax - xmin, ymax - ymin), without +1, of the largest 8-connected component; None if empty."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count < 2:
        return None
    x, y, width, height, _ = stats[1 + stats[1:, cv2.CC_STAT_AREA].argmax()]
    return float(x), float(y), float(width - 1), float(height - 1)
