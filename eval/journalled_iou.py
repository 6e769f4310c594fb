"""The metric of segmentation benchmarks: counts of (true class, predicted class), image by image.

Metrics are made from their sum, as mmseg's IoUMetric does, so a run that was stopped goes on from those that are kept.
"""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Integer
from mmengine import dist
from mmengine.evaluator import BaseMetric

from eval.data import SHOWN, beyond_classes, likely_cause
from eval.journal import Journal, Processes, is_skipped
from eval.metrics import COUNT_METRICS
from eval.mm import METRICS
from eval.predictions import map_path, save_map
from textregion.errors import InputError

Pairs = list[list[int]]
Counts = Int[np.ndarray, "K K"]
LabelMap = Integer[np.ndarray, "H W"]


def count_pairs(prediction: LabelMap, ground_truth: LabelMap, classes: int, ignore: int = 255) -> Pairs:
    """[[true class, predicted class, pixels], …] of one image, only pairs that occur, ascending.

    prediction: values 0..classes-1. ground_truth: the same or `ignore`. InputError for any other value.
    """
    keep = ground_truth != ignore
    rows, columns = ground_truth[keep].astype(np.int64), prediction[keep].astype(np.int64)
    for what, values in (("the label map", rows), ("the prediction", columns)):
        if wrong := beyond_classes(np.unique(values).tolist(), classes, ignore):
            raise InputError(f"{what} has labels {wrong[:SHOWN]} beyond the {classes} classes")
    codes, counts = np.unique(rows * classes + columns, return_counts=True)
    return np.stack([codes // classes, codes % classes, counts], 1).tolist()


def add_up(images: Iterable[Pairs], classes: int) -> Counts:
    """One (classes, classes) int64 matrix, true by predicted, from the pairs of many images; exact in any order."""
    total = np.zeros((classes, classes), np.int64)
    for pairs in images:
        rows, columns, counts = np.array(pairs, np.int64).reshape(-1, 3).T
        total[rows, columns] += counts
    return total


def mean_iou(total: Counts, names: Sequence[str]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """({"mIoU", "mAcc", "aAcc", those of eval/metrics/}, {class: {"IoU", "Acc", "pixels"}}), in percent, not rounded.

    Classes that occur neither in the ground truth nor in predictions have IoU NaN and are left out of the mean; those
    not in the ground truth have accuracy NaN.
    """
    right = np.diag(total).astype(np.float64)
    true, predicted = total.sum(1), total.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = 100 * right / (true + predicted - right)
        accuracy = 100 * right / true
        overall = 100 * right.sum() / true.sum()
    summary = {"mIoU": _mean(iou), "mAcc": _mean(accuracy), "aAcc": float(overall)}
    summary |= {name: metric(total) for name, metric in COUNT_METRICS.items()}
    columns = zip(names, iou.tolist(), accuracy.tolist(), true.tolist(), strict=True)
    return summary, {name: {"IoU": i, "Acc": a, "pixels": n} for name, i, a, n in columns}


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


@METRICS.register_module()
class JournalledIoU(BaseMetric):
    """mIoU, mAcc, aAcc in percent from per-image counts that survive an interruption.

    Before the test, `attach` says where counts are kept and which images belong to the evaluation; without it (mmseg's
    own programs) they are kept in memory and are of all images. Afterwards `per_class`, `skipped`, `counted` and
    `pairs`, the counts of every measured image, are there. ignore: label of pixels that do not count, the data set's
    `ignore_index` (BenchmarkLoop sets it).
    """

    per_class: dict[str, dict[str, float]]
    skipped: list[dict]
    counted: int
    pairs: dict[str, Pairs]

    def __init__(self, ignore: int = 255, collect_device: str = "cpu", prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ignore = ignore
        self.journal: Journal | None = None
        self.group = Processes()
        self.items: list[str] | None = None
        self.root = Path()
        self.maps: Path | None = None
        self.records: dict[str, dict] = {}

    def attach(
        self, journal: Journal, group: Processes, items: list[str], root: Path, maps: Path | None = None
    ) -> None:
        """Keep counts in `journal`; evaluate `items`: image paths relative to `root`. maps: folder for label maps."""
        self.journal, self.group, self.items, self.root, self.maps = journal, group, items, root, maps

    @property
    def class_names(self) -> Sequence[str]:
        """The data set's classes, in the order of their labels."""
        return (self.dataset_meta or {})["classes"]

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        """Count one batch; each image's record is on disk before the next."""
        for sample in data_samples:
            item = item_id(sample["img_path"], self.root)
            if "unreadable" in sample:
                self._keep(item, {"skipped": sample["unreadable"]})
                continue
            prediction, true = (sample[name]["data"][0].cpu().numpy() for name in ("pred_sem_seg", "gt_sem_seg"))
            if prediction.shape == true.shape:
                try:
                    pairs = count_pairs(prediction, true, len(self.class_names), self.ignore)
                except InputError as error:
                    cause = likely_cause(set(np.unique(true).tolist()), len(self.class_names), self.ignore)
                    path = sample.get("seg_map_path", item)
                    raise InputError(f"{path}: {error}; likely cause: {cause}; images before it are kept") from error
                record = {"pairs": pairs, "size": list(true.shape)}
                if self.maps is not None:  # before the record: what is recorded has its map
                    save_map(map_path(self.maps, item), prediction, len(self.class_names))
            else:
                record = {"skipped": f"prediction of shape {prediction.shape}, label map of {true.shape}"}
            self._keep(item, record)

    def _keep(self, item: str, record: dict) -> None:
        if self.journal is None:
            self.records[item] = record
        else:
            self.journal.add(item, record)

    def _collect(self) -> dict[str, dict]:
        """The records of all processes."""
        if self.journal is not None:
            return self.journal.collect(self.group)
        return {item: record for own in self.group.gather(self.records) for item, record in own.items()}

    def evaluate(self, size: int) -> dict[str, float]:
        """The metrics over all images of all processes and runs; the same in every process.

        A warning names classes of which the ground truth has no pixel.
        """
        collected = self._collect()
        items = sorted(collected) if self.items is None else self.items
        records = {item: collected[item] for item in items if item in collected}
        self.skipped = [{"id": i, "reason": one["skipped"]} for i, one in records.items() if is_skipped(one)]
        self.pairs = {item: one["pairs"] for item, one in records.items() if not is_skipped(one)}
        counted = list(self.pairs.values())
        self.counted = len(counted)
        summary, self.per_class = mean_iou(add_up(counted, len(self.class_names)), self.class_names)
        absent = [name for name, row in self.per_class.items() if not row["pixels"]]
        if absent and counted and dist.is_main_process():
            names = ", ".join(absent[:SHOWN]) + ", …" * (len(absent) > SHOWN)
            warnings.warn(
                f"no pixel of the ground truth is of {names} ({len(absent)} of {len(self.class_names)} classes are "
                "absent): their IoU is 0 where they are predicted, else they are left out of the mean",
                stacklevel=2,
            )
        return summary

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Not used: `evaluate` works on counts, not on gathered results."""
        return {}


def item_id(path: str | Path, root: Path) -> str:
    """An image's name in journals and results: its path below `root`, with slashes."""
    path = Path(path)
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
