"""Scenes of the tiny world: coloured shapes on grounds, drawn from a seed, with exact masks and names.

scene = draw_scene(seed=7)
scene.image                                   # (256, 256, 3) uint8 RGB
scene.masks, [r.name for r in scene.regions]  # (R, 256, 256) bool, ["grass", "sky", "red star"]
"""

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from textregion.tiny import painting
from textregion.tiny.painting import COLOURS, GROUNDS, REFERENCE_SIZE, SHAPES, TEXTURES

CLASS_NAMES = (*(f"{colour} shape" for colour in COLOURS), *GROUNDS)

MIN_SIZE = 64
MAX_OBJECTS = 6
SEED_FAMILY = 20240  # separates these scenes from other uses of the same seed
MIN_VISIBLE_SHARE = 0.55  # an object keeps at least this share of its first visible area when others cover it
MIN_AREA = 150  # pixels, on a canvas of the reference size
ROOMY_ATTEMPTS = 40  # after so many tries the largest allowed object shrinks with every further try


@dataclass(frozen=True)
class SceneRegion:
    """One thing in a scene: an object with a shape, colour and texture, or a ground with only a name."""

    name: str  # "red star" or "grass"
    kind: Literal["object", "ground"]
    shape: str | None = None
    colour: str | None = None
    texture: str | None = None

    @property
    def class_name(self) -> str:
        """The entry of CLASS_NAMES it belongs to: "red shape" or "grass"."""
        return f"{self.colour} shape" if self.kind == "object" else self.name


@dataclass(frozen=True, eq=False)
class Scene:
    """A drawn picture and everything that is true of it; ValueError for arrays that do not fit each other."""

    image: np.ndarray  # (S, S, 3) uint8 RGB
    region_ids: np.ndarray  # (S, S) uint8, index into `regions`; what is visible at each pixel
    regions: tuple[SceneRegion, ...]  # grounds, then objects from back to front; each with at least one visible pixel

    def __post_init__(self) -> None:
        if self.image.shape != (*self.region_ids.shape, 3):
            raise ValueError(f"got image {self.image.shape}, expected {(*self.region_ids.shape, 3)}")
        visible = np.unique(self.region_ids).tolist()
        if visible != list(range(len(self.regions))):
            raise ValueError(f"got visible ids {visible}, expected 0 to {len(self.regions) - 1}, each one")

    @property
    def masks(self) -> np.ndarray:
        """Exact visible masks: (R, S, S) bool; they divide the picture without gap or overlap."""
        return self.region_ids == np.arange(len(self.regions))[:, None, None]

    @property
    def labels(self) -> list[str]:
        """The different region names, in order of first appearance in `regions`."""
        return list(dict.fromkeys(region.name for region in self.regions))

    @property
    def label_map(self) -> np.ndarray:
        """Index into `labels` of what is visible at each pixel: (S, S) int64."""
        labels = self.labels
        return np.array([labels.index(region.name) for region in self.regions])[self.region_ids]

    @property
    def class_map(self) -> np.ndarray:
        """Index into CLASS_NAMES of what is visible at each pixel: (S, S) int64."""
        return np.array([CLASS_NAMES.index(region.class_name) for region in self.regions])[self.region_ids]


@dataclass
class _Canvas:
    """A picture in the making; region ids count up in the order of painting."""

    image: np.ndarray  # (S, S, 3) float32
    region_ids: np.ndarray  # (S, S) uint8
    regions: list[SceneRegion]
    first_areas: dict[int, int]  # visible pixels of each object when it was painted


def _paint_grounds(size: int, rng: np.random.Generator) -> _Canvas:
    """One to three grounds side by side with wavy, slanted borders."""
    names = rng.choice(GROUNDS, rng.choice([1, 2, 3], p=[0.4, 0.47, 0.13]), replace=False).tolist()
    canvas = _Canvas(painting.paint_ground(names[0], size, rng), np.zeros((size, size), np.uint8), [], {})
    y, x = painting.coordinates(size)
    across, along = (y, x) if rng.random() < 0.65 else (x, y)
    unit = size / REFERENCE_SIZE
    low, high = ([0.22, 0.6], [0.4, 0.78]) if len(names) == 3 else (0.25, 0.75)
    cuts = rng.uniform(low, high, len(names) - 1)  # where grounds meet, as fractions of the canvas, rising
    for index, (name, cut) in enumerate(zip(names[1:], cuts, strict=True), start=1):
        phase = along / (rng.uniform(15, 50) * unit) + rng.uniform(0, 6)
        border = cut * size + rng.uniform(0, 12) * unit * np.sin(phase)
        beyond = across > border + rng.uniform(-0.2, 0.2) * (along - size / 2)
        canvas.image[beyond] = painting.paint_ground(name, size, rng)[beyond]
        canvas.region_ids[beyond] = index
    canvas.regions.extend(SceneRegion(name, "ground") for name in names)
    return canvas


def _try_object(canvas: _Canvas, colour: str, easy: bool, shrink: float, rng: np.random.Generator) -> bool:
    """Paints one random object unless it would be too small or hide another; says whether it did."""
    size, index = len(canvas.image), len(canvas.regions)
    smallest = 0.12 if easy else 0.075
    radius = size * math.exp(rng.uniform(math.log(smallest), math.log(max(smallest, 0.27 * shrink))))
    centre = tuple(rng.uniform(0.08, 0.92, 2) * size)
    shape, texture = rng.choice(SHAPES), rng.choice(TEXTURES, p=[0.4, 0.2, 0.2, 0.2])
    upright = rng.random() >= 0.6 or easy
    angle = rng.uniform(-0.3, 0.3) if upright else rng.uniform(-math.pi, math.pi)
    alpha = painting.shape_alpha(shape, centre, radius, angle, size, aspect=rng.uniform(0.9, 1.1))
    mask = alpha > 127
    left = np.bincount(canvas.region_ids[~mask], minlength=index)
    too_small = mask.sum() < max(MIN_AREA * (size / REFERENCE_SIZE) ** 2, math.pi * radius**2 / 4)
    if too_small or any(left[covered] < MIN_VISIBLE_SHARE * area for covered, area in canvas.first_areas.items()):
        return False
    if rng.random() < 0.4:  # casts a shadow
        moved = np.roll(alpha, int(radius * 0.12), (0, 1))
        shadow = cv2.GaussianBlur(moved, (0, 0), max(1.0, radius * 0.08)).astype(np.float32) / 255
        canvas.image *= 1 - 0.35 * shadow[..., None]
    opacity = (alpha.astype(np.float32) / 255)[..., None]
    canvas.image *= 1 - opacity
    canvas.image += painting.paint_object(colour, texture, centre, radius, angle, size, rng) * opacity
    canvas.region_ids[mask] = index
    canvas.first_areas[index] = int(mask.sum())
    canvas.regions.append(SceneRegion(f"{colour} {shape}", "object", str(shape), colour, str(texture)))
    return True


def draw_scene(
    seed: int,
    size: int = REFERENCE_SIZE,
    n_objects: int | None = None,
    easy: bool = True,
    distinct_colours: bool = False,
) -> Scene:
    """Draws one scene; the same arguments always give the same scene.

    seed: 0 or more. size: height and width in pixels; a multiple of 4, at least 64. Lengths scale with it, but
        another size is another scene.
    n_objects: 0 to 6 objects; None picks 1 to 6 at random.
    easy: upright objects of fair size; False is the standard world with smaller, freely turned ones.
    distinct_colours: no two objects share a colour. ValueError for arguments outside these ranges.
    """
    if seed < 0:
        raise ValueError(f"got seed {seed}, expected 0 or more")
    if size < MIN_SIZE or size % 4:
        raise ValueError(f"got size {size}, expected a multiple of 4 of at least {MIN_SIZE}")
    if n_objects is not None and not 0 <= n_objects <= MAX_OBJECTS:
        raise ValueError(f"got n_objects {n_objects}, expected 0 to {MAX_OBJECTS} or None")
    rng = np.random.default_rng([SEED_FAMILY, seed])
    canvas = _paint_grounds(size, rng)
    count = int(rng.integers(1, MAX_OBJECTS + 1)) if n_objects is None else n_objects
    names, attempt = list(COLOURS), 0
    colours = rng.permutation(names) if distinct_colours else rng.choice(names, MAX_OBJECTS)
    for colour in colours[:count].tolist():
        while not _try_object(canvas, colour, easy, 0.98 ** max(0, attempt - ROOMY_ATTEMPTS), rng):
            attempt += 1
    image = canvas.image * rng.uniform(0.88, 1.1) + rng.uniform(-10, 10)  # exposure, sometimes blur, always noise
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 0.9))
    image = np.clip(image + rng.normal(0, rng.uniform(2, 8), image.shape), 0, 255).astype(np.uint8)
    visible, ids = np.unique(canvas.region_ids, return_inverse=True)  # renumbered: hidden regions are left out
    regions = tuple(canvas.regions[index] for index in visible)
    return Scene(image, ids.reshape(size, size).astype(np.uint8), regions)
