"""Masks as outlines, exactly: along the edges of pixels (COCO, GeoJSON) or through their centres (YOLO, labelme).

supervision's writers simplify outlines and lose holes (0.31), pycocotools writes none; hence these.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import Bool, Int, UInt8

Ring = Int[np.ndarray, "_ 2"]  # corners x, y in pixels, the last one joined to the first
NEIGHBOURS = 4  # two pixels that only share a corner are two parts


@dataclass(frozen=True)
class Part:
    """A 4-connected piece of a mask. x, y: of its upper left pixel in the image. mask: within its box."""

    x: int
    y: int
    mask: UInt8[np.ndarray, "h w"]

    def place(self, ring: Ring, top: int = 0) -> Ring:
        """A ring of this part, of its rows from `top` on, in the image's coordinates."""
        return ring + np.array([self.x, self.y + top])


def parts(mask: Bool[np.ndarray, "H W"]) -> Iterator[Part]:
    """The 4-connected parts, from the top down."""
    pixels = np.ascontiguousarray(mask, np.uint8)
    count, label, boxes, _ = cv2.connectedComponentsWithStats(pixels, connectivity=NEIGHBOURS)
    for i, (x, y, width, height, _) in zip(range(1, count), boxes[1:].tolist(), strict=True):
        yield Part(x, y, np.uint8(label[y : y + height, x : x + width] == i))


def edge_polygons(mask: Bool[np.ndarray, "H W"]) -> list[list[Ring]]:
    """Per part its outer ring and the rings of its holes, along the edges of pixels: pixel x lies between x and x + 1.

    The even-odd area of the rings is the mask itself. Every polygon is valid as OGC (GeoJSON, shapely) has it: rings
    touch themselves nowhere, and each other in points only.
    """
    return [[part.place(_along_edges(ring)) for ring in _rings(_doubled(part.mask))] for part in parts(mask)]


def edge_polygons_without_holes(mask: Bool[np.ndarray, "H W"]) -> list[Ring]:
    """The same area as polygons without holes: a part is cut along a row through each of its holes."""
    rings = []
    for part in parts(mask):
        polygon = [_along_edges(ring) for ring in _rings(_doubled(part.mask))]
        cuts = sorted({0, len(part.mask), *(int(hole[:, 1].min()) for hole in polygon[1:])})
        if len(cuts) == 2:
            rings.append(part.place(polygon[0]))
            continue
        for top, bottom in pairwise(cuts):
            band = edge_polygons(part.mask[top:bottom].astype(bool))
            rings += [part.place(outer, top) for (outer,) in band]
    return rings


def centre_rings(mask: Bool[np.ndarray, "H W"]) -> list[Ring]:
    """Per part one closed path through the centres of its border pixels, x, y being the pixels' indices.

    Holes hang on a seam: the path goes along a row of the part to the hole, around it, and back the same way, so
    that filling it by the even-odd rule, borders included (cv2.fillPoly, as YOLO's readers do), gives the mask again.
    """
    found = []
    for part in parts(mask):
        outer, *holes = _rings(part.mask)
        for hole in sorted(holes, key=lambda ring: ring[:, 0].min()):
            outer = _with_hole(outer, hole)
        found.append(part.place(_corners(outer)))
    return found


def _rings(mask: UInt8[np.ndarray, "h w"]) -> list[Ring]:
    """Border pixels of a connected mask, step by step: the outer ring, then one for each hole."""
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    order = sorted(range(len(contours)), key=lambda i: hierarchy[0][i][3] >= 0)  # the outer one has no parent
    return [contours[i][:, 0].astype(np.int64) for i in order]


def _doubled(mask: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "2*h 2*w"]:
    return mask.repeat(2, 0).repeat(2, 1)


def _along_edges(ring: Ring) -> Ring:
    """A ring of border pixels of a doubled mask as a ring of pixel edges.

    Pixel x of the mask is 2x and 2x + 1 when doubled. A border that runs along its left half is the edge x, along its
    right half the edge x + 1: both are half the doubled index, rounded up. Around holes the ring lies in the pixels
    beside the hole, with the same result.
    """
    return _corners((ring + 1) // 2)


def _corners(ring: Ring) -> Ring:
    """Without repeated points and those that lie within a straight run; where a path turns back stays a corner."""
    ring = ring[(ring != np.roll(ring, 1, 0)).any(1)] if len(ring) > 1 else ring
    before, after = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
    cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    straight = (cross == 0) & ((before * after).sum(1) > 0)
    return ring[~straight] if len(ring) > 2 else ring


def _with_hole(outer: Ring, hole: Ring) -> Ring:
    """One path around both. The seam runs to the left from the hole's leftmost pixel, within the mask: the holes
    further left are in the path already, so the first pixel of the path that it meets has nothing but mask between.
    """
    start = int(hole[:, 0].argmin())
    x, y = hole[start]
    on_row = np.flatnonzero((outer[:, 1] == y) & (outer[:, 0] <= x))
    at = int(on_row[outer[on_row, 0].argmax()])
    around = np.roll(hole, -start, 0)
    return np.concatenate([outer[: at + 1], around, around[:1], outer[at:]])
