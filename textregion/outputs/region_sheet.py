"""One picture with every region on its own: its crop of the image, its best labels and their scores."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw

from textregion.outputs.lettering import font, shorten
from textregion.outputs.pictures import MARGIN, footer, palette
from textregion.outputs.region_crops import RegionCrop

MOST = 60  # regions on one sheet
COLUMNS = 6
SIDE = 184  # pixels, of a region's picture
LINES = 3  # labels told per region
SIZE = 14  # pixels, of the letters
CELL = (SIDE + MARGIN, SIDE + (LINES + 1) * 19 + 6 + MARGIN)  # width, height
Picture = UInt8[np.ndarray, "_ _ 3"]


def region_sheet(image: Picture, rows: Sequence[dict], crops: Sequence[RegionCrop], most: int = MOST) -> Image.Image:
    """Regions in cells, large ones first: outlined in the image, below it the region's index, area and best labels.

    rows: from `annotations.region_rows`; crops: `crop_regions` of the same masks. Of more than `most` regions only
    the largest are shown, and the foot of the sheet says so. Scores are cosine and probability.
    """
    shown = sorted(rows, key=lambda row: (-row["area"], row["region"]))[:most]
    columns = max(3, min(COLUMNS, len(shown)))
    width = columns * CELL[0] + MARGIN
    foot = footer([], _note(len(shown), len(rows)), width, SIZE)
    lines = -(-len(shown) // columns)
    sheet = Image.new("RGB", (width, MARGIN + lines * CELL[1] + foot.height), "white")
    colours = palette(len(rows))
    for n, row in enumerate(shown):
        corner = MARGIN + (n % columns) * CELL[0], MARGIN + (n // columns) * CELL[1]
        sheet.paste(_cell(image, row, crops[row["region"]], colours[row["region"]]), corner)
    sheet.paste(foot, (0, sheet.height - foot.height))
    return sheet


def _note(shown: int, count: int) -> str:
    """What the numbers are, and how many regions are not shown."""
    if count == 0:
        return "No regions were found."
    some = f"{count} regions" if shown == count else f"The {shown} largest of {count} regions; all are in regions.json"
    return f"{some}. Large to small; #: index in regions.json; per label: cosine, probability."


def _cell(image: Picture, row: dict, crop: RegionCrop, colour: UInt8[np.ndarray, " 3"]) -> Image.Image:
    cell = Image.new("RGB", (SIDE, CELL[1] - MARGIN), "white")
    picture = Image.fromarray(region_picture(image, crop, colour))
    cell.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    draw, y = ImageDraw.Draw(cell), SIDE + 4
    draw.rectangle((0, y + 2, SIZE - 3, y + SIZE - 1), tuple(colour.tolist()), "black")
    _line(draw, y, f"#{row['region']}", f"{row['area']:,} px", indent=SIZE + 3)
    for n, label in enumerate(row["labels"][:LINES], start=1):
        scores = f"{label['cosine']:.3f} {label['probability']:4.0%}"
        _line(draw, y + 19 * n, label["name"], scores, "black" if n == 1 else "dimgray")
    return cell


def _line(draw: ImageDraw.ImageDraw, y: int, left: str, right: str, colour: str = "black", indent: int = 0) -> None:
    """Words at the left, shortened so that the numbers at the right have room."""
    taken = font(SIZE).getlength(right)
    draw.text((SIDE - taken, y), right, colour, font(SIZE))
    draw.text((indent, y), shorten(left, SIZE, SIDE - taken - indent - 8), colour, font(SIZE))


def region_picture(
    image: Picture, crop: RegionCrop, colour: UInt8[np.ndarray, " 3"], side: int = SIDE
) -> UInt8[np.ndarray, "_ _ 3"]:
    """The part of the image around a region, at most `side` pixels a side: the region as it is, the rest faded."""
    top, bottom, left, right = _surroundings(crop, image.shape[:2])
    part = image[top:bottom, left:right]
    inside = np.zeros(part.shape[:2], np.uint8)
    rows = slice(max(crop.rows.start, top), min(crop.rows.stop, bottom))
    columns = slice(max(crop.columns.start, left), min(crop.columns.stop, right))
    within = crop.mask[rows.start - crop.rows.start : rows.stop - crop.rows.start]
    within = within[:, columns.start - crop.columns.start : columns.stop - crop.columns.start]
    inside[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = within
    factor = side / max(part.shape[:2])
    size = max(1, round(part.shape[1] * factor)), max(1, round(part.shape[0] * factor))
    part = cv2.resize(part, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    inside = cv2.resize(inside, size, interpolation=cv2.INTER_NEAREST)
    faded = cv2.addWeighted(part, 0.3, np.full_like(part, 255), 0.7, 0)
    picture = np.where(inside[..., None].astype(bool), part, faded)
    contours, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.ascontiguousarray(picture), contours, -1, colour.tolist(), 2)


def _surroundings(crop: RegionCrop, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the region's mask with a sixth of its longer side around it."""
    mask: Bool[np.ndarray, "y x"] = crop.mask
    if not mask.any():
        return 0, size[0], 0, size[1]
    y, x = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    top, bottom = crop.rows.start + int(y[0]), crop.rows.start + int(y[-1]) + 1
    left, right = crop.columns.start + int(x[0]), crop.columns.start + int(x[-1]) + 1
    room = max(bottom - top, right - left) // 6 + 2
    return max(top - room, 0), min(bottom + room, size[0]), max(left - room, 0), min(right + room, size[1])
