r"""Words on pictures: a font that knows more than Latin, and text that always fits and can be read.

The font is DejaVu Sans 2.37 (Latin, Greek, Cyrillic, Arabic, symbols; free, see DejaVuSans.LICENSE.txt). A character
that it lacks (Chinese, Japanese, Korean, emoji, …) is written as its code, \u72ac, unless the environment variable
TEXTREGION_FONT names a font file that has it.
"""

import os
from functools import cache
from pathlib import Path

from PIL import ImageFont

from textregion.errors import InputError

ABSENT = "\U0010fffd"  # a private character, drawn as every character is that a font lacks
LONGEST = 400  # characters of one line that are ever measured
Font = ImageFont.FreeTypeFont


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
