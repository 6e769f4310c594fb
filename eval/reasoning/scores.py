"""gIoU and cIoU (method 11)."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from eval.reasoning.data import IGNORED

EPSILON = 1e-5


def overlap(found: Bool[np.ndarray, "H W"], truth: UInt8[np.ndarray, "H W"]) -> tuple[int, int]:
    """(intersection, union) of the foreground in pixels; pixels whose truth is 255 do not count."""
    counted, wanted = truth != IGNORED, truth == 1
    return int((found & wanted).sum()), int(((found | wanted) & counted).sum())


def item_iou(intersection: int, union: int) -> float:
    """I / (U + 1e-5), 1 when the union is empty."""
    return intersection / (union + EPSILON) if union else 1.0


def figures(overlaps: Sequence[tuple[int, int]]) -> dict[str, float]:
    """{"gIoU": mean over the items, "cIoU": of all pixels together} in percent; NaN without any."""
    total = sum(union for _, union in overlaps)
    return {
        "gIoU": 100 * sum(item_iou(*one) for one in overlaps) / len(overlaps) if overlaps else math.nan,
        "cIoU": 100 * sum(intersection for intersection, _ in overlaps) / total if total else math.nan,
    }
