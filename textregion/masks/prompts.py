"""SAM 2 asked about given boxes or points: one region each, in the order given (method 9, other mask sources).

A box is unambiguous, so SAM 2's single output is taken, as its authors advise; for points the best of three
outputs by predicted IoU. Both choices can be changed (`multimask_output`). Nothing is filtered or fused.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from numpy.typing import ArrayLike
from torch import Tensor

from textregion.boxes import as_boxes, boxes_inside
from textregion.errors import InputError
from textregion.images import ImageInput, load_image
from textregion.masks import filters
from textregion.masks.registry import register
from textregion.masks.sam2 import Sam2MaskGenerator
from textregion.types import MAX_SOFT_VALUE, RegionMasks

if TYPE_CHECKING:
    from textregion.segmenter import TextRegionSegmenter

BOX_LABELS = (2, 3)  # how SAM 2 marks a box's two corners


class PromptedMaskGenerator:
    """What boxes and points share. sam2: a Sam2MaskGenerator, whose grid and filters are not used here."""

    def __init__(self, sam2: Sam2MaskGenerator, multimask_output: bool) -> None:
        if not isinstance(sam2, Sam2MaskGenerator):
            raise InputError(f"got a {type(sam2).__name__}, expected a Sam2MaskGenerator to answer the prompts")
        self.sam2 = sam2
        self.multimask_output = multimask_output

    def to(self, device: torch.device | str) -> "PromptedMaskGenerator":
        """Move the model; returns self."""
        self.sam2.to(device)
        return self

    def prompts(self, image_size: tuple[int, int]) -> tuple[Float32[Tensor, "N K 2"], Int[Tensor, "N K"]]:
        """Points (x, y) in [0, 1] of the image, and SAM 2's labels of them."""
        raise NotImplementedError

    @torch.inference_mode()
    def generate(
        self,
        image: UInt8[np.ndarray, "h w 3"],
        image_size: tuple[int, int] | None = None,
        mask_size: tuple[int, int] | None = None,
    ) -> RegionMasks:
        """One region per prompt, in order; sizes as for every mask generator.

        Raises InputError for prompts outside an image of `image_size`.
        """
        size = (image.shape[0], image.shape[1])
        image_size, mask_size = image_size or size, mask_size or size
        points, labels = self.prompts(image_size)
        if len(points) == 0:
            return RegionMasks.empty(image_size, self.sam2.device)
        features = self.sam2.encode(image)
        logits, predicted_iou = self.sam2.decode_prompts(features, points, labels, self.multimask_output)
        best = predicted_iou.argmax(1)
        rows = torch.arange(len(best), device=best.device)
        logits, predicted_iou = logits[rows, best], predicted_iou[rows, best]
        return soft_masks(logits, predicted_iou, image_size, mask_size)


@register("boxes", needs="a Sam2MaskGenerator and boxes (R, 4)")
class BoxMaskGenerator(PromptedMaskGenerator):
    """One region per box. boxes: (R, 4) numbers, x1 y1 x2 y2 in pixels of the original image."""

    def __init__(self, sam2: Sam2MaskGenerator, boxes: ArrayLike, multimask_output: bool = False) -> None:
        super().__init__(sam2, multimask_output)
        self.boxes = as_boxes(boxes)

    def prompts(self, image_size: tuple[int, int]) -> tuple[Float32[Tensor, "N K 2"], Int[Tensor, "N K"]]:
        """Two corners per box; InputError for an empty box or one outside the image."""
        return box_prompts(self.boxes, image_size)


@register("points", needs="a Sam2MaskGenerator and points (R, 2)")
class PointMaskGenerator(PromptedMaskGenerator):
    """One region per point or group of points.

    points: (R, 2) or (R, K, 2) numbers, x y in pixels of the original image. labels: (R, K), 1 for a point in
    the region and 0 for one outside it; default all 1.
    """

    def __init__(
        self,
        sam2: Sam2MaskGenerator,
        points: ArrayLike,
        labels: ArrayLike | None = None,
        multimask_output: bool = True,
    ) -> None:
        super().__init__(sam2, multimask_output)
        points = _numbers(points, "points", "(R, 2) or (R, K, 2), x y in pixels", (2,), (None, 2))
        self.points = points[:, None] if points.ndim == 2 else points
        shape = self.points.shape[:2]
        self.labels = torch.ones(shape) if labels is None else torch.as_tensor(np.asarray(labels))
        if self.labels.shape != shape or not torch.isin(self.labels, torch.tensor([0, 1])).all():
            raise InputError(f"got labels of shape {tuple(self.labels.shape)}, expected {tuple(shape)} of 0 and 1")

    def prompts(self, image_size: tuple[int, int]) -> tuple[Float32[Tensor, "N K 2"], Int[Tensor, "N K"]]:
        """The points as SAM 2 takes them; InputError for one outside the image."""
        return _inside(self.points, image_size, "point"), self.labels.to(torch.int)


def box_prompts(boxes: ArrayLike | Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Boxes in pixels of an (H, W) image as SAM 2 takes them: corners (R, 2, 2) in [0, 1], their labels (R, 2).

    InputError as of `boxes_inside`.
    """
    corners = boxes_inside(boxes, image_size).unflatten(1, (2, 2)) / torch.tensor(image_size[::-1])
    return corners, torch.tensor(BOX_LABELS).expand(len(corners), 2)


def soft_masks(
    logits: Float[Tensor, "R h w"],
    predicted_iou: Float32[Tensor, " R"],
    image_size: tuple[int, int],
    mask_size: tuple[int, int],
) -> RegionMasks:
    """One region per prompt from SAM's low-res logits of the whole image; sizes as for every mask generator."""
    stability = filters.stability_scores(logits).nan_to_num(0)
    soft = logits.clamp(0, MAX_SOFT_VALUE)
    return RegionMasks(soft, image_size, mask_size, predicted_iou=predicted_iou, stability=stability)


def _numbers(values: ArrayLike, name: str, expected: str, *tails: tuple[int | None, ...]) -> Float32[Tensor, "R ..."]:
    """Finite numbers of shape (R, *tail) for one of the tails; nothing at all is (0, *first tail)."""
    try:
        array = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"got {name} that are no numbers of one shape, expected {expected}") from error
    if array.size == 0:
        return torch.zeros(0, *(n or 1 for n in tails[0]))
    fits = any(
        array.ndim == len(tail) + 1 and all(n in (None, m) for n, m in zip(tail, array.shape[1:], strict=True))
        for tail in tails
    )
    if not fits or not np.isfinite(array).all():
        raise InputError(f"got {name} of shape {array.shape}, expected finite numbers {expected}")
    return torch.from_numpy(array)


def _inside(points: Float[Tensor, "N K 2"], image_size: tuple[int, int], name: str) -> Float32[Tensor, "N K 2"]:
    """Pixels to [0, 1]; InputError naming the first prompt outside the image."""
    height, width = image_size
    outside = ((points < 0) | (points > torch.tensor([width, height]))).flatten(1).any(1)
    if outside.any():
        index = int(outside.nonzero()[0, 0])
        found = points[index].flatten().tolist()
        raise InputError(f"{name} {index} at {found} lies outside the image of {width} x {height} pixels (x, y)")
    return points / torch.tensor([width, height], dtype=torch.float32)


def masks_from_boxes(
    source: "TextRegionSegmenter | Sam2MaskGenerator",
    image: ImageInput,
    boxes: ArrayLike,
    multimask_output: bool = False,
) -> RegionMasks:
    """SAM 2 masks of given boxes, for `segmenter.encode_image(image, masks=…)`; one per box, in order.

    boxes: (R, 4), x1 y1 x2 y2 in pixels of the image. Raises InputError for boxes outside the image.
    """
    sam2, resized, sizes = _prepare(source, image)
    return BoxMaskGenerator(sam2, boxes, multimask_output).generate(resized, *sizes)


def masks_from_points(
    source: "TextRegionSegmenter | Sam2MaskGenerator",
    image: ImageInput,
    points: ArrayLike,
    labels: ArrayLike | None = None,
    multimask_output: bool = True,
) -> RegionMasks:
    """SAM 2 masks of given points, (R, 2) or (R, K, 2) with labels (R, K); one per row, in order."""
    sam2, resized, sizes = _prepare(source, image)
    return PointMaskGenerator(sam2, points, labels, multimask_output).generate(resized, *sizes)


def _prepare(source, image: ImageInput):
    """(SAM 2, the image it sees, (image size, mask size)), as the segmenter's own masks are made."""
    pixels = load_image(image)
    if isinstance(source, Sam2MaskGenerator):
        return source, pixels, (pixels.shape[:2], pixels.shape[:2])
    if getattr(source, "mask_generator", None) is None:
        raise InputError(f"got a {type(source).__name__} without SAM 2, expected a segmenter or Sam2MaskGenerator")
    resized = source.resize(pixels)
    mask_size = pixels.shape[:2] if source.mask_size == "original" else resized.shape[:2]
    return source.mask_generator, resized, (pixels.shape[:2], mask_size)
