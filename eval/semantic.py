"""One segmentation benchmark: config in, journal and results out (the program eval_semantic.py)."""

import copy
import logging
import multiprocessing
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from uuid import uuid4

from mmengine import dist
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import Evaluator
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, TestLoop

from eval.data import (
    LoadLabelMap,
    check_files,
    check_folders,
    check_label_maps,
    check_labels_of_model,
)
from eval.identity import PLACES, data_identity, item_digests, run_identity, segmenter_weights
from eval.journal import Journal, Processes, locked, processes
from eval.journalled_iou import JournalledIoU, add_up, item_id
from eval.mm import DATASETS, LOOPS, MODELS
from eval.model import TextRegionModel, describe
from eval.predictions import PREDICTIONS, class_rows, image_row, map_path, save_confusion
from eval.prepare.converters import draw_scenes, scenes_folder
from eval.results import Results, describe_device, now, sum_seconds, write_csv
from eval.run_folder import keep_other_results
from eval.selection import Selection, default_folder, marks_of
from textregion.cli.command_line import output_folder
from textregion.concepts import SAM3_CONCEPTS
from textregion.errors import InputError, first_line

LOADER_PATIENCE = 600  # seconds that the loading of a batch may take; a dead network drive takes longer
LOCKS = 8  # that torch's loader needs at most, for itself and for each worker


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate. model: arguments that override the config's; limit, images: only the first N, those in a list.

    work_dir: None is out/<benchmark>/<preset>-<identity>. The fields have the names of the program's flags.
    """

    config: Path
    work_dir: Path | None = None
    model: dict = field(default_factory=dict)
    cfg_options: dict = field(default_factory=dict)
    limit: int | None = None
    images: Path | None = None
    resume: bool = False
    resume_anyway: bool = False
    save_predictions: bool = False
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
    """Run (or resume) the benchmark; results in the first process, None in the others. InputError as it comes.

    Everything is checked, the identity of what the folder holds too, before anything is written there.
    """
    started = now()
    with processes(evaluation.launcher, evaluation.device, evaluation.local_rank) as group:
        config = load_config(evaluation.config, evaluation.model, evaluation.cfg_options)
        prepare(config, evaluation, group)
        init_default_scope(config.get("default_scope", "mmseg"))
        model = cast(TextRegionModel, MODELS.build(copy.deepcopy(config.model)))
        dataset = DATASETS.build(loader_options(config.test_dataloader)["dataset"])
        root = Path(config.test_dataloader.dataset.data_root)
        entries = check_files(config, dataset)
        every = {item_id(entry["img_path"], root): entry for entry in entries}
        places = {item_id(entry["img_path"], root): place for place, entry in enumerate(entries)}
        selection = Selection.of(list(every), evaluation.limit, evaluation.images)
        items = selection.items
        check_ground_truth(config, model, dataset, [every[item] for item in items])
        check_memory(model, [entry["img_path"] for entry in entries])
        identity = identity_of(config, model, list(every))
        digests = group.gather(item_digests(items, lambda item: files_of(every[item])) if group.is_first else {})[0]
        backbone = identity["settings"]["resolved"]["backbone"]
        preset = backbone if model.method == SAM3_CONCEPTS else config.model.get("preset", backbone)
        parent = Path("out") / config.benchmark.name
        work_dir = evaluation.work_dir or default_folder(parent, preset, identity, evaluation.resume)
        if evaluation.work_dir is not None and group.is_first:
            output_folder(work_dir, "--work-dir")
        resumes = (evaluation.resume, group, digests, evaluation.resume_anyway)
        with locked(work_dir, group):
            if evaluation.resume or evaluation.resume_anyway:
                Journal(work_dir / "journal", identity, digests, evaluation.resume_anyway).read(tells=False)
            runner = runner_of(config, model, work_dir)
            loop = cast(BenchmarkLoop, runner.test_loop)
            with Journal.start(work_dir / "journal", identity, *resumes) as journal:
                maps = work_dir / PREDICTIONS if evaluation.save_predictions else None
                todo = set(journal.left(items))
                if maps is not None:
                    todo |= {item for item in items if not map_path(maps, item).is_file()}
                left = [places[item] for item in items if item in todo]
                loop.dataloader.sampler.indices = group.share(left)
                loop.checked = True
                (counts,) = loop.evaluator.metrics
                counts.attach(journal, group, items, root, maps)
                print_log(f"{len(items)} images, {len(items) - len(left)} done before", "current", logging.INFO)
                start = time.perf_counter()
                with loading(journal):
                    metrics = runner.test()
                seconds = max(group.gather(time.perf_counter() - start))
            runner.visualizer.add_scalars(metrics, step=0)
            runner.visualizer.close()
            stages = sum_seconds(group.gather(model.segmenter.timer.seconds))
            if not group.is_first:
                return None
            resolved = identity["settings"]["resolved"]
            results = Results(
                task="semantic segmentation",
                benchmark=config.benchmark.name,
                backbone=preset,
                metrics=metrics,
                items=counts.counted,
                config={**config.to_dict(), "resolved": resolved},
                recipe=resolved["config"]["recipe"],
                per_class=counts.per_class,
                skipped=counts.skipped,
                seconds={"total": seconds, "per_stage": stages},
                measured=len(left),
                processes=group.count,
                device=describe_device(model.segmenter.device),
                identity=identity,
                selection=selection.told(digests),
                marks=marks_of(selection, evaluation.model, evaluation.cfg_options, journal.differing),
                resumed_anyway=journal.differing,
                started=started,
            )
            save(results, counts, work_dir, maps is not None)
    return results


def runner_of(config: Config, model: TextRegionModel, work_dir: Path) -> Runner:
    """mmengine's runner of a benchmark, with the model that is there already, which a config cannot hold."""
    config.work_dir = str(work_dir)
    names = ("test_dataloader", "test_cfg", "test_evaluator", "default_hooks", "custom_hooks", "visualizer")
    names += ("log_processor", "log_level", "default_scope", "randomness", "env_cfg", "experiment_name")
    given = {name: copy.deepcopy(config[name]) for name in names if name in config}
    return Runner(model, str(work_dir), cfg=config, **given)


def files_of(entry: dict) -> list[Path]:
    """What is read for an entry of a data set."""
    return [Path(entry["img_path"]), Path(entry["seg_map_path"])]


def identity_of(config: Config, model: TextRegionModel, items: Sequence[str]) -> dict:
    """Everything that decides the numbers of a benchmark. items: all its images."""
    dataset = config.test_dataloader.dataset
    root, configuration = Path(dataset.data_root), config.model.get("model_cfg")
    files = {"ann_file": root / dataset.ann_file if dataset.get("ann_file") else None}
    files["model_cfg"] = Path(configuration) if isinstance(configuration, str) else None
    data = data_identity({"data_root": root}, items, files)
    return run_identity(settings(config, model), data, segmenter_weights(model.segmenter))


def save(results: Results, counts: "JournalledIoU", work_dir: Path, with_confusion: bool) -> None:
    """results.json last, before it images.csv, image_classes.csv and, if wanted, the confusion matrix."""
    names = counts.class_names
    keep_other_results(work_dir, results.identity_hash, results.selection)
    rows = (row for item, pairs in counts.pairs.items() for row in class_rows(item, pairs, names))
    write_csv(work_dir / "image_classes.csv", rows)
    if with_confusion:
        save_confusion(add_up(counts.pairs.values(), len(names)), names, work_dir)
    results.save(work_dir, [image_row(item, pairs, names) for item, pairs in counts.pairs.items()])


def prepare(config: Config, evaluation: Evaluation, group: Processes) -> None:
    """Fill in what the run decides, and see to the data before the model is loaded."""
    config.experiment_name = f"{config.benchmark.name}-{uuid4().hex[:8]}"
    config.visualizer.name = config.experiment_name  # mmengine would hand out the first one of this name again
    config.model.device = group.device
    config.default_hooks.visualization.draw = evaluation.draw
    prepare_data(config)


def prepare_data(config: Config) -> None:
    """Draw the tiny world where it is asked for, check that the data are there. InputError when they are not.

    Scenes other than the benchmark's own lie in a folder of their own (`scenes_folder`), which becomes the data root.
    """
    if config.benchmark.name == "tiny":
        world = config.benchmark
        drawn = (world.scenes, world.size, world.first_seed)
        folder = scenes_folder(Path(config.test_dataloader.dataset.data_root), *drawn)
        config.test_dataloader.dataset.data_root = str(folder)
        refused = None
        if dist.is_main_process():
            try:
                draw_scenes(folder, *drawn)
            except InputError as error:
                refused = str(error)
        if told := [one for one in dist.all_gather_object(refused) if one]:
            raise InputError(told[0])
    check_folders(config)


def check_memory(model: TextRegionModel, images: Sequence[str]) -> None:
    """InputError, in every process, when the model's memory has images of the benchmark and nobody said that it may."""
    refused, memory = None, model.memory
    guarded = not model.memory_may_overlap and dist.is_main_process()
    if memory is not None and guarded and (found := memory.overlap(images)):
        refused = (
            f"the memory {memory.name} has {len(found)} of the benchmark's {len(images)} images, first "
            f"{found[0]}: take photographs from elsewhere; or --memory_may_overlap, which results then tell"
        )
    if told := [one for one in dist.all_gather_object(refused) if one]:
        raise InputError(told[0])


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
    """What decides the numbers: all of the model, benchmark and data set but for places and speed."""
    chosen = {key: value for key, value in config.model.items() if key not in PLACES}
    dataset = {key: value for key, value in config.test_dataloader.dataset.items() if key != "data_root"}
    told = {"model": chosen, "resolved": describe(model), "benchmark": dict(config.benchmark)}
    return {**told, "dataset": dataset, "metric": config.test_evaluator}


def check_ground_truth(
    config: Config, model: TextRegionModel, dataset: BaseDataset, entries: Sequence[dict] | None = None
) -> None:
    """InputError for labels that do not fit the classes; entries: those that are evaluated, else all."""
    classes, ignore = dataset.metainfo["classes"], dataset.ignore_index
    check_labels_of_model(model.prompts.names, classes)
    if 0 <= ignore < len(classes):
        raise InputError(
            f"{len(classes)} classes, and label {ignore}, which is one of them, is ignored; set ignore_index of "
            "the data set to a value beyond, 65535 say"
        )
    entries = check_files(config, dataset) if entries is None else entries
    check_label_maps(entries, classes, ignore, config.benchmark.get("prepare"))


# ---------------------------------------------------------------------- the loop, for all of mmengine's doors


@LOOPS.register_module()
class BenchmarkLoop(TestLoop):
    """mmengine's TestLoop, which sees to the data first and refuses ground truth that cannot be before any image.

    The data set's `ignore_index` is the ignored value of all that read label maps.
    """

    def __init__(self, runner: Runner, dataloader: dict, evaluator: dict | Evaluator, fp16: bool = False) -> None:
        prepare_data(runner.cfg)
        dataloader["dataset"]["data_root"] = runner.cfg.test_dataloader.dataset.data_root
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

    def run(self) -> dict:
        """The metrics, after `check_ground_truth`."""
        if not self.checked:
            model, entries = cast(TextRegionModel, self.runner.model), check_files(self.runner.cfg, self.dataset)
            check_ground_truth(self.runner.cfg, model, self.dataset, entries)
            check_memory(model, [entry["img_path"] for entry in entries])
            self.checked = True
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
