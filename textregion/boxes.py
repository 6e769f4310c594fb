"""Boxes as users and files give them, xyxy in pixels everywhere: x1 < x2, y1 < y2, end-exclusive.

Layouts of files that `read_boxes` takes; the COCO ones hold x, y, width, height and are converted here:

{"annotations": [{"bbox": [x, y, w, h], "image_id": 7}], "images": [{"id": 7, "file_name": "a.jpg"}]}    COCO
[{"image_id": 7, "bbox": [x, y, w, h], "score": 0.9}]    COCO results, "file_name" beside or instead of "image_id"
{"7": {"boxes": [[x1, y1, x2, y2]], "scores": [0.9], "labels": [3]}}      detections by image: id, or file name
[[x1, y1, x2, y2]]  or lines of  x1,y1,x2,y2[,score]                                  boxes of any one image

Which image of a file is meant, `textregion.image_names` decides.
"""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy.typing import ArrayLike
from torch import Tensor

from textregion.errors import InputError
from textregion.image_names import WHOLE_NUMBER, ListedImages, id_key, name_parts
from textregion.storage import parse_json, read_text

MOST_BOXES = 10_000  # of one image; each is a mask and a token
ROUNDING = 1.0  # pixels that a box of rounded numbers may reach beyond the image
ANY_IMAGE = ""  # the key of boxes that a file gives without saying of which image
LAYOUTS = "COCO annotations or results, image id -> boxes, a list of [x1,y1,x2,y2], or CSV lines of these"
HEADER = "x1,y1,x2,y2"


def as_boxes(boxes: ArrayLike | Tensor) -> Float32[Tensor, "n 4"]:
    """Any array-like of n boxes as x1 y1 x2 y2; no box at all is (0, 4).

    InputError for other shapes, more than MOST_BOXES, for what is no number, and for NaN or infinity, naming the box.
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
    check_number(len(array))
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


def check_number(boxes: int, whose: str = "") -> None:
    """InputError for more than MOST_BOXES boxes of one image; whose: begins the line."""
    if boxes > MOST_BOXES:
        raise InputError(f"{whose}got {boxes} boxes of one image, expected at most {MOST_BOXES}; keep the best")


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

    def __repr__(self) -> str:
        return f"GivenBoxes({len(self)} boxes, with{'out' * (self.scores is None)} scores)"


@dataclass(frozen=True)
class BoxesFile:
    """What a file says. entries: id of an image (`id_key`), or ANY_IMAGE -> its boxes.

    images: those that the file lists; None for boxes of any image. unlisted: how many annotations were left out because
    the file does not list their image. Whether boxes fit their image is checked when they are used (`boxes_inside`).
    """

    path: Path
    entries: dict[str, GivenBoxes]
    images: ListedImages | None = None
    unlisted: int = 0

    def __repr__(self) -> str:
        images = "any image" if self.images is None else f"{len(self.entries)} images"
        return f"BoxesFile({str(self.path)!r}, {sum(map(len, self.entries.values()))} boxes of {images})"

    def of(self, image: str | int | Path) -> GivenBoxes:
        """Boxes of an image: by its path or name as `ListedImages.find` has it, or by its id, a number or its text.

        InputError when the file does not list it, or when it may be several of those listed. An image of the file
        without any box has n = 0.
        """
        if self.images is None:
            return self.entries[ANY_IMAGE]
        if isinstance(image, int) or self._is_id(image):
            if id_key(image) not in self.entries:
                raise InputError(f"{self.path} lists no image of the id {image}; it lists {len(self.entries)} images")
            return self.entries[id_key(image)]
        return self.entries[self.images.find(image)]

    def _is_id(self, image: str | Path) -> bool:
        """Whether a text (no path) is the id of an image that no listed file has as its name."""
        if self.images is None or not isinstance(image, str) or not WHOLE_NUMBER.fullmatch(image):
            return False
        return id_key(image) in self.entries and not any((image,) in names for names in self.images.ids.values())


def read_boxes(path: str | Path) -> BoxesFile:
    """Read any of the layouts above; InputError in one line for a missing file or one of another form.

    Annotations of images that a file with a list of images does not list are left out with a warning that counts them.
    """
    path, expected = Path(path), f"boxes: {LAYOUTS}"
    text = read_text(path, expected)
    if path.suffix.lower() != ".json" and text.lstrip()[:1] not in ("{", "["):
        return BoxesFile(path, {ANY_IMAGE: _from_lines(path, text.splitlines())})
    content = parse_json(path, text, expected)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        images = content.get("images") or []
        if not isinstance(images, list):
            raise InputError(f"{path}: got images that are no list; expected {LAYOUTS}")
        return _from_coco(path, content["annotations"], images)
    if isinstance(content, dict) and content and all(isinstance(v, dict) and "boxes" in v for v in content.values()):
        return _by_image(path, content)
    if isinstance(content, list) and all(isinstance(row, dict) for row in content) and content:
        return _from_coco(path, content, [])
    if isinstance(content, list) and not any(isinstance(row, dict) for row in content):
        return BoxesFile(path, {ANY_IMAGE: _given(path, "the list", content, None)})
    raise InputError(f"{path} holds no boxes in a known layout; expected {LAYOUTS}")


def _from_coco(path: Path, rows: list, images: list) -> BoxesFile:
    """Annotations or results, each with its xywh box. images: the rows of the file's own list, without which the
    annotations tell what images there are. Every listed image has an entry, also without annotations.
    """
    named = [_image_of(path, index, row) for index, row in enumerate(rows)]
    nameless = [index for index, image in enumerate(named) if image == (None, None)]
    if not images and len(nameless) == len(rows):
        columns = [_corners(path, index, row) for index, row in enumerate(rows)], [row.get("score") for row in rows]
        return BoxesFile(path, {ANY_IMAGE: _given(path, "the file", *columns)})
    if nameless:
        raise InputError(f"{path}: annotation {nameless[0]} and others name no image_id; expected all or none to")
    told = [{"id": _bare_key(number, name), "file_name": name} for number, name in named]
    listed, unlisted = ListedImages(path, images or told), []
    found: dict[str, tuple[list, list]] = {key: ([], []) for key in listed.ids}
    for index, (row, (number, name)) in enumerate(zip(rows, named, strict=True)):
        key = listed.find(str(name)) if images and number is None else _bare_key(number, name)
        if key in found:
            found[key][0].append(_corners(path, index, row))
            found[key][1].append(row.get("score"))
        else:
            unlisted.append(key)
    if unlisted:
        counted = f"{path}: {len(unlisted)} of {len(rows)} annotations are of images that it does not list"
        if len(unlisted) == len(rows):
            raise InputError(f"{counted} (image_id {unlisted[0]} first); expected the ids of its images")
        warnings.warn(f"{counted} (image_id {unlisted[0]} first); they are left out", stacklevel=3)
    entries = {key: _given(path, f"image {key}", *columns) for key, columns in found.items()}
    return BoxesFile(path, entries, listed, len(unlisted))


def _image_of(path: Path, index: int, row: Any) -> tuple[str | float | None, object]:
    """(image_id, file_name) of an annotation, None for what it does not say."""
    if not isinstance(row, dict) or row.get("bbox") is None:
        raise InputError(f"{path}: annotation {index} has no bbox; expected x, y, width, height in pixels")
    number, name = (None if row.get(key) == "" else row.get(key) for key in ("image_id", "file_name"))
    if isinstance(number, (list, dict, bool)) or (isinstance(number, float) and not math.isfinite(number)):
        raise InputError(f"{path}: annotation {index} has the image_id {str(number)[:60]}, expected a number or text")
    return number, name


def _bare_key(number: str | float | None, name: object) -> str:
    """What an image is called in a file without a list of images: its id, else its file name."""
    return id_key(number) if number is not None else "/".join(name_parts(str(name)))


def _corners(path: Path, index: int, row: dict) -> tuple[float, float, float, float]:
    x, y, width, height = _numbers(path, f"annotation {index}", row["bbox"], (4,))
    return x, y, x + width, y + height


def _by_image(path: Path, content: dict[str, dict]) -> BoxesFile:
    """Detections by image. When a key has an ending or a folder the keys are file names, else ids or bare names."""
    names = ["/".join(name_parts(key)) for key in content if not WHOLE_NUMBER.fullmatch(key.strip())]
    are_names = any("/" in name or Path(name).suffix for name in names)
    entries = {id_key(key): _from_detections(path, key, value) for key, value in content.items()}
    if len(entries) < len(content):
        raise InputError(f"{path}: {len(content)} entries are of {len(entries)} images; expected one entry an image")
    rows = [{"id": key, "file_name": key if are_names else None} for key in content]
    return BoxesFile(path, entries, ListedImages(path, rows))


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
    """Checked arrays of at most MOST_BOXES boxes; scores that are all None are none at all."""
    check_number(len(boxes), f"{path}: ")
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
