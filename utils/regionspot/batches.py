"""Batches for training: which images, and how boxes of unequal numbers fit into one tensor.

A batch depends on the seed and the step alone, so training that goes on after an interruption sees what it would have
seen, and any number of processes share the batches of one.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from textregion.images import load_image
from textregion.regionspot.model import squash
from utils.regionspot.data import BoxImage, CachedImage, TokenCache

WARM_UP_START = 0.01
DROP = 0.1
SHORT_EDGES = (400, 500, 600)  # before the published random crop, in pixels
CROP_SIDES = (384, 600)
LONGEST_EDGE = 1333


@dataclass(frozen=True)
class Plan:
    """How to train; the defaults are published but for padding and augmentation (RegionSpot 2.6).

    steps: at least 1. batch: images of all processes together. learning_rate: AdamW's, after a linear rise over
    `warm_up` steps; a tenth of it from each step in `drops` on. weight_decay: on everything. clip_norm: largest
    gradient norm. dropout: 0 to below 1. seed: of weights, batches and dropout. precision: no, bf16 or fp16.
    published_padding: repeat boxes instead of padding, and reduce the loss accordingly (see `batch_loss`).
    published_augmentation: flip and crop CLIP's image, which leaves the cached tokens behind (RegionSpot 4, D1).
    save_every, keep: steps between checkpoints, and how many stay. log_every: steps per line.
    """

    steps: int = 450_000
    batch: int = 16
    learning_rate: float = 2.5e-5
    weight_decay: float = 1e-4
    warm_up: int = 1000
    drops: tuple[int, ...] = (350_000, 420_000)
    clip_norm: float = 1.0
    dropout: float = 0.1
    seed: int = 40244023
    precision: str = "no"
    published_padding: bool = False
    published_augmentation: bool = False
    save_every: int = 1000
    keep: int = 2
    log_every: int = 20

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
    maps = [image.clip_map for image in images if image.clip_map is not None]
    return Batch(
        dataset,
        torch.stack([image.tokens[place] for image, place in zip(images, places, strict=True)]),
        torch.stack([image.labels[place] for image, place in zip(images, places, strict=True)]),
        places < 0,
        torch.stack(maps).float() if maps else None,
    )


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
        sizes = [len(images) for images in self.images]
        dataset, chosen = choose(sizes, self.plan.batch, self.plan.seed, step)
        own, cache = chosen[self.process :: self.processes], self.caches[dataset]
        images = [self.images[dataset][place] for place in own]
        batch = collate([cache.read(image) for image in images], dataset, self.plan.published_padding)
        if cache.keep_maps:
            return batch
        pixels = [self._pixels(cache, image, step, place) for image, place in zip(images, own, strict=True)]
        return replace(batch, pixels=torch.stack(pixels))

    def _pixels(self, cache: TokenCache, image: BoxImage, step: int, place: int) -> Float32[Tensor, "3 S S"]:
        pixels = load_image(cache.dataset.path(image))
        if self.plan.published_augmentation:
            pixels = flip_or_crop(pixels, np.random.default_rng([self.plan.seed, step, place]))
        return squash(pixels, cache.model.side, cache.model.antialias)


def loader(batches: StepBatches, start: int, workers: int) -> DataLoader:
    """The batches from a step on, made ahead by other processes if there are any."""
    steps = range(start, len(batches))
    own = torch.Generator()  # so that starting the loader leaves the random state of dropout alone
    # Python 3.14 would not fork any more, and pickle the caches, whose many tensors are more than it can pass on.
    context = "fork" if workers and sys.platform == "linux" else None
    return DataLoader(
        batches, batch_size=None, sampler=steps, num_workers=workers, generator=own, multiprocessing_context=context
    )


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
