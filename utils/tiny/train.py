"""Trains the tiny models on a CPU: python -m utils.tiny.train clip|sam2 [options]

Continues from the shipped weights unless told otherwise (--init none starts from scratch), and prints scores
on fresh scenes at the end. The learning rate follows the wall clock, so a run uses the minutes it is given.
"""

import sys

if __name__ == "__main__":  # before what takes seconds to import: Ctrl-C meanwhile is one line too
    from eval import start

    sys.exit(start("python -m utils.tiny.train", "utils.tiny.train"))

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW
from tqdm import tqdm

from textregion.cli.command_line import Parser, run_program
from textregion.tiny.models import CLIP_WEIGHTS, SAM2_WEIGHTS
from utils.tiny.clip_training import ClipTraining
from utils.tiny.data import DEFAULT_CACHE, training_scenes
from utils.tiny.evaluate import encode_scenes, score_masks, score_names, tiny_segmenter
from utils.tiny.sam2_training import Sam2Training

SHIPPED = {"clip": CLIP_WEIGHTS, "sam2": SAM2_WEIGHTS}
TRAININGS = {"clip": ClipTraining, "sam2": Sam2Training}
SCORED_SCENES = 20
FINAL_RATE = 0.02  # of the peak learning rate
CHECKPOINT_SECONDS = 60


# Both have `modules` (everything with weights, training-only heads included), `groups` (of parameters; "scale"
# multiplies a group's learning rate), `learning_rate`, `warm_up` (steps in which it rises), `clip_norm` (largest
# gradient norm), `loss` (of one fresh batch, and numbers to show; progress runs from 0 to 1), `after_step` and `save`.
Training = ClipTraining | Sam2Training


def rate(progress: float, step: int, warm_up: int) -> float:
    """Share of the peak learning rate: a rise over `warm_up` steps, then half a cosine over the run."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return min(1.0, (step + 1) / warm_up) * max(FINAL_RATE, cosine)


def make_optimizer(training: Training) -> AdamW:
    """AdamW over the training's groups; a group's "scale" stays with it."""
    groups = [{"scale": 1.0, **group} for group in training.groups]
    return AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.98))


def train_step(training: Training, optimizer: AdamW, progress: float, step: int, seed: int) -> dict[str, float]:
    """One batch and one update; the batch depends on seed and step alone."""
    for group in optimizer.param_groups:
        group["lr"] = training.learning_rate * group["scale"] * rate(progress, step, training.warm_up)
    loss, shown = training.loss(progress, np.random.default_rng([seed, step]))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(training.modules.parameters(), training.clip_norm)
    optimizer.step()
    training.after_step()
    return {"loss": loss.item(), **shown}


def train(
    training: Training, seed: int, minutes: float, checkpoint: Path, resume: bool = False, steps: float = math.inf
) -> int:
    """Trains until the minutes or the steps are used up; returns the number of steps.

    checkpoint: written once a minute, never half a file under its final name. resume: go on from it.
    """
    optimizer = make_optimizer(training)
    step, spent = 0, 0.0
    if resume:
        state = torch.load(checkpoint, weights_only=True)
        training.modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["elapsed"]
    start = saved = time.monotonic() - spent
    average: dict[str, float] = {}
    training.modules.train()
    with tqdm(initial=step, unit="step", mininterval=5) as bar:
        while (elapsed := time.monotonic() - start) < minutes * 60 and step < steps:
            shown = train_step(training, optimizer, elapsed / (minutes * 60), step, seed)
            step += 1
            average = {name: 0.95 * average.get(name, value) + 0.05 * value for name, value in shown.items()}
            bar.set_postfix({"minutes": f"{elapsed / 60:.1f}", **average}, refresh=False)
            bar.update()
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                saved = time.monotonic()
                state = {"modules": training.modules.state_dict(), "optimizer": optimizer.state_dict()}
                unfinished = checkpoint.with_suffix(".part")
                torch.save({**state, "step": step, "elapsed": saved - start}, unfinished)
                unfinished.replace(checkpoint)
    training.modules.eval()
    return step


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    description = "Train a model of the tiny world on a CPU."
    parser = Parser(prog="python -m utils.tiny.train", description=description)
    add = parser.add_argument
    add("model", choices=TRAININGS)
    add("--minutes", type=float, default=40.0, help="training time (default: 40)")
    add("--threads", type=int, default=1, help="CPU threads (default: 1)")
    add("--init", metavar="FILE", help='weights to start from; "none": from scratch (default: shipped)')
    add("--seed", type=int, default=0, help="seed of batches and starting values (default: 0)")
    add("--scenes", type=int, default=4000, help="number of training scenes (default: 4000)")
    add("--cache", type=Path, default=DEFAULT_CACHE, help="folder for scenes and checkpoints")
    add("--out", type=Path, help="where the weights go (default: in the cache)")
    add("--resume", action="store_true", help="go on from the last checkpoint of this model")
    return parser.parse_args(arguments)


def starting_weights(model: str, init: str | None) -> Path | None:
    """The file that --init means; None for training from scratch. FileNotFoundError where there is none."""
    if init == "none":
        return None
    path = SHIPPED[model] if init is None else Path(init)
    if not path.is_file():
        raise FileNotFoundError(f'got --init {path}, which does not exist; expected a file or "none"')
    return path


def main(arguments: list[str] | None = None) -> int:
    """Trains, saves and scores one model, on easy scenes never trained on; returns the exit code."""
    options = parse_arguments(arguments)
    return run_program(lambda: _run(options), "the same command with --resume goes on from the last checkpoint")


def _run(options: argparse.Namespace) -> None:
    model = options.model
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    scenes = training_scenes(options.scenes, options.cache)
    training = TRAININGS[model](scenes, starting_weights(model, options.init))
    checkpoint = options.cache / f"{model}.checkpoint.pt"
    steps = train(training, options.seed, options.minutes, checkpoint, options.resume)
    out = options.out or options.cache / f"tiny_{model}.safetensors"
    training.save(out)
    print(f"{steps} steps, saved {out}")
    segmenter = tiny_segmenter(**{model: out})
    encoded = encode_scenes(segmenter, SCORED_SCENES)
    scores = score_names(segmenter, encoded) if model == "clip" else score_masks(encoded)
    print("  ".join(f"{name} {value:.3f}" for name, value in scores.items()))
