"""Contact sheets: small pictures with captions in a grid, as one image."""

import textwrap
from collections.abc import Sequence
from typing import TypeVar

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

from textregion.render import grey

CELL = (420, 240)  # width and height of a picture at most, pixels
GAP = 16
LINE = 19
COLUMNS = 3
FOUND, GOLD = (235, 40, 120), (20, 170, 60)
Picture = UInt8[np.ndarray, "_ _ 3"]
Case = TypeVar("Case")


def spread(cases: Sequence[Case], count: int) -> list[Case]:
    """At most `count` of the cases, evenly spaced, the first among them."""
    count = min(count, len(cases))
    return [cases[number * len(cases) // count] for number in range(count)]


def contact_sheet(title: str, cells: Sequence[tuple[Picture, Sequence[str]]], note: str = "") -> Image.Image:
    """Pictures (any size) in rows of three, each above its caption; a caption's lines are cut at the cell's width.

    title, note: one line each above the pictures.
    """
    columns = max(min(len(cells), COLUMNS), 2)  # a title needs some width
    wrapped = [[part for line in lines for part in textwrap.wrap(line, 56)[:3]] for _, lines in cells]
    pictures = [fit(picture) for picture, _ in cells]
    rows = [slice(start, start + columns) for start in range(0, len(cells), columns)]
    heights = [
        max(p.shape[0] for p in pictures[row]) + LINE * max(len(c) for c in wrapped[row]) + 2 * GAP for row in rows
    ]
    top = 2 * GAP + 50
    sheet = Image.new("RGB", (columns * (CELL[0] + GAP) + GAP, top + sum(heights)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    draw.text((GAP, GAP), title, "black", ImageFont.load_default(20))
    draw.text((GAP, GAP + 30), note, "dimgray", font)
    for row, height in zip(rows, heights, strict=True):
        tallest = max(p.shape[0] for p in pictures[row])
        for column, (picture, lines) in enumerate(zip(pictures[row], wrapped[row], strict=True)):
            x = GAP + column * (CELL[0] + GAP)
            sheet.paste(Image.fromarray(picture), (x, top))
            draw.multiline_text((x, top + tallest + 4), "\n".join(lines), "black", font, spacing=3)
        top += height
    return sheet


def fit(picture: Picture) -> Picture:
    """The picture at the largest size that fits into a cell, aspect kept."""
    height, width = picture.shape[:2]
    factor = min(CELL[0] / width, CELL[1] / height)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)


def beside(left: Picture, right: Picture) -> Picture:
    """Two pictures of one size with a white line between."""
    line = np.full((left.shape[0], max(left.shape[1] // 60, 1), 3), 255, np.uint8)
    return np.concatenate([left, line, right], axis=1)


def spotlight(picture: Picture, mask: Bool[np.ndarray, "H W"], colour: tuple[int, int, int]) -> Picture:
    """The picture in colour where the mask is, pale grey elsewhere, with the mask's outline."""
    out = (0.5 * grey(picture) + 0.5 * 255).round().astype(np.uint8)
    out[mask] = picture[mask]
    return contour(out, mask, colour)


def contour(picture: Picture, mask: Bool[np.ndarray, "H W"], colour: tuple[int, int, int]) -> Picture:
    """The mask's outline."""
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(picture.copy(), lines, -1, colour, max(2, max(picture.shape) // 300))
