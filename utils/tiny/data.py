"""What both trainings draw from: scenes kept on disk, random crops of them, and captions true of these crops.

A thing is a kind of region: one of 360 objects (shape x colour x texture) or 8 grounds. Whether a caption
is true of a picture is decided with vectors over THINGS.
"""

import functools
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from open_clip import OPENAI_IMAGENET_TEMPLATES
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

from textregion.tiny.models import tokenizer
from textregion.tiny.painting import COLOURS, GROUNDS, SHAPES, TEXTURES
from textregion.tiny.scenes import CLASS_NAMES, SceneRegion, draw_scene

DEFAULT_CACHE = Path(__file__).parent / "cache"
MAX_REGIONS = 9  # three grounds and six objects
EVALUATION_SEED = 900_000  # training scenes have smaller seeds, evaluation scenes these and larger ones
HARD_EVERY = 4  # every fourth training scene is of the standard world, the rest are easy
OBJECT_CROPS, RANDOM_CROPS = 0.7, 0.2  # shares of the kinds of crops; the rest shows whole scenes

TEMPLATES = tuple(OPENAI_IMAGENET_TEMPLATES)
TEMPLATE_SHARE = 0.8  # of captions that are put into a template

GROUND_NAMES: dict[str, tuple[str, ...]] = {ground: (ground,) for ground in GROUNDS} | {
    "brick": ("brick", "brick wall"),
    "wood": ("wood", "wooden floor"),
    "stone": ("stone", "stone floor"),
}
OTHER_WORDS = "a photo of a picture and an image with the object in background next to above below on shape"

THINGS: tuple[SceneRegion, ...] = (
    *(
        SceneRegion(f"{colour} {shape}", "object", shape, colour, texture)
        for shape, colour, texture in itertools.product(SHAPES, COLOURS, TEXTURES)
    ),
    *(SceneRegion(ground, "ground") for ground in GROUNDS),
)
THING_INDEX = {thing: index for index, thing in enumerate(THINGS)}
IS_OBJECT = np.array([thing.kind == "object" for thing in THINGS] + [False])  # the last entry answers for -1

# Which attributes a mention of an object says, and how often.
_MENTION_STYLES = (
    (("shape",), 0.2),
    (("colour", "shape"), 0.33),
    (("colour", "texture", "shape"), 0.14),
    (("texture", "shape"), 0.08),
    (("colour",), 0.2),
    (("texture",), 0.05),
)
SILENT_PLAIN = 0.7  # how often the word "plain" is left out


class Mention(NamedTuple):
    """A phrase and the things it is true of: (len(THINGS),) bool."""

    phrase: str
    matches: np.ndarray


@functools.cache
def mention_of(**attributes: str) -> Mention:
    """Says some of an object's attributes (shape, colour, texture): colour="red" is "red shape"."""
    words = [attributes[key] for key in ("colour", "texture") if key in attributes]
    matches = [all(getattr(thing, key) == value for key, value in attributes.items()) for thing in THINGS]
    return Mention(" ".join([*words, attributes.get("shape", "shape")]), np.array(matches))


def mention_object(thing: int, rng: np.random.Generator) -> Mention:
    """Mentions an object by a random choice of its attributes."""
    styles, shares = zip(*_MENTION_STYLES, strict=True)
    said = styles[rng.choice(len(styles), p=shares)]
    if "texture" in said and len(said) > 1 and THINGS[thing].texture == "plain" and rng.random() < SILENT_PLAIN:
        said = tuple(attribute for attribute in said if attribute != "texture")
    return mention_of(**{attribute: getattr(THINGS[thing], attribute) for attribute in said})


def mention_ground(thing: int, rng: np.random.Generator) -> Mention:
    """Mentions a ground by one of its names."""
    return Mention(str(rng.choice(GROUND_NAMES[THINGS[thing].name])), np.arange(len(THINGS)) == thing)


def in_template(phrase: str, rng: np.random.Generator) -> str:
    """Puts a phrase into one of the 80 ImageNet templates, most of the time."""
    return TEMPLATES[rng.integers(len(TEMPLATES))](phrase) if rng.random() < TEMPLATE_SHARE else phrase


def caption(objects: Sequence[Mention], grounds: Sequence[Mention], rng: np.random.Generator) -> str:
    """Joins mentions: "red star and a blue ring on grass", or "grass and sky" without objects."""
    text = " and a ".join(mention.phrase for mention in objects)
    ground = " and ".join(mention.phrase for mention in grounds)
    return in_template(" on ".join(part for part in (text, ground) if part), rng)


# The alternatives of every question, by the attribute that answers it; together the rows of the label bank.
_ALTERNATIVES: dict[str, Sequence[str]] = {
    "shape": SHAPES,
    "ground": GROUNDS,
    "name": [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES],
    "class_name": CLASS_NAMES[: len(COLOURS)],
    "texture": TEXTURES,
}


def bank_phrases(rng: np.random.Generator) -> list[str]:
    """One phrase for every row of the label bank, in templates: 10 + 8 + 90 + 9 + 4 texts."""
    spoken = {
        "ground": [str(rng.choice(GROUND_NAMES[ground])) for ground in GROUNDS],
        "texture": [f"{texture} shape" for texture in TEXTURES],
    }
    return [in_template(phrase, rng) for phrases in (_ALTERNATIVES | spoken).values() for phrase in phrases]


class LabelSet(NamedTuple):
    """Alternatives to choose from."""

    rows: np.ndarray  # (L,) int64, places of the alternatives in the list `bank_phrases` makes
    of_thing: np.ndarray  # (len(THINGS),) int64, the right alternative for each thing; -1 where there is none


def _label_set(attribute: str) -> LabelSet:
    """The alternatives of one question; the grounds belong to all but that about textures."""
    keys = (attribute,) if attribute == "texture" else (attribute, "ground")
    owners = [key for key, names in _ALTERNATIVES.items() for _ in names]
    rows = [row for key in keys for row, owner in enumerate(owners) if owner == key]
    names = [name for key in keys for name in _ALTERNATIVES[key]]
    answers = [getattr(thing, attribute) or thing.name for thing in THINGS]
    return LabelSet(np.array(rows), np.array([names.index(answer) if answer in names else -1 for answer in answers]))


LABEL_SETS = tuple(map(_label_set, ("shape", "name", "class_name", "texture")))
NAME_ROWS = LABEL_SETS[1].rows[: len(COLOURS) * len(SHAPES)]  # all pairs, those of a colour side by side
COLOUR_OF, SHAPE_OF = (  # (len(THINGS),) int64, places in COLOURS and SHAPES; -1 for grounds
    np.array([names.index(value) if (value := getattr(thing, attribute)) in names else -1 for thing in THINGS])
    for names, attribute in (([*COLOURS], "colour"), ([*SHAPES], "shape"))
)


def vocabulary() -> Tensor:
    """Ids of all tokens that can occur: (V,) int64, rising: open_clip finds the end of a text by the largest."""
    tokenize = tokenizer()
    texts = [template("red star") for template in TEMPLATES]
    texts += [*SHAPES, *COLOURS, *TEXTURES, *itertools.chain(*GROUND_NAMES.values()), OTHER_WORDS]
    ids = {0, tokenize.sot_token_id, tokenize.eot_token_id}
    ids.update(token for text in texts for token in tokenize.encode(text))
    return torch.tensor(sorted(ids))


@dataclass(frozen=True)
class SceneSet:
    """N scenes as arrays."""

    images: np.ndarray  # (N, S, S, 3) uint8 RGB
    region_ids: np.ndarray  # (N, S, S) uint8
    things: np.ndarray  # (N, 9) int16, place in THINGS of each region; -1 where a scene has fewer

    def __len__(self) -> int:
        return len(self.images)


def draw_scene_set(count: int) -> SceneSet:
    """Draws the training scenes with seeds 0 to count - 1; ValueError for more than there are."""
    if not 0 < count <= EVALUATION_SEED:
        raise ValueError(f"got {count} scenes, expected 1 to {EVALUATION_SEED}")
    seeds = tqdm(range(count), "drawing scenes", disable=None, leave=False)
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
    """A square crop of a scene, at the size the vision tower takes."""

    image: np.ndarray  # (S, S, 3) uint8
    region_ids: np.ndarray  # (S, S) uint8
    things: np.ndarray  # (9,) int64, -1 where there is no region
    shares: np.ndarray  # (9,) float64, of the crop's area that each region covers
    visible: np.ndarray  # (9,) float64, share of each region's area in the scene that is inside the crop

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


def _random_square(objects: list[tuple[slice, slice]], size: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a random crop; `objects` are those of the scene's objects."""
    kind = rng.random()
    if kind < OBJECT_CROPS and objects:  # around one of them, with some room and not quite centred
        rows, columns = objects[rng.integers(len(objects))]
        extent = max(rows.stop - rows.start, columns.stop - columns.start)
        width = int(np.clip(extent * rng.uniform(1.05, 2.6), size * 5 // 32, size))
        shift_y, shift_x = rng.uniform(-0.2, 0.2, 2) * (width - extent)
        centre_y, centre_x = (rows.start + rows.stop) / 2 + shift_y, (columns.start + columns.stop) / 2 + shift_x
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
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if len(image) > size else cv2.INTER_LINEAR)
    ids = cv2.resize(ids, (size, size), interpolation=cv2.INTER_NEAREST)
    step = -1 if rng.random() < 0.5 else 1
    return SceneCrop(image[:, ::step], ids[:, ::step], things, shares, visible)


def describe(crop: SceneCrop, rng: np.random.Generator) -> tuple[str, list[Mention]]:
    """A caption that is true of the crop and the mentions in it; no mentions when nothing can be said.

    It mentions one to three objects that are nearly complete in the crop, large ones more often, and half the time
    the largest ground; without objects one or two grounds.
    """
    present, grounds = crop.objects(0.6, 0.012), crop.grounds(0.06)
    if len(present):
        weights = np.sqrt(crop.shares[present])
        count = min(len(present), int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15])))
        present = rng.choice(present, count, replace=False, p=weights / weights.sum())
    objects = [mention_object(thing, rng) for thing in crop.things[present].tolist()]
    if objects:
        chosen = grounds[np.argsort(-crop.shares[grounds])][: rng.integers(2)]
    else:
        chosen = rng.permutation(grounds)[: rng.integers(1, 3)]
    behind = [mention_ground(thing, rng) for thing in crop.things[chosen].tolist()]
    return caption(objects, behind, rng), objects + behind
