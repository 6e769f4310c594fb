"""The boxes to be named: those of the annotations, or a detector's, in two layouts (spec 3.1)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eval.lvis.truth import ImageEntry, Truth, four_numbers, read_json
from eval.skipped import SCORED, Skipped
from utils.errors import InputError

Box = tuple[float, float, float, float]
GROUND_TRUTH = "gt"
TOLERANCE = 1.0  # pixels over the image's edge that are rounding, and not told


@dataclass
class Boxes:
    """The boxes of one image: xyxy in pixels, inside the image.

    scores: the detector's, for its boxes. names: index of the true category, for the annotations' own.
    """

    xyxy: list[Box] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    names: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.xyxy)


@dataclass
class BoxSet:
    """All boxes by image id. source: "gt", or the hash of the detector's file."""

    source: str
    of_image: dict[int, Boxes] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def are_true(self) -> bool:
        """Whether these are the annotations' own, so that each has a right answer."""
        return self.source == GROUND_TRUTH


def read_boxes(source: str, truth: Truth) -> BoxSet:
    """The annotations' own boxes ("gt") or a detector's file. InputError: missing, no boxes, or of other images."""
    return true_boxes(truth) if source == GROUND_TRUTH else detected_boxes(Path(source), truth)


def true_boxes(truth: Truth) -> BoxSet:
    """The boxes of the annotations, crowds left out."""
    found = BoxSet(GROUND_TRUTH)
    for thing in truth.objects:
        if thing["ignore"]:
            continue
        image, (x, y, width, height) = truth.images[thing["image_id"]], thing["bbox"]
        box = _inside(found, f"annotation {thing['id']}", (x, y, x + width, y + height), image)
        if box is not None:
            boxes = found.of_image.setdefault(image.id, Boxes())
            boxes.xyxy.append(box)
            boxes.names.append(truth.index[thing["category_id"]])
    return found


def detected_boxes(path: Path, truth: Truth) -> BoxSet:
    """A detector's boxes with scores; its labels are not looked at.

    Either {"<image id>": {"boxes": [[x1, y1, x2, y2], …], "scores": […]}, …} as published, or COCO results:
    [{"image_id", "bbox": [x, y, width, height], "score"}, …]; pixels of the image.
    """
    content, digest = read_json(path, "boxes")
    try:
        rows = list(_published_rows(content) if isinstance(content, dict) else _coco_rows(content))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is not a file of boxes ({type(error).__name__}: {error}); expected the ids of images with boxes "
            "and scores, or a list of image_id, bbox, score"
        ) from error
    unknown = {image_id: None for image_id, *_ in rows if image_id not in truth.images}
    if rows and len(unknown) == len({image_id for image_id, *_ in rows}):
        raise InputError(f"none of the {len(unknown)} images of {path} is in the annotations; do they belong together?")
    found = BoxSet(digest)
    found.skipped += [Skipped(f"image {number}", "unknown image id", f"{path} has boxes of it") for number in unknown]
    for place, (image_id, box, score) in enumerate(rows, start=1):
        if image_id in truth.images:
            _add_detected(found, f"box {place}", truth.images[image_id], box, score)
    return found


def _add_detected(found: BoxSet, name: str, image: ImageEntry, box: Box | None, score: float | None) -> None:
    if box is None or score is None:
        found.skipped.append(Skipped(name, "broken box", f"image {image.id}: not four finite numbers and a score"))
    elif (clipped := _inside(found, name, box, image)) is not None:
        boxes = found.of_image.setdefault(image.id, Boxes())
        boxes.xyxy.append(clipped)
        boxes.scores.append(score)


def _published_rows(content: dict[str, Any]) -> Iterator[tuple[int, Box | None, float | None]]:
    for image_id, entry in content.items():
        for box, score in zip(entry["boxes"], entry["scores"], strict=True):
            yield int(image_id), four_numbers(box), _score(score)


def _coco_rows(content: list[dict]) -> Iterator[tuple[int, Box | None, float | None]]:
    for row in content:
        box = four_numbers(row["bbox"])
        if box is not None:
            box = (box[0], box[1], box[0] + box[2], box[1] + box[3])
        yield int(row["image_id"]), box, _score(row["score"])


def _score(value: object) -> float | None:
    """A detector's score, 0 to 1; None for anything else."""
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        return None
    return float(value)


def _inside(found: BoxSet, name: str, box: Box, image: ImageEntry) -> Box | None:
    """The part of a box that lies in its image, or None; told where anything is lost."""
    where = f"image {image.id}: {[round(side, 1) for side in box]} in {image.size[1]} x {image.size[0]} pixels"
    if not (box[0] < box[2] and box[1] < box[3]):
        found.skipped.append(Skipped(name, "box without area", where))
        return None
    clipped = clip(box, image.size)
    if clipped is None:
        found.skipped.append(Skipped(name, "box outside the image", where))
    elif max(abs(a - b) for a, b in zip(box, clipped, strict=True)) > TOLERANCE:
        found.skipped.append(Skipped(name, "box cut at the image's edge", where, SCORED))
    return clipped


def clip(box: Box, size: tuple[int, int]) -> Box | None:
    """The part of an xyxy box within (H, W) pixels; None when there is none."""
    height, width = size
    x1, y1, x2, y2 = max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height))
    some = np.float32(x1) < np.float32(x2) and np.float32(y1) < np.float32(y2)  # as the models will read them
    return (x1, y1, x2, y2) if some else None
