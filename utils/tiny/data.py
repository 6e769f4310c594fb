"""What both trainings draw from: scenes kept on disk, random crops of them, and captions true of these crops."""

import tempfile
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

from textregion.tiny.scenes import draw_scene
from utils.tiny.captions import IS_OBJECT, THING_INDEX, THINGS, Mention, caption, mention_ground, mention_object

DEFAULT_CACHE = Path(__file__).parent / "cache"
MAX_REGIONS = 9  # three grounds and six objects
EVALUATION_SEED = 900_000  # training scenes have smaller seeds, evaluation scenes these and larger ones
HARD_EVERY = 4  # every fourth training scene is of the standard world, the rest are easy
OBJECT_CROPS, RANDOM_CROPS = 0.7, 0.2  # shares of the kinds of crops; the rest shows whole scenes


@dataclass(frozen=True)
class SceneSet:
    """N scenes as arrays.

    images: (N, S, S, 3) uint8 RGB. region_ids: (N, S, S) uint8.
    things: (N, 9) int16, place in THINGS of each region; -1 where a scene has fewer.
    """

    images: np.ndarray
    region_ids: np.ndarray
    things: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def draw_scene_set(count: int) -> SceneSet:
    """Draws the training scenes with seeds 0 to count - 1; ValueError for more than there are."""
    if not 0 < count <= EVALUATION_SEED:
        raise ValueError(f"got {count} scenes, expected 1 to {EVALUATION_SEED}")
    seeds = tqdm(range(count), "drawing scenes", leave=False)
    scenes = [draw_scene(seed, easy=seed % HARD_EVERY != 0) for seed in seeds]
    things = np.full((count, MAX_REGIONS), -1, np.int16)
    for row, scene in zip(things, scenes, strict=True):
        row[: len(scene.regions)] = [THING_INDEX[region] for region in scene.regions]
    return SceneSet(np.stack([s.image for s in scenes]), np.stack([s.region_ids for s in scenes]), things)


def training_scenes(count: int, cache: Path = DEFAULT_CACHE) -> SceneSet:
    """The first `count` training scenes, drawn once and kept in the cache folder as memory-mapped arrays.

    They are written beside their folder first, so that a folder under its final name is complete.
    """
    folder, names = cache / f"scenes-{count}", [field.name for field in fields(SceneSet)]
    if not folder.exists():
        scenes = draw_scene_set(count)
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=cache))
        for name in names:
            np.save(unfinished / f"{name}.npy", getattr(scenes, name))
        unfinished.replace(folder)
    return SceneSet(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in names))


def region_shares(region_ids: Tensor, patch: int) -> Tensor:
    """How much of each patch belongs to each region: (B, S, S) int64 ids to (B, 9, P) float32."""
    one_hot = F.one_hot(region_ids, MAX_REGIONS).permute(0, 3, 1, 2).float()
    return F.avg_pool2d(one_hot, patch).flatten(2)


@dataclass(frozen=True)
class SceneCrop:
    """A square crop of a scene, at the size the vision tower takes.

    image: (S, S, 3) uint8. region_ids: (S, S) uint8. things: (9,) int64, -1 where there is no region.
    shares: (9,) float64, of the crop's area that each region covers.
    visible: (9,) float64, share of each region's area in the scene that is inside the crop.
    """

    image: np.ndarray
    region_ids: np.ndarray
    things: np.ndarray
    shares: np.ndarray
    visible: np.ndarray

    def objects(self, visible: float, share: float) -> np.ndarray:
        """Indices of objects that show more than these."""
        return np.flatnonzero(IS_OBJECT[self.things] & (self.visible > visible) & (self.shares > share))

    def grounds(self, share: float) -> np.ndarray:
        """Indices of grounds that cover more than this."""
        return np.flatnonzero(~IS_OBJECT[self.things] & (self.things >= 0) & (self.shares > share))

    def facts(self) -> np.ndarray:
        """Which THINGS can be seen, even in part: (len(THINGS),) bool."""
        facts = np.zeros(len(THINGS), bool)
        facts[self.things[[*self.objects(0.2, 0.004), *self.grounds(0.02)]]] = True
        return facts


def _around(box: tuple[slice, slice], size: int, rng: np.random.Generator) -> tuple[float, float, int]:
    """A square around rows and columns, with some room and not quite centred: centre y, centre x, width."""
    rows, columns = box
    extent = max(rows.stop - rows.start, columns.stop - columns.start)
    width = int(np.clip(extent * rng.uniform(1.05, 2.6), size * 5 // 32, size))
    shift_y, shift_x = rng.uniform(-0.2, 0.2, 2) * (width - extent)
    return (rows.start + rows.stop) / 2 + shift_y, (columns.start + columns.stop) / 2 + shift_x, width


def _random_square(objects: list[tuple[slice, slice]], size: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a random crop; `objects` are those of the scene's objects."""
    kind = rng.random()
    if kind < OBJECT_CROPS and objects:
        centre_y, centre_x, width = _around(objects[rng.integers(len(objects))], size, rng)
    elif kind < OBJECT_CROPS + RANDOM_CROPS:
        width = int(rng.uniform(0.25, 0.78) * size)
        centre_y, centre_x = rng.uniform(0, size, 2)
    else:
        centre_y, centre_x, width = size / 2, size / 2, size
    top, left = (int(np.clip(centre - width / 2, 0, size - width)) for centre in (centre_y, centre_x))
    return slice(top, top + width), slice(left, left + width)


def random_crop(scenes: SceneSet, size: int, rng: np.random.Generator) -> SceneCrop:
    """Cuts a random square out of a random scene and brings it to `size` pixels, sometimes mirrored."""
    index = rng.integers(len(scenes))
    things, scene_ids = scenes.things[index].astype(np.int64), scenes.region_ids[index]
    boxes = ndimage.find_objects(scene_ids.astype(np.int32) + 1)
    objects = [box for box, thing in zip(boxes, things, strict=False) if IS_OBJECT[thing]]
    crop = _random_square(objects, len(scene_ids), rng)
    image, ids = scenes.images[index][crop], scene_ids[crop]
    pixels, areas = (np.bincount(pixel_ids.ravel(), minlength=MAX_REGIONS) for pixel_ids in (ids, scene_ids))
    shares, visible = pixels / ids.size, pixels / np.maximum(areas, 1)
    method = cv2.INTER_AREA if len(image) > size else cv2.INTER_LINEAR
    image = cv2.resize(image, (size, size), interpolation=method)
    ids = cv2.resize(ids, (size, size), interpolation=cv2.INTER_NEAREST)
    step = -1 if rng.random() < 0.5 else 1
    return SceneCrop(image[:, ::step], ids[:, ::step], things, shares, visible)


def _said_objects(crop: SceneCrop, rng: np.random.Generator) -> list[Mention]:
    """Mentions one to three objects that are nearly complete in the crop, large ones more often."""
    present = crop.objects(0.6, 0.012)
    if not len(present):
        return []
    weights = np.sqrt(crop.shares[present])
    count = min(len(present), int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15])))
    chosen = rng.choice(present, count, replace=False, p=weights / weights.sum())
    return [mention_object(thing, rng) for thing in crop.things[chosen].tolist()]


def _said_grounds(crop: SceneCrop, with_objects: bool, rng: np.random.Generator) -> list[Mention]:
    """The largest ground behind mentioned objects, half the time; without objects one or two grounds."""
    present = crop.grounds(0.06)
    if with_objects:
        chosen = present[np.argsort(-crop.shares[present])][: rng.integers(2)]
    else:
        chosen = rng.permutation(present)[: rng.integers(1, 3)]
    return [mention_ground(thing, rng) for thing in crop.things[chosen].tolist()]


def describe(crop: SceneCrop, rng: np.random.Generator) -> tuple[str, list[Mention]]:
    """A caption that is true of the crop and the mentions in it; no mentions when nothing can be said."""
    objects = _said_objects(crop, rng)
    grounds = _said_grounds(crop, bool(objects), rng)
    return caption(objects, grounds, rng), objects + grounds
