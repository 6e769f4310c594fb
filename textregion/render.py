"""Arrays to pictures, run-length codes and detections, rows to tables of text; nothing here knows a model.

Images are (H, W, 3) uint8 RGB.
"""

import colorsys
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from PIL import Image
from pycocotools import mask as coco_mask

from textregion.errors import needs

if TYPE_CHECKING:
    from supervision import Detections
else:
    Detections = Any  # of an optional package, imported only when it is asked for

RgbImage = UInt8[np.ndarray, "_ _ 3"]
IndexMap = Int[np.ndarray, "H W"]
Colours = UInt8[np.ndarray, "L 3"]
MOST_LETTERS, MOST_ROWS = 40, 20  # of an entry and of a column of `plot`'s legend
GOLDEN_RATIO = 0.61803398875
NO_LABEL = (128, 128, 128)  # how a legend shows pixels without a label, which pictures leave grey
APART = 45  # least distance in CIE L*a*b* of two labels' colours, while there are such colours
SHADES_APART = 25  # the same of shades of a colour that the words say
MOST_APART = 256  # labels that are told apart so; later ones have the palette's colour of their position
COLOUR_WORDS = {  # hue, saturation, value of words that say a colour, or name what has one
    (0.0, 0.8, 0.85): "red crimson scarlet",
    (0.03, 0.62, 0.68): "brick bricks",
    (0.075, 0.9, 0.97): "orange",
    (0.075, 0.62, 0.58): "brown wood wooden soil mud",
    (0.125, 0.38, 0.87): "beige sand sandy desert",
    (0.145, 0.85, 0.95): "yellow gold golden",
    (0.32, 0.7, 0.65): "green grass tree trees leaf leaves plant forest bush meadow lawn",
    (0.49, 0.75, 0.7): "turquoise teal cyan",
    (0.57, 0.5, 0.95): "sky",
    (0.58, 0.8, 0.72): "water sea lake river ocean",
    (0.63, 0.75, 0.9): "blue navy",
    (0.77, 0.6, 0.75): "purple violet",
    (0.92, 0.45, 0.98): "pink magenta",
}  # black, white and grey have no hue of their own to keep to: they take one that is clearly apart
SHADES = ((0, 1, 1), (0, 0.55, 1.1), (0, 1.2, 0.6), (0.02, 1, 0.8), (-0.02, 1, 1), (0, 0.7, 0.75), (0, 0.35, 1.0))


def palette(count: int) -> Colours:
    """`count` well separated colours; colour k does not depend on `count`."""
    colours = [
        colorsys.hsv_to_rgb((0.02 + k * GOLDEN_RATIO) % 1, 0.55 + 0.35 * ((k // 3) % 2), (0.95, 0.75, 0.85)[k % 3])
        for k in range(count)
    ]
    return np.round(255 * np.array(colours)).astype(np.uint8).reshape(count, 3)


@lru_cache(64)
def _label_colours(names: tuple[str, ...]) -> Colours:
    pool = palette(MOST_APART)
    taken = np.empty((0, 3), np.float32)
    colours = palette(len(names))
    for k, name in enumerate(names[:MOST_APART]):
        shades = named_shades(name)
        candidates, least = (pool, APART) if shades is None else (shades, SHADES_APART)
        nearest = np.linalg.norm(lab(candidates)[:, None] - taken, axis=2).min(1, initial=np.inf)
        far = np.flatnonzero(nearest >= least)
        colours[k] = candidates[far[0] if len(far) else nearest.argmax()]
        taken = np.concatenate([taken, lab(colours[k : k + 1])])
    colours.flags.writeable = False
    return colours


def label_colours(names: Sequence[str]) -> Colours:
    """A colour per label: what its words say ("yellow triangle", "sky"), else one of the palette far from the others.

    A function of the names alone, so that a label keeps its colour in every picture and file of a run, and of those
    before it alone, so that further labels change no colour. Colours are APART, or SHADES_APART, while there are such.
    Read-only.
    """
    return _label_colours(tuple(names))


def named_shades(name: str) -> Colours | None:
    """Shades of the colour that a label's words say, the plain one first; None where they say none.

    The first word of COLOUR_WORDS counts; of synonyms ("a; b") all words.
    """
    hues = {word: hsv for hsv, words in COLOUR_WORDS.items() for word in words.split()}
    found = [hues[word] for word in re.findall(r"[a-z]+", name.lower()) if word in hues]
    if not found:
        return None
    h, s, v = found[0]
    shades = [colorsys.hsv_to_rgb((h + turn) % 1, min(s * a, 1), min(v * b, 1)) for turn, a, b in SHADES]
    return np.round(255 * np.array(shades)).astype(np.uint8)


def lab(colours: Colours) -> Float[np.ndarray, "L 3"]:
    """CIE L*a*b* of sRGB colours, in which distances are about what people see."""
    return cv2.cvtColor(colours.astype(np.float32)[None] / 255, cv2.COLOR_RGB2LAB)[0]


def label_map_image(label_map: IndexMap, colours: Colours) -> Image.Image:
    """Label indices as an 8-bit palette image, or 16-bit grey when there are more than 256 labels.

    Pixels without a label (negative) are 255, black; in 16-bit pictures, which they make of those with 256 labels too,
    65535.
    """
    if len(colours) > (255 if label_map.min(initial=0) < 0 else 256):
        return Image.fromarray(label_map.astype(np.uint16))
    image = Image.fromarray(label_map.astype(np.uint8))
    whole = 3 * 256 * bool(label_map.min(initial=0) < 0)  # of a shorter palette PNG keeps fewer bits than 255 needs
    image.putpalette(colours.tobytes().ljust(whole, b"\0"))
    return image


def png_bytes(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def overlay(
    image: RgbImage, label_map: IndexMap, colours: Colours, uncovered: Bool[np.ndarray, "H W"], opacity: float = 0.6
) -> RgbImage:
    """The image (any size) in grey under the labels' colours, fainter where `uncovered`. opacity: 0..1.

    Pixels without a label (negative) stay grey. An image of another size is brought to the label map's.
    """
    height, width = label_map.shape
    base, tint = grey(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)), colours[label_map]
    blended = blend(base, tint, opacity)
    if uncovered.any():
        blended[uncovered] = blend(base, tint, opacity / 2)[uncovered]
    blended[label_map < 0] = base[label_map < 0]
    return outline(blended, label_map)


def blend(base: RgbImage, tint: RgbImage, opacity: float) -> RgbImage:
    """(1 - opacity) * base + opacity * tint, rounded."""
    return cv2.addWeighted(base, 1 - opacity, tint, opacity, 0)


def grey(image: RgbImage) -> RgbImage:
    """The image without colour, so that a tint laid over it keeps its hue."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def outline(image: RgbImage, index_map: IndexMap) -> RgbImage:
    """A thin white line wherever the index changes, its steps softened."""
    line = np.zeros(index_map.shape, np.float32)
    line[:, 1:][index_map[:, 1:] != index_map[:, :-1]] = 1
    line[1:][index_map[1:] != index_map[:-1]] = 1
    line = np.minimum(1.7 * cv2.GaussianBlur(line, (3, 3), 0.6, borderType=cv2.BORDER_REPLICATE), 1)[..., None]
    return (image + line * (255.0 - image)).round().astype(np.uint8)


def to_rle(mask: Shaped[np.ndarray, "H W"]) -> dict:
    """COCO's compressed run-length code of a mask of 0 and 1: {"size": [H, W], "counts": text}."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


def from_rle(rle: Mapping) -> Bool[np.ndarray, "H W"]:
    """The mask of a compressed run-length code."""
    return coco_mask.decode(rle).astype(bool)


def encode_mask(mask: Shaped[np.ndarray, "H W"]) -> dict:
    """{"segmentation": compressed RLE with text counts, "area", "bbox": [x, y, width, height]} of a mask, in pixels."""
    rle = to_rle(mask)
    return {"segmentation": rle, "area": int(coco_mask.area(rle)), "bbox": [float(v) for v in coco_mask.toBbox(rle)]}


def detections(
    masks: Bool[np.ndarray, "N H W"],
    confidence: Float[np.ndarray, " N"],
    class_id: Int[np.ndarray, " N"],
    names: Sequence[str],
    data: Mapping[str, np.ndarray] | None = None,
) -> Detections:
    """N masks of one image as `supervision.Detections`; boxes are the masks' own, (0, 0, 0, 0) for an empty one.

    confidence: in [0, 1]. names: of all classes, by `class_id`. data: further columns of N values. InputError with
    the command that installs supervision when it is missing.
    """
    with needs("to_supervision", extra="supervision"):
        import supervision
    return supervision.Detections(
        xyxy=supervision.mask_to_xyxy(masks, "exclusive").astype(np.float32).reshape(-1, 4),
        mask=masks,
        confidence=confidence.astype(np.float32),
        class_id=class_id.astype(int),
        data={"class_name": np.array([names[i] for i in class_id], str), **(data or {})},
    )


def plot(picture: RgbImage, legend: Mapping[str, Shaped[np.ndarray, "3"]], axes: Any = None) -> Any:
    """A picture in matplotlib axes, without ticks, its legend (words: colour) to the right; returns the axes.

    axes: to draw into; without any a new figure of matplotlib.pyplot, with room for the legend. Of words more than
    MOST_LETTERS letters are cut. InputError when matplotlib is missing.
    """
    with needs("plot", layer="eval", extra="plot"):
        from matplotlib import patches, pyplot
    cut = [words if len(words) <= MOST_LETTERS else f"{words[: MOST_LETTERS - 1]}…" for words in legend]
    entries = [
        patches.Patch(facecolor=colour / 255, edgecolor="black", label=words)
        for words, colour in zip(cut, legend.values(), strict=True)
    ]
    columns = max(-(-len(entries) // MOST_ROWS), 1)
    if axes is None:
        figure = pyplot.figure(figsize=(5 + 0.09 * columns * max(map(len, cut), default=0), 5), layout="constrained")
        axes = figure.add_subplot()
        if entries:
            figure.legend(handles=entries, loc="outside right upper", ncols=columns, frameon=False)
    elif entries:
        axes.legend(handles=entries, loc="upper left", bbox_to_anchor=(1, 1), ncols=columns, frameon=False)
    axes.imshow(picture)
    axes.set_axis_off()
    return axes


def show() -> None:
    """Show what `plot` has drawn."""
    from matplotlib import pyplot

    pyplot.show()


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their longest cell, two spaces between, under their header."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table; white space within a cell becomes one space, and "|" is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    cells = [[" ".join(str(cell).split()).replace("|", "\\|") for cell in line] for line in lines]
    return [f"| {' | '.join(line)} |" for line in cells]
