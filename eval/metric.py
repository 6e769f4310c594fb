"""Counts of (true class, predicted class), kept image by image, and the metrics made from them, as IoUMetric does."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Integer
from mmengine.evaluator import BaseMetric

from eval.journal import Journal
from eval.mm import METRICS
from eval.sharding import Processes

Pairs = list[list[int]]
Counts = Int[np.ndarray, "K1 K"]
LabelMap = Integer[np.ndarray, "H W"]


def count_pairs(prediction: LabelMap, ground_truth: LabelMap, classes: int, ignore: int = 255) -> Pairs:
    """[[true class, predicted class, pixels], …] of one image, only pairs that occur, ascending.

    prediction: values 0..classes-1. ground_truth: the same or `ignore`; other values are counted as the extra row
    `classes`: the prediction there is wrong whatever it is (as IoUMetric counts it).
    """
    keep = ground_truth != ignore
    rows = np.minimum(ground_truth[keep].astype(np.int64), classes)
    codes, counts = np.unique(rows * classes + prediction[keep].astype(np.int64), return_counts=True)
    return np.stack([codes // classes, codes % classes, counts], 1).tolist()


def add_up(images: Iterable[Pairs], classes: int) -> Counts:
    """One (classes + 1, classes) int64 matrix from the pairs of many images; exact in any order."""
    total = np.zeros((classes + 1, classes), np.int64)
    for pairs in images:
        rows, columns, counts = np.array(pairs, np.int64).reshape(-1, 3).T
        total[rows, columns] += counts
    return total


def mean_iou(total: Counts, names: Sequence[str]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """({"mIoU", "mAcc", "aAcc"}, {class: {"IoU", "Acc", "pixels"}}), in percent, not rounded.

    Classes that occur neither in the ground truth nor in predictions have IoU NaN and are left out of the mean; those
    not in the ground truth have accuracy NaN.
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


@METRICS.register_module()
class JournalledIoU(BaseMetric):
    """mIoU, mAcc, aAcc in percent from per-image counts that survive an interruption.

    Before the test, `attach` says where counts are kept and which images belong to the evaluation. Afterwards
    `per_class`, `skipped` and `counted` are there. ignore: label of pixels that do not count.
    """

    journal: Journal
    group: Processes
    items: list[str]
    root: Path

    def __init__(self, ignore: int = 255, collect_device: str = "cpu", prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ignore = ignore
        self.per_class: dict[str, dict[str, float]] = {}
        self.skipped: list[dict] = []
        self.counted = 0

    def attach(self, journal: Journal, group: Processes, items: list[str], root: Path) -> None:
        """Keep counts in `journal`; evaluate `items`: image paths relative to `root`."""
        self.journal, self.group, self.items, self.root = journal, group, items, root

    @property
    def class_names(self) -> Sequence[str]:
        """The data set's classes, in the order of their labels."""
        return (self.dataset_meta or {})["classes"]

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        """Count one batch; each image's record is on disk before the next."""
        for sample in data_samples:
            self.journal.add(item_id(sample["img_path"], self.root), self._record(sample))

    def _record(self, sample: dict) -> dict:
        if "unreadable" in sample:
            return {"skipped": sample["unreadable"]}
        prediction, ground_truth = (sample[name]["data"][0].cpu().numpy() for name in ("pred_sem_seg", "gt_sem_seg"))
        if prediction.shape != ground_truth.shape:
            return {"skipped": f"prediction of shape {prediction.shape}, label map of {ground_truth.shape}"}
        pairs = count_pairs(prediction, ground_truth, len(self.class_names), self.ignore)
        return {"pairs": pairs, "size": list(ground_truth.shape)}

    def evaluate(self, size: int) -> dict[str, float]:
        """The metrics over all images of all processes and runs; the same in every process."""
        collected = self.journal.collect(self.group)
        records = {item: collected[item] for item in self.items if item in collected}
        self.skipped = [{"id": i, "reason": one["skipped"]} for i, one in records.items() if "skipped" in one]
        counted = [one["pairs"] for one in records.values() if "pairs" in one]
        self.counted = len(counted)
        summary, self.per_class = mean_iou(add_up(counted, len(self.class_names)), self.class_names)
        return summary

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Not used: `evaluate` works on counts, not on gathered results."""
        return {}


def item_id(path: str | Path, root: Path) -> str:
    """An image's name in journals and results: its path below `root`, with slashes."""
    path = Path(path)
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
