"""One segmentation benchmark: config in, journal and results out (the program eval_semantic.py).

Counts of (true class, predicted class) are kept image by image; the metrics are made from them, as IoUMetric does.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from uuid import uuid4

import numpy as np
from jaxtyping import Int, Integer
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.runner import Runner, TestLoop

from eval.data import check_files, check_folders
from eval.journal import Journal, Processes, processes
from eval.mm import METRICS
from eval.model import TextRegionModel, describe
from eval.prepare.converters import draw_scenes
from eval.results import Results, describe_device, sum_seconds
from textregion.errors import InputError

Pairs = list[list[int]]
Counts = Int[np.ndarray, "K1 K"]
LabelMap = Integer[np.ndarray, "H W"]


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate. model: arguments that override the config's; limit: only the first N images.

    The fields have the names of the program's flags.
    """

    config: Path
    work_dir: Path
    model: dict = field(default_factory=dict)
    cfg_options: dict = field(default_factory=dict)
    limit: int | None = None
    resume: bool = False
    draw: bool = False
    launcher: str = "none"
    local_rank: int | None = None
    device: str = "auto"


def load_config(path: str | Path, model: dict | None = None, cfg_options: dict | None = None) -> Config:
    """The merged config; `model` and then `cfg_options` have the last word. InputError when unreadable."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no config {path}; expected one of configs/cfg_ds/*.py")
    read = Config.fromfile(path)
    # Formatting the text of a config, which the runner asks for four times, takes seconds.
    config = Config(read.to_dict(), cfg_text=read.text, filename=read.filename, format_python_code=False)
    if "benchmark" not in config:
        raise InputError(f"{path} names no benchmark; expected one of configs/cfg_ds/*.py or a file like them")
    config.merge_from_dict({f"model.{key}": value for key, value in (model or {}).items()})
    config.merge_from_dict(cfg_options or {})
    return config


def evaluate(evaluation: Evaluation) -> Results | None:
    """Run (or resume) the benchmark; results in the first process, None in the others. InputError as it comes."""
    with processes(evaluation.launcher, evaluation.device, evaluation.local_rank) as group:
        config = load_config(evaluation.config, evaluation.model, evaluation.cfg_options)
        prepare(config, evaluation, group)
        runner = Runner.from_cfg(config)
        loop, model = cast(TestLoop, runner.test_loop), cast(TextRegionModel, runner.model)
        entries = check_files(config, loop.dataloader.dataset)[: evaluation.limit]
        root = Path(config.test_dataloader.dataset.data_root)
        items = [item_id(entry["img_path"], root) for entry in entries]
        folder = evaluation.work_dir / "journal"
        with Journal.start(folder, settings(config, model), evaluation.resume, group) as journal:
            todo = [index for index, item in enumerate(items) if item not in journal.done]
            loop.dataloader.sampler.indices = group.share(todo)
            (counts,) = loop.evaluator.metrics
            counts.attach(journal, group, items, root)
            print_log(f"{len(items)} images, {len(items) - len(todo)} done before", "current", logging.INFO)
            start = time.perf_counter()
            metrics = runner.test()
            seconds = max(group.gather(time.perf_counter() - start))
        runner.visualizer.add_scalars(metrics, step=0)
        runner.visualizer.close()
        stages = sum_seconds(group.gather(model.segmenter.timer.seconds))
        if not group.is_first:
            return None
    resolved = describe(model)
    results = Results(
        task="semantic segmentation",
        benchmark=config.benchmark.name,
        backbone=config.model.get("preset", resolved["backbone"]),
        metrics=metrics,
        items=counts.counted,
        config={**config.to_dict(), "resolved": resolved},
        recipe=resolved["config"]["recipe"],
        per_class=counts.per_class,
        skipped=counts.skipped,
        seconds={"total": seconds, "per_stage": stages},
        measured=len(todo),
        processes=group.count,
        device=describe_device(model.segmenter.device),
    )
    results.save(evaluation.work_dir)
    return results


def prepare(config: Config, evaluation: Evaluation, group: Processes) -> None:
    """Fill in what the run decides, draw the tiny world where it is asked for, check that the data are there."""
    config.work_dir = str(evaluation.work_dir)
    config.experiment_name = f"{config.benchmark.name}-{uuid4().hex[:8]}"
    config.visualizer.name = config.experiment_name  # mmengine would hand out the first one of this name again
    config.model.device = group.device
    config.default_hooks.visualization.draw = evaluation.draw
    if config.benchmark.name == "tiny":
        if group.is_first:
            world = config.benchmark
            draw_scenes(Path(config.test_dataloader.dataset.data_root), world.scenes, world.size, world.first_seed)
        group.wait()
    check_folders(config)


def settings(config: Config, model: TextRegionModel) -> dict:
    """What decides the numbers: all of the model and data set but for places and speed."""
    places = ("device", "mask_cache", "crops_per_batch", "clip_download_root")
    chosen = {key: value for key, value in config.model.items() if key not in places}
    dataset = {key: value for key, value in config.test_dataloader.dataset.items() if key != "data_root"}
    return {"model": chosen, "resolved": describe(model), "dataset": dataset, "metric": config.test_evaluator}


# ---------------------------------------------------------------------- counts of (true class, predicted class)


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

    per_class: dict[str, dict[str, float]]
    skipped: list[dict]
    counted: int

    def __init__(self, ignore: int = 255, collect_device: str = "cpu", prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ignore = ignore

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
            if "unreadable" in sample:
                self.journal.add(item, {"skipped": sample["unreadable"]})
                continue
            prediction, true = (sample[name]["data"][0].cpu().numpy() for name in ("pred_sem_seg", "gt_sem_seg"))
            if prediction.shape == true.shape:
                pairs = count_pairs(prediction, true, len(self.class_names), self.ignore)
                record = {"pairs": pairs, "size": list(true.shape)}
            else:
                record = {"skipped": f"prediction of shape {prediction.shape}, label map of {true.shape}"}
            self.journal.add(item, record)

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
