"""Training the head on `accelerate`: one device or many, any precision, exact continuation (RegionSpot 2).

Beside the loop: its loss, its checkpoints (all that going on exactly needs, written whole or not at all) and its log.
"""

import json
import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss
from tqdm import tqdm

from textregion.errors import InputError, first_line
from textregion.regionspot.model import RegionSpot, clip_map, unit
from textregion.storage import write_atomically
from utils.regionspot.batches import Batch, Plan

if TYPE_CHECKING:
    from accelerate import Accelerator

CHECKPOINTS = "checkpoints"
SETTINGS = "settings.json"
LOG = "log.jsonl"


def focal_loss(logits: Float[Tensor, "*rows K"], labels: Int[Tensor, "*rows"]) -> Float32[Tensor, "*rows"]:
    """Sigmoid focal loss of every box, summed over the class names; there is no background class (RegionSpot 2.1).

    logits: scale * cosine with every name's text. labels: 0..K-1.
    """
    target = F.one_hot(labels, logits.shape[-1]).float()
    return sigmoid_focal_loss(logits.float(), target, alpha=0.25, gamma=2).sum(-1)


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
        self._unlogged: list[Tensor] = []  # loss, images, right boxes, boxes of each step since the last line

    def train(self, batches: Iterable[Batch], start: int = 0) -> None:
        """Steps start + 1 to the plan's last, with their batches; the head is in eval mode afterwards."""
        plan = self.plan
        self.head.train()
        hidden = None if self.accelerator.is_main_process else True
        with tqdm(batches, "training", plan.steps, unit="step", initial=start, disable=hidden) as bar:
            for step, batch in enumerate(bar, start=start + 1):
                norm = self._step(batch.to(self.accelerator.device), step)
                saving = step % plan.save_every == 0 or step == plan.steps
                if saving or step % plan.log_every == 0:
                    line = self._log(step, norm)
                    bar.set_postfix({name: f"{line[name]:.3f}" for name in ("loss", "accuracy")})
                if saving:
                    save_state(self.accelerator, self.folder, step, self.settings, plan.keep)
        self.head.eval()

    def _step(self, batch: Batch, step: int) -> Tensor:
        """One update; returns the gradient's norm before clipping."""
        published = self.plan.published_padding
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(step - 1)
        with self.accelerator.autocast():
            embeddings = self.head(batch.tokens, self._maps(batch), None if published else batch.padding)
            logits = self.scale * unit(embeddings) @ self.texts[batch.dataset].T
        loss = batch_loss(focal_loss(logits, batch.labels), batch.padding, published)
        # Processes average their gradients; ours is a sum over all images, the published one such an average.
        share = 1 if published else self.accelerator.num_processes
        self.optimizer.zero_grad()
        self.accelerator.backward(loss * share)
        norm = self.accelerator.clip_grad_norm_(self.head.parameters(), self.plan.clip_norm)
        self.optimizer.step()
        right = ((logits.argmax(-1) == batch.labels) & ~batch.padding).sum()
        counts = loss.new_tensor(len(batch.labels)), right, (~batch.padding).sum()
        self._unlogged.append(torch.stack([loss.detach(), *counts]).double())
        return norm

    def _maps(self, batch: Batch) -> Float[Tensor, "B L D"]:
        """CLIP's maps: those of the cache, or fresh ones."""
        if batch.clip_maps is not None:
            return batch.clip_maps
        backbone = self.model.backbone
        return clip_map(backbone.model.visual, backbone.normalise(batch.pixels)).float().clone()

    def _log(self, step: int, norm: Tensor) -> dict[str, float]:
        """One line of the log: mean loss per image and share of boxes recognised since the last, over all processes."""
        sums = self.accelerator.reduce(torch.stack(self._unlogged).sum(0).float(), "sum")
        self._unlogged.clear()
        loss, images, right, boxes = sums.tolist()
        line = {"step": step, "loss": loss / images, "accuracy": right / boxes}
        line |= {"learning_rate": self.plan.rate(step - 1), "gradient_norm": float(norm)}
        if not math.isfinite(line["loss"]):
            raise InputError(f"the loss is {line['loss']} at step {step}; try a smaller --lr or --precision no")
        if self.accelerator.is_main_process:
            with (self.folder / LOG).open("a") as file:
                file.write(f"{json.dumps(line)}\n")
        return line


def save_state(accelerator: "Accelerator", folder: Path, step: int, settings: dict, keep: int) -> None:
    """Weights, optimizer, gradient scaler and every process's random state after a step; only the last `keep` stay.

    Written beside its place and renamed, so an interruption leaves the checkpoints before it.
    """
    place = folder / CHECKPOINTS / f"step_{step:08d}"
    unfinished = place.with_name(f".{place.name}")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(unfinished))
    except OSError as error:
        raise InputError(f"cannot write the checkpoint {place} ({error}); free space, then --resume") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (unfinished / SETTINGS).write_text(json.dumps({"step": step, "settings": settings}, indent=1))
        unfinished.rename(place)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted((folder / CHECKPOINTS).glob("step_*"))


def load_state(accelerator: "Accelerator", folder: Path, settings: dict) -> int:
    """Go back to the last checkpoint; returns its step, 0 when there is none.

    InputError in one line when it was made with other settings, or is damaged.
    """
    if not (found := checkpoints(folder)):
        return 0
    path, now = found[-1], json.loads(json.dumps(settings))
    try:
        meta = json.loads((path / SETTINGS).read_text())
        before, step = meta["settings"], int(meta["step"])
        changed = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
        if not changed:
            accelerator.load_state(str(path))
            return step
    except (OSError, ValueError, KeyError, RuntimeError, EOFError) as error:
        raise InputError(
            f"{path} is damaged ({first_line(error, 160)}); delete it to go on from the one before"
        ) from error
    name = changed[0]
    raise InputError(
        f"{path} was made with {name} {before.get(name)!r}, got {now.get(name)!r}; give the same, or another --output"
    )


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
