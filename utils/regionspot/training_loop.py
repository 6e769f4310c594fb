"""Training the head on `accelerate`: one device or many, any precision, exact continuation (RegionSpot 2)."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor
from tqdm import tqdm

from textregion.errors import InputError
from textregion.regionspot.model import RegionSpot, clip_map, unit
from textregion.storage import write_atomically
from utils.regionspot.batches import Batch
from utils.regionspot.loss import focal_loss
from utils.regionspot.training_state import save_state

if TYPE_CHECKING:
    from accelerate import Accelerator

WARM_UP_START = 0.01
DROP = 0.1


@dataclass(frozen=True)
class Plan:
    """How to train; the defaults are published (RegionSpot 2.6).

    steps: at least 1. learning_rate: AdamW's, after a linear rise over `warm_up` steps; a tenth of it from each step in
    `drops` on. weight_decay: on everything. clip_norm: largest gradient norm. repeat_boxes: pad and reduce as published
    (see `batch_loss`). save_every, keep: steps between checkpoints, and how many stay. log_every: steps per line.
    """

    steps: int = 450_000
    learning_rate: float = 2.5e-5
    weight_decay: float = 1e-4
    warm_up: int = 1000
    drops: tuple[int, ...] = (350_000, 420_000)
    clip_norm: float = 1.0
    repeat_boxes: bool = False
    save_every: int = 1000
    keep: int = 2
    log_every: int = 20

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rise = WARM_UP_START + (1 - WARM_UP_START) * min(1.0, step / self.warm_up) if self.warm_up else 1.0
        return self.learning_rate * rise * DROP ** sum(step >= drop for drop in self.drops)


def batch_loss(
    per_box: Float32[Tensor, "B n"], padding: Bool[Tensor, "B n"], repeat_boxes: bool = False
) -> Float32[Tensor, ""]:
    """One number from the losses of all boxes: the sum over images of the mean over an image's own boxes.

    So an image counts the same whatever the batch it is in. repeat_boxes: as published (RegionSpot 2.1), the sum
    of all rows, repeated boxes included, divided by their common number n; equal to the former where every box of an
    image is repeated equally often. Neither divides by the number of images.
    """
    if repeat_boxes:
        return per_box.sum() / per_box.shape[1]
    own = per_box.masked_fill(padding, 0).sum(1)
    return (own / (~padding).sum(1)).sum()


@dataclass
class Sums:
    """Running sums since the last line of the log: loss, images, right boxes, boxes."""

    values: list[Tensor] = field(default_factory=list)

    def add(self, loss: Tensor, images: int, right: Tensor, boxes: Tensor) -> None:
        """Add one step's, without waiting for the device."""
        self.values.append(torch.stack([loss.detach(), loss.new_tensor(images), right, boxes]).double())

    def take(self, accelerator: "Accelerator") -> dict[str, float]:
        """Mean loss per image and share of boxes recognised, over all processes; starts anew."""
        loss, images, right, boxes = accelerator.reduce(torch.stack(self.values).sum(0).float(), "sum").tolist()
        self.values.clear()
        return {"loss": loss / images, "accuracy": right / boxes}


class Trainer:
    """Head, optimizer and loop.

    model: its head is trained; CLIP and SAM stay as they are. texts: per data set the (K, E) unit vectors of its names.
    folder: for the log and the checkpoints. settings: what a later run must have equal to go on with this one.
    """

    def __init__(
        self,
        accelerator: "Accelerator",
        model: RegionSpot,
        texts: Sequence[Float[Tensor, "_ E"]],
        plan: Plan,
        folder: Path,
        settings: dict,
    ) -> None:
        self.accelerator, self.plan, self.folder, self.settings = accelerator, plan, folder, settings
        self.model = model.to(accelerator.device)
        self.texts = [text.to(accelerator.device, torch.float32).clone() for text in texts]  # not inference tensors
        self.scale = model.scale
        head = model.head.requires_grad_(True)
        optimizer = torch.optim.AdamW(head.parameters(), plan.learning_rate, weight_decay=plan.weight_decay)
        self.head, self.optimizer = accelerator.prepare(head, optimizer)

    def train(self, batches: Iterable[Batch], start: int = 0) -> None:
        """Steps start + 1 to the plan's last, with their batches; the head is in eval mode afterwards."""
        plan, sums, shown = self.plan, Sums(), {}
        self.head.train()
        hidden = None if self.accelerator.is_main_process else True
        with tqdm(batches, "training", plan.steps, unit="step", initial=start, disable=hidden) as bar:
            for step, batch in enumerate(bar, start=start + 1):
                norm = self._step(batch.to(self.accelerator.device), step, sums)
                saving = step % plan.save_every == 0 or step == plan.steps
                if saving or step % plan.log_every == 0:
                    shown = self._log(step, sums, norm)
                    bar.set_postfix({"loss": f"{shown['loss']:.3f}", "accuracy": f"{shown['accuracy']:.3f}"})
                if saving:
                    save_state(self.accelerator, self.folder, step, self.settings, plan.keep)
        self.head.eval()

    def _step(self, batch: Batch, step: int, sums: Sums) -> Tensor:
        """One update; returns the gradient's norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(step - 1)
        with self.accelerator.autocast():
            padding = None if self.plan.repeat_boxes else batch.padding
            embeddings = self.head(batch.tokens, self._maps(batch), padding)
            logits = self.scale * unit(embeddings) @ self.texts[batch.dataset].T
        per_box = focal_loss(logits, batch.labels)
        loss = batch_loss(per_box, batch.padding, self.plan.repeat_boxes)
        # Processes average their gradients; ours is a sum over all images, the published one such an average.
        share = 1 if self.plan.repeat_boxes else self.accelerator.num_processes
        self.optimizer.zero_grad()
        self.accelerator.backward(loss * share)
        norm = self.accelerator.clip_grad_norm_(self.head.parameters(), self.plan.clip_norm)
        self.optimizer.step()
        right = ((logits.argmax(-1) == batch.labels) & ~batch.padding).sum()
        sums.add(loss, len(batch.labels), right, (~batch.padding).sum())
        return norm

    def _maps(self, batch: Batch) -> Float[Tensor, "B L D"]:
        """CLIP's maps: those of the cache, or fresh ones."""
        if batch.clip_maps is not None:
            return batch.clip_maps
        backbone = self.model.backbone
        return clip_map(backbone.model.visual, backbone.normalise(batch.pixels)).float().clone()

    def _log(self, step: int, sums: Sums, norm: Tensor) -> dict[str, float]:
        line = {"step": step, **sums.take(self.accelerator), "learning_rate": self.plan.rate(step - 1)}
        line["gradient_norm"] = float(norm)
        if not math.isfinite(line["loss"]):
            raise InputError(f"the loss is {line['loss']} at step {step}; try a smaller --lr or --precision no")
        if self.accelerator.is_main_process:
            with (self.folder / LOG).open("a") as file:
                file.write(f"{json.dumps(line)}\n")
        return line


LOG = "log.jsonl"


def read_log(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log, in order of steps; a last line that was cut short is left out."""
    path = folder / LOG
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def cut_log(folder: Path, step: int) -> None:
    """Drop what a run wrote after its last checkpoint: those steps are done again."""
    lines = [f"{json.dumps(line)}\n" for line in read_log(folder) if line["step"] <= step]
    write_atomically(folder / LOG, "".join(lines).encode())


def draw_curve(folder: Path) -> Path:
    """curve.png: loss and accuracy over the steps of the log."""
    from matplotlib.figure import Figure

    lines = read_log(folder)
    steps = [line["step"] for line in lines]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    for place, name in enumerate(("loss", "accuracy"), start=1):
        axes = figure.add_subplot(1, 2, place, xlabel="step", title=f"{name} (training)")
        axes.plot(steps, [line[name] for line in lines], linewidth=1)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    path = folder / "curve.png"
    figure.savefig(path, dpi=120)
    return path
