"""One segmentation benchmark: config in, journal and results out (the program eval_semantic.py)."""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from uuid import uuid4

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner, TestLoop

from eval.data import check_files, check_folders
from eval.journal import Journal
from eval.metric import item_id
from eval.model import TextRegionModel, describe
from eval.prepare.tiny import draw_scenes
from eval.results import Results, describe_device, sum_seconds
from eval.sharding import Processes, processes
from textregion.errors import InputError


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
