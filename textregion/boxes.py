"""Boxes as users give them, checked in one place for every method that takes them."""

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy.typing import ArrayLike
from torch import Tensor

from textregion.errors import InputError

ROUNDING = 1.0  # pixels that a box of rounded numbers may reach beyond the image


def as_boxes(boxes: ArrayLike | Tensor) -> Float32[Tensor, "n 4"]:
    """Any array-like of n boxes as x1 y1 x2 y2; no box at all is (0, 4).

    InputError for other shapes, for what is no number, and for NaN or infinity, naming the box.
    """
    expected = "(R, 4), x1 y1 x2 y2 in pixels"
    if isinstance(boxes, Tensor):
        boxes = boxes.detach().cpu().numpy()
    try:
        array = np.asarray(boxes, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"got boxes that are no numbers of one shape, expected {expected}") from error
    if array.size == 0:
        return torch.zeros(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise InputError(f"got boxes of shape {array.shape}, expected finite numbers {expected}")
    tensor = torch.from_numpy(array)
    _refuse(~tensor.isfinite().all(1), tensor, "expected finite numbers")
    return tensor


def boxes_inside(boxes: ArrayLike | Tensor, image_size: tuple[int, int]) -> Float32[Tensor, "n 4"]:
    """Boxes of an image of (H, W) pixels, x1 < x2 and y1 < y2, within 0..W and 0..H; no box at all is (0, 4).

    Boxes that reach at most one pixel beyond the image, as rounded annotations do, are cut to it. InputError naming
    the first box that is empty or lies further outside.
    """
    tensor = as_boxes(boxes)
    height, width = image_size
    limit = torch.tensor([width, height, width, height], dtype=torch.float32)
    _refuse((tensor[:, :2] >= tensor[:, 2:]).any(1), tensor, "expected x1 < x2 and y1 < y2 in pixels")
    outside = ((tensor < -ROUNDING) | (tensor > limit + ROUNDING)).any(1)
    _refuse(outside, tensor, f"lies outside the image of {width} x {height} pixels (x, y)")
    inside = torch.minimum(tensor.clamp(min=0), limit)
    _refuse((inside[:, :2] >= inside[:, 2:]).any(1), tensor, f"is empty within the image of {width} x {height} pixels")
    return inside


def _refuse(wrong: Tensor, boxes: Float[Tensor, "n 4"], why: str) -> None:
    """InputError for the first box that is wrong."""
    if wrong.any():
        index = int(wrong.nonzero()[0, 0])
        raise InputError(f"box {index} at {boxes[index].tolist()} {why}")
