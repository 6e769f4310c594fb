"""Counts of (true class, predicted class), and the figures made from them, as mmseg's IoUMetric makes them."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int, Integer

Pairs = list[list[int]]


def count_pairs(
    prediction: Integer[np.ndarray, "H W"],
    truth: Integer[np.ndarray, "H W"],
    classes: int,
    ignore: int = 255,
) -> Pairs:
    """[[true class, predicted class, pixels], …] of one image, only pairs that occur, ascending.

    prediction: values 0..classes-1. truth: the same or `ignore`; other values are counted as the extra row
    `classes`: the prediction there is wrong whatever it is (as IoUMetric counts it).
    """
    keep = truth != ignore
    rows = np.minimum(truth[keep].astype(np.int64), classes)
    codes, counts = np.unique(rows * classes + prediction[keep].astype(np.int64), return_counts=True)
    return np.stack([codes // classes, codes % classes, counts], 1).tolist()


def add_up(images: Iterable[Pairs], classes: int) -> Int[np.ndarray, "K1 K"]:
    """One (classes + 1, classes) int64 matrix from the pairs of many images; exact in any order."""
    total = np.zeros((classes + 1, classes), np.int64)
    for pairs in images:
        rows, columns, counts = np.array(pairs, np.int64).reshape(-1, 3).T
        total[rows, columns] += counts
    return total


def figures(
    total: Int[np.ndarray, "K1 K"], names: Sequence[str]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """({"mIoU", "mAcc", "aAcc"}, {class: {"IoU", "Acc", "pixels"}}), in percent, not rounded.

    Classes that occur neither in truth nor in predictions have IoU NaN and are left out of the mean; those not
    in the truth have accuracy NaN.
    """
    right = np.diag(total[:-1]).astype(np.float64)
    true, predicted = total[:-1].sum(1), total.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = 100 * right / (true + predicted - right)
        accuracy = 100 * right / true
        overall = 100 * right.sum() / true.sum()
    summary = {"mIoU": _mean(iou), "mAcc": _mean(accuracy), "aAcc": float(overall)}
    columns = zip(names, iou.tolist(), accuracy.tolist(), true.tolist(), strict=True)
    return summary, {name: {"IoU": i, "Acc": a, "pixels": n} for name, i, a, n in columns}


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
