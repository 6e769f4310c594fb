"""From a region's mask to a box, and from boxes to a verdict, as referring expressions are scored (method 10)."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float64

Box = tuple[float, float, float, float]
HIT = 0.5  # IoU with a gold box must be above it


@dataclass(frozen=True)
class GroundingResult:
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


def box_ious(box: Box, others: Sequence[Box]) -> Float64[np.ndarray, " K"]:
    """IoU in [0, 1] of a box with each of K others, all (x, y, width, height), sides without +1; 0 where 0/0."""
    x, y, width, height = box
    if len(others) == 0:
        return np.zeros(0)
    other = np.asarray(others, np.float64)
    left, top = np.maximum(other[:, 0], x), np.maximum(other[:, 1], y)
    right = np.minimum(other[:, 0] + other[:, 2], x + width)
    bottom = np.minimum(other[:, 1] + other[:, 3], y + height)
    shared = np.clip(right - left, 0, None) * np.clip(bottom - top, 0, None)
    union = width * height + other[:, 2] * other[:, 3] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def snap(box: Box, candidates: Sequence[Box]) -> tuple[Box, int | None]:
    """The candidate that overlaps the box most (the first of equals) and its index; (box, None) if none overlaps."""
    ious = box_ious(box, candidates)
    if len(ious) == 0 or ious.max() <= 0:
        return box, None
    best = int(ious.argmax())
    return tuple(float(v) for v in candidates[best]), best


def is_hit(iou: float) -> bool:
    """Whether a box with this IoU counts as right: strictly more than one half."""
    return bool(iou > HIT)
