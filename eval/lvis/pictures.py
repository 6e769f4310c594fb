"""Contact sheets of named boxes: the box in its image, a closer look at it, the name it got and the true one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from eval.contact_sheet import FOUND, GOLD, Picture, beside, contact_sheet, spread
from eval.lvis.boxes import Box, Boxes, BoxSet
from eval.lvis.truth import Truth
from textregion.grounding import box_ious, is_hit
from textregion.images import load_image
from textregion.outputs.pictures import draw_box

NOTE = "Left: the box, green where the name is right, pink where it is wrong. Right: a closer look."
MARGIN = 0.25  # of the box's sides, around the closer look


@dataclass(frozen=True)
class Case:
    """A box and its names, by index; confidence: probability of the one it got, 0..1."""

    image: int
    box: Box
    named: int
    true: int
    confidence: float


def contact_sheets(
    truth: Truth, boxes: BoxSet, images: Path, records: Mapping[str, dict], count: int
) -> dict[str, Image.Image]:
    """{"right": …, "wrong": …}, up to `count` boxes each; no sheet where there are none.

    A detector's box has the true name of the object it overlaps most, with IoU > 0.5; others are not shown.
    """
    cases = [case for item, record in records.items() for case in _cases(truth, boxes, int(item), record)]
    sheets = {}
    for title, right in (("right", True), ("wrong", False)):
        chosen = [case for case in cases if (case.named == case.true) is right]
        if chosen:
            cells = [(draw(truth, images, case), caption(truth, case)) for case in spread(chosen, count)]
            sheets[title] = contact_sheet(f"{title.capitalize()}: {len(cells)} of {len(chosen)} boxes", cells, NOTE)
    return sheets


def _cases(truth: Truth, boxes: BoxSet, image: int, record: dict) -> list[Case]:
    own = boxes.of_image.get(image, Boxes())
    true = own.names if boxes.are_true else overlapped_names(truth, image, own)
    answers = zip(own.xyxy, record.get("named", ()), true, record.get("confidence", ()), strict=False)
    return [Case(image, *answer) for answer in answers if None not in answer]


def overlapped_names(truth: Truth, image: int, boxes: Boxes) -> list[int | None]:
    """For each box the name, by index, of the object it overlaps most, or None where no IoU is above 0.5."""
    things = truth.objects_of.get(image, [])
    names: list[int | None] = []
    for x1, y1, x2, y2 in boxes.xyxy:
        ious = box_ious((x1, y1, x2 - x1, y2 - y1), [tuple(thing["bbox"]) for thing in things])
        best = int(ious.argmax()) if len(ious) else None
        hit = best is not None and is_hit(float(ious[best]))
        names.append(truth.index[things[best]["category_id"]] if hit else None)
    return names


def draw(truth: Truth, images: Path, case: Case) -> Picture:
    """The image with the box, beside it the box's surroundings, enlarged."""
    image = load_image(truth.images[case.image].find(images))
    x1, y1, x2, y2 = case.box
    marked = draw_box(image, (x1, y1, x2 - x1, y2 - y1), GOLD if case.named == case.true else FOUND)
    return beside(marked, closer(image, case.box))


def closer(image: Picture, box: Box) -> Picture:
    """The box and a margin, as large as fits into a white picture of the image's size."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = box
    dx, dy = MARGIN * (x2 - x1), MARGIN * (y2 - y1)
    left, top = max(int(x1 - dx), 0), max(int(y1 - dy), 0)
    cut = image[top : max(int(y2 + dy), top + 1), left : max(int(x2 + dx), left + 1)]
    factor = min(height / cut.shape[0], width / cut.shape[1])
    size = max(int(cut.shape[1] * factor), 1), max(int(cut.shape[0] * factor), 1)
    out = np.full_like(image, 255)
    out[: size[1], : size[0]] = cv2.resize(cut, size, interpolation=cv2.INTER_CUBIC)
    return out


def caption(truth: Truth, case: Case) -> list[str]:
    """The name it got with its probability, and the true one."""
    named, true = truth.categories[case.named].name, truth.categories[case.true].name
    return [f"“{named}” {case.confidence:.2f}", f"true: “{true}”, image {case.image}"]
