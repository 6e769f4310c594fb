"""The boxes to be named: those of the annotations, or a detector's, in two layouts (method 3.1)."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eval.lvis.truth import ImageEntry, Truth, file_digest
from eval.skipped import SCORED, Skipped
from textregion.boxes import ANY_IMAGE, GivenBoxes
from textregion.boxes import read_boxes as read_file
from textregion.errors import InputError

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
    entries = read_file(path).entries
    if len(entries.pop(ANY_IMAGE, ())):
        raise InputError(f"{path} does not say which image its boxes belong to; expected image ids (see --help)")
    known = {str(number): image for number, image in truth.images.items()}
    unknown = [key for key in entries if key not in known]
    if entries and len(unknown) == len(entries):
        raise InputError(f"none of the {len(unknown)} images of {path} is in the annotations; do they belong together?")
    found = BoxSet(file_digest(path))
    found.skipped += [Skipped(f"image {key}", "unknown image id", f"{path} has boxes of it") for key in unknown]
    for key, given in entries.items():
        if key in known:
            _add_detected(found, path, known[key], given)
    return found


def _add_detected(found: BoxSet, path: Path, image: ImageEntry, given: GivenBoxes) -> None:
    if len(given) == 0:
        return
    if given.scores is None or not (0 <= given.scores.min() <= given.scores.max() <= 1):
        got = "no scores" if given.scores is None else f"scores from {given.scores.min():g} to {given.scores.max():g}"
        raise InputError(f"{path} has {got} for image {image.id}; expected the detector's scores, from 0 to 1")
    for place, (box, score) in enumerate(zip(given.boxes.tolist(), given.scores.tolist(), strict=True), start=1):
        clipped = _inside(found, f"image {image.id} box {place}", tuple(box), image)
        if clipped is not None:
            boxes = found.of_image.setdefault(image.id, Boxes())
            boxes.xyxy.append(clipped)
            boxes.scores.append(score)


def _inside(found: BoxSet, name: str, box: Box, image: ImageEntry) -> Box | None:
    """The part of a box that lies in its image, or None; told where anything is lost."""
    where = f"{[round(side, 1) for side in box]} in {image.size[1]} x {image.size[0]} pixels"
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
