"""What a search found, for people and programs: a table of text, hits.json, a contact sheet."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from textregion.errors import InputError
from textregion.images import load_image
from textregion.index.search import Hit
from textregion.index.sources import Opener, is_uri
from textregion.outputs.pictures import MARGIN, font, footer, sentences, shorten
from textregion.render import RgbImage, text_table
from textregion.resampling import RegionCrop, crop_regions

DIGITS = 4
HEADER = ("", "score", "image", "region", "box", "area")
SIDE = 224  # pixels, of a hit's picture
SIZE = 13  # of its letters
CELL = (SIDE + MARGIN, SIDE + 2 * 18 + 8 + MARGIN)  # width, height
COLUMNS = 6
MOST_CELLS = 120
OUTLINE = (255, 214, 10)  # yellow, with black on both sides it shows on anything
ABSENT = "probably not there"
LEAST_SHARE = 3  # of the image's longer side, that a picture shows at least: 1 / LEAST_SHARE


def shown_name(image: str) -> str:
    """An image's path as short as it can be said here: below the working directory without that."""
    if is_uri(image):
        return image
    path = Path(image)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else image


def hits_table(hits: Sequence[Hit]) -> str:
    """A line a hit, for a terminal."""
    rows = [
        (
            *(str(rank), f"{hit.score:.{DIGITS}f}", shown_name(hit.image), str(hit.region)),
            *(",".join(f"{value:.0f}" for value in hit.box), f"{hit.area:.1%}" + f"  {ABSENT}" * bool(hit.absent)),
        )
        for rank, hit in enumerate(hits, 1)
    ]
    return text_table(HEADER, rows)


def hits_json(hits: Sequence[Hit], asked: dict) -> dict:
    """{"asked": {…}, "hits": [{"rank", "score", "image", "region", "box", "area", "mask", …}]}.

    mask: COCO's compressed RLE at the masks' own resolution, {"size": [h, w], "counts"}. "crop_score" and "absent" only
    where they were asked for; "columns" holds the table's other columns, if it has any.
    """
    rows = []
    for rank, hit in enumerate(hits, 1):
        code = hit.mask_code
        row = {"rank": rank, "score": round(hit.score, 6), "image": hit.image, "image_hash": hit.image_hash}
        row |= {"region": hit.region, "box": [round(float(value), 2) for value in hit.box], "area": round(hit.area, 6)}
        row |= {"image_size": list(hit.image_size)}
        row["mask"] = {"size": [code["height"], code["width"]], "counts": code["counts"].decode("ascii")}
        if hit.crop_score is not None:
            row["crop_score"] = round(hit.crop_score, 6)
        if hit.absent is not None:
            row["absent"] = hit.absent
        if hit.more:
            row["columns"] = {name: value if _is_plain(value) else str(value) for name, value in hit.more.items()}
        rows.append(row)
    return {"asked": asked, "hits": rows}


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def contact_sheet(hits: Sequence[Hit], opener: Opener, note: str = "") -> tuple[Image.Image, list[str]]:
    """(The best MOST_CELLS hits in cells, why some have no picture). Each shows its region outlined.

    note: at the foot. An image that is gone, outside of what was indexed, or changed has a grey cell and a reason.
    """
    shown, problems = list(hits[:MOST_CELLS]), []
    columns = max(3, min(COLUMNS, len(shown)))
    width = columns * CELL[0] + MARGIN
    left_out = f"the {len(shown)} best of {len(hits)} hits; all are in hits.json" if len(shown) < len(hits) else ""
    foot = footer([], sentences(left_out, note) or "No hit.", width, SIZE)
    lines = -(-len(shown) // columns)
    sheet = Image.new("RGB", (width, MARGIN + lines * CELL[1] + foot.height), "white")

    @lru_cache(8)
    def pixels_of(image: str, image_hash: str) -> RgbImage:
        return load_image(opener.read(image, image_hash))

    for n, hit in enumerate(shown):
        try:
            picture = hit_picture(pixels_of(hit.image, hit.image_hash), hit)
        except InputError as error:
            picture = np.full((SIDE, SIDE, 3), 225, np.uint8)
            problems.append(str(error))
        corner = MARGIN + (n % columns) * CELL[0], MARGIN + (n // columns) * CELL[1]
        sheet.paste(_cell(picture, hit, n + 1), corner)
    sheet.paste(foot, (0, sheet.height - foot.height))
    return sheet, list(dict.fromkeys(problems))


def _cell(picture: RgbImage, hit: Hit, rank: int) -> Image.Image:
    cell = Image.new("RGB", (SIDE, CELL[1] - MARGIN), "white")
    image = Image.fromarray(picture)
    cell.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    draw, faint = ImageDraw.Draw(cell), "gray" if hit.absent else "black"
    draw.text((0, SIDE + 4), shorten(f"#{rank}  {Path(hit.image).name}", SIZE, SIDE - 60), faint, font(SIZE))
    score = f"{hit.score:.3f}"
    draw.text((SIDE - font(SIZE).getlength(score), SIDE + 4), score, faint, font(SIZE))
    where = ABSENT if hit.absent else f"region {hit.region}, {hit.area:.1%} of the image"
    draw.text((0, SIDE + 22), shorten(where, SIZE, SIDE), "dimgray", font(SIZE))
    return cell


def hit_picture(image: UInt8[np.ndarray, "H W 3"], hit: Hit, side: int = SIDE) -> UInt8[np.ndarray, "_ _ 3"]:
    """The part of an image around a hit, at most `side` pixels a side, with the region's outline."""
    if image.shape[:2] != hit.image_size:
        told = f"{image.shape[1]} x {image.shape[0]} pixels"
        raise InputError(f"{hit.image} has {told}, not those that were indexed; run `textregion index` again")
    (crop,) = crop_regions(hit.masks)
    x1, y1, x2, y2 = (round(value) for value in hit.box)
    least = max(image.shape[:2]) // LEAST_SHARE
    wanted = min(max(round(1.5 * max(x2 - x1, y2 - y1)), least, 8), max(image.shape[:2]))
    rows, columns = (_around(a, b, wanted, n) for a, b, n in ((y1, y2, image.shape[0]), (x1, x2, image.shape[1])))
    return outlined(image[rows, columns], crop, (rows.start, columns.start), side)


def _around(start: int, stop: int, wanted: int, length: int) -> slice:
    """A range of `wanted` pixels around another, moved into 0..length."""
    wanted = min(wanted, length)
    first = min(max((start + stop - wanted) // 2, 0), length - wanted)
    return slice(first, first + wanted)


def outlined(part: RgbImage, crop: RegionCrop, corner: tuple[int, int], side: int) -> RgbImage:
    """A part of an image that begins at `corner` (row, column), resized to `side`, with a region's outline."""
    inside = np.zeros(part.shape[:2], np.uint8)
    rows = slice(max(crop.rows.start - corner[0], 0), max(crop.rows.stop - corner[0], 0))
    columns = slice(max(crop.columns.start - corner[1], 0), max(crop.columns.stop - corner[1], 0))
    cut = crop.mask[max(corner[0] - crop.rows.start, 0) :, max(corner[1] - crop.columns.start, 0) :]
    place = inside[rows, columns]
    place[:] = cut[: place.shape[0], : place.shape[1]]
    factor = side / max(part.shape[:2])
    size = max(1, round(part.shape[1] * factor)), max(1, round(part.shape[0] * factor))
    picture = cv2.resize(part, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    inside = (cv2.resize(255 * inside, size, interpolation=cv2.INTER_LINEAR) > 127).astype(np.uint8)
    contours, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for colour, thickness in (((0, 0, 0), 4), (OUTLINE, 2)):
        picture = cv2.drawContours(np.ascontiguousarray(picture), contours, -1, colour, thickness, cv2.LINE_AA)
    return picture
