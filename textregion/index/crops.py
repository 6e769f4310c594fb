"""The regions of hits, cut out of their images: scored again by the whole image tower, and drawn."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from jaxtyping import Bool, UInt8
from open_clip.utils import to_2tuple
from torch.nn import functional as F

from textregion.errors import InputError
from textregion.images import load_image
from textregion.index.search import RERANKED, Hit, Query

if TYPE_CHECKING:
    from textregion.index.region_index import RegionIndex

GREY = 127  # of what is not the region
ROOM = 6  # around its box: that part of the longer side
CROPS_AT_ONCE = 16


def rerank(index: "RegionIndex", hits: Sequence[Hit], query: Query, image_root: str | Path | None) -> list[Hit]:
    """The first RERANKED hits by the mean of their score and their crop's; the others behind them, as they were.

    A crop is the region's surroundings, greyed outside it, seen by the whole image tower. InputError when an image is
    gone or has changed.
    """
    first, opener, crops = list(hits[:RERANKED]), index.opener(image_root), []
    images = sorted({hit.image for hit in first})
    for image in images:
        try:
            pixels = load_image(opener.read(image, next(hit.image_hash for hit in first if hit.image == image)))
        except InputError as error:
            told = f"reranking looks at the images, and {error}"
            raise InputError(f"{told}; say with --image_root where they are now, or leave --rerank out") from error
        crops += [(n, region_crop(pixels, hit.mask)) for n, hit in enumerate(first) if hit.image == image]
    vectors = np.zeros((len(first), index.encoder.width), np.float32)
    for start in range(0, len(crops), CROPS_AT_ONCE):
        batch = crops[start : start + CROPS_AT_ONCE]
        vectors[[n for n, _ in batch]] = whole_tower(index, [crop for _, crop in batch])
    scores = query.scores(vectors) if len(first) else []
    scored = [
        replace(hit, score=(hit.score + float(score)) / 2, crop_score=float(score))
        for hit, score in zip(first, scores, strict=True)
    ]
    return [*sorted(scored, key=lambda hit: -hit.score), *hits[RERANKED:]]


def region_crop(image: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"]) -> UInt8[np.ndarray, "s s 3"]:
    """A square around a region, everything else in it grey; of a region without a pixel the whole image."""
    if not mask.any():
        mask = np.ones_like(mask)
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    y1, y2, x1, x2 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    room = max(y2 - y1, x2 - x1) // ROOM
    y1, y2, x1, x2 = max(y1 - room, 0), y2 + room, max(x1 - room, 0), x2 + room
    part = np.where(mask[y1:y2, x1:x2, None], image[y1:y2, x1:x2], np.uint8(GREY))
    side = max(part.shape[:2])
    square = np.full((side, side, 3), GREY, np.uint8)
    top, left = (side - part.shape[0]) // 2, (side - part.shape[1]) // 2
    square[top : top + part.shape[0], left : left + part.shape[1]] = part
    return square


@torch.inference_mode()
def whole_tower(index: "RegionIndex", crops: Sequence[np.ndarray]) -> np.ndarray:
    """(N, D) unit vectors of square crops, as the model sees whole images at its own input size."""
    backbone = index.segmenter(words_only=True).backbone
    side = to_2tuple(backbone.model.visual.image_size)[0]
    sized = [
        cv2.resize(c, (side, side), interpolation=cv2.INTER_AREA if len(c) > side else cv2.INTER_CUBIC) for c in crops
    ]
    pixels = torch.from_numpy(np.stack(sized)).permute(0, 3, 1, 2).float().to(backbone.device) / 255
    vectors = backbone.model.encode_image(backbone.normalise(pixels))
    return F.normalize(vectors.float(), dim=-1).cpu().numpy()
