"""One segmentation benchmark: config in, journal and results out (the program eval_semantic.py).

Counts of (true class, predicted class) are kept image by image; the metrics are made from them, as IoUMetric does.
"""

import copy
import logging
import multiprocessing
import re
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from uuid import uuid4

import numpy as np
from jaxtyping import Int, Integer
from mmengine import dist
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.logging import print_log
from mmengine.runner import Runner, TestLoop

from eval.data import (
    SHOWN,
    LoadLabelMap,
    beyond_classes,
    check_files,
    check_folders,
    check_label_maps,
    check_labels_of_model,
    likely_cause,
)
from eval.journal import Journal, Processes, processes
from eval.mm import LOOPS, METRICS
from eval.model import TextRegionModel, describe
from eval.prepare.converters import draw_scenes
from eval.results import Results, describe_device, sum_seconds
from textregion.errors import InputError, first_line

LOADER_PATIENCE = 600  # seconds that the loading of a batch may take; a dead network drive takes longer
LOCKS = 8  # that torch's loader needs at most, for itself and for each worker
Pairs = list[list[int]]
Counts = Int[np.ndarray, "K K"]
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
    with _readable(path):
        read = Config.fromfile(path)
    # Formatting the text of a config, which the runner asks for four times, takes seconds.
    config = Config(read.to_dict(), cfg_text=read.text, filename=read.filename, format_python_code=False)
    if "benchmark" not in config:
        raise InputError(f"{path} names no benchmark; expected one of configs/cfg_ds/*.py or a file like them")
    config.merge_from_dict({f"model.{key}": value for key, value in (model or {}).items()})
    config.merge_from_dict(cfg_options or {})
    return config


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """InputError for a config that Python or mmengine cannot read. A config is code, which may raise a good deal."""
    try:
        yield
    except InputError:
        raise
    except (
        *(SyntaxError, re.error, ImportError, NameError, AttributeError, LookupError, TypeError, ValueError, OSError),
        *(ArithmeticError, AssertionError, RuntimeError),  # the last is also mmengine's
    ) as error:
        raise InputError(
            f"the config {path} cannot be read ({type(error).__name__}: {first_line(error)}); if it takes a path as "
            '{{$NAME:…}}, which mmengine pastes into the code, write os.environ["NAME"] for it'
        ) from error


def evaluate(evaluation: Evaluation) -> Results | None:
    """Run (or resume) the benchmark; results in the first process, None in the others. InputError as it comes."""
    with processes(evaluation.launcher, evaluation.device, evaluation.local_rank) as group:
        config = load_config(evaluation.config, evaluation.model, evaluation.cfg_options)
        prepare(config, evaluation, group)
        runner = Runner.from_cfg(config)
        loop, model = cast(BenchmarkLoop, runner.test_loop), cast(TextRegionModel, runner.model)
        entries = check_files(config, loop.dataloader.dataset)[: evaluation.limit]
        loop.check(entries)
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
            with loading(journal):
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
    """Fill in what the run decides, and see to the data before the model is loaded."""
    config.work_dir = str(evaluation.work_dir)
    config.experiment_name = f"{config.benchmark.name}-{uuid4().hex[:8]}"
    config.visualizer.name = config.experiment_name  # mmengine would hand out the first one of this name again
    config.model.device = group.device
    config.default_hooks.visualization.draw = evaluation.draw
    prepare_data(config)


def prepare_data(config: Config) -> None:
    """Draw the tiny world where it is asked for, check that the data are there. InputError when they are not."""
    if config.benchmark.name == "tiny":
        if dist.is_main_process():
            world = config.benchmark
            draw_scenes(Path(config.test_dataloader.dataset.data_root), world.scenes, world.size, world.first_seed)
        dist.barrier()
    check_folders(config)


@contextmanager
def loading(journal: Journal) -> Iterator[None]:
    """InputError, which says what is saved, when a worker that loads images was killed or hangs.

    torch tells of a worker's death from a signal handler, wherever the program is: others may have caught its error and
    raised one of their own.
    """
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        cause: BaseException | None = error
        while cause is not None and not (isinstance(cause, RuntimeError) and "DataLoader" in str(cause)):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        done = len({*journal.done, *journal.own})
        raise InputError(
            f"loading images failed ({first_line(cause)}), as when memory runs out; {done} images are done and kept: "
            "go on with --resume and fewer loading processes, --cfg-options test_dataloader.num_workers=0"
        ) from error


def settings(config: Config, model: TextRegionModel) -> dict:
    """What decides the numbers: all of the model and data set but for places and speed."""
    places = ("device", "mask_cache", "crops_per_batch", "clip_download_root")
    chosen = {key: value for key, value in config.model.items() if key not in places}
    dataset = {key: value for key, value in config.test_dataloader.dataset.items() if key != "data_root"}
    return {"model": chosen, "resolved": describe(model), "dataset": dataset, "metric": config.test_evaluator}


# ---------------------------------------------------------------------- the loop, for all of mmengine's doors


@LOOPS.register_module()
class BenchmarkLoop(TestLoop):
    """mmengine's TestLoop, which sees to the data first and refuses ground truth that cannot be before any image.

    The data set's `ignore_index` is the ignored value of all that read label maps.
    """

    def __init__(self, runner: Runner, dataloader: dict, evaluator: dict | Evaluator, fp16: bool = False) -> None:
        prepare_data(runner.cfg)
        super().__init__(runner, loader_options(dataloader), evaluator, fp16)
        self.checked = False
        dataset = self.dataset
        for part in (*dataset.pipeline.transforms, *self.evaluator.metrics):
            if isinstance(part, (LoadLabelMap, JournalledIoU)):
                part.ignore = dataset.ignore_index

    @property
    def dataset(self) -> BaseDataset:
        """The data set, one of mmseg's."""
        return self.dataloader.dataset

    def check(self, entries: Sequence[dict] | None = None) -> None:
        """InputError for labels that do not fit the classes; entries: those that are evaluated, else all."""
        config, dataset = self.runner.cfg, self.dataset
        classes, ignore = dataset.metainfo["classes"], dataset.ignore_index
        check_labels_of_model(cast(TextRegionModel, self.runner.model).prompts.names, classes)
        if 0 <= ignore < len(classes):
            raise InputError(
                f"{len(classes)} classes, and label {ignore}, which is one of them, is ignored; set ignore_index of "
                "the data set to a value beyond, 65535 say"
            )
        entries = check_files(config, dataset) if entries is None else entries
        check_label_maps(entries, classes, ignore, config.benchmark.get("prepare"))
        self.checked = True

    def run(self) -> dict:
        """The metrics, after `check`."""
        if not self.checked:
            self.check()
        return super().run()


def loader_options(given: dict) -> dict:
    """The config's test_dataloader as the benchmark needs it.

    Without the loading that mmseg's inferencers look for and replace: LoadOriginalImage reads the files. With an end
    to waiting for workers, and without workers where the system has no shared memory for the locks that they need.
    """
    options = copy.deepcopy(given)
    steps = options["dataset"]["pipeline"]
    if any(step["type"] == "LoadOriginalImage" for step in steps):
        options["dataset"]["pipeline"] = [step for step in steps if step["type"] != "LoadImageFromFile"]
    if workers := options.get("num_workers"):
        try:
            _ = [multiprocessing.Lock() for _ in range(LOCKS * (workers + 1))]
        except OSError as error:
            warnings.warn(f"images are loaded without workers: no shared memory for them ({error})", stacklevel=2)
            options["num_workers"], options["persistent_workers"] = 0, False
    if options.get("num_workers"):
        options.setdefault("timeout", LOADER_PATIENCE)
    return options


# ---------------------------------------------------------------------- counts of (true class, predicted class)


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
    """({"mIoU", "mAcc", "aAcc"}, {class: {"IoU", "Acc", "pixels"}}), in percent, not rounded.

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
    columns = zip(names, iou.tolist(), accuracy.tolist(), true.tolist(), strict=True)
    return summary, {name: {"IoU": i, "Acc": a, "pixels": n} for name, i, a, n in columns}


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


@METRICS.register_module()
class JournalledIoU(BaseMetric):
    """mIoU, mAcc, aAcc in percent from per-image counts that survive an interruption.

    Before the test, `attach` says where counts are kept and which images belong to the evaluation; without it (mmseg's
    own programs) they are kept in memory and are of all images. Afterwards `per_class`, `skipped` and `counted` are
    there. ignore: label of pixels that do not count, the data set's `ignore_index` (BenchmarkLoop sets it).
    """

    per_class: dict[str, dict[str, float]]
    skipped: list[dict]
    counted: int

    def __init__(self, ignore: int = 255, collect_device: str = "cpu", prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ignore = ignore
        self.journal: Journal | None = None
        self.group = Processes()
        self.items: list[str] | None = None
        self.root = Path()
        self.records: dict[str, dict] = {}

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
        self.skipped = [{"id": i, "reason": one["skipped"]} for i, one in records.items() if "skipped" in one]
        counted = [one["pairs"] for one in records.values() if "pairs" in one]
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
