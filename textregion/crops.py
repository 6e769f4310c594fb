"""Which crops of an image are encoded, and how their patch maps become one grid (method 2 and 4)."""

from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional as F

from textregion.errors import InputError

CropBox = tuple[int, int, int, int]
RgbTensor = Float[Tensor, "3 h w"]
RESIZE_METHODS = ("multi_resolution", "resize")


@dataclass(frozen=True)
class CropGrid:
    """The crops of an h x w image cut into nh x nw tiles of about `crop_size` pixels.

    global_splits: (1, 1) encodes the whole image once; (1, 2) its left and right halves instead (method 2.4).
    tiles=False: the whole image is the only crop (`resize_method="resize"`, method 1.3).
    """

    height: int
    width: int
    crop_size: int
    global_splits: tuple[int, int] = (1, 1)
    tiles: bool = True

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.crop_size, *self.global_splits) < 1:
            raise InputError(f"got {self}, expected sizes and splits of at least 1")
        if self.global_splits[0] > self.height or self.global_splits[1] > self.width:
            raise InputError(f"cannot split a {self.width} x {self.height} image into {self.global_splits} parts")

    @property
    def shape(self) -> tuple[int, int]:
        """(nh, nw), tiles per column and row."""
        if not self.tiles:
            return 1, 1
        return max(self.height // self.crop_size, 1), max(self.width // self.crop_size, 1)

    @property
    def global_crops(self) -> list[CropBox]:
        """(y1, x1, y2, x2) of the whole image, or of its parts row-major."""
        return _split(self.height, self.width, self.global_splits)

    @property
    def tile_crops(self) -> list[CropBox]:
        """(y1, x1, y2, x2) per tile, row-major; the last row and column are moved back into the image."""
        if not self.tiles:
            return []
        rows, columns = self.shape
        th, tw = ceil(self.height / rows), ceil(self.width / columns)
        bottoms = [min((i + 1) * th, self.height) for i in range(rows)]
        rights = [min((j + 1) * tw, self.width) for j in range(columns)]
        return [(max(y2 - th, 0), max(x2 - tw, 0), y2, x2) for y2 in bottoms for x2 in rights]

    @property
    def crops(self) -> list[CropBox]:
        """All crops in encoding order: global ones first, then tiles."""
        return self.global_crops + self.tile_crops

    def patch_shape(self, patches_per_side: int) -> tuple[int, int]:
        """(Ph, Pw) of the stitched grid."""
        rows, columns = self.shape
        return rows * patches_per_side, columns * patches_per_side


def cut_crops(
    image: RgbTensor, boxes: list[CropBox], size: int, interpolation: str = "bicubic", antialias: bool = True
) -> Float[Tensor, "T 3 size size"]:
    """Each crop squashed to size x size (aspect ignored, values not clamped); one of that size is left alone.

    image: RGB in [0, 1]. interpolation: "bicubic" or "bilinear" (align_corners=False).
    """
    crops = []
    for y1, x1, y2, x2 in boxes:
        crop = image[None, :, y1:y2, x1:x2]
        if crop.shape[2:] != (size, size):
            crop = F.interpolate(crop, (size, size), mode=interpolation, antialias=antialias, align_corners=False)
        crops.append(crop)
    return torch.cat(crops)


def fuse_crops(
    maps: Float[Tensor, "T C g g"], grid: CropGrid, global_weight: float = 1.0
) -> Float32[Tensor, "C Ph Pw"]:
    """global_weight * (global map upsampled bilinearly) + each tile's map in its cell (method 4).

    maps: T crops in the order of `grid.crops`. global_weight: 1 for CLIP, 0.5 for PE and SigLIP 2.
    Without tiles the one crop is the grid.
    """
    maps = maps.float()
    height, width = grid.patch_shape(maps.shape[-1])
    parts = _split(height, width, grid.global_splits)
    whole = maps.new_empty(maps.shape[1], height, width)
    for part, (y1, x1, y2, x2) in zip(maps, parts, strict=False):
        whole[:, y1:y2, x1:x2] = F.interpolate(part[None], (y2 - y1, x2 - x1), mode="bilinear")[0]
    if not grid.tiles:
        return whole
    tiles = maps[len(parts) :].unflatten(0, grid.shape).permute(2, 0, 3, 1, 4).reshape(-1, height, width)
    return global_weight * whole + tiles


def _split(height: int, width: int, splits: tuple[int, int]) -> list[CropBox]:
    """(y1, x1, y2, x2) of rows x columns parts, row-major; borders at side * k // parts."""
    ys, xs = (
        [side * k // parts for k in range(parts + 1)] for side, parts in zip((height, width), splits, strict=True)
    )
    return [(y1, x1, y2, x2) for y1, y2 in pairwise(ys) for x1, x2 in pairwise(xs)]
