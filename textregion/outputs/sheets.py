r"""Words and pictures on one sheet: panels with titles, a legend and a note below, text that fits and can be read.

The font is DejaVu Sans 2.37 (Latin, Greek, Cyrillic, Arabic, symbols; free, see DejaVuSans.LICENSE.txt). A character
that it lacks (Chinese, Japanese, Korean, emoji, …) is written as its code, \u72ac, unless the environment variable
TEXTREGION_FONT names a font file that has it.
"""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from textregion.errors import InputError
from textregion.render import RgbImage

ABSENT = "\U0010fffd"  # a private character, drawn as every character is that a font lacks
LONGEST = 400  # characters of one line that are ever measured
MARGIN = 16
NARROWEST, WIDEST = 480, 1600  # pixels, of a sheet and of one of its panels
Font = ImageFont.FreeTypeFont
Panels = Sequence[tuple[str, RgbImage]]  # (title, picture)
Legend = Sequence[tuple[np.ndarray, str]]  # (colour, words)


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


def sheet(panels: Panels, legend: Legend = (), note: str = "", height: int | None = None) -> Image.Image:
    """Panels side by side with titles, a legend of (colour, text) below and a note at the foot.

    height: of the panels in pixels, default that of the tallest within 240..640; none gets wider than WIDEST.
    """
    height = height or max(240, min(640, max(p.shape[0] for _, p in panels)))
    images = []
    for _, picture in panels:
        factor = min(height / picture.shape[0], WIDEST / picture.shape[1])
        sides = max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor))
        images.append(Image.fromarray(picture).resize(sides))
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


def with_footer(picture: RgbImage, legend: Legend = (), note: str = "") -> Image.Image:
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
