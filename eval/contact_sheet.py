"""Contact sheets: small pictures with captions in a grid, as one image."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from textregion.outputs.pictures import font, shorten, wrap
from textregion.render import RgbImage, grey

CELL = (420, 240)  # width and height of a picture at most, pixels
GAP = 16
LINE, SIZE = 19, 14  # pixels, of a line and of its letters
COLUMNS = 3
FOUND, GROUND_TRUTH = (235, 40, 120), (20, 170, 60)
Mask = Bool[np.ndarray, "H W"]
Colour = tuple[int, int, int]


def contact_sheet(title: str, cells: Sequence[tuple[RgbImage, Sequence[str]]], note: str = "") -> Image.Image:
    """Pictures (any size) in rows of three, each above its caption; a caption's lines are cut at the cell's width.

    title, note: one line each above the pictures.
    """
    columns = max(min(len(cells), COLUMNS), 2)  # a title needs some width
    wrapped = [[part for line in lines for part in wrap(line, SIZE, CELL[0])[:3]] for _, lines in cells]
    fitted = [(fit(picture), caption) for (picture, _), caption in zip(cells, wrapped, strict=True)]
    rows = [fitted[start : start + columns] for start in range(0, len(fitted), columns)]
    tallest = [max(picture.shape[0] for picture, _ in row) for row in rows]
    heights = [high + LINE * max(len(c) for _, c in row) + 2 * GAP for high, row in zip(tallest, rows, strict=True)]
    top = 2 * GAP + 50
    sheet = Image.new("RGB", (columns * (CELL[0] + GAP) + GAP, top + sum(heights)), "white")
    draw, room = ImageDraw.Draw(sheet), sheet.width - 2 * GAP
    draw.text((GAP, GAP), shorten(title, 20, room), "black", font(20))
    draw.text((GAP, GAP + 30), shorten(note, SIZE, room), "dimgray", font(SIZE))
    for row, high, height in zip(rows, tallest, heights, strict=True):
        for column, (picture, caption) in enumerate(row):
            x = GAP + column * (CELL[0] + GAP)
            sheet.paste(Image.fromarray(picture), (x, top))
            for n, line in enumerate(caption):
                draw.text((x, top + high + 4 + LINE * n), line, "black", font(SIZE))
        top += height
    return sheet


def fit(picture: RgbImage) -> RgbImage:
    """The picture at the largest size that fits into a cell, aspect kept."""
    height, width = picture.shape[:2]
    factor = min(CELL[0] / width, CELL[1] / height)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)


def beside(left: RgbImage, right: RgbImage) -> RgbImage:
    """Two pictures of one size with a white line between."""
    line = np.full((left.shape[0], max(left.shape[1] // 60, 1), 3), 255, np.uint8)
    return np.concatenate([left, line, right], axis=1)


def spotlight(picture: RgbImage, mask: Mask, colour: Colour) -> RgbImage:
    """The picture in colour where the mask is, pale grey elsewhere, with the mask's outline."""
    out = (0.5 * grey(picture) + 0.5 * 255).round().astype(np.uint8)
    out[mask] = picture[mask]
    return contour(out, mask, colour)


def contour(picture: RgbImage, mask: Mask, colour: Colour) -> RgbImage:
    """The mask's outline."""
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(picture.copy(), lines, -1, colour, max(2, max(picture.shape) // 300))
