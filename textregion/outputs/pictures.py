"""Pictures of regions, labels and scores, as files, never windows. All images are (H, W, 3) uint8 RGB."""

import colorsys
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8
from PIL import Image, ImageDraw

from textregion.outputs.lettering import font, shorten, wrap
from textregion.outputs.region_crops import RegionCrop, crop_regions
from textregion.types import RegionMasks, Segmentation

Picture = UInt8[np.ndarray, "_ _ 3"]
Legend = Sequence[tuple[np.ndarray, str]]  # (colour, words)
MARGIN = 16
NARROWEST, WIDEST = 480, 1600  # pixels, of a sheet and of one of its panels
DRAWN_ABOVE = 0.5
GOLDEN_RATIO = 0.61803398875


def palette(count: int) -> UInt8[np.ndarray, "L 3"]:
    """`count` well separated colours; colour k does not depend on `count`."""
    colours = []
    for k in range(count):
        hue, level = (0.02 + k * GOLDEN_RATIO) % 1, (0.95, 0.75, 0.85)[k % 3]
        colours.append([round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.55 + 0.35 * ((k // 3) % 2), level)])
    return np.array(colours, np.uint8).reshape(count, 3)


def label_map_image(segmentation: Segmentation) -> Image.Image:
    """Label indices as an 8-bit palette image, or 16-bit grey when there are more than 256 labels."""
    if len(segmentation.labels) > 256:
        return Image.fromarray(segmentation.label_map.astype(np.uint16))
    image = Image.fromarray(segmentation.label_map.astype(np.uint8))
    image.putpalette(segmentation.palette.tobytes())
    return image


def overlay(image: UInt8[np.ndarray, "h w 3"], segmentation: Segmentation, opacity: float = 0.6) -> Picture:
    """The image (any size) in grey under the labels' colours, fainter where no region lies. opacity: 0..1."""
    height, width = segmentation.label_map.shape
    base = grey(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
    colours = segmentation.palette[segmentation.label_map]
    blended, bare = _blend(base, colours, opacity), segmentation.region_map < 0
    if bare.any():
        blended[bare] = _blend(base, colours, opacity / 2)[bare]
    return outline(blended, segmentation.label_map)


def _blend(base: Picture, colours: Picture, opacity: float) -> Picture:
    """(1 - opacity) * base + opacity * colours, rounded."""
    return cv2.addWeighted(base, 1 - opacity, colours, opacity, 0)


def grey(image: Picture) -> Picture:
    """The image without colour, so that a tint laid over it keeps its hue."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def outline(image: Picture, index_map: Int[np.ndarray, "H W"]) -> Picture:
    """A thin white line wherever the index changes."""
    edge = np.zeros(index_map.shape, bool)
    edge[:, 1:] |= index_map[:, 1:] != index_map[:, :-1]
    edge[1:] |= index_map[1:] != index_map[:-1]
    out = image.copy()
    out[edge] = 255
    return out


def draw_regions(
    image: Picture, masks: RegionMasks, opacity: float = 0.6, crops: Sequence[RegionCrop] | None = None
) -> Picture:
    """Every region r in colour r of the palette, large ones first so that small ones stay visible.

    Drawn is where the soft value (0..3) is above DRAWN_ABOVE: resizing gives regions a fringe of small values.
    crops: `crop_regions(masks, DRAWN_ABOVE)` at the image's size, if already made.
    """
    if crops is None:
        crops = crop_regions(replace(masks, image_size=image.shape[:2]), DRAWN_ABOVE)
    colours, each = np.zeros_like(image), palette(len(crops))
    index_map = np.full(image.shape[:2], -1)
    for r in np.argsort([-crop.area for crop in crops], kind="stable"):
        crops[r].paint(index_map, r)
        crops[r].paint(colours, each[r])
    base = grey(image)
    blended = np.where((index_map >= 0)[..., None], _blend(base, colours, opacity), base)
    return outline(blended, index_map)


def heat_map(image: Picture, scores: Float32[np.ndarray, "Ph Pw"], removed: Bool[np.ndarray, "Ph Pw"]) -> Picture:
    """Patch scores over the image, blue low to red high; removed (global) patches are hatched in white."""
    height, width = image.shape[:2]
    spread = scores.max() - scores.min()
    scaled = (255 * (scores - scores.min()) / (spread if spread > 0 else 1)).astype(np.uint8)
    coloured = cv2.applyColorMap(
        cv2.resize(scaled, (width, height), interpolation=cv2.INTER_NEAREST), cv2.COLORMAP_TURBO
    )
    out = cv2.addWeighted(image, 0.45, coloured[..., ::-1], 0.55, 0)
    gone = cv2.resize(removed.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)
    y, x = np.mgrid[:height, :width]
    out[gone & ((x + y) % 8 < 2)] = 255
    return out


def draw_box(
    image: Picture, box: tuple[float, float, float, float], colour: tuple[int, int, int] = (255, 60, 60)
) -> Picture:
    """The image with a box (x, y, width, height) in pixels."""
    x, y, width, height = (round(v) for v in box)
    return cv2.rectangle(image.copy(), (x, y), (x + width, y + height), colour, max(2, max(image.shape) // 300))


def sheet(
    panels: Sequence[tuple[str, Picture]], legend: Legend = (), note: str = "", height: int | None = None
) -> Image.Image:
    """Panels side by side with titles, a legend of (colour, text) below and a note at the foot.

    height: of the panels in pixels, default that of the tallest within 240..640; none gets wider than WIDEST.
    """
    height = height or max(240, min(640, max(p.shape[0] for _, p in panels)))
    images = [_fitted(picture, height) for _, picture in panels]
    width = max(sum(i.width + MARGIN for i in images) + MARGIN, NARROWEST)
    foot = footer(legend, note, width)
    canvas = Image.new("RGB", (width, max(i.height for i in images) + MARGIN + 20 + foot.height), "white")
    draw, x = ImageDraw.Draw(canvas), MARGIN
    for (name, _), image in zip(panels, images, strict=True):
        draw.text((x, MARGIN // 2), shorten(name, 18, image.width), "black", font(18))
        canvas.paste(image, (x, MARGIN + 20))
        x += image.width + MARGIN
    canvas.paste(foot, (0, canvas.height - foot.height))
    return canvas


def with_footer(picture: Picture, legend: Legend = (), note: str = "") -> Image.Image:
    """The picture in its own size, untouched, with a legend below whose letters grow with the picture."""
    image = Image.fromarray(picture)
    width = max(image.width, NARROWEST)
    foot = footer(legend, note, width, size=min(max(width // 60, 15), 60))
    canvas = Image.new("RGB", (width, image.height + foot.height), "white")
    canvas.paste(image, (0, 0))
    canvas.paste(foot, (0, image.height))
    return canvas


def footer(legend: Legend, note: str, width: int, size: int = 15) -> Image.Image:
    """A white strip with coloured squares and words, as many rows as needed, then the note; `size`: of the letters."""
    rows, lines = _legend_rows(legend, width, size), wrap(note, size, width - 2 * MARGIN) if note else []
    step = round(1.6 * size)
    strip = Image.new("RGB", (width, 2 * (MARGIN // 2) + step * (len(rows) + len(lines))), "white")
    draw, y = ImageDraw.Draw(strip), MARGIN // 2
    for row in rows:
        for x, colour, words in row:
            draw.rectangle((x, y + 1, x + size, y + size + 1), tuple(int(c) for c in colour), "black")
            draw.text((x + round(1.4 * size), y), words, "black", font(size))
        y += step
    for line in lines:
        draw.text((MARGIN, y), line, "dimgray", font(size))
        y += step
    return strip


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


def _fitted(picture: Picture, height: int) -> Image.Image:
    """The picture at a height, or lower where it would get wider than WIDEST."""
    factor = min(height / picture.shape[0], WIDEST / picture.shape[1])
    sides = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    return Image.fromarray(picture).resize(sides)
