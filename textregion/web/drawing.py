"""The picture of an answer: colours, names, the region a sentence refers to, the region that was clicked."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw

from textregion.outputs.pictures import heat_map
from textregion.outputs.sheets import font, shorten
from textregion.render import outline
from textregion.types import Segmentation
from textregion.web.cached_segmenter import Answer, GlobalPatches

Pixels = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]
SWITCHES = ("masks", "names", "heat map")
SMALLEST_NAMED = 0.002  # share of the picture below which a patch of a label gets no name
SMALLEST_OUTLINED = 0.0008  # share of the picture below which a speck of a region gets no outline
MOST_NAMES = 40
REFERRED = (255, 140, 0)


@dataclass(frozen=True)
class DrawingOptions:
    """How an answer is drawn: opacity 0..1 of the colours; masks, names, and the global-patch scores or not."""

    opacity: float = 0.6
    masks: bool = True
    names: bool = True
    heat_map: bool = False


def draw(
    image: Pixels,
    answer: Answer,
    options: DrawingOptions,
    global_patches: GlobalPatches | None = None,
    selected: Mask | None = None,
) -> Pixels:
    """The image with an answer of the same size over it.

    global_patches: of the image; None where removal is off, and then there is no heat map.
    selected: the clicked region, which gets a bold outline.
    """
    if options.heat_map and global_patches is not None:
        image = heat_map(image, *global_patches)
        picture = outline(image, answer.result.label_map) if options.masks else image
    elif options.masks and answer.grounding is None:
        picture = answer.result.overlay(image, options.opacity)
    else:
        picture = image.copy()
    if answer.grounding is not None:
        picture = draw_grounding(picture, answer, options)
    if selected is not None:
        picture = bold_outline(picture, selected)
    return draw_names(picture, answer.result) if options.names and answer.grounding is None else picture


def draw_grounding(picture: Pixels, answer: Answer, options: DrawingOptions) -> Pixels:
    """Everything but the region a sentence refers to in the dark (masks), and its box with the sentence (names)."""
    grounding, (height, width) = answer.grounding, picture.shape[:2]
    if grounding is None or grounding.box is None:
        return picture
    mask = cv2.resize(grounding.mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
    if options.masks:
        dark = (picture * (1 - 0.85 * options.opacity)).astype(np.uint8)
        picture = bold_outline(np.where(mask[..., None], picture, dark), mask, REFERRED)
    if not options.names:
        return picture
    scale = np.array([width, height] * 2) / np.array([*grounding.mask.shape[::-1]] * 2)
    x, y, w, h = (np.array(grounding.box) * scale).round().astype(int).tolist()
    cv2.rectangle(picture, (x, y), (x + w, y + h), REFERRED, line_width(picture))
    return write_names(picture, [(answer.names[0], (x + w // 2, max(y, 0)))])


def bold_outline(picture: Pixels, mask: Mask, colour: tuple[int, int, int] = (255, 255, 255)) -> Pixels:
    """The picture with the border of a mask in a colour, on black so that it shows everywhere."""
    out, width = picture.copy(), line_width(picture)
    smooth = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), width) > 0.5  # masks are coarser than the picture
    found, _ = cv2.findContours(smooth.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    borders = [border for border in found if cv2.contourArea(border) > SMALLEST_OUTLINED * mask.size]
    cv2.drawContours(out, borders, -1, (0, 0, 0), 2 * width + 2, cv2.LINE_AA)
    cv2.drawContours(out, borders, -1, colour, width, cv2.LINE_AA)
    return out


def line_width(picture: Pixels) -> int:
    """Pixels of a bold line."""
    return max(2, max(picture.shape[:2]) // 250)


def draw_names(picture: Pixels, result: Segmentation) -> Pixels:
    """Each label's name on its largest patch, large patches first, none over another."""
    patches = []
    for index in np.flatnonzero(np.bincount(result.label_map.ravel()) > SMALLEST_NAMED * result.label_map.size):
        area, centre = largest_patch(result.label_map == index)
        if area > SMALLEST_NAMED * result.label_map.size:
            patches.append((area, result.labels[index], centre))
    return write_names(picture, [(name, centre) for _, name, centre in sorted(patches, reverse=True)[:MOST_NAMES]])


def largest_patch(mask: Mask) -> tuple[int, tuple[int, int]]:
    """Pixels of a mask's largest 8-connected component, and its point (x, y) that lies farthest from its border."""
    _, components, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    best = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    inside = cv2.copyMakeBorder((components == best).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return int(stats[best, cv2.CC_STAT_AREA]), (int(x), int(y))


def write_names(picture: Pixels, names: Sequence[tuple[str, tuple[int, int]]]) -> Pixels:
    """Names on dark plates centred at points (x, y), kept inside the picture; none that would cover another."""
    height, width = picture.shape[:2]
    size = max(13, max(height, width) // 38)
    canvas = Image.fromarray(picture)
    draw_on, taken = ImageDraw.Draw(canvas, "RGBA"), []
    for name, (x, y) in names:
        name, pad = shorten(name, size, width / 2), size // 3
        left, top, right, bottom = draw_on.textbbox((0, 0), name, font(size))
        plate_w, plate_h = right - left + 2 * pad, bottom - top + 2 * pad
        x0 = int(min(max(x - plate_w / 2, 0), max(width - plate_w, 0)))
        y0 = int(min(max(y - plate_h / 2, 0), max(height - plate_h, 0)))
        if any(x0 < b[2] and b[0] < x0 + plate_w and y0 < b[3] and b[1] < y0 + plate_h for b in taken):
            continue
        taken.append((x0, y0, x0 + plate_w, y0 + plate_h))
        draw_on.rounded_rectangle(taken[-1], pad, fill=(17, 24, 39, 205))
        draw_on.text((x0 + pad - left, y0 + pad - top), name, "white", font(size))
    return np.array(canvas)
