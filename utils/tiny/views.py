"""Views for CLIP training: random windows of the training scenes and captions that are true of them."""

from dataclasses import dataclass

import cv2
import numpy as np

from textregion.tiny.captions import THINGS, Mention, caption, mention_ground, mention_object
from utils.tiny.scene_cache import MAX_REGIONS, SceneSet

OBJECT_WINDOWS, RANDOM_WINDOWS = 0.7, 0.2  # shares of window kinds; the rest shows whole scenes
IS_OBJECT = np.array([thing.kind == "object" for thing in THINGS] + [False])  # the last entry answers for -1


@dataclass(frozen=True)
class View:
    """A square window of a scene, at the size the vision tower takes.

    Attributes:
        image: (S, S, 3) uint8.
        region_ids: (S, S) uint8.
        things: (9,) int64, -1 where there is no region.
        shares: (9,) float64, of the window's area that each region covers.
        visible: (9,) float64, share of each region's area in the scene that is inside the window.
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


def _object_window(box: np.ndarray, size: int, rng: np.random.Generator) -> tuple[float, float, int]:
    """A window around a box (4,), with some room and not quite centred: centre y, centre x, width."""
    top, left, bottom, right = box
    extent = max(bottom - top, right - left)
    width = int(np.clip(extent * rng.uniform(1.05, 2.6), size * 5 // 32, size))
    shift_y, shift_x = rng.uniform(-0.2, 0.2, 2) * (width - extent)
    return (top + bottom) / 2 + shift_y, (left + right) / 2 + shift_x, width


def _window(boxes: np.ndarray, size: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a random window; `boxes` (K, 4) are those of the scene's objects."""
    kind = rng.random()
    if kind < OBJECT_WINDOWS and len(boxes):
        centre_y, centre_x, width = _object_window(boxes[rng.integers(len(boxes))], size, rng)
    elif kind < OBJECT_WINDOWS + RANDOM_WINDOWS:
        width = int(rng.uniform(0.25, 0.78) * size)
        centre_y, centre_x = rng.uniform(0, size, 2)
    else:
        centre_y, centre_x, width = size / 2, size / 2, size
    top, left = (int(np.clip(centre - width / 2, 0, size - width)) for centre in (centre_y, centre_x))
    return slice(top, top + width), slice(left, left + width)


def random_view(scenes: SceneSet, size: int, rng: np.random.Generator) -> View:
    """Cuts a random window out of a random scene and brings it to `size` pixels, sometimes mirrored."""
    index = rng.integers(len(scenes))
    things = scenes.things[index].astype(np.int64)
    rows, columns = _window(scenes.boxes[index][IS_OBJECT[things]], scenes.images.shape[1], rng)
    image, region_ids = scenes.images[index, rows, columns], scenes.region_ids[index, rows, columns]
    pixels = np.bincount(region_ids.ravel(), minlength=MAX_REGIONS)
    method = cv2.INTER_AREA if len(image) > size else cv2.INTER_LINEAR
    image = cv2.resize(image, (size, size), interpolation=method)
    ids = cv2.resize(region_ids, (size, size), interpolation=cv2.INTER_NEAREST)
    step = -1 if rng.random() < 0.5 else 1
    visible = pixels / np.maximum(scenes.areas[index], 1)
    return View(image[:, ::step], ids[:, ::step], things, pixels / region_ids.size, visible)


def _said_objects(view: View, rng: np.random.Generator) -> list[Mention]:
    """Mentions one to three objects that are nearly complete in the view, large ones more often."""
    present = view.objects(0.6, 0.012)
    if not len(present):
        return []
    weights = np.sqrt(view.shares[present])
    count = min(len(present), int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15])))
    chosen = rng.choice(present, count, replace=False, p=weights / weights.sum())
    return [mention_object(thing, rng) for thing in view.things[chosen].tolist()]


def _said_grounds(view: View, with_objects: bool, rng: np.random.Generator) -> list[Mention]:
    """The largest ground behind mentioned objects, half the time; without objects one or two grounds."""
    present = view.grounds(0.06)
    if with_objects:
        chosen = present[np.argsort(-view.shares[present])][: rng.integers(2)]
    else:
        chosen = rng.permutation(present)[: rng.integers(1, 3)]
    return [mention_ground(thing, rng) for thing in view.things[chosen].tolist()]


def describe(view: View, rng: np.random.Generator) -> tuple[str, list[Mention]]:
    """A caption that is true of the view and the mentions in it; no mentions when nothing can be said."""
    objects = _said_objects(view, rng)
    grounds = _said_grounds(view, bool(objects), rng)
    return caption(objects, grounds, rng), objects + grounds
