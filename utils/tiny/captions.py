"""What can be said about the tiny world: things, mentions of them, captions, and the words these need.

A thing is a kind of region: one of 360 objects (shape x colour x texture) or 8 grounds. Whether a caption
is true of a picture is decided with vectors over THINGS.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES

from textregion.tiny.models import tokenizer
from textregion.tiny.painting import COLOURS, GROUNDS, SHAPES, TEXTURES
from textregion.tiny.scenes import CLASS_NAMES, SceneRegion

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
    """Alternatives to choose from.

    rows: (L,) int64, places of the alternatives in the list `bank_phrases` makes.
    of_thing: (len(THINGS),) int64, the right alternative for each thing; -1 where there is none.
    """

    rows: np.ndarray
    of_thing: np.ndarray


def _label_sets() -> tuple[LabelSet, ...]:
    """One set a question; the grounds are alternatives in all but that about textures."""
    ends = np.cumsum([len(names) for names in _ALTERNATIVES.values()])
    rows = {key: np.arange(end - len(_ALTERNATIVES[key]), end) for key, end in zip(_ALTERNATIVES, ends, strict=True)}
    sets = []
    for attribute in ("shape", "name", "class_name", "texture"):
        keys = (attribute,) if attribute == "texture" else (attribute, "ground")
        names = [name for key in keys for name in _ALTERNATIVES[key]]
        answers = [getattr(thing, attribute) or thing.name for thing in THINGS]
        of_thing = [names.index(answer) if answer in names else -1 for answer in answers]
        sets.append(LabelSet(np.concatenate([rows[key] for key in keys]), np.array(of_thing)))
    return tuple(sets)


LABEL_SETS = _label_sets()


def vocabulary() -> torch.Tensor:
    """Ids of all tokens that captions and templates can hold: (V,) int64, rising.

    Rising order keeps the end-of-text token the largest, which is how open_clip finds it.
    """
    tokenize = tokenizer()
    texts = [template("red star") for template in TEMPLATES]
    texts += [*SHAPES, *COLOURS, *TEXTURES, *itertools.chain(*GROUND_NAMES.values()), OTHER_WORDS]
    ids = {0, tokenize.sot_token_id, tokenize.eot_token_id}
    ids.update(token for text in texts for token in tokenize.encode(text))
    return torch.tensor(sorted(ids))
