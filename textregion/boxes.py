"""Boxes as users and files give them, xyxy in pixels everywhere: x1 < x2, y1 < y2, end-exclusive.

Layouts of files that `read_boxes` takes; the COCO ones hold x, y, width, height and are converted here:

{"annotations": [{"bbox": [x, y, w, h], "image_id": 7}], "images": [{"id": 7, "file_name": "a.jpg"}]}    COCO
[{"image_id": 7, "bbox": [x, y, w, h], "score": 0.9}]                                          COCO results
{"7": {"boxes": [[x1, y1, x2, y2]], "scores": [0.9], "labels": [3]}}                   detections by image
[[x1, y1, x2, y2]]  or lines of  x1,y1,x2,y2[,score]                                  boxes of any one image
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy.typing import ArrayLike
from torch import Tensor

from textregion.errors import InputError
from textregion.storage import read_text

ROUNDING = 1.0  # pixels that a box of rounded numbers may reach beyond the image
ANY_IMAGE = ""  # the key of boxes that a file gives without saying of which image
LAYOUTS = "COCO annotations or results, image id -> boxes, a list of [x1,y1,x2,y2], or CSV lines of these"
HEADER = "x1,y1,x2,y2"


def as_boxes(boxes: ArrayLike | Tensor) -> Float32[Tensor, "n 4"]:
    """Any array-like of n boxes as x1 y1 x2 y2; no box at all is (0, 4).

    InputError for other shapes, for what is no number, and for NaN or infinity, naming the box.
    """
    expected = "(R, 4), x1 y1 x2 y2 in pixels"
    if isinstance(boxes, Tensor):
        boxes = boxes.detach().cpu().numpy()
    try:
        array = np.asarray(boxes, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"got boxes that are no numbers of one shape, expected {expected}") from error
    if array.size == 0:
        return torch.zeros(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise InputError(f"got boxes of shape {array.shape}, expected finite numbers {expected}")
    tensor = torch.from_numpy(array)
    _refuse(~tensor.isfinite().all(1), tensor, "expected finite numbers")
    return tensor


def boxes_inside(boxes: ArrayLike | Tensor, image_size: tuple[int, int]) -> Float32[Tensor, "n 4"]:
    """Boxes of an image of (H, W) pixels, x1 < x2 and y1 < y2, within 0..W and 0..H; no box at all is (0, 4).

    Boxes that reach at most one pixel beyond the image, as rounded annotations do, are cut to it. InputError naming
    the first box that is empty or lies further outside.
    """
    tensor = as_boxes(boxes)
    height, width = image_size
    limit = torch.tensor([width, height, width, height], dtype=torch.float32)
    _refuse((tensor[:, :2] >= tensor[:, 2:]).any(1), tensor, "expected x1 < x2 and y1 < y2 in pixels")
    outside = ((tensor < -ROUNDING) | (tensor > limit + ROUNDING)).any(1)
    _refuse(outside, tensor, f"lies outside the image of {width} x {height} pixels (x, y)")
    inside = torch.minimum(tensor.clamp(min=0), limit)
    _refuse((inside[:, :2] >= inside[:, 2:]).any(1), tensor, f"is empty within the image of {width} x {height} pixels")
    return inside


def _refuse(wrong: Tensor, boxes: Float[Tensor, "n 4"], why: str) -> None:
    """InputError for the first box that is wrong."""
    if wrong.any():
        index = int(wrong.nonzero()[0, 0])
        raise InputError(f"box {index} at {boxes[index].tolist()} {why}")


# ---------------------------------------------------------------------- files


@dataclass(frozen=True)
class GivenBoxes:
    """Boxes of one image. boxes: (n, 4) x1 y1 x2 y2 in pixels. scores: (n,) of a detector, or None."""

    boxes: Float32[np.ndarray, "n 4"]
    scores: Float32[np.ndarray, " n"] | None = None

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class BoxesFile:
    """What a file says. entries: image id -> boxes. file_names: image file name -> image id, where the file has them.

    Whether the boxes fit their images is checked when they are used (`boxes_inside`).
    """

    path: Path
    entries: dict[str, GivenBoxes]
    file_names: dict[str, str] = field(default_factory=dict)

    def of(self, image: str | int | Path) -> GivenBoxes:
        """Boxes of an image, by its id or by its file's name, with or without ending, leading zeros or folder.

        InputError when the file has none of it. An image of the file without any box has n = 0.
        """
        if ANY_IMAGE in self.entries:
            return self.entries[ANY_IMAGE]
        path = Path(str(image))
        for name in (str(image), path.name, path.stem, path.stem.lstrip("0")):
            key = self.file_names.get(name, name)
            if key in self.entries:
                return self.entries[key]
        known = ", ".join(list(self.file_names or self.entries)[:3])
        raise InputError(f"{self.path} has no boxes of {image}; it knows {len(self.entries)} images: {known}, …")


def read_boxes(path: str | Path) -> BoxesFile:
    """Read any of the layouts above; InputError in one line for a missing file or one of another form."""
    path, text = Path(path), read_text(path, f"boxes: {LAYOUTS}")
    if path.suffix.lower() != ".json" and text.lstrip()[:1] not in ("{", "["):
        return BoxesFile(path, {ANY_IMAGE: _from_lines(path, text.splitlines())})
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # too deep, or a number of too many digits
        raise InputError(f"{path} is not valid JSON ({error}); expected {LAYOUTS}") from error
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        return _from_coco(path, content)
    if isinstance(content, dict) and content and all(isinstance(v, dict) and "boxes" in v for v in content.values()):
        return BoxesFile(path, {str(key): _from_detections(path, key, value) for key, value in content.items()})
    if isinstance(content, list) and all(isinstance(row, dict) for row in content) and content:
        return BoxesFile(path, _by_image(path, content))
    if isinstance(content, list) and not any(isinstance(row, dict) for row in content):
        return BoxesFile(path, {ANY_IMAGE: _given(path, "the list", content, None)})
    raise InputError(f"{path} holds no boxes in a known layout; expected {LAYOUTS}")


def _from_coco(path: Path, content: dict) -> BoxesFile:
    """Every image of the file has an entry, also without annotations."""
    images = content.get("images") or []
    if not isinstance(images, list) or not all(isinstance(row, dict) and "id" in row for row in images):
        raise InputError(f"{path}: got images without an id; expected {LAYOUTS}")
    named = {str(row["file_name"]): str(row["id"]) for row in images if "file_name" in row}
    entries = _by_image(path, content["annotations"], [str(row["id"]) for row in images])
    return BoxesFile(path, entries, {**{Path(name).name: key for name, key in named.items()}, **named})


def _by_image(path: Path, rows: list, images: Iterable[str] = ()) -> dict[str, GivenBoxes]:
    """Annotations or results, each with its xywh box, by the image they name."""
    found: dict[str, tuple[list, list]] = {image: ([], []) for image in images}
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or "bbox" not in row:
            raise InputError(f"{path}: annotation {index} has no bbox; expected x, y, width, height in pixels")
        x, y, width, height = _numbers(path, f"annotation {index}", row["bbox"], (4,))
        key = row.get("image_id", row.get("file_name", ANY_IMAGE))
        boxes, scores = found.setdefault(str(key), ([], []))
        boxes.append((x, y, x + width, y + height))
        scores.append(row.get("score"))
    if ANY_IMAGE in found and len(found) > 1:
        raise InputError(f"{path}: some annotations name no image_id; expected all or none to")
    return {key: _given(path, f"image {key}", *columns) for key, columns in (found or {ANY_IMAGE: ([], [])}).items()}


def _from_detections(path: Path, key: str, value: dict) -> GivenBoxes:
    scores = value.get("scores")
    if not isinstance(value["boxes"], list) or not isinstance(scores, (list, type(None))):
        raise InputError(f"{path}: image {key} has no lists of boxes and scores; expected {LAYOUTS}")
    if scores is not None and len(scores) != len(value["boxes"]):
        raise InputError(f"{path}: image {key} has {len(scores)} scores for {len(value['boxes'])} boxes")
    return _given(path, f"image {key}", value["boxes"], scores)


def _from_lines(path: Path, lines: Iterable[str]) -> GivenBoxes:
    """CSV or words; blank lines, lines starting with # and a heading x1,y1,x2,y2… are passed over."""
    rows = []
    for number, line in enumerate(lines, 1):
        words = line.replace(",", " ").replace(";", " ").split()
        if words and not line.startswith("#") and not ",".join(words).lower().startswith(HEADER):
            rows.append(_numbers(path, f"line {number}", words, (4, 5)))
    if len({len(row) for row in rows}) > 1:
        raise InputError(f"{path}: some lines have a score and some have none; expected all or none to")
    scores = [row[4] for row in rows] if rows and len(rows[0]) == 5 else None
    return _given(path, "the file", [row[:4] for row in rows], scores)


def _given(path: Path, where: str, boxes: list, scores: list | None) -> GivenBoxes:
    """Checked arrays; scores that are all None are none at all."""
    rows = [_numbers(path, f"box {index} of {where}", box, (4,)) for index, box in enumerate(boxes)]
    array = np.array(rows, np.float32).reshape(-1, 4)
    if scores is None or all(score is None for score in scores):
        return GivenBoxes(array)
    return GivenBoxes(array, np.array(_numbers(path, f"scores of {where}", scores, (len(rows),)), np.float32))


def _numbers(path: Path, where: str, values: Any, lengths: tuple[int, ...]) -> list[float]:
    """Finite numbers, as many as one of the lengths says."""
    try:
        numbers = [] if isinstance(values, str) else [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) not in lengths or not all(map(math.isfinite, numbers)):
        count = " or ".join(map(str, lengths))
        raise InputError(f"{path}: {where} is {str(values)[:60]}, expected {count} finite numbers")
    return numbers
