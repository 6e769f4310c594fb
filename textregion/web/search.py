"""Searching a table of regions on the page, without gradio: words to pictures of hits, a hit to its whole image.

Only images of the table leave this machine, drawn anew and small: a visitor never names a file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from textregion.errors import InputError
from textregion.images import load_image
from textregion.index.encoding import decode_masks
from textregion.index.hits import ABSENT, OUTLINE, SIDE, hit_picture
from textregion.index.region_index import RegionIndex
from textregion.index.search import Hit
from textregion.index.store import lance_errors, quoted
from textregion.web.cached_segmenter import Limits, resize, shown_size

Pixels = UInt8[np.ndarray, "h w 3"]
TOP = 24
MOST_OUTLINES = 200  # of an image's regions
FAINT = (255, 255, 255)
EMPTY = "Type what you look for: a red mug. Synonyms: dog; puppy."


@dataclass(frozen=True)
class Found:
    """What a search shows: pictures with their captions, and the hits behind them, in their order. note: a line."""

    note: str
    pictures: list[tuple[Pixels, str]] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)


class TableView:
    """A table of regions as the page shows it. image_root: where its images are now, if they have moved."""

    def __init__(self, index: RegionIndex, limits: Limits, image_root: str | None = None) -> None:
        self.index, self.limits, self.opener = index, limits, index.opener(image_root)

    @property
    def title(self) -> str:
        """What is searched, in a line."""
        images = self.index.tables.images.count_rows()
        return f"{len(self.index):,} regions of {images:,} images"

    def search(self, words: Any, without: Any, per_image: Any) -> Found:
        """Pictures of the best hits. InputError for no words, or ones that are too long."""
        texts = [text if isinstance(text, str) else "" for text in (words, without)]
        if not texts[0].strip(" ;"):
            raise InputError(EMPTY)
        for text in texts:
            if len(text) > self.limits.max_characters:
                raise InputError(f"got {len(text)} characters, more than the limit of {self.limits.max_characters}")
        asked = {"without": texts[1] if texts[1].strip(" ;") else (), "per_image": 1 if per_image else None}
        hits = self.index.search(texts[0], TOP, **asked)
        pictures, gone = [], 0
        for hit in hits:
            try:
                picture = hit_picture(self._pixels(hit), hit)
            except InputError:
                picture, gone = np.full((SIDE, SIDE, 3), 225, np.uint8), gone + 1
            pictures.append((picture, f"{hit.score:.3f}  {Path(hit.image).name}{f'  {ABSENT}' * bool(hit.absent)}"))
        note = f"{len(hits)} hits in {self.title}" + f"; {gone} images are gone or have changed" * bool(gone)
        return Found(note, pictures, hits)

    def open(self, hits: Sequence[Hit], number: Any) -> tuple[Pixels, str]:
        """(The image of a hit with all its regions outlined, the hit's own strongest; a line about it)."""
        if not isinstance(number, int) or not 0 <= number < len(hits):
            raise InputError("choose one of the hits")
        hit = hits[number]
        pixels, told = self._pixels(hit), f"image = {quoted(hit.image)}"
        with lance_errors("the table cannot be read"):
            asked = self.index.tables.regions.search().where(told).select(["region", "mask"]).limit(MOST_OUTLINES)
            rows = asked.to_list()
        size = shown_size(pixels.shape[:2])
        picture = np.ascontiguousarray(resize(pixels, size))
        others = [row["mask"] for row in rows if row["region"] != hit.region]
        for mask in others:
            _outline(picture, mask, FAINT, 1)
        _outline(picture, hit.mask_code, (0, 0, 0), 5)
        _outline(picture, hit.mask_code, OUTLINE, 3)
        height, width = pixels.shape[:2]
        line = f"{Path(hit.image).name}, {width} x {height} pixels, {len(others) + 1} regions; region {hit.region}: "
        return picture, f"{line}{hit.area:.1%} of the image, score {hit.score:.3f}"

    def _pixels(self, hit: Hit) -> Pixels:
        pixels = load_image(self.opener.read(hit.image, hit.image_hash))
        if pixels.shape[:2] != hit.image_size:
            raise InputError("the image has changed since it was indexed")
        return pixels


def _outline(picture: Pixels, code: dict, colour: tuple[int, int, int], thickness: int) -> None:
    (mask,) = decode_masks([code])
    soft = cv2.resize(mask.astype(np.float32), picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    contours, _ = cv2.findContours((soft > 0.5).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, colour, thickness)
