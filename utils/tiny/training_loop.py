"""The loop both trainings share: learning-rate schedule over wall-clock time, progress bar, checkpoints."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

FINAL_RATE = 0.02  # of the peak learning rate
CHECKPOINT_SECONDS = 60


@runtime_checkable
class Training(Protocol):
    """What a training brings along.

    Attributes:
        modules: everything with weights, training-only heads included.
        groups: optimizer parameter groups; "scale" multiplies the group's learning rate.
        warm_up: steps in which the learning rate rises.
        clip_norm: largest allowed gradient norm.
    """

    modules: nn.Module
    groups: list[dict]
    learning_rate: float
    warm_up: int
    clip_norm: float

    def loss(self, progress: float, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of one fresh batch and numbers to show; progress runs from 0 to 1."""

    def after_step(self) -> None:
        """Called after every optimizer step."""

    def save(self, path: Path) -> None:
        """Writes the model's weights as safetensors, without training-only heads."""


@dataclass(frozen=True)
class Limits:
    """When to stop, and where checkpoints go (None writes none)."""

    minutes: float
    steps: int | None = None
    checkpoint: Path | None = None
    resume: bool = False


def rate(progress: float, step: int, warm_up: int) -> float:
    """Share of the peak learning rate: a rise over `warm_up` steps, then half a cosine over the run."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return min(1.0, (step + 1) / warm_up) * max(FINAL_RATE, cosine)


def make_optimizer(training: Training) -> torch.optim.AdamW:
    """AdamW over the training's groups; a group's "scale" stays with it."""
    groups = [{"scale": 1.0, **group} for group in training.groups]
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.98))


def train_step(
    training: Training, optimizer: torch.optim.Optimizer, progress: float, step: int, seed: int
) -> dict[str, float]:
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


def save_checkpoint(
    path: Path, training: Training, optimizer: torch.optim.Optimizer, step: int, elapsed: float
) -> None:
    """Writes all that a resumed run needs, never leaving half a file under the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"modules": training.modules.state_dict(), "optimizer": optimizer.state_dict()}
    unfinished = path.with_suffix(".part")
    torch.save({**state, "step": step, "elapsed": elapsed}, unfinished)
    unfinished.replace(path)


def load_checkpoint(path: Path, training: Training, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Restores weights and optimizer; gives the step and the seconds already spent."""
    state = torch.load(path, weights_only=True)
    training.modules.load_state_dict(state["modules"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["elapsed"]


def _finished(limits: Limits, step: int, elapsed: float) -> bool:
    return elapsed >= limits.minutes * 60 or (limits.steps is not None and step >= limits.steps)


def train(training: Training, limits: Limits, seed: int) -> int:
    """Trains until the time (or the number of steps) is used up; returns the number of steps."""
    optimizer = make_optimizer(training)
    step, spent = 0, 0.0
    if limits.resume and limits.checkpoint is not None:
        step, spent = load_checkpoint(limits.checkpoint, training, optimizer)
    start = saved = time.monotonic() - spent
    bar = tqdm(initial=step, unit="step", mininterval=5)
    average: dict[str, float] = {}
    training.modules.train()
    while not _finished(limits, step, elapsed := time.monotonic() - start):
        shown = train_step(training, optimizer, elapsed / (limits.minutes * 60), step, seed)
        step += 1
        average = {name: 0.95 * average.get(name, value) + 0.05 * value for name, value in shown.items()}
        bar.set_postfix({"minutes": f"{elapsed / 60:.1f}", **average}, refresh=False)
        bar.update()
        if limits.checkpoint is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
            saved = time.monotonic()
            save_checkpoint(limits.checkpoint, training, optimizer, step, saved - start)
    bar.close()
    training.modules.eval()
    return step
