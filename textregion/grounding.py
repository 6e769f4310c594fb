"""From words to one region: referring expressions (method 10) and a thing against everything else (method 8.5, 11).

Boxes here are (x, y, width, height) in pixels, sides without +1, as published; everywhere else they are xyxy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor

from textregion.labeling import label_pixels
from textregion.labels import LabelPrompts, as_labels
from textregion.types import RegionTokens, Segmentation

Box = tuple[float, float, float, float]
HIT = 0.5  # IoU with a ground-truth box must be above it
ANYTHING_BUT = "background, anything but {target}"
ANY_OTHER_THING = "background, any other thing"
TARGET = 1  # its label in the result; 0 is everything else


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


def target_prompts(target: str, others: str | Sequence[str] | None = None) -> LabelPrompts:
    """Two labels: everything else, then the target, in lower case as published.

    others: the words for everything else, in which {target} stands for the target; several are synonyms.
    Default: "background, anything but {target}". InputError for blank words.
    """
    as_labels([target])
    others = [others] if isinstance(others, str) else as_labels(others or [ANYTHING_BUT])
    words = target.lower()
    other_words = [other.replace("{target}", words) for other in others]
    return LabelPrompts((other_words[0], target), (*other_words, words), (*(0 for _ in other_words), TARGET))


def label_target(regions: RegionTokens, text: Float[Tensor, "Q D"], prompts: LabelPrompts) -> Segmentation:
    """Label 1 where the target is, 0 elsewhere, at the image's own size.

    text: embeddings of prompts.queries. Pixels outside all regions get logit 1 for the first query and 0 for the
    others. Labels are decided at the masks' full size and brought to the image's by nearest neighbour.
    """
    uncovered = torch.zeros(len(prompts.queries), device=regions.tokens.device)
    uncovered[0] = 1
    masks = regions.masks
    result = label_pixels(regions.logits(text), masks, prompts, masks.mask_size, uncovered)
    return Segmentation(
        *(nearest(m, masks.image_size) for m in (result.label_map, result.confidence, result.region_map)),
        result.labels,
    )


def nearest(values: Shaped[np.ndarray, "h w"], size: tuple[int, int]) -> Shaped[np.ndarray, "H W"]:
    """(h, w) of any type to (H, W): pixel i takes the value at floor(i * h / H), as cv2 and torch do."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, values.shape, strict=True))
    return values[rows[:, None], columns]
