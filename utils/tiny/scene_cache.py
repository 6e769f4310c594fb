"""Training scenes, drawn once and kept as memory-mapped arrays that several runs can share."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from textregion.tiny.captions import thing_index
from textregion.tiny.scenes import Scene, draw_scene

DEFAULT_CACHE = Path(__file__).parent / "cache"
MAX_REGIONS = 9  # three grounds and six objects
EVALUATION_SEED = 900_000  # training scenes have smaller seeds, evaluation scenes these and larger ones
HARD_EVERY = 4  # every fourth training scene is of the standard world, the rest are easy


@dataclass(frozen=True)
class SceneSet:
    """N scenes as arrays.

    Attributes:
        images: (N, S, S, 3) uint8 RGB.
        region_ids: (N, S, S) uint8.
        things: (N, 9) int16, place in THINGS of each region; -1 where a scene has fewer.
        areas: (N, 9) int64, visible pixels of each region.
        boxes: (N, 9, 4) int64, top, left, bottom, right (past the end) of each region; 0 without one.
    """

    images: np.ndarray
    region_ids: np.ndarray
    things: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def _things(scene: Scene) -> np.ndarray:
    indices = [thing_index(region) for region in scene.regions]
    return np.array(indices + [-1] * (MAX_REGIONS - len(indices)), np.int16)


def _box(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])


def _boxes(scene: Scene) -> np.ndarray:
    boxes = np.zeros((MAX_REGIONS, 4), np.int64)
    boxes[: len(scene.regions)] = [_box(mask) for mask in scene.masks]
    return boxes


def _arrays(scene: Scene) -> dict[str, np.ndarray]:
    return {
        "images": scene.image,
        "region_ids": scene.region_ids,
        "things": _things(scene),
        "areas": np.bincount(scene.region_ids.ravel(), minlength=MAX_REGIONS),
        "boxes": _boxes(scene),
    }


def draw_scene_set(count: int) -> SceneSet:
    """Draws the training scenes with seeds 0 to count - 1."""
    if not 0 < count <= EVALUATION_SEED:
        raise ValueError(f"got {count} scenes, expected 1 to {EVALUATION_SEED}")
    seeds = tqdm(range(count), "drawing scenes", leave=False)
    rows = [_arrays(draw_scene(seed, easy=seed % HARD_EVERY != 0)) for seed in seeds]
    return SceneSet(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})


def _save(scenes: SceneSet, folder: Path) -> None:
    """Writes the arrays beside `folder` first, so that a folder under its final name is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
    for name, array in vars(scenes).items():
        np.save(unfinished / f"{name}.npy", array)
    unfinished.replace(folder)


def training_scenes(count: int, cache: Path = DEFAULT_CACHE) -> SceneSet:
    """The first `count` training scenes, read from the cache folder or drawn and kept there."""
    folder = cache / f"scenes-{count}"
    if not folder.exists():
        _save(draw_scene_set(count), folder)
    return SceneSet(**{path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))})
