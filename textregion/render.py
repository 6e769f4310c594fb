"""Arrays to pictures, run-length codes and detections, rows to tables of text; nothing here knows a model.

Images are (H, W, 3) uint8 RGB.
"""

import colorsys
import io
from collections.abc import Iterable, Mapping, Sequence
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
GOLDEN_RATIO = 0.61803398875


def palette(count: int) -> Colours:
    """`count` well separated colours; colour k does not depend on `count`."""
    colours = [
        colorsys.hsv_to_rgb((0.02 + k * GOLDEN_RATIO) % 1, 0.55 + 0.35 * ((k // 3) % 2), (0.95, 0.75, 0.85)[k % 3])
        for k in range(count)
    ]
    return np.round(255 * np.array(colours)).astype(np.uint8).reshape(count, 3)


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

    Pixels without a label (negative) stay grey.
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
    """A thin white line wherever the index changes."""
    out = image.copy()
    out[:, 1:][index_map[:, 1:] != index_map[:, :-1]] = 255
    out[1:][index_map[1:] != index_map[:-1]] = 255
    return out


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

    axes: to draw into; without any a new figure of matplotlib.pyplot. InputError when matplotlib is missing.
    """
    with needs("plot", layer="eval", extra="plot"):
        from matplotlib import patches, pyplot
    axes = pyplot.figure(layout="constrained").add_subplot() if axes is None else axes
    axes.imshow(picture)
    axes.set_axis_off()
    entries = [patches.Patch(color=colour / 255, label=words) for words, colour in legend.items()]
    if entries:
        axes.legend(handles=entries, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
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
