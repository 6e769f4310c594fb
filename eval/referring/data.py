"""The preprocessed layout of RefCOCO, RefCOCO+ and RefCOCOg: <split>.jsonl and <dataset>_dets_dict.json (method 10)."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.results import Skipped
from textregion.errors import InputError
from textregion.labeling import Box

COCO_SPLITS = ("val", "testa", "testb")
SPLITS = (
    *(f"{dataset}_{split}" for dataset in ("refcoco", "refcoco+") for split in COCO_SPLITS),
    "refcocog_val",
    "refcocog_test",
)
PROPOSALS = ("detections", "gt", "none")
PLAIN_COCO = re.compile(r"COCO_[a-z0-9]+_\d{12}\.\w+")  # nothing to cut


@dataclass(frozen=True)
class Expression:
    """One line of a split: a thing in an image, and the sentences that refer to it.

    image: file name below the image root. ground_truth: boxes of the thing, any of which counts. candidates: boxes
    an answer is snapped to; all boxes are (x, y, width, height) in pixels. snaps: whether an answer is snapped at all.
    """

    split: str
    line: int
    image: str
    ground_truth: tuple[Box, ...]
    candidates: tuple[Box, ...]
    sentences: tuple[str, ...]
    snaps: bool = True

    @property
    def name(self) -> str:
        """How reports call it."""
        return f"{self.split} line {self.line}"


def find_splits(root: Path, chosen: Sequence[str] | None = None) -> list[str]:
    """The chosen splits, or all that are there; InputError when one (or every one) is not there."""
    if not root.is_dir():
        raise InputError(f"no folder {root}; expected one with {SPLITS[0]}.jsonl and others (README, Other tasks)")
    there = [split for split in SPLITS if (root / f"{split}.jsonl").is_file()]
    if chosen is None and not there:
        raise InputError(f"{root} has none of {', '.join(f'{split}.jsonl' for split in SPLITS)}")
    for split in chosen or ():
        if split not in there:
            raise InputError(f"no file {root / split}.jsonl; there are: {', '.join(there) or 'none'}")
    return list(dict.fromkeys(chosen or there))


def read_splits(
    root: Path, splits: Sequence[str], proposals: str = "detections"
) -> tuple[dict[str, list[Expression]], list[Skipped]]:
    """All expressions of some splits, by image in order of first appearance, and the lines that could not be used.

    InputError for a missing file.
    """
    expressions: dict[str, list[Expression]] = {}
    unusable: list[Skipped] = []
    detections: dict[str, dict[str, tuple[Box, ...]]] = {}
    for split in splits:
        dataset = split.rsplit("_", 1)[0]
        if proposals == "detections" and dataset not in detections:
            detections[dataset] = read_detections(root / f"{dataset}_dets_dict.json")
        for number, line in enumerate((root / f"{split}.jsonl").read_bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                expression = read_line(line, split, number, proposals, detections.get(dataset, {}))
            except InputError as error:
                unusable.append(Skipped(f"{split} line {number}", "broken line", str(error)))
                continue
            expressions.setdefault(expression.image, []).append(expression)
            if not expression.sentences:
                unusable.append(Skipped(expression.name, "no sentences", "the list of sentences is empty"))
    return expressions, unusable


def read_line(line: bytes, split: str, number: int, proposals: str, detections: dict) -> Expression:
    """One line of <split>.jsonl. InputError when it is no JSON, lacks a field, or its ann_id has no box."""
    try:
        datum = json.loads(line.decode("utf-8"))
        boxes = {annotation["id"]: as_box(annotation["bbox"]) for annotation in datum["anns"]}
        wanted = datum["ann_id"] if isinstance(datum["ann_id"], list) else [datum["ann_id"]]
        ground_truth = tuple(boxes[ann_id] for ann_id in wanted if ann_id in boxes)
        sentences = tuple(str(sentence["raw"]) for sentence in datum["sentences"])
        image, image_id = image_name(datum["file_name"]), str(datum["image_id"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"not as expected ({type(error).__name__}: {error})") from error
    if not ground_truth:
        raise InputError(f"none of ann_id {wanted} is among the {len(boxes)} anns")
    candidates = tuple(boxes.values()) if proposals == "gt" else detections.get(image_id, ())
    return Expression(split, number, image, ground_truth, candidates, sentences, snaps=proposals != "none")


def image_name(file_name: str) -> str:
    """The image's own name: of COCO names the last "_"-part, the annotation's number, is cut (method 10).

    COCO_train2014_000000581857_16.jpg -> COCO_train2014_000000581857.jpg. Other names stay.
    """
    if "coco" not in file_name.lower() or PLAIN_COCO.fullmatch(file_name):
        return file_name
    return file_name.rsplit("_", 1)[0] + ".jpg"


def read_detections(path: Path) -> dict[str, tuple[Box, ...]]:
    """Detected boxes by image id, in both formats: {image id: [xywh, …]}, or [{"image_id", "box"}, …].

    InputError when the file is missing or something else.
    """
    if not path.is_file():
        raise InputError(f"no detections {path}; put them there, or run with --proposals gt or none")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            rows = [(image_id, row) for image_id, boxes in content.items() for row in boxes]
        else:
            rows = [(row["image_id"], row) for row in content]
        found: dict[str, list[Box]] = {}
        for image_id, row in rows:
            found.setdefault(str(image_id), []).append(as_box(row["box"] if isinstance(row, dict) else row))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a JSON file of detections ({type(error).__name__}: {error})") from error
    return {image_id: tuple(boxes) for image_id, boxes in found.items()}


def as_box(numbers: Sequence[float]) -> Box:
    """Four finite numbers (x, y, width, height); ValueError otherwise."""
    box = tuple(float(number) for number in numbers)
    if len(box) != 4 or not all(math.isfinite(number) for number in box):
        raise ValueError(f"got the box {numbers!r}, expected x, y, width, height")
    return box
