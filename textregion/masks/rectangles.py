"""Boxes themselves as regions, for where no model is to say which of their pixels are the thing."""

import torch
from jaxtyping import Float32
from numpy.typing import ArrayLike
from torch import Tensor

from textregion.boxes import boxes_inside
from textregion.types import RegionMasks

LONGEST = 256  # cells along the longer side, as many as SAM 2's low-resolution masks have


def rectangle_masks(boxes: ArrayLike | Tensor, image_size: tuple[int, int]) -> RegionMasks:
    """One soft region per box, in order: the share of every cell of a coarse grid that the box covers, 0..1.

    boxes: (n, 4), x1 y1 x2 y2 in pixels of an image of (H, W) pixels; n = 0 is fine. InputError as of `boxes_inside`.
    """
    inside = boxes_inside(boxes, image_size)
    if len(inside) == 0:
        return RegionMasks.empty(image_size)
    factor = min(1.0, LONGEST / max(image_size))
    height, width = (max(1, round(side * factor)) for side in image_size)
    columns = _covered(inside[:, 0] * (width / image_size[1]), inside[:, 2] * (width / image_size[1]), width)
    rows = _covered(inside[:, 1] * (height / image_size[0]), inside[:, 3] * (height / image_size[0]), height)
    return RegionMasks(rows[:, :, None] * columns[:, None, :], image_size, image_size, boxes=inside)


def _covered(start: Float32[Tensor, " n"], stop: Float32[Tensor, " n"], cells: int) -> Float32[Tensor, "n cells"]:
    """The share of each unit cell within [start, stop]."""
    left = torch.arange(cells, device=start.device)
    return (torch.minimum(stop[:, None], left + 1) - torch.maximum(start[:, None], left)).clamp(0, 1)
