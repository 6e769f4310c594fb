"""The mmengine metric that writes every image's counts to the journal, and the sampler of what is left to do."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from mmengine.evaluator import BaseMetric
from torch.utils.data import Sampler

from eval.confusion import add_up, count_pairs, figures
from eval.journal import Journal
from eval.mm import DATA_SAMPLERS, METRICS
from eval.sharding import Processes


@DATA_SAMPLERS.register_module()
class ChosenImages(Sampler):
    """The images with these indices, in order; all of them until `indices` is set. Never padded or repeated."""

    def __init__(self, dataset: Sequence, seed: int | None = None) -> None:
        self.indices = list(range(len(dataset)))

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


@METRICS.register_module()
class JournalledIoU(BaseMetric):
    """mIoU, mAcc, aAcc in percent from per-image counts that survive an interruption.

    Before the test, `attach` says where counts are kept and which images belong to the evaluation; without it
    everything is kept in memory only. Afterwards `per_class`, `skipped` and `counted` are there.
    ignore: label of pixels that do not count.
    """

    default_prefix = None

    def __init__(self, ignore: int = 255, collect_device: str = "cpu", prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ignore = ignore
        self.journal: Journal | None = None
        self.group = Processes()
        self.items: list[str] | None = None
        self.root = Path()
        self.memory: dict[str, dict] = {}
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
            item = item_id(sample["img_path"], self.root)
            record = self._record(sample)
            if self.journal is None:
                self.memory[item] = record
            else:
                self.journal.add(item, record)

    def _record(self, sample: dict) -> dict:
        if "unreadable" in sample:
            return {"skipped": sample["unreadable"]}
        prediction, truth = (sample[name]["data"].squeeze(0).cpu().numpy() for name in ("pred_sem_seg", "gt_sem_seg"))
        if prediction.shape != truth.shape:
            return {"skipped": f"prediction of shape {prediction.shape}, label map of {truth.shape}"}
        pairs = count_pairs(prediction, truth, len(self.class_names), self.ignore)
        return {"pairs": pairs, "size": list(np.shape(truth))}

    def evaluate(self, size: int) -> dict[str, float]:
        """The figures over all images of all processes and runs; the same in every process."""
        records = self.memory if self.journal is None else self.journal.collect(self.group)
        items = sorted(records) if self.items is None else [i for i in self.items if i in records]
        self.skipped = [{"id": i, "reason": reason} for i in items if (reason := records[i].get("skipped")) is not None]
        counted = [records[i]["pairs"] for i in items if "pairs" in records[i]]
        self.counted = len(counted)
        names = self.class_names
        summary, self.per_class = figures(add_up(counted, len(names)), names)
        return summary

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Not used: `evaluate` works on counts, not on gathered results."""
        return {}


def item_id(path: str | Path, root: Path) -> str:
    """An image's name in journals and results: its path below `root`, with slashes."""
    path = Path(path)
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
