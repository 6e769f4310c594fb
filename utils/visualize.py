"""Pictures of regions, labels and scores, as files, never windows. All images are (H, W, 3) uint8 RGB."""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from utils.types import RegionMasks, Segmentation

Picture = UInt8[np.ndarray, "_ _ 3"]
MARGIN = 16
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
    strength = np.where(segmentation.region_map < 0, opacity / 2, opacity)[..., None]
    blended = (1 - strength) * base + strength * segmentation.palette[segmentation.label_map]
    return outline(blended.round().astype(np.uint8), segmentation.label_map)


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


def draw_regions(image: Picture, masks: RegionMasks, opacity: float = 0.6) -> Picture:
    """Every region in a colour of its own, large ones first so that small ones stay visible."""
    base = grey(image)
    out = base.astype(np.float32)
    binary = masks.binary(image.shape[:2], threshold=0.5).cpu().numpy()
    index_map = np.full(image.shape[:2], -1)
    for colour, r in zip(palette(len(masks)), np.argsort(-binary.sum((1, 2))), strict=True):
        out[binary[r]] = (1 - opacity) * base[binary[r]] + opacity * colour
        index_map[binary[r]] = r
    return outline(out.round().astype(np.uint8), index_map)


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
    panels: Sequence[tuple[str, Picture]], legend: Sequence[tuple[np.ndarray, str]] = (), note: str = ""
) -> Image.Image:
    """Panels side by side with titles, a legend of (colour, text) below and a note at the foot."""
    height = max(240, min(640, max(p.shape[0] for _, p in panels)))
    images = [Image.fromarray(p).resize((max(1, round(p.shape[1] * height / p.shape[0])), height)) for _, p in panels]
    width = sum(i.width + MARGIN for i in images) + MARGIN
    title, text = ImageFont.load_default(20), ImageFont.load_default(16)
    rows = _legend_rows(legend, text, width)
    total = height + 3 * MARGIN + 24 + 26 * len(rows) + (26 if note else 0)
    canvas = Image.new("RGB", (width, total), "white")
    draw, x = ImageDraw.Draw(canvas), MARGIN
    for (name, _), image in zip(panels, images, strict=True):
        draw.text((x, MARGIN // 2), name, "black", title)
        canvas.paste(image, (x, MARGIN + 20))
        x += image.width + MARGIN
    y = height + 2 * MARGIN + 20
    for row in rows:
        for x, colour, words in row:
            draw.rectangle((x, y + 2, x + 16, y + 18), tuple(int(c) for c in colour), "black")
            draw.text((x + 22, y), words, "black", text)
        y += 26
    if note:
        draw.text((MARGIN, y), note, "dimgray", text)
    return canvas


def _legend_rows(
    legend: Sequence[tuple[np.ndarray, str]], font: ImageFont.FreeTypeFont, width: int
) -> list[list[tuple]]:
    """Legend entries broken into rows that fit the width: [(x, colour, text), …] per row."""
    rows, x = [], width
    for colour, words in legend:
        needed = 22 + round(font.getlength(words)) + 24
        if x + needed > width:
            rows.append([])
            x = MARGIN
        rows[-1].append((x, colour, words))
        x += needed
    return rows
