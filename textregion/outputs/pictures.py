r"""The pictures of one image: regions, labels, boxes, scores. They are returned, never written or shown in a window.

The font is DejaVu Sans 2.37 (Latin, Greek, Cyrillic, Arabic, symbols; free, see DejaVuSans.LICENSE.txt). A character
that it lacks (Chinese, Japanese, Korean, emoji, …) is written as its code, \u72ac, unless the environment variable
TEXTREGION_FONT names a font file that has it.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image, ImageDraw, ImageFont

from textregion.errors import InputError
from textregion.outputs.annotations import (
    Crops,
    crop_box,
    is_labelled,
    label_shares,
    no_region,
    told_labels,
    unlabelled_share,
)
from textregion.render import NO_LABEL, Colours, RgbImage, blend, grey, outline
from textregion.resampling import RegionCrop, crop_regions
from textregion.types import RegionMasks, RegionTokens, Segmentation

ABSENT = "\U0010fffd"  # a private character, drawn as every character is that a font lacks
LONGEST = 400  # characters of one line that are ever measured
MARGIN = 16
NARROWEST, WIDEST = 480, 1600  # pixels, of a sheet and of one of its panels
BAR = 448  # pixels, of the bar that explains a scale, at most
Font = ImageFont.FreeTypeFont
Panels = Sequence[tuple[str, RgbImage]]  # (title, picture)
Legend = Sequence[tuple[np.ndarray, str]]  # (colour, words)
PatchScores = Float32[np.ndarray, "Ph Pw"]
Colour = UInt8[np.ndarray, " 3"]
MOST_IN_LEGEND = 48
MOST_REGIONS = 60  # in one picture of each
COLUMNS = 6
SIDE = 184  # pixels, of a region's picture
LINES = 3  # labels told per region, if nobody asks for more
SIZE = 14  # pixels, of the letters
CELL = (SIDE + MARGIN, SIDE + (LINES + 1) * 19 + 6 + MARGIN)  # width, height with so many lines
MOST_BOXES = 60  # in one picture
SMALLEST, LARGEST = 800, 2400  # pixels, of the longer side of a picture of boxes


def draw_regions(
    image: RgbImage, masks: RegionMasks, opacity: float = 0.6, crops: Crops | None = None, factor: int = 1
) -> RgbImage:
    """Every region in its own mean colour, paled: no label's. Large ones first, so that small ones stay visible.

    crops: `crop_regions(masks)` at the image's size, if already made. factor: how much larger to draw them.
    """
    if crops is None:
        crops = crop_regions(replace(masks, image_size=image.shape[:2]))
    tint = np.zeros_like(image)
    index_map = np.full(image.shape[:2], -1)
    for r in np.argsort([-crop.area for crop in crops], kind="stable"):
        crops[r].paint(index_map, r)
        crops[r].paint(tint, neutral(image, crops[r]))
    base, tint, index_map = scaled(grey(image), factor), scaled(tint, factor), enlarged(index_map, factor)
    blended = np.where((index_map >= 0)[..., None], blend(base, tint, opacity), base)
    return outline(blended, index_map)


def neutral(image: RgbImage, crop: RegionCrop) -> Colour:
    """The mean colour of a region's pixels, between dark and light, so that white outlines show on it."""
    inside = image[crop.rows, crop.columns][crop.mask]
    mean = inside.mean(0) if len(inside) else np.full(3, 128.0)
    return (50 + mean * (150 / 255)).round().astype(np.uint8)


def turbo(values: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Blue for 0 over green to red for 255."""
    return np.ascontiguousarray(cv2.applyColorMap(values, cv2.COLORMAP_TURBO)[..., ::-1])


def heat_map(image: RgbImage, scores: PatchScores, removed: Bool[np.ndarray, "Ph Pw"]) -> RgbImage:
    """Patch scores over the image, blue low to red high; removed (global) patches are hatched in white."""
    height, width = image.shape[:2]
    spread = scores.max() - scores.min()
    scaled = (255 * (scores - scores.min()) / (spread if spread > 0 else 1)).astype(np.uint8)
    out = blend(image, turbo(cv2.resize(scaled, (width, height), interpolation=cv2.INTER_NEAREST)), 0.55)
    gone = cv2.resize(removed.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)
    y, x = np.mgrid[:height, :width]
    out[gone & ((x + y) % 8 < 2)] = 255
    return out


def draw_box(
    image: RgbImage, box: tuple[float, float, float, float], colour: tuple[int, int, int] = (255, 60, 60)
) -> RgbImage:
    """The image with a box (x, y, width, height) in pixels."""
    x, y, width, height = (round(v) for v in box)
    return cv2.rectangle(image.copy(), (x, y), (x + width, y + height), colour, max(2, max(image.shape) // 300))


def legend(
    result: Segmentation, tokens: RegionTokens | None, most: int = MOST_IN_LEGEND
) -> tuple[list[tuple[np.ndarray, str]], str]:
    """(colour, "label share") of the labels in order, of very many the largest only, and of pixels without one; a note
    about the others.

    tokens: what was labelled; nothing is told of labels that mean nothing (`annotations.is_labelled`).
    """
    shares = label_shares(result, tokens)
    chosen = told_labels(shares, most)
    entries = [(result.palette[i], f"{shares[i][0]} {shares[i][1]:.0%}") for i in chosen]
    if shares and (bare := unlabelled_share(result)):
        entries.append((np.array(NO_LABEL), f"grey: no label {bare:.0%}"))
    missing = len(shares) - len(chosen)
    return entries, f"{missing} more labels: labels.json" if missing else ""


def sentences(*notes: str) -> str:
    """Notes one after the other, each as a sentence; blank ones are left out."""
    return " ".join(f"{note[0].upper()}{note[1:].removesuffix('.')}." for note in notes if note)


def labels_over(image: RgbImage, result: Segmentation, tokens: RegionTokens | None, factor: int = 1) -> RgbImage:
    """The labels over the image, `factor` times as large; the bare image in grey where no label means anything."""
    image = scaled(image, factor)
    if not is_labelled(result, tokens):
        return grey(image)
    maps = {name: enlarged(getattr(result, name), factor) for name in ("label_map", "confidence", "region_map")}
    return replace(result, **maps, probabilities=None).overlay(image)


def enlarged(values: np.ndarray, factor: int) -> np.ndarray:
    """A map (H, W) with every pixel `factor` times as wide and high."""
    return values if factor == 1 else values.repeat(factor, 0).repeat(factor, 1)


def main_picture(
    image: RgbImage,
    tokens: RegionTokens | None,
    result: Segmentation,
    crops: Crops | None,
    note: str,
    more_panels: Panels = (),
) -> Image.Image:
    """Image, regions (of tokens that are not None), labels and further panels side by side, a legend and a note."""
    factor = max(int(shown_factor(image.shape)), 1)  # outlines are thin at the size they are shown at
    panels = [("image", image)]
    if tokens is not None:
        panels.append(("regions", draw_regions(image, tokens.masks, crops=crops, factor=factor)))
    panels += [("labels", labels_over(image, result, tokens, factor)), *more_panels]
    entries, missing = legend(result, tokens)
    return sheet(panels, entries, sentences(missing, faint_note(result, tokens), note))


def overlay_picture(image: RgbImage, result: Segmentation, tokens: RegionTokens | None, note: str = "") -> Image.Image:
    """The labels over the image in the image's own size, the legend and a note below."""
    entries, missing = legend(result, tokens)
    return with_footer(
        labels_over(image, result, tokens), entries, sentences(missing, faint_note(result, tokens), note)
    )


def faint_note(result: Segmentation, tokens: RegionTokens | None) -> str:
    """What paler labels mean, where some pixels are paler and others are not. tokens: None without regions."""
    bare = result.region_map < 0
    why = "no label is sure enough" if tokens is None else "in no region"
    return f"fainter: {why}" if bool((bare & (result.label_map >= 0)).any()) and not bare.all() else ""


def global_patch_picture(image: RgbImage, scores: PatchScores, threshold: float, note: str = "") -> Image.Image:
    """The difference score of every patch, hatched where the patch was removed; note: a further one."""
    picture = heat_map(image, scores, scores < threshold)
    told = f"score d of every patch; hatched: removed, d < {threshold:g}"
    scale = float(scores.min()), float(scores.max())
    return sheet([("image", image), ("global-patch score", picture)], note=sentences(told, note), scale=scale)


def similarity_picture(
    image: RgbImage, values: Float32[np.ndarray, "H W"], label: str, low: float, high: float, note: str = ""
) -> Image.Image:
    """One label's similarity over the image, blue at `low` to red at `high`, grey where no region lies.

    note: a further one.
    """
    span = high - low if high > low else 1.0
    known = ~np.isnan(values)
    scaled = np.where(known, 255 * (values - low) / span, 0).clip(0, 255).round().astype(np.uint8)
    base = grey(image)
    picture = np.where(known[..., None], blend(base, turbo(scaled), 0.6), base)
    if not known.any():
        return sheet([("image", image), (label, picture)], note=sentences(note or "in no region"))
    what = "cosine of the regions with the label, the largest where they overlap; one scale for all labels of the image"
    note = sentences(what, "" if known.all() else "grey: in no region", note)
    return sheet([("image", image), (label, picture)], note=note, scale=(low, high))


def region_sheet(
    image: RgbImage,
    rows: Sequence[dict],
    crops: Crops,
    colours: Colours,
    note: str = "",
    most: int = MOST_REGIONS,
    lines: int = LINES,
) -> Image.Image:
    """Regions in cells, large ones first: outlined in the colour of the best label, below it index, area, best labels.

    rows: from `annotations.region_rows`; crops: `crop_regions` of the same masks; colours: of all labels. Of more than
    `most` regions only the largest are shown, and the foot of the sheet says so, then the note. Scores are cosine and
    probability. lines: labels told of each region.
    """
    count = len(rows)
    shown = sorted(rows, key=lambda row: (-row["area"], row["region"]))[:most]
    some = f"the {len(shown)} largest of {count} regions; all are in regions.json" if len(shown) < count else ""
    what = "large to small, in the best label's colour; #: index in regions.json; per label: cosine, probability"
    told = sentences(some or f"{count} regions", what, note) if count else sentences(note or no_region(0))
    columns = max(3, min(COLUMNS, len(shown)))
    cell_width, cell_height = CELL[0], CELL[1] + 19 * max(lines - LINES, 0)
    width = columns * cell_width + MARGIN
    foot = footer([], told, width, SIZE)
    height = MARGIN - (-len(shown) // columns) * cell_height
    picture = Image.new("RGB", (width, height + foot.height), "white")
    for n, row in enumerate(shown):
        corner = MARGIN + (n % columns) * cell_width, MARGIN + (n // columns) * cell_height
        told = {**row, "labels": row["labels"][:lines]}
        picture.paste(_cell(image, told, crops[row["region"]], _best_colour(row, colours), cell_height), corner)
    picture.paste(foot, (0, picture.height - foot.height))
    return picture


def _cell(image: RgbImage, row: dict, crop: RegionCrop, colour: Colour, height: int) -> Image.Image:
    cell = Image.new("RGB", (SIDE, height - MARGIN), "white")
    picture = Image.fromarray(region_picture(image, crop, colour))
    cell.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    draw, y = ImageDraw.Draw(cell), SIDE + 4
    draw.rectangle((0, y + 2, SIZE - 3, y + SIZE - 1), tuple(colour.tolist()), "black")
    lines = [(SIZE + 3, f"#{row['region']}", f"{row['area']:,} px")]
    lines += [(0, x["name"], f"{x['cosine']:.3f} {x['probability']:4.0%}") for x in row["labels"]]
    for n, (x, left, right) in enumerate(lines):  # the words shortened so that the numbers have room
        ink, taken = "black" if n < 2 else "dimgray", font(SIZE).getlength(right)
        draw.text((SIDE - taken, y + 19 * n), right, ink, font(SIZE))
        draw.text((x, y + 19 * n), shorten(left, SIZE, SIDE - taken - x - 8), ink, font(SIZE))
    return cell


def region_picture(image: RgbImage, crop: RegionCrop, colour: Colour, side: int = SIDE) -> UInt8[np.ndarray, "_ _ 3"]:
    """The part of the image around a region, at most `side` pixels a side: the region as it is, the rest faded.

    Around the region is a sixth of its longer side; of one without a pixel the whole image is shown.
    """
    inside = np.zeros(image.shape[:2], np.uint8)
    crop.paint(inside, 1)
    rows, columns = slice(None), slice(None)
    x1, y1, x2, y2 = crop_box(crop)
    if x2 > 0:
        room = max(y2 - y1, x2 - x1) // 6 + 2
        rows, columns = slice(max(y1 - room, 0), y2 + room), slice(max(x1 - room, 0), x2 + room)
    part, inside = image[rows, columns], inside[rows, columns]
    factor = side / max(part.shape[:2])
    size = max(1, round(part.shape[1] * factor)), max(1, round(part.shape[0] * factor))
    part = cv2.resize(part, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    inside = (cv2.resize(255 * inside, size, interpolation=cv2.INTER_LINEAR) > 127).astype(np.uint8)
    faded = cv2.addWeighted(part, 0.3, np.full_like(part, 255), 0.7, 0)
    picture = np.where(inside[..., None].astype(bool), part, faded)
    contours, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.ascontiguousarray(picture), contours, -1, colour.tolist(), 2)


def boxes_picture(
    image: UInt8[np.ndarray, "H W 3"], rows: Sequence[dict], colours: Colours, note: str = ""
) -> Image.Image:
    """The image with every box in its best label's colour, with that and its score; of very many the best MOST_BOXES.

    rows: from `annotations.box_rows`. colours: of all labels. A small image is enlarged by a whole factor, a large one
    reduced, and the foot says so.
    """
    longest = max(image.shape[:2])
    factor = -(-SMALLEST // longest) if longest < SMALLEST else min(LARGEST / longest, 1)
    picture = Image.fromarray(scaled(image, factor))
    shown = sorted(rows, key=lambda row: -row["labels"][0]["score"] if row["labels"] else 1.0)[:MOST_BOXES]
    size = min(max(max(picture.size) // 60, 13), 40)
    draw = ImageDraw.Draw(picture)
    placed = [
        (row, [factor * value for value in row["xyxy"]], tuple(_best_colour(row, colours).tolist())) for row in shown
    ]
    for _, box, colour in placed:
        draw.rectangle(box, outline=colour, width=max(2, size // 6))
    taken = []
    for row, box, colour in placed:  # after all boxes, so that no line runs through a name
        best = row["labels"][0] if row["labels"] else None
        name = f"{best['name']} {best['score']:.0%}" if best else "no token"
        taken.append(_write_name(draw, box, f"#{row['box']} {name}", colour, size, taken))
    count = f"{len(rows)} boxes" if len(shown) == len(rows) else f"the {len(shown)} best of {len(rows)} boxes"
    told = sentences(f"{count}; all labels and scores: boxes.json", note, size_note(factor))
    return with_footer(np.asarray(picture), note=told)


def _best_colour(row: dict, colours: Colours) -> Colour:
    """The colour of a row's best label; that of no label where it has none."""
    return colours[row["labels"][0]["index"]] if row["labels"] else np.array(NO_LABEL, np.uint8)


def _write_name(
    draw: ImageDraw.ImageDraw, box: Sequence[float], words: str, colour: tuple, size: int, taken: Sequence[tuple]
) -> tuple:
    """The words on a strip of the box's colour above it, or lower where other strips are (`taken`), inside the picture.

    Returns the strip (x1, y1, x2, y2).
    """
    width, height = draw.im.size
    words = shorten(words, size, width - 8)
    length, strip = font(size).getlength(words) + 6, size + 5
    x = min(max(box[0], 0), max(width - length, 0))
    y = highest = box[1] - strip if box[1] >= strip else min(box[1], height - strip)
    while any(x < b[2] and b[0] < x + length and y < b[3] and b[1] < y + strip for b in taken):
        y += strip + 1
        if y > height - strip:  # no room down to the foot of the picture
            y = highest
            break
    draw.rectangle((x, y, x + length, y + strip), fill=colour)
    dark = 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2] < 130
    draw.text((x + 3, y + 1), words, "white" if dark else "black", font(size))
    return x, y, x + length, y + strip


# ---------------------------------------------------------------------- words and sheets


@cache
def font(size: int) -> Font:
    """The pictures' font, `size` pixels high. InputError when TEXTREGION_FONT is not a font."""
    if path := os.environ.get("TEXTREGION_FONT"):
        try:
            return ImageFont.truetype(path, size)
        except OSError as error:
            raise InputError(f"TEXTREGION_FONT={path} is not a font file that can be read ({error})") from error
    return ImageFont.truetype(str(Path(__file__).with_name("DejaVuSans.ttf")), size)


def legible(text: str) -> str:
    """The text on one line, every character that cannot be drawn replaced by its code."""
    line = " ".join(text[:LONGEST].split())
    return "".join(c if _drawable(c) else c.encode("unicode_escape").decode() for c in line)


@cache
def _drawable(character: str) -> bool:
    if not character.isprintable():
        return False
    glyph, absent = font(12).getmask(character), font(12).getmask(ABSENT)
    return glyph.size != absent.size or bytes(glyph) != bytes(absent)


def shorten(text: str, size: int, width: float) -> str:
    """Legible text of at most `width` pixels; what is cut off is shown by an ellipsis."""
    text = legible(text)
    if font(size).getlength(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        fits = font(size).getlength(text[:middle].rstrip() + "…") <= width
        low, high = (middle, high) if fits else (low, middle - 1)
    return text[:low].rstrip() + "…"


def wrap(text: str, size: int, width: float) -> list[str]:
    """Legible text in lines of at most `width` pixels, broken between words."""
    lines: list[str] = []
    for word in legible(text).split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font(size).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(shorten(word, size, width))
    return lines


def sheet(panels: Panels, legend: Legend = (), note: str = "", scale: tuple[float, float] | None = None) -> Image.Image:
    """Panels of one size side by side with titles, a legend of (colour, text) below and a note at the foot.

    The first is the image, whose `shown_factor` decides the size of all, and the note says so; wide ones stand one
    below the other. scale: what the ends of `turbo` mean, as a bar.
    """
    height, breadth = panels[0][1].shape[:2]
    factor = shown_factor((height, breadth))
    images = [Image.fromarray(scaled(picture, factor * height / picture.shape[0])) for _, picture in panels]
    note = sentences(note, size_note(factor))
    beside = sum(i.width for i in images) <= 2 * WIDEST
    across = sum(i.width + MARGIN for i in images) if beside else max(i.width for i in images) + MARGIN
    width, row = max(across + MARGIN, NARROWEST), max(i.height for i in images) + MARGIN + 20
    foot = footer(legend, note, width, scale=scale)
    canvas = Image.new("RGB", (width, row * (1 if beside else len(images)) + foot.height), "white")
    draw, x, y = ImageDraw.Draw(canvas), MARGIN, 0
    for (name, _), image in zip(panels, images, strict=True):
        draw.text((x, y + MARGIN // 2), shorten(name, 18, image.width), "black", font(18))
        canvas.paste(image, (x, y + MARGIN + 20))
        x, y = (x + image.width + MARGIN, y) if beside else (x, y + row)
    canvas.paste(foot, (0, canvas.height - foot.height))
    return canvas


def shown_factor(size: tuple[int, ...]) -> float:
    """How much larger a panel is than its image (height, width, …): a whole factor for one lower than 240 pixels, less
    than 1 for one higher than 640 or wider than WIDEST, else 1.
    """
    height, width = size[:2]
    if height > 640 or width > WIDEST:
        return min(640 / height, WIDEST / width)
    return max(min(-(-240 // height), WIDEST // width), 1)


def scaled(picture: RgbImage, factor: float) -> RgbImage:
    """The picture at a multiple of its size: enlarged with its pixels as squares, reduced to their means."""
    size = max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor))
    return cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST if factor > 1 else cv2.INTER_AREA)


def size_note(factor: float) -> str:
    """How large a picture is shown; nothing at the image's own size."""
    return (
        ""
        if factor == 1
        else f"shown at {factor} times the size"
        if factor > 1
        else f"shown at {factor:.2g} of the size"
    )


def with_footer(picture: RgbImage, legend: Legend = (), note: str = "") -> Image.Image:
    """The picture in its own size, untouched, with a legend below whose letters grow with the picture."""
    image = Image.fromarray(picture)
    width = max(image.width, NARROWEST)
    foot = footer(legend, note, width, size=min(max(width // 60, 15), 60))
    canvas = Image.new("RGB", (width, image.height + foot.height), "white")
    canvas.paste(image, (0, 0))
    canvas.paste(foot, (0, image.height))
    return canvas


def footer(
    legend: Legend, note: str, width: int, size: int = 15, scale: tuple[float, float] | None = None
) -> Image.Image:
    """A white strip with coloured squares and words, as many rows as needed, a bar of `scale` if any, then the note.

    size: of the letters. scale: the numbers at the ends of `turbo`.
    """
    rows, lines = _legend_rows(legend, width, size), wrap(note, size, width - 2 * MARGIN) if note else []
    step, bars = round(1.6 * size), scale is not None
    strip = Image.new("RGB", (width, 2 * (MARGIN // 2) + step * (len(rows) + 2 * bars + len(lines))), "white")
    draw, y = ImageDraw.Draw(strip), MARGIN // 2
    for row in rows:
        for x, colour, words in row:
            draw.rectangle((x, y + 1, x + size, y + size + 1), tuple(int(c) for c in colour), "black")
            draw.text((x + round(1.4 * size), y), words, "black", font(size))
        y += step
    if scale is not None:
        _draw_scale(strip, scale, y, size)
        y += 2 * step
    for line in lines:
        draw.text((MARGIN, y), line, "dimgray", font(size))
        y += step
    return strip


def _draw_scale(strip: Image.Image, scale: tuple[float, float], y: int, size: int) -> None:
    """A bar of all colours of `turbo` at height y, five numbers below it."""
    length = min(strip.width - 2 * MARGIN, BAR)
    bar = turbo(np.tile(np.linspace(0, 255, length).round().astype(np.uint8), (size, 1)))
    strip.paste(Image.fromarray(bar), (MARGIN, y + 1))
    draw = ImageDraw.Draw(strip)
    for n, value in enumerate(np.linspace(*scale, 5)):
        words = f"{value:.3f}"
        x = MARGIN + n * (length - 1) / 4
        draw.line((x, y + 1, x, y + size + 4), "black")
        left = min(max(x - font(size).getlength(words) / 2, MARGIN), MARGIN + length - font(size).getlength(words))
        draw.text((left, y + round(1.5 * size)), words, "black", font(size))


def _legend_rows(legend: Legend, width: int, size: int) -> list[list[tuple]]:
    """Legend entries broken into rows that fit the width: [(x, colour, text), …] per row."""
    rows, x = [], width
    for colour, words in legend:
        words = shorten(words, size, width - 2 * MARGIN - 1.4 * size)
        needed = round(1.4 * size + font(size).getlength(words) + 1.5 * size)
        if x + needed - round(1.5 * size) > width - MARGIN:
            rows.append([])
            x = MARGIN
        rows[-1].append((x, colour, words))
        x += needed
    return rows
