"""Given boxes or points as regions: SAM 2 asked about each, in the order given, or boxes as they are (method 9).

A box is unambiguous, so SAM 2's single output is taken, as its authors advise; for points the best of three
outputs by predicted IoU. Both choices can be changed (`multimask_output`). Nothing is filtered or fused.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from numpy.typing import ArrayLike
from torch import Tensor, nn

from textregion.boxes import as_boxes, boxes_inside
from textregion.config import option
from textregion.errors import InputError
from textregion.images import ImageInput, load_image
from textregion.masks import filters
from textregion.masks.base import Pixels, Size, register_mask_source
from textregion.masks.clicks import ClickMaskGenerator
from textregion.masks.sam2 import Sam2MaskGenerator
from textregion.types import LOGIT_CUT, RegionMasks

BOX_LABELS = (2, 3)  # how SAM 2 marks a box's two corners
Numbers = ArrayLike | Tensor
LONGEST = 256  # cells along the longer side of a rectangle's mask, as many as SAM 2's low-resolution masks have


@dataclass(eq=False)
class PromptedMaskGenerator:
    """What boxes and points share.

    sam2: a Sam2MaskGenerator or another ClickMaskGenerator, whose grid and filters are not used here.
    """

    sam2: ClickMaskGenerator

    def __post_init__(self) -> None:
        if not isinstance(self.sam2, ClickMaskGenerator):
            raise InputError(f"got a {type(self.sam2).__name__}, expected a Sam2MaskGenerator to answer the prompts")

    def to(self, device: torch.device | str) -> "PromptedMaskGenerator":
        """Move the model; returns self."""
        self.sam2.to(device)
        return self

    def prompts(self, image_size: Size) -> tuple[Float32[Tensor, "N K 2"], Int[Tensor, "N K"]]:
        """Points (x, y) in [0, 1] of the image, and SAM 2's labels of them; InputError for one outside the image."""
        raise NotImplementedError

    @torch.inference_mode()
    def generate(self, image: Pixels, image_size: Size | None = None, mask_size: Size | None = None) -> RegionMasks:
        """One region per prompt, in order; InputError for prompts outside an image of `image_size`."""
        size = (image.shape[0], image.shape[1])
        image_size, mask_size = image_size or size, mask_size or size
        points, labels = self.prompts(image_size)
        if len(points) == 0:
            return RegionMasks.empty(image_size, self.sam2.device)
        features = self.sam2.encode(image)
        logits, predicted_iou, _ = self.sam2.decode_with_tokens(features, points, labels, self.multimask_output)
        best = predicted_iou.argmax(1)
        rows = torch.arange(len(best), device=best.device)
        return soft_masks(logits[rows, best], predicted_iou[rows, best], image_size, mask_size)


@register_mask_source("boxes", needs="a Sam2MaskGenerator and boxes (R, 4)")
@dataclass(eq=False)
class BoxMaskGenerator(PromptedMaskGenerator):
    """One region per box. boxes: (R, 4) numbers, x1 y1 x2 y2 in pixels of the original image."""

    boxes: Numbers
    multimask_output: bool = option(False, "the best of three outputs by predicted IoU, not SAM 2's single one")

    def __repr__(self) -> str:
        return f"BoxMaskGenerator({len(self.boxes)} boxes)"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.boxes = as_boxes(self.boxes)

    @classmethod
    def example(cls, sam2: nn.Module, image_size: Size) -> "BoxMaskGenerator":
        """One box in the middle."""
        height, width = image_size
        return cls(Sam2MaskGenerator(sam2), [[width // 4, height // 4, width // 2, height // 2]])

    def prompts(self, image_size: Size) -> tuple[Float32[Tensor, "N K 2"], Int[Tensor, "N K"]]:
        """Two corners per box; InputError for an empty box or one outside the image."""
        return box_prompts(self.boxes, image_size)


@register_mask_source("points", needs="a Sam2MaskGenerator and points (R, 2)")
@dataclass(eq=False)
class PointMaskGenerator(PromptedMaskGenerator):
    """One region per point or group of points.

    points: (R, 2) or (R, K, 2) numbers, x y in pixels of the original image. labels: (R, K), 1 for a point in
    the region and 0 for one outside it; default all 1.
    """

    points: Numbers
    labels: Numbers | None = None
    multimask_output: bool = option(True, "the best of three outputs by predicted IoU, not SAM 2's single one")

    def __repr__(self) -> str:
        return f"PointMaskGenerator({len(self.points)} regions)"

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = "(R, 2) or (R, K, 2), x y in pixels"
        try:
            array = np.asarray(self.points, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise InputError(f"got points that are no numbers of one shape, expected {expected}") from error
        if array.size == 0:
            array = array.reshape(0, 1, 2)
        if array.ndim not in (2, 3) or array.shape[-1] != 2 or not np.isfinite(array).all():
            raise InputError(f"got points of shape {array.shape}, expected finite numbers {expected}")
        self.points = torch.from_numpy(array if array.ndim == 3 else array[:, None])
        shape, labels = self.points.shape[:2], self.labels
        self.labels = torch.ones(shape) if labels is None else torch.as_tensor(np.asarray(labels))
        if self.labels.shape != shape or not torch.isin(self.labels, torch.tensor([0, 1])).all():
            raise InputError(f"got labels of shape {tuple(self.labels.shape)}, expected {tuple(shape)} of 0 and 1")

    @classmethod
    def example(cls, sam2: nn.Module, image_size: Size) -> "PointMaskGenerator":
        """One point in the middle."""
        return cls(Sam2MaskGenerator(sam2), [[image_size[1] // 2, image_size[0] // 2]])

    def prompts(self, image_size: Size) -> tuple[Float32[Tensor, "N K 2"], Int[Tensor, "N K"]]:
        """The points as SAM 2 takes them; InputError naming the first one outside the image."""
        height, width = image_size
        limit = torch.tensor([width, height], dtype=torch.float32)
        outside = ((self.points < 0) | (self.points > limit)).flatten(1).any(1)
        if outside.any():
            index = int(outside.nonzero()[0, 0])
            found = self.points[index].flatten().tolist()
            raise InputError(f"point {index} at {found} lies outside the image of {width} x {height} pixels (x, y)")
        return self.points / limit, torch.as_tensor(self.labels, dtype=torch.int)


def box_prompts(boxes: Numbers, image_size: Size) -> tuple[Tensor, Tensor]:
    """SAM 2's corners (R, 2, 2) in [0, 1] and labels (R, 2) of boxes in pixels; InputError as of `boxes_inside`."""
    corners = boxes_inside(boxes, image_size).unflatten(1, (2, 2)) / torch.tensor(image_size[::-1])
    return corners, torch.tensor(BOX_LABELS).expand(len(corners), 2)


def soft_masks(
    logits: Float[Tensor, "R h w"], predicted_iou: Float32[Tensor, " R"], image_size: Size, mask_size: Size
) -> RegionMasks:
    """One region per prompt from SAM's low-res logits of the whole image; sizes as for every mask generator."""
    stability = filters.stability_scores(logits).nan_to_num(0)
    scores = {"predicted_iou": predicted_iou, "stability": stability}
    return RegionMasks(logits, image_size, mask_size, **scores, cut=LOGIT_CUT)


def masks_from_boxes(source: Any, image: ImageInput, boxes: Numbers, multimask_output: bool = False) -> RegionMasks:
    """SAM 2 masks of given boxes, for `segmenter.encode_image(image, masks=…)`; one per box, in order.

    source: a TextRegionSegmenter, or a Sam2MaskGenerator. boxes: (R, 4), x1 y1 x2 y2 in pixels of the image.
    Raises InputError for boxes outside the image.
    """
    sam2, resized, sizes = _prepare(source, image)
    return BoxMaskGenerator(sam2, boxes, multimask_output).generate(resized, *sizes)


def masks_from_points(
    source: Any, image: ImageInput, points: Numbers, labels: Numbers | None = None, multimask_output: bool = True
) -> RegionMasks:
    """SAM 2 masks of given points, (R, 2) or (R, K, 2) with labels (R, K); one per row, in order.

    source: a TextRegionSegmenter, or a Sam2MaskGenerator. Raises InputError for points outside the image.
    """
    sam2, resized, sizes = _prepare(source, image)
    return PointMaskGenerator(sam2, points, labels, multimask_output).generate(resized, *sizes)


def _prepare(source: Any, image: ImageInput) -> tuple[Any, Pixels, tuple[Size, Size]]:
    """(SAM 2, the image it sees, (image size, mask size)), as the segmenter's own masks are made."""
    pixels = load_image(image)
    size = (pixels.shape[0], pixels.shape[1])
    if isinstance(source, ClickMaskGenerator):
        return source, pixels, (size, size)
    if getattr(source, "mask_generator", None) is None:
        raise InputError(f"got a {type(source).__name__} without SAM 2, expected a segmenter or Sam2MaskGenerator")
    resized = source.resize(pixels)
    return source.mask_generator, resized, (size, source.mask_full_size(size, resized.shape[:2]))


def rectangle_masks(boxes: Numbers, image_size: Size) -> RegionMasks:
    """Boxes themselves: one soft region each, in order, the share of every cell of a coarse grid that the box covers.

    boxes: (n, 4), x1 y1 x2 y2 in pixels of an (H, W) image; n = 0 is fine. InputError as of `boxes_inside`.
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
