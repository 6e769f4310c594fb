"""Bilinear resizing of chosen rows and columns only, with the arithmetic of torch's own `interpolate`; and with it
regions at the image's size, each within its own box: what files and pictures need without regions x pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from textregion.devices import read, upload

if TYPE_CHECKING:
    from textregion.types import RegionMasks
else:
    RegionMasks = Any  # stands above this module

READ_AT_ONCE = 2**24  # pixels of regions that wait on a device until they are read together


def bilinear_taps(size_in: int, size_out: int) -> list[Tensor]:
    """Both source indices and the weight of the second, per output position (align_corners=False), on the host.

    Returns [lower (size_out,) int64, upper (size_out,) int64, weight (size_out,) float32 in [0, 1)].
    """
    scale = torch.tensor(size_in, dtype=torch.float32) / size_out
    centre = torch.arange(size_out, dtype=torch.float64) + 0.5
    position = (centre * scale.double() - 0.5).float()  # one rounding, as the fused multiply-add of torch's kernels
    position = position.clamp(0, size_in - 1)
    lower = position.floor().long()
    upper = (lower + 1).clamp(max=size_in - 1)
    return [lower, upper, position - lower]


def taps_at(taps: Sequence[Tensor], where: slice | Int[Tensor, " n"]) -> tuple[Int[Tensor, " m"], list[Tensor]]:
    """The m source positions, ascending, that some output positions need, and the taps of those into them."""
    lower, upper, weight = (tap[where] for tap in taps)
    needed, inverse = torch.unique(torch.cat([lower, upper]), return_inverse=True)
    return needed, [*inverse.chunk(2), weight]


def lerp_columns(x: Float[Tensor, "m y w"], taps: Sequence[Tensor]) -> Float[Tensor, "m y x"]:
    """Blend pairs of columns: x[..., lower] * (1 - weight) + x[..., upper] * weight."""
    lower, upper, weight = taps
    return x[..., lower].mul_(1 - weight).add_(x[..., upper].mul_(weight))  # indexing copies: in place on the copies


def lerp_rows(x: Float[Tensor, "m h x"], taps: Sequence[Tensor]) -> Float[Tensor, "m y x"]:
    """Blend pairs of rows: x[..., lower, :] * (1 - weight) + x[..., upper, :] * weight."""
    lower, upper, weight = taps
    return x[..., lower, :].mul_(1 - weight[:, None]).add_(x[..., upper, :].mul_(weight[:, None]))


# ---------------------------------------------------------------------- regions within their boxes


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

    def __repr__(self) -> str:
        rows, columns = self.rows, self.columns
        return (
            f"RegionCrop({self.area} pixels in rows {rows.start}:{rows.stop}, columns {columns.start}:{columns.stop})"
        )

    @property
    def mask(self) -> Bool[np.ndarray, "y x"]:
        """The region's mask within the crop."""
        height, width = self.rows.stop - self.rows.start, self.columns.stop - self.columns.start
        return np.unpackbits(self.packed, count=height * width).reshape(height, width).astype(bool)

    @property
    def area(self) -> int:
        """Pixels of the image that the region covers."""
        return int(np.unpackbits(self.packed).sum())

    def paint(self, target: np.ndarray, value: object) -> None:
        """target[region] = value, for a target of the image's height and width."""
        target[self.rows, self.columns][self.mask] = value


def crop_regions(masks: RegionMasks) -> list[RegionCrop]:
    """Every region at the image's size, as `RegionMasks.binary` has it, within its own box.

    Memory: the parts of one region within its box in float32 at a time, a byte per pixel of some boxes, and a bit per
    pixel of every box. The device is read once for about every `READ_AT_ONCE` pixels.
    """
    boxes, group = read(replace(masks, boxes=None).boxes, masks.group)  # the masks' own boxes may be wider
    sizes = zip(masks.soft.shape[1:], masks.image_size, strict=True)
    y_taps, x_taps = (bilinear_taps(*pair) for pair in sizes)
    extents, needed = list(_extents(boxes, masks)), []
    for r, (rows, columns) in enumerate(extents):
        (y, y_at), (x, x_at) = taps_at(y_taps, rows), taps_at(x_taps, columns)
        needed.append([(group == r).nonzero()[:, 0], y, *y_at, x, *x_at])
    crops, waiting = [], []
    for part, y, *y_at, x, x_lower, x_upper, x_weight in upload(masks.soft.device, *needed):
        values = lerp_columns(masks.soft[part][:, y][:, :, x].float(), (x_lower, x_upper, x_weight))
        waiting.append((lerp_rows(values, y_at) > masks.cut).any(0))
        last = len(crops) + len(waiting) == len(masks)
        if last or sum(mask.numel() for mask in waiting) >= READ_AT_ONCE:
            for mask in read(*waiting):
                crops.append(RegionCrop.pack(*extents[len(crops)], mask.numpy()))
            waiting = []
    return crops


def _extents(boxes: Float[Tensor, "R 4"], masks: RegionMasks) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the image that each region can reach once resized, with a little room.

    boxes: on the host, tight. A resized value is above the cut less than one stored sample beyond a stored value that
    is.
    """
    room_y, room_x = (size / stored + 1 for size, stored in zip(masks.image_size, masks.soft.shape[1:], strict=True))
    (height, width), empty = masks.image_size, slice(0, 0)
    for x1, y1, x2, y2 in boxes.tolist():
        rows = slice(max(floor(y1 - room_y), 0), min(ceil(y2 + room_y), height))
        columns = slice(max(floor(x1 - room_x), 0), min(ceil(x2 + room_x), width))
        yield (rows, columns) if x2 > 0 else (empty, empty)  # x2 is 0 for a region without a pixel
