"""Trains the tiny models from nothing, on a CPU: python -m utils.tiny.train all

Draws scenes, trains CLIP and SAM 2 beside each other, one thread each, then RegionSpot's head on both, and scores them
on scenes that no training has seen. `clip` and `sam2` train one of the two. Everything is kept in --output; the same
command goes on where it was stopped, however that was, to the same files bit for bit: what a step does depends on the
options alone, not on the time it takes. It needs torch 2.9 or newer (torch.optim.Muon).
"""

import sys

if __name__ == "__main__":  # before what takes seconds to import: Ctrl-C meanwhile is one line too
    from eval import start

    sys.exit(start("python -m utils.tiny.train", "utils.tiny.train"))

import argparse
import ctypes
import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from eval.identity import sources_hash
from eval.prepare.tiny_lvis import write_tiny_lvis
from eval.results import ROOT
from eval.run_folder import differences, held
from textregion.cli.command_line import Parser, output_folder, positive, run_program
from textregion.config import option
from textregion.errors import InputError, first_line
from textregion.masks.sam2 import Sam2MaskGenerator
from textregion.runtime import package_versions
from textregion.storage import file_hash, write_atomically
from textregion.tiny.models import CLIP_WEIGHTS, SAM2_WEIGHTS, load_sam2
from textregion.tiny.scenes import draw_scene
from utils.regionspot.data import read_dataset
from utils.regionspot.train import HEAD, make_parser
from utils.regionspot.train import train as train_head
from utils.regionspot.training import LOG, checkpoints, cut_log
from utils.tiny.clip_training import SCENE_EVERY, ClipTraining
from utils.tiny.data import EVALUATION_SEED, training_scenes
from utils.tiny.evaluate import WORLDS, all_scores, score_names, score_prompts, tiny_segmenter
from utils.tiny.sam2_training import Sam2Training

WEIGHTS = {"clip": CLIP_WEIGHTS.name, "sam2": SAM2_WEIGHTS.name, "head": "tiny_head.safetensors"}
OUTPUT = Path("outputs/tiny_models")
CHECKPOINT = "checkpoint.pt"
REPORT = "report.txt"
FINAL_RATE = 0.02  # of the peak learning rate
LOG_EVERY = 20  # steps a line; checkpoints are made at such steps
CHECKPOINT_SECONDS = 60
# Of glibc, for a worker: freed memory is kept and lies in large pages, which saves a sixth of the time.
MEMORY = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592"
SHORT_SCORED = 12  # scenes that are scored on the way
BOX_SCENES = 5  # whose boxes are scored, for each scene that is

# Both have `modules` (everything with weights, training-only heads included), `groups` (of parameters, with their peak
# learning rate "lr"; the matrices among them that Muon trains are marked), `warm_up` (steps in which rates rise),
# `clip_norm` (largest gradient norm), `loss` (of one fresh batch, and numbers to show; progress runs from 0 to 1),
# `after_step` and `save`.
Training = ClipTraining | Sam2Training
TRAININGS: dict[str, type[Training]] = {"clip": ClipTraining, "sam2": Sam2Training}


@dataclass(frozen=True)
class Schedule:
    """All that decides the result; the help beside a field is its documentation, and that of its flag."""

    scenes: int = option(8000, "training scenes of CLIP and SAM 2", type=positive, metavar="N")
    clip_steps: int = option(6000, "training steps of CLIP", type=positive, metavar="N")
    clip_batch: int = option(128, f"crops in each, at least {SCENE_EVERY}", type=positive, metavar="N")
    sam2_steps: int = option(5000, "training steps of SAM 2", type=positive, metavar="N")
    sam2_batch: int = option(8, "scenes in each", type=positive, metavar="N")
    box_scenes: int = option(3000, "training scenes of RegionSpot's head, others", type=positive, metavar="N")
    head_steps: int = option(2600, "training steps of the head", type=positive, metavar="N")
    scored: int = option(40, "fresh scenes of each world that are scored at the end", type=positive, metavar="N")
    score_every: int = option(240, f"steps between scores of {SHORT_SCORED} scenes", type=positive, metavar="N")
    seed: int = option(0, "of starting values and batches", type=int, metavar="N")


def rate(progress: float, step: int, warm_up: int) -> float:
    """Share of the peak learning rate: a rise over `warm_up` steps, then half a cosine over the run."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return min(1.0, (step + 1) / warm_up) * max(FINAL_RATE, cosine)


def make_optimizers(training: Training) -> list[Optimizer]:
    """AdamW over the training's groups, and Muon over those that are marked; a group's peak rate stays with it.

    Muon (momentum whose matrices are made orthogonal, Jordan 2024, scaled as in 2502.16982) trains the blocks of a
    transformer from nothing in about a third of the steps that AdamW takes.
    """
    groups: dict[bool, list[dict]] = {False: [], True: []}
    for group in training.groups:
        rest = {name: value for name, value in group.items() if name != "muon"}
        groups[group.get("muon", False)].append({**rest, "peak": group["lr"]})
    optimizers: list[Optimizer] = [AdamW(groups[False], betas=(0.9, 0.98))]
    if groups[True]:
        optimizers.append(Muon(groups[True], adjust_lr_fn="match_rms_adamw"))
    return optimizers


def train_step(
    training: Training, optimizers: Sequence[Optimizer], progress: float, step: int, seed: int
) -> dict[str, float]:
    """One batch and one update; the batch depends on seed and step alone."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = group["peak"] * rate(progress, step, training.warm_up)
    loss, shown = training.loss(progress, np.random.default_rng([seed, step]))
    training.modules.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(training.modules.parameters(), training.clip_norm)
    for optimizer in optimizers:
        optimizer.step()
    training.after_step()
    return {"loss": loss.item(), **shown}


def means(lines: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each number over the lines that have it."""
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: float(np.mean([line[name] for line in lines if name in line])) for name in names}


def save_checkpoint(path: Path, training: Training, optimizers: Sequence[Optimizer], **more: object) -> None:
    """Everything that going on exactly needs; never half a file under its final name."""
    states = [optimizer.state_dict() for optimizer in optimizers]
    state = {"modules": training.modules.state_dict(), "optimizers": states, **more}
    unfinished = path.with_suffix(".part")
    torch.save(state, unfinished)
    unfinished.replace(path)


def load_checkpoint(
    path: Path, training: Training, optimizers: Sequence[Optimizer], settings: dict
) -> tuple[int, float]:
    """Goes back to the last checkpoint: its step and seconds of work, zeros where there is none.

    InputError when it was made with other settings, or is damaged.
    """
    if not path.is_file():
        return 0, 0.0
    try:
        state = torch.load(path, weights_only=True)
        changed = differences(state["settings"], settings)
        if not changed:
            training.modules.load_state_dict(state["modules"])
            for optimizer, held_state in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(held_state)
            return state["step"], state["seconds"]
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, UnpicklingError) as error:
        raise InputError(f"{path} is damaged ({first_line(error, 160)}); delete it to begin again") from error
    raise InputError(f"{path} is of another run ({'; '.join(changed[:3])}); repeat that, or choose another --output")


def train(
    training: Training,
    steps: int,
    folder: Path,
    settings: dict,
    seed: int = 0,
    score_every: int = 0,
    scores: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Trains for `steps` steps, from the folder's checkpoint on if there is one.

    settings: what a checkpoint must have equal. scores: made every `score_every` steps (0: never), logged and printed.
    The folder's log has a line every LOG_EVERY steps: means since the last, and processor time.
    """
    optimizers = make_optimizers(training)
    checkpoint = folder / CHECKPOINT
    first, spent = load_checkpoint(checkpoint, training, optimizers, settings)
    cut_log(folder, first)
    started, saved, shown = time.process_time() - spent, time.monotonic(), []
    training.modules.train()
    for step in range(first, steps):
        shown.append(train_step(training, optimizers, step / steps, step, seed))
        done, seconds = step + 1, time.process_time() - started
        if done % LOG_EVERY and done < steps:
            continue
        line = {"step": done, "processor_minutes": seconds / 60, **means(shown)}
        if scores is not None and score_every and done % score_every < LOG_EVERY and done >= score_every:
            training.modules.eval()
            line |= scores()
            training.modules.train()
        with (folder / LOG).open("a") as file:
            file.write(f"{json.dumps(line)}\n")
        told = "  ".join(f"{name} {value:.3f}" for name, value in line.items() if name != "step")
        print(f"{folder.name} {done}/{steps}  {told}", flush=True)
        shown = []
        if done == steps or time.monotonic() - saved > CHECKPOINT_SECONDS:
            saved = time.monotonic()
            save_checkpoint(checkpoint, training, optimizers, step=done, seconds=seconds, settings=settings)
    training.modules.eval()


def short_scores(model: str, path: Path, scenes: int) -> dict[str, float]:
    """Some scores of a weight file on easy scenes never trained on: names of exact masks, or masks of prompts."""
    drawn = [draw_scene(EVALUATION_SEED + number) for number in range(scenes)]
    if model == "sam2":
        return score_prompts(Sam2MaskGenerator(load_sam2(path)), drawn)
    segmenter = tiny_segmenter(clip=path, templates=1)
    return score_names(segmenter, [(scene, segmenter.encode_image(scene.image, scene.masks)) for scene in drawn])


def train_model(model: str, schedule: Schedule, output: Path, init: Path | None = None) -> None:
    """Trains "clip" or "sam2" and writes its weights into `output`. init: weights to go on from instead of nothing."""
    steps, batch = (getattr(schedule, f"{model}_{what}") for what in ("steps", "batch"))
    weights = output / WEIGHTS[model]
    settings = {"model": model, "schedule": asdict(schedule), "init": file_hash(init) if init else None}
    settings |= {"code": sources_hash(), "versions": package_versions()}
    settings = json.loads(json.dumps(settings))  # plain types alone are read from a checkpoint
    torch.manual_seed(schedule.seed)
    with held(output / model, "--output"):
        training = TRAININGS[model](training_scenes(schedule.scenes, output), init, batch)

        def scores() -> dict[str, float]:
            training.save(weights)
            return short_scores(model, weights, min(schedule.scored, SHORT_SCORED))

        train(training, steps, output / model, settings, schedule.seed, schedule.score_every, scores)
        training.save(weights)
    print(f"{model}: {steps} steps, saved {weights}", flush=True)


def die_with_parent() -> None:
    """Has the kernel kill this process when the one that started it is gone, however it ended (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def train_beside(schedule: Schedule, output: Path) -> None:
    """Trains CLIP and SAM 2 in a process each. InputError when one of them fails; the other is stopped then."""
    flags = [f"--{name}={value}" for name, value in asdict(schedule).items()]
    command = [sys.executable, "-m", "utils.tiny.train"]
    workers = [
        subprocess.Popen(
            [*command, model, "--output", str(output.resolve()), *flags],
            cwd=ROOT,
            env={**os.environ, "GLIBC_TUNABLES": MEMORY},
            preexec_fn=die_with_parent,
        )
        for model in TRAININGS
    ]
    try:
        while any(worker.poll() is None for worker in workers):
            if any(worker.poll() for worker in workers):
                break
            time.sleep(0.2)
    finally:
        for worker in workers:
            worker.terminate()
        codes = [worker.wait() for worker in workers]
    if any(codes):
        failed = " and ".join(model for model, code in zip(TRAININGS, codes, strict=True) if code)
        raise InputError(f"training of {failed} stopped, see above; the same command goes on")


def train_boxes(schedule: Schedule, output: Path) -> None:
    """Trains RegionSpot's head on the two models in `output` and writes it there."""
    boxes = output / "boxes"
    write_tiny_lvis(boxes, BOX_SCENES * schedule.scored, schedule.box_scenes)
    data = f"tiny={boxes / 'lvis_tiny_train.json'}:{boxes / 'images'}"
    flags = "--preset tiny --device cpu --cache-maps --layers 1 --hidden 256 --isolate --half --batch 32 --lr 1e-3"
    flags += f" --steps {schedule.head_steps} --seed {schedule.seed}"
    options = make_parser().parse_args([*flags.split(), "--data", data, "--output", str(output / "head")])
    options.resume = bool(checkpoints(output / "head"))
    train_head(options, tiny_segmenter(output / WEIGHTS["clip"], output / WEIGHTS["sam2"]))
    write_atomically(output / WEIGHTS["head"], (output / "head" / HEAD).read_bytes())


def report(schedule: Schedule, output: Path) -> str:
    """What was trained and how well: schedule, processor time, scores, hashes of the files."""
    boxes = read_dataset("boxes", output / "boxes" / "lvis_tiny_val.json", output / "boxes" / "images")
    paths = [output / name for name in WEIGHTS.values()]
    lines = [" ".join(f"--{name} {value}" for name, value in asdict(schedule).items())]
    for model in TRAININGS:
        last = json.loads((output / model / LOG).read_text().splitlines()[-1])
        lines.append(f"{model}: {last['step']} steps, {last['processor_minutes']:.1f} minutes of processor time")
    lines.append(all_scores(*paths, schedule.scored, WORLDS, boxes))
    lines += [f"sha256 {file_hash(path)}  {path.name}  {path.stat().st_size / 1e6:.1f} MB" for path in paths]
    return "\n".join([*lines, ""])


def train_all(schedule: Schedule, output: Path, one_process: bool = False) -> None:
    """The three models, one after the other in this process or two beside each other, and the report."""
    with held(output, "--output"):
        training_scenes(schedule.scenes, output)
        if one_process:
            for model in TRAININGS:
                train_model(model, schedule, output)
        else:
            train_beside(schedule, output)
        train_boxes(schedule, output)
        told = report(schedule, output)
        write_atomically(output / REPORT, told.encode())
        print(told, end="")


def make_parser_of_all() -> Parser:
    """All options; those of the schedule are its fields."""
    parser = Parser(prog="python -m utils.tiny.train", description=__doc__)
    add = parser.add_argument
    add("model", choices=("all", *TRAININGS), help="what to train")
    add("--output", type=Path, default=OUTPUT, metavar="DIR", help=f"scenes, logs, weights, report ({OUTPUT})")
    add("--init", type=Path, metavar="FILE", help="with clip or sam2: weights to go on from (default: from nothing)")
    add("--one_process", action="store_true", help="with all: one model after the other")
    for field in fields(Schedule):
        add(
            f"--{field.name}",
            default=field.default,
            **field.metadata["flag"],
            help=f"{field.metadata['help']} ({field.default})",
        )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit code."""
    options = make_parser_of_all().parse_args(arguments)
    return run_program(lambda: _run(options), "the same command goes on from the last checkpoint")


def _run(options: argparse.Namespace) -> None:
    schedule = Schedule(**{field.name: getattr(options, field.name) for field in fields(Schedule)})
    if schedule.clip_batch < SCENE_EVERY:
        raise InputError(f"got --clip_batch {schedule.clip_batch}, expected at least {SCENE_EVERY}")
    if options.init is not None and (options.model == "all" or not options.init.is_file()):
        raise InputError(f"got --init {options.init}, expected a file, and clip or sam2 to train")
    output_folder(options.output)
    torch.set_num_threads(1)
    if options.model == "all":
        train_all(schedule, options.output, options.one_process)
    else:
        train_model(options.model, schedule, options.output, options.init)
