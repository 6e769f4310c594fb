"""What a segmentation leaves besides its metrics (docs/run-files.md): rows per image, label maps, confusion matrix."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Integer
from PIL import Image

from textregion.outputs.pictures import legible
from textregion.storage import write_atomically

PREDICTIONS = "predictions"
LARGEST_LABELLED = 40  # classes whose names fit beside a picture of the matrix
Pairs = list[list[int]]


def class_rows(item: str, pairs: Pairs, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row per class that occurs in an image: pixels true, predicted, both (intersection), either (union).

    pairs: [[true class, predicted class, pixels], …].
    """
    counts = _counts(pairs, len(names))
    for place in np.flatnonzero(counts["true"] + counts["predicted"]).tolist():
        yield {"id": item, "class": names[place], **{name: int(values[place]) for name, values in counts.items()}}


def image_row(item: str, pairs: Pairs, names: Sequence[str]) -> dict[str, Any]:
    """An image's own mIoU, mAcc and aAcc in percent (NaN where no pixel counts), its pixels and the right ones."""
    counts = _counts(pairs, len(names))
    right, true, union = (counts[name].astype(np.float64) for name in ("intersection", "true", "union"))
    shares = {"mIoU": _mean_share(right, union), "mAcc": _mean_share(right, true)}
    shares["aAcc"] = 100 * float(right.sum() / true.sum()) if true.sum() else float("nan")
    return {"id": item, **shares, "pixels": int(true.sum()), "right": int(right.sum())}


def _counts(pairs: Pairs, classes: int) -> dict[str, Int[np.ndarray, " K"]]:
    rows, columns, pixels = np.array(pairs, np.int64).reshape(-1, 3).T
    same = rows == columns
    true, predicted = (np.bincount(which, pixels, classes).astype(np.int64) for which in (rows, columns))
    right = np.bincount(rows[same], pixels[same], classes).astype(np.int64)
    return {"intersection": right, "union": true + predicted - right, "true": true, "predicted": predicted}


def _mean_share(parts: np.ndarray, wholes: np.ndarray) -> float:
    there = wholes > 0
    return 100 * float((parts[there] / wholes[there]).mean()) if there.any() else float("nan")


def map_path(folder: Path, item: str) -> Path:
    """Where an image's label map lies."""
    return folder / Path(item.lstrip("/")).with_suffix(".png")


def save_map(path: Path, labels: Integer[np.ndarray, "H W"], classes: int) -> None:
    """A label map as PNG, 8 bits, 16 from 256 classes on, in one step. OSError passes through."""
    content = io.BytesIO()
    Image.fromarray(labels.astype(np.uint8 if classes <= 256 else np.uint16)).save(content, "PNG")
    write_atomically(path, content.getvalue())


def save_confusion(total: Int[np.ndarray, "K K"], names: Sequence[str], folder: Path) -> None:
    """confusion_counts.csv in pixels, confusion.csv and confusion.png row-normalised. total: true by predicted."""
    sums = total.sum(1, keepdims=True)
    shares = np.divide(total, sums, where=sums > 0, out=np.full(total.shape, np.nan))
    for name, values in (("confusion_counts.csv", total), ("confusion.csv", shares)):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["true \\ predicted", *names])
        for label, row in zip(names, values.tolist(), strict=True):
            writer.writerow([label, *("" if value != value else value for value in row)])
        write_atomically(folder / name, text.getvalue().encode())
    write_atomically(folder / "confusion.png", _picture(shares, names))


def _picture(shares: np.ndarray, names: Sequence[str]) -> bytes:
    from matplotlib.figure import Figure

    names = [legible(name) for name in names]  # matplotlib's font is the pictures' own, DejaVu Sans
    side = 3 + min(len(names), 60) * 0.22
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot(xlabel="predicted", ylabel="true")
    drawn = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    if len(names) <= LARGEST_LABELLED:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    figure.colorbar(drawn, label="share of the true class's pixels")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()
