"""Regions at the image's size, each within its own box: what files and pictures need without regions x pixels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor

from textregion.interpolation import bilinear_taps, lerp_columns, lerp_rows
from textregion.types import RegionMasks

Taps = list[Tensor]


@dataclass(frozen=True)
class RegionCrop:
    """Where one region lies: `mask` over image[rows, columns], False everywhere else. One bit per pixel is kept."""

    rows: slice
    columns: slice
    packed: UInt8[np.ndarray, " n"]

    @classmethod
    def pack(cls, rows: slice, columns: slice, mask: Bool[np.ndarray, "y x"]) -> "RegionCrop":
        """Keep a mask that covers image[rows, columns]."""
        return cls(rows, columns, np.packbits(mask))

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the crop."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def mask(self) -> Bool[np.ndarray, "y x"]:
        """The region's mask within the crop."""
        height, width = self.shape
        return np.unpackbits(self.packed, count=height * width).reshape(height, width).astype(bool)

    @property
    def area(self) -> int:
        """Pixels of the image that the region covers."""
        return int(np.unpackbits(self.packed).sum())

    def paint(self, target: np.ndarray, value: object) -> None:
        """target[region] = value, for a target of the image's height and width."""
        target[self.rows, self.columns][self.mask] = value


def crop_regions(masks: RegionMasks, threshold: float = 0.0) -> list[RegionCrop]:
    """`mask > threshold` of every region at the image's size, as `RegionMasks.binary` has it, within its own box.

    Memory: one region's box in float32 at a time, then a bit per pixel of the box.
    """
    return crop_regions_above(masks, [threshold])[0]


def crop_regions_above(masks: RegionMasks, thresholds: Sequence[float]) -> list[list[RegionCrop]]:
    """`crop_regions` for several thresholds at the cost of one."""
    taps, device = None, masks.soft.device
    if masks.mask_size != tuple(masks.image_size):
        taps = [bilinear_taps(*sizes, device) for sizes in zip(masks.mask_size, masks.image_size, strict=True)]
    crops: list[list[RegionCrop]] = [[] for _ in thresholds]
    for r, (rows, columns) in enumerate(_extents(masks)):
        values = _values(masks.select(torch.tensor([r])), rows, columns, taps)
        for found, threshold in zip(crops, thresholds, strict=True):
            found.append(RegionCrop.pack(rows, columns, (values > threshold).cpu().numpy()))
    return crops


def _extents(masks: RegionMasks) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the image that each region can reach after both resizes, with a little room."""
    on = masks.soft > 0
    ends = [_ends(on.any(2).cpu(), masks, 0), _ends(on.any(1).cpu(), masks, 1)]
    for row, column in zip(*(e.tolist() for e in ends), strict=True):
        yield slice(*row), slice(*column)


def _ends(on: Bool[Tensor, "M n"], masks: RegionMasks, axis: int) -> Tensor:
    """(R, 2) int64 start and stop along one axis of the image, (0, 0) for a region without a pixel.

    A resized value is positive at most one source sample beyond a positive one, in either resize.
    """
    count, size = on.shape[1], masks.image_size[axis]
    cell, pixel = size / count, size / masks.mask_size[axis]
    first = on.to(torch.uint8).argmax(1).double()
    last = count - on.flip(1).to(torch.uint8).argmax(1).double()
    start = ((first - 0.5) * cell - pixel - 1).floor().clamp(0, size)
    stop = ((last + 0.5) * cell + pixel + 1).ceil().clamp(0, size)
    some, group = on.any(1), masks.group.cpu()
    ends = torch.stack([torch.full((len(masks),), size), torch.zeros(len(masks), dtype=torch.int64)], 1)
    ends[:, 0] = ends[:, 0].scatter_reduce(0, group[some], start[some].long(), "amin")
    ends[:, 1] = ends[:, 1].scatter_reduce(0, group[some], stop[some].long(), "amax")
    ends[ends[:, 1] == 0] = 0
    return ends


def _values(region: RegionMasks, rows: slice, columns: slice, taps: list[Taps] | None) -> Float32[Tensor, "y x"]:
    """One region's soft values at some rows and columns of the image; taps: from mask size to image size."""
    if taps is None:
        return region.pixels(torch.arange(rows.start, rows.stop), torch.arange(columns.start, columns.stop))[0]
    (y, y_taps), (x, x_taps) = (_sources(t, part) for t, part in zip(taps, (rows, columns), strict=True))
    return lerp_rows(lerp_columns(region.pixels(y, x), x_taps), y_taps)[0]


def _sources(taps: Taps, part: slice) -> tuple[Tensor, Taps]:
    """The source positions that a stretch of output positions needs, and the taps into those."""
    lower, upper, weight = (tap[part] for tap in taps)
    needed, inverse = torch.unique(torch.cat([lower, upper]), return_inverse=True)
    return needed, [*inverse.chunk(2), weight]
