"""What a finished run's folder says about its single images: scores, and pixels by class."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from textregion.errors import InputError
from textregion.storage import reading

Counts = Int[np.ndarray, "classes 3"]  # intersection, true, predicted pixels
COLUMNS = ("intersection", "true", "predicted")


def per_class_iou(counts: Float[np.ndarray, "*batch classes 3"]) -> Float[np.ndarray, "*batch classes"]:
    """IoU in percent; NaN for a class that is neither in the ground truth nor predicted."""
    intersection, true, predicted = np.moveaxis(counts.astype(np.float64), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * intersection / (true + predicted - intersection)


def class_counts(folder: Path, classes: Sequence[str]) -> dict[str, Counts]:
    """{image: counts} of a segmentation run: of image_classes.csv, or of the journal of earlier versions.

    classes: the names in the order of their labels. Empty where the run has neither. InputError for damaged ones.
    """
    path, found = folder / "image_classes.csv", dict[str, Counts]()
    if path.is_file():
        index = {name: at for at, name in enumerate(classes)}
        for row in _rows(path):
            try:
                counts = found.setdefault(row["id"], np.zeros((len(classes), 3), np.int64))
                counts[index[row["class"]]] = [int(row[name]) for name in COLUMNS]
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{path} has the row {row}; expected the classes of results.json, whole") from error
        return found
    for path in sorted((folder / "journal").glob("run*.jsonl")):
        for line in path.read_text(errors="replace").splitlines():
            if "pairs" in (record := _record(line)):
                found[record["id"]] = _of_pairs(record["pairs"], len(classes))
    return found


def _record(line: str) -> dict:
    """A journal's line; {} for a damaged one: its image is then missing, and counted as such."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _of_pairs(pairs: Sequence[Sequence[int]], classes: int) -> Counts:
    """From [[true class, predicted class, pixels], …]."""
    counts = np.zeros((classes, 3), np.int64)
    for true, predicted, pixels in pairs:
        counts[true, 1] += pixels
        counts[predicted, 2] += pixels
        if true == predicted:
            counts[true, 0] += pixels
    return counts


def image_scores(folder: Path, counts: Mapping[str, Counts]) -> dict[str, float]:
    """{image: its score in percent}: the first number of images.csv, or an image's mIoU from its counts.

    NaN where there is nothing to measure. Empty where the run has neither.
    """
    path = folder / "images.csv"
    if path.is_file():
        rows = _rows(path)
        name = next((name for name in (rows[0] if rows else {}) if name != "id"), "")
        try:
            return {row["id"]: float(row[name]) if row[name] else math.nan for row in rows}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error}); expected id and numbers in every row") from error
    ious = {image: per_class_iou(one) for image, one in counts.items()}
    return {image: math.nan if np.isnan(iou).all() else float(np.nanmean(iou)) for image, iou in ious.items()}


def _rows(path: Path) -> list[dict[str, str]]:
    with reading(path), path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
