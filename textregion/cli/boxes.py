"""The flags --boxes and --method: which boxes an image has, what is said of them."""

import argparse
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path

import numpy as np
from PIL import Image

from textregion.boxes_file import BoxesFile, GivenBoxes, read_boxes
from textregion.errors import InputError
from textregion.labeling import TEMPERATURE
from textregion.outputs.boxes import box_rows, boxes_picture
from textregion.regionspot.loading import TINY
from textregion.regionspot.text import encode_names
from textregion.text import LabelPrompts
from textregion.types import RegionTokens

BOXES_FILE = "boxes.json"


@dataclass(frozen=True)
class BoxFlags:
    """What the command line says about boxes. given: of a file, or the same for every image."""

    given: BoxesFile | GivenBoxes
    method: str

    def of(self, image: Path) -> GivenBoxes:
        """The boxes of an image; InputError when the file has none of it."""
        return self.given.of(image) if isinstance(self.given, BoxesFile) else self.given


def box_flags(args: argparse.Namespace, preset: str) -> BoxFlags | None:
    """The flags, with a file of boxes read; None without --boxes.

    InputError in one line for what cannot be read, and for --method regionspot where there is no box or no head.
    """
    if args.method == "regionspot" and not args.boxes:
        raise InputError("got --method regionspot without boxes; add --boxes x1,y1,x2,y2 … or --boxes FILE")
    if args.method == "regionspot" and args.regionspot_checkpoint is None and preset != TINY:
        raise InputError(f"no RegionSpot head is shipped for preset {preset}; give one as --regionspot_checkpoint")
    if not args.boxes:
        return None
    if is_file(args.boxes):
        return BoxFlags(read_boxes(args.boxes[0]), args.method)
    return BoxFlags(GivenBoxes(np.array([box_of(text) for text in args.boxes], np.float32)), args.method)


def is_file(boxes: list[str]) -> bool:
    """Whether the words after --boxes name a file: a single one that is there, or is not written like a box."""
    return len(boxes) == 1 and (isfile(boxes[0]) or "," not in boxes[0])


def box_of(text: str) -> list[float]:
    """Four numbers from `x1,y1,x2,y2`."""
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise InputError(f"got the box {text!r}, expected x1,y1,x2,y2 in pixels, or a single file of boxes")
    return numbers


def name_boxes(
    segmenter, image: np.ndarray, tokens: RegionTokens, given: GivenBoxes, labels: tuple[str, ...], method: str
) -> dict[str, dict | Image.Image]:
    """Files that name an image's boxes from their tokens: boxes.json and boxes.png, by name.

    RegionSpot's tokens are compared with its own embeddings of the names and CLIP's scale (RegionSpot 1.11, 1.12),
    TextRegion's as everywhere (method 8.3).
    """
    prompts = LabelPrompts.parse(labels)
    if method == "regionspot":
        text, scale = encode_names(segmenter.backbone, prompts.queries), segmenter.regionspot.scale
    else:
        text, scale = segmenter.encode_text(prompts.queries), TEMPERATURE
    rows = box_rows(tokens, given, text, prompts, scale)
    height, width = image.shape[:2]
    content = {
        "image": {"width": width, "height": height},
        "method": method,
        "scale": round(scale, 4),
        "labels": list(prompts.names),
        "boxes": rows,
    }
    return {BOXES_FILE: content, "boxes.png": boxes_picture(image, rows, f"Method: {method}.")}
