"""Training the head on `accelerate`: one device or many, any precision, exact continuation (RegionSpot 2).

In order: the plan; the batches, which depend on the seed and the step alone, so training that goes on after an
interruption sees what it would have seen, and any number of processes share the batches of one; the loss and the loop;
checkpoints (all that going on exactly needs, written whole or not at all) and the log.
"""

import json
import math
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int64, UInt8
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import sigmoid_focal_loss
from tqdm import tqdm

from eval.run_folder import differences
from textregion.cli.command_line import positive
from textregion.config import option
from textregion.devices import read
from textregion.errors import InputError, first_line
from textregion.images import load_image
from textregion.regionspot.model import RegionSpot, clip_map, squash, unit
from textregion.storage import flush_folder, write_atomically
from utils.regionspot.data import CachedImage, TokenCache

if TYPE_CHECKING:
    from accelerate import Accelerator

WARM_UP_START = 0.01
DROP = 0.1
DROPS = "where the learning rate falls to a tenth (default at 7/9 and 14/15 of --steps: 350000 420000)"
SHORT_EDGES = (400, 500, 600)  # before the published random crop, in pixels
CROP_SIDES = (384, 600)
LONGEST_EDGE = 1333
CHECKPOINTS = "checkpoints"
SETTINGS = "settings.json"
LOG = "log.jsonl"
WRITE_ERRORS = ("no space", "write", "stream", "disk")  # in what torch says when it cannot write
Texts = Sequence[Float[Tensor, "_ E"]]


@dataclass(frozen=True)
class Plan:
    """How to train; the defaults are published but for padding and augmentation (RegionSpot 2.6).

    The help beside a field is its documentation, and that of its flag of `utils.regionspot.train`.
    """

    steps: int = option(450_000, "how many, at least 1", type=positive, metavar="N")
    batch: int = option(16, "images of all processes together", type=positive, metavar="N")
    learning_rate: float = option(2.5e-5, "AdamW's, after a linear rise", metavar="LR")
    weight_decay: float = option(1e-4, "of all weights", metavar="X")
    warm_up: int = option(1000, "steps of that rise, if not given at most a twentieth of --steps", metavar="N")
    drops: tuple[int, ...] = option((350_000, 420_000), DROPS, type=positive, nargs="*", metavar="STEP")
    clip_norm: float = option(1.0, "largest gradient norm", metavar="X")
    dropout: float = option(0.1, "0 to below 1", metavar="P")
    seed: int = option(40244023, "of weights, batches and dropout", metavar="N")
    precision: str = option("no", "mixed precision of the head", choices=("no", "bf16", "fp16"))
    published_padding: bool = option(False, "repeat boxes up to the largest count, all counting, instead of padding")
    published_augmentation: bool = option(False, "flip and crop CLIP's image; SAM's cached tokens no longer fit it")
    save_every: int = option(1000, "steps between checkpoints", type=positive, metavar="N")
    keep: int = option(2, "checkpoints that stay", type=positive, metavar="N")
    log_every: int = option(20, "steps per line", type=positive, metavar="N")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rise = WARM_UP_START + (1 - WARM_UP_START) * min(1.0, step / self.warm_up) if self.warm_up else 1.0
        return self.learning_rate * rise * DROP ** sum(step >= drop for drop in self.drops)


@dataclass(frozen=True)
class Batch:
    """B images with up to n boxes each, all of one data set.

    dataset: its place in the list of data sets. padding: True where a row is no box; all False as published, where
    boxes are repeated instead. clip_maps: (B, L, D) from the cache, or None and then pixels: (B, 3, S, S) RGB in 0..1.
    """

    dataset: int
    tokens: Float32[Tensor, "B n T"]
    labels: Int64[Tensor, "B n"]
    padding: Bool[Tensor, "B n"]
    clip_maps: Float[Tensor, "B L D"] | None = None
    pixels: Float32[Tensor, "B 3 S S"] | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)


def choose(sizes: Sequence[int], count: int, seed: int, step: int) -> tuple[int, list[int]]:
    """The data set of a step, each as likely as the others whatever its size, and `count` of its images.

    Images repeat from step to step (RegionSpot 2.3), but within a batch only where there are too few.
    """
    rng = np.random.default_rng([seed, step])
    dataset = int(rng.integers(len(sizes)))
    return dataset, rng.choice(sizes[dataset], count, replace=sizes[dataset] < count).tolist()


def repeated(count: int, length: int) -> Int64[Tensor, " n"]:
    """Places of `count` boxes in a row of `length`: each floor(n / k) times, the last n mod k once more.

    The published way to make rows equally long (RegionSpot 2.2): 2 boxes in 5 places are 0 0 1 1 1.
    """
    times = torch.full((count,), length // count)
    times[count - length % count :] += 1
    return torch.arange(count).repeat_interleave(times)


def collate(images: Sequence[CachedImage], dataset: int, repeat_boxes: bool = False) -> Batch:
    """Rows of equal length from images of any number of boxes. repeat_boxes: as published, instead of padding."""
    counts = [len(image.labels) for image in images]
    rows = [repeated(count, max(counts)) if repeat_boxes else torch.arange(count) for count in counts]
    places = pad_sequence(rows, batch_first=True, padding_value=-1)
    tokens = torch.stack([image.tokens[place] for image, place in zip(images, places, strict=True)])
    labels = torch.stack([image.labels[place] for image, place in zip(images, places, strict=True)])
    maps = [image.clip_map for image in images if image.clip_map is not None]
    return Batch(dataset, tokens, labels, places < 0, torch.stack(maps).float() if maps else None)


class StepBatches(Dataset):
    """This process's share of the batch of every step: `self[step]`, in any order, from any worker.

    caches: filled ones, one per data set. process, processes: this one's number and how many there are.
    """

    def __init__(self, caches: Sequence[TokenCache], plan: Plan, process: int = 0, processes: int = 1) -> None:
        self.caches, self.plan, self.process, self.processes = caches, plan, process, processes
        self.images = [cache.usable() for cache in caches]

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, step: int) -> Batch:
        """Every `processes`-th image of the step's batch. InputError when a file of the cache has gone."""
        plan, squares = self.plan, []
        dataset, chosen = choose([len(images) for images in self.images], plan.batch, plan.seed, step)
        cache, own = self.caches[dataset], chosen[self.process :: self.processes]
        images = [self.images[dataset][place] for place in own]
        batch = collate([cache.read(image) for image in images], dataset, plan.published_padding)
        if cache.keep_maps:
            return batch
        for place, image in zip(own, images, strict=True):
            pixels = load_image(cache.dataset.path(image))
            if plan.published_augmentation:
                pixels = flip_or_crop(pixels, np.random.default_rng([plan.seed, step, place]))
            squares.append(squash(pixels, cache.model.side, cache.model.antialias))
        return replace(batch, pixels=torch.stack(squares))


def loader(batches: StepBatches, start: int, workers: int) -> DataLoader:
    """The batches from a step on, made ahead by `workers` processes if there are any."""
    steps = range(start, len(batches))
    own = torch.Generator()  # so that starting the loader leaves the random state of dropout alone
    # Python 3.14 would not fork any more, and pickle the caches, whose many tensors are more than it can pass on.
    fork = "fork" if workers and sys.platform == "linux" else None
    return DataLoader(batches, None, sampler=steps, num_workers=workers, generator=own, multiprocessing_context=fork)


def flip_or_crop(pixels: UInt8[np.ndarray, "H W 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """The published augmentation (RegionSpot 2.5): mirrored half the time, cropped half the time.

    The resizes around the crop only decide how much of the image it shows: the result is squashed anyway.
    """
    if rng.random() < 0.5:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    if rng.random() < 0.5:
        return pixels
    height, width = pixels.shape[:2]
    zoom = min(rng.choice(SHORT_EDGES) / min(height, width), LONGEST_EDGE / max(height, width))
    sides = rng.integers(CROP_SIDES[0], CROP_SIDES[1] + 1, 2) / zoom
    tall, wide = (int(np.clip(round(side), 1, limit)) for side, limit in zip(sides, (height, width), strict=True))
    top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
    return np.ascontiguousarray(pixels[top : top + tall, left : left + wide])


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
        self, accelerator: "Accelerator", model: RegionSpot, texts: Texts, plan: Plan, folder: Path, settings: dict
    ) -> None:
        self.accelerator, self.plan, self.folder, self.settings = accelerator, plan, folder, settings
        self.model = model.to(accelerator.device)
        self.texts = [text.to(accelerator.device, torch.float32).clone() for text in texts]  # not inference tensors
        self.scale = model.scale
        head = model.head.requires_grad_(True)
        optimizer = torch.optim.AdamW(head.parameters(), plan.learning_rate, weight_decay=plan.weight_decay)
        self.head, self.optimizer = accelerator.prepare(head, optimizer)
        self.anyway: list[str] = []  # what differed when the run went on with another identity's checkpoint
        self._unlogged: list[Tensor] = []  # loss, images, right boxes, boxes of each step since the last line

    def train(self, batches: Iterable[Batch], start: int = 0) -> None:
        """Steps start + 1 to the plan's last, with their batches; the head is in eval mode afterwards."""
        plan, hidden = self.plan, None if self.accelerator.is_main_process else True
        self.head.train()
        with tqdm(batches, "training", plan.steps, unit="step", initial=start, disable=hidden) as bar:
            for step, batch in enumerate(bar, start=start + 1):
                norm = self._step(batch.to(self.accelerator.device), step)
                saving = step % plan.save_every == 0 or step == plan.steps
                if saving or step % plan.log_every == 0:
                    line = self._log(step, norm)
                    bar.set_postfix({name: f"{line[name]:.3f}" for name in ("loss", "accuracy")})
                if saving:
                    save_state(self.accelerator, self.folder, step, self.settings, plan.keep, self.anyway)
        self.head.eval()

    def _step(self, batch: Batch, step: int) -> Tensor:
        """One update; returns the gradient's norm before clipping."""
        published = self.plan.published_padding
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(step - 1)
        if (maps := batch.clip_maps) is None:
            backbone = self.model.backbone
            maps = clip_map(backbone.model.visual, backbone.normalise(batch.pixels)).float().clone()
        with self.accelerator.autocast():
            embeddings = self.head(batch.tokens, maps, None if published else batch.padding)
            logits = self.scale * unit(embeddings) @ self.texts[batch.dataset].T
        loss = batch_loss(focal_loss(logits, batch.labels), batch.padding, published)
        self.optimizer.zero_grad()
        # Processes average their gradients; ours is a sum over all images, the published one such an average.
        self.accelerator.backward(loss * (1 if published else self.accelerator.num_processes))
        norm = self.accelerator.clip_grad_norm_(self.head.parameters(), self.plan.clip_norm)
        self.optimizer.step()
        right = ((logits.argmax(-1) == batch.labels) & ~batch.padding).sum()
        counts = loss.new_tensor(len(batch.labels)), right, (~batch.padding).sum()
        self._unlogged.append(torch.stack([loss.detach(), *counts]))
        return norm

    def _log(self, step: int, norm: Tensor) -> dict[str, float]:
        """One line of the log: mean loss per image and share of boxes recognised since the last, over all processes."""
        (unlogged,) = read(torch.stack(self._unlogged))
        sums = unlogged.double().sum(0).float().to(self.accelerator.device)  # on the host: not every device has float64
        self._unlogged.clear()
        loss, images, right, boxes = self.accelerator.reduce(sums, "sum").tolist()
        line = {"step": step, "loss": loss / images, "accuracy": right / boxes}
        line |= {"learning_rate": self.plan.rate(step - 1), "gradient_norm": float(norm)}
        if not math.isfinite(line["loss"]):
            raise InputError(f"the loss is {line['loss']} at step {step}; try a smaller --lr or --precision no")
        if self.accelerator.is_main_process:
            with writing(f"the log {self.folder / LOG}"), (self.folder / LOG).open("a") as file:
                file.write(f"{json.dumps(line)}\n")
        return line


def save_state(
    accelerator: "Accelerator", folder: Path, step: int, settings: dict, keep: int, anyway: Sequence[str] = ()
) -> None:
    """Weights, optimizer, gradient scaler and every process's random state after a step; only the last `keep` stay.

    Written beside its place and renamed, so an interruption leaves the checkpoints before it. anyway: what differed
    when the run went on with another identity's checkpoint.
    """
    place = folder / CHECKPOINTS / f"step_{step:08d}"
    unfinished = place.with_name(f".{place.name}")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
    accelerator.wait_for_everyone()
    with writing(f"the checkpoint {place}"):
        accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with writing(f"the checkpoint {place}"):
            content = {"step": step, "settings": settings, "resumed_anyway": list(anyway)}
            (unfinished / SETTINGS).write_text(json.dumps(content, indent=1))
            flush_folder(unfinished)
            unfinished.rename(place)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


@contextmanager
def writing(what: str) -> Iterator[None]:
    """InputError that says how to go on when the body cannot write, in whose words ever the library tells that."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        told = first_line(error, 160)
        if isinstance(error, RuntimeError) and not any(word in told.lower() for word in WRITE_ERRORS):
            raise
        raise InputError(
            f"cannot write {what} ({told}); free space, then --resume goes on from the last one"
        ) from error


def checkpoints(folder: Path) -> list[Path]:
    """The complete ones of a run, oldest first."""
    return sorted((folder / CHECKPOINTS).glob("step_*"))


def load_state(accelerator: "Accelerator", folder: Path, settings: dict, anyway: bool = False) -> tuple[int, list[str]]:
    """Go back to the last checkpoint: its step, 0 when there is none, and what of its identity is not that of now.

    InputError in one line when it was made with other settings, unless it is taken anyway, or is damaged.
    """
    if not (found := checkpoints(folder)):
        return 0, []
    path, now = found[-1], json.loads(json.dumps(settings))
    try:
        meta = json.loads((path / SETTINGS).read_text())
        changed, step = differences(meta["settings"], now), int(meta["step"])
        if not changed or anyway:
            accelerator.load_state(str(path))
            return step, list(dict.fromkeys([*meta.get("resumed_anyway", []), *changed]))
    except (OSError, ValueError, KeyError, RuntimeError, EOFError) as error:
        told = first_line(error, 160)
        raise InputError(f"{path} is damaged ({told}); delete it to go on from the one before") from error
    more = f"; and {len(changed) - 3} more" * (len(changed) > 3)
    raise InputError(
        f"{path} was made with other settings ({'; '.join(changed[:3])}{more}); give the same, another --output, or "
        "go on all the same with --resume-anyway, which the head will tell"
    )


def read_log(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log, in order of steps; one that was cut short or is damaged is left out."""
    path, read = folder / LOG, []
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
        with suppress(ValueError, RecursionError):
            told = json.loads(line)
            if line.endswith(b"\n") and isinstance(told, dict) and "step" in told:
                read.append(told)
    return read


def cut_log(folder: Path, step: int) -> None:
    """Drop what a run wrote after its last checkpoint: those steps are done again."""
    lines = [f"{json.dumps(line)}\n" for line in read_log(folder) if line["step"] <= step]
    write_atomically(folder / LOG, "".join(lines).encode())


def draw_curve(folder: Path) -> Path:
    """curve.png: loss and accuracy over the steps of the log."""
    from matplotlib.figure import Figure

    lines, path = read_log(folder), folder / "curve.png"
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    for place, name in enumerate(("loss", "accuracy"), start=1):
        axes = figure.add_subplot(1, 2, place, xlabel="step", title=f"{name} (training)")
        axes.plot([line["step"] for line in lines], [line[name] for line in lines], linewidth=1)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return path
