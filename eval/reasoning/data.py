"""ReasonSeg on disk: <split>/<name>.jpg beside <name>.json with polygons and questions; gIoU and cIoU (method 11)."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Int32, UInt8

from textregion.errors import InputError

SPLITS = ("val", "test")
IMAGES = (".jpg", ".jpeg", ".png")
IGNORED = 255
EPSILON = 1e-5


@dataclass(frozen=True)
class Shape:
    """A polygon: label as annotated, points (x, y) in whole pixels."""

    label: str
    points: Int32[np.ndarray, "N 2"]


@dataclass(frozen=True)
class Question:
    """What is asked of one image. text: the first text of the item. kind: "short", or "long" (a whole sentence)."""

    text: str
    kind: str
    shapes: tuple[Shape, ...]


def find_split(root: Path, split: str) -> Path:
    """<root>/<split> or <root>/ReasonSeg/<split>; InputError when there is none."""
    for folder in (root / split, root / "ReasonSeg" / split):
        if folder.is_dir():
            return folder
    raise InputError(
        f"no folder {root / split}; unpack ReasonSeg there (README, Other tasks), or choose other --splits"
    )


def find_items(folder: Path) -> list[Path]:
    """The images, sorted by name, and <name>.jpg for annotations whose image is not there. InputError for none."""
    images = {path.stem: path for path in folder.iterdir() if path.suffix.lower() in IMAGES}
    missing = [path.with_suffix(IMAGES[0]) for path in folder.glob("*.json") if path.stem not in images]
    found = sorted([*images.values(), *missing])
    if not found:
        raise InputError(f"{folder} has no images; unpack ReasonSeg there")
    return found


def read_json(path: Path) -> dict:
    """A JSON object in UTF-8, else Windows' cp1252. InputError when missing, or neither."""
    if not path.is_file():
        raise InputError(f"no file {path}")
    data = path.read_bytes()
    try:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252")
        content = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is not JSON in UTF-8 or cp1252 ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__}, expected a JSON object")
    return content


def read_question(path: Path) -> Question:
    """One annotation file; InputError when it lacks a text or has a shape that is no polygon."""
    content = read_json(path)
    text = first_text(content.get("text"))
    if text is None:
        raise InputError(f"{path} has no text")
    try:
        shapes = tuple(Shape(str(shape["label"]), _points(shape["points"])) for shape in content["shapes"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} has a shape that is no polygon ({type(error).__name__}: {error})") from error
    return Question(text, "long" if content.get("is_sentence") else "short", shapes)


def first_text(texts: str | Sequence[str] | None) -> str | None:
    """The text, or the first of a list of texts; None when there is no word in it."""
    if isinstance(texts, (list, tuple)):
        texts = texts[0] if texts else None
    return texts if isinstance(texts, str) and texts.strip() else None


def _points(points: Sequence[Sequence[float]]) -> Int32[np.ndarray, "N 2"]:
    array = np.array(points, np.float64)
    if array.ndim != 2 or array.shape[1] != 2 or len(array) == 0 or not np.isfinite(array).all():
        raise ValueError(f"got points of shape {array.shape}, expected (N, 2) finite numbers")
    return array.astype(np.int32)  # cuts off decimals, as published


def read_answer(folder: Path, split: str, name: str) -> str:
    """The first interpreted answer of an item: `answers[0]` of <folder>/<split>/<name>.json or <folder>/<name>.json.

    InputError when there is no file or no answer in it.
    """
    paths = (folder / split / f"{name}.json", folder / f"{name}.json")
    path = next((path for path in paths if path.is_file()), paths[0])
    answer = first_text(read_json(path).get("answers"))
    if answer is None:
        raise InputError(f"{path} has no answers")
    return answer


def paint(shapes: Sequence[Shape], size: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
    """Ground truth: 1 target, 0 elsewhere, 255 pixels that do not count.

    "flag" shapes are left out. The others are painted, outline and inside, from the largest to the smallest area
    of what they paint (of equals the first listed comes last); a label with "ignore" in it paints 255.
    """
    chosen = [shape for shape in shapes if shape.label.lower() != "flag"]
    areas = [np.count_nonzero(_draw(np.zeros(size, np.uint8), shape, 1)) for shape in chosen]
    ground_truth = np.zeros(size, np.uint8)
    for index in np.argsort(areas, kind="stable")[::-1]:
        _draw(ground_truth, chosen[index], IGNORED if "ignore" in chosen[index].label.lower() else 1)
    return ground_truth


def _draw(canvas: UInt8[np.ndarray, "H W"], shape: Shape, value: int) -> UInt8[np.ndarray, "H W"]:
    cv2.polylines(canvas, [shape.points], isClosed=True, color=value, thickness=1)
    return cv2.fillPoly(canvas, [shape.points], value)


def overlap(found: Bool[np.ndarray, "H W"], ground_truth: UInt8[np.ndarray, "H W"]) -> tuple[int, int]:
    """(intersection, union) of the foreground in pixels; pixels whose ground truth is 255 do not count."""
    counted, wanted = ground_truth != IGNORED, ground_truth == 1
    return int((found & wanted).sum()), int(((found | wanted) & counted).sum())


def item_iou(intersection: int, union: int) -> float:
    """I / (U + 1e-5), 1 when the union is empty."""
    return intersection / (union + EPSILON) if union else 1.0


def iou_metrics(overlaps: Sequence[tuple[int, int]]) -> dict[str, float]:
    """{"gIoU": mean over the items, "cIoU": of all pixels together} in percent; NaN without any."""
    total = sum(union for _, union in overlaps)
    return {
        "gIoU": 100 * sum(item_iou(*one) for one in overlaps) / len(overlaps) if overlaps else math.nan,
        "cIoU": 100 * sum(intersection for intersection, _ in overlaps) / total if total else math.nan,
    }
