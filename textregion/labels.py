"""Labels as users give them: checked, split into the queries they are asked by, and how well regions answer them."""

import re
import reprlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from textregion.devices import constants, read
from textregion.errors import InputError

if TYPE_CHECKING:
    from textregion.types import RegionTokens
else:
    RegionTokens = Any  # stands above this module

LONGEST_LABEL = 1000  # characters; models read about 70 words, and time grows with the square of a word's length
MOST_LABELS = 10_000  # asked for at once; time and memory grow with their number times the regions and pixels
# Things that few pictures show, from all walks of life; what they score in an image is what any word scores there.
CONTROL_WORDS = (
    *("accordion", "submarine", "igloo", "harp", "saxophone", "lobster", "bulldozer", "chandelier"),
    *("typewriter", "violin", "cactus", "parachute", "tractor", "walrus", "telescope", "anchor"),
)
TEMPERATURE = 50.0  # of the softmax over queries (method 8.3)
ONE_OF_SEVERAL = re.compile(r'[^\S\n]*"((?:[^"]|"")*)"[^\S\n]*(?:[,\n]|\Z)|([^,\n]*)(?:[,\n]|\Z)')


def split_labels(text: str) -> list[str]:
    """The labels in one text, parted by commas and line ends: `red star, sky`; blank ones are left out.

    Quotes around a whole label keep its commas, `"red, round star", sky`; a quote within them is doubled. White space
    within a label becomes one space. This is how the programs, the page and a text in a query file read labels; a
    list in Python or YAML and a line of a file are one label as they stand. InputError when nothing is left.
    """
    found = [quoted.replace('""', '"') or plain for quoted, plain in ONE_OF_SEVERAL.findall(text)]
    labels = [label for part in found if (label := " ".join(part.split()).strip(" ;"))]
    if not labels:
        raise InputError(f"got {text[:40]!r} as labels, expected words or phrases, separated by commas")
    return labels


def join_labels(labels: Sequence[str]) -> str:
    """One text that `split_labels` reads as these labels, quoted where they need it."""
    return ", ".join('"{}"'.format(x.replace('"', '""')) if re.search('[",\\n]', x) else x for x in labels)


def merge_labels(labels: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Labels of different names, and the names that came more than once.

    Labels of one name become one, with all their synonyms: no file or legend has two entries that it cannot tell
    apart. InputError as of `as_labels`.
    """
    queries: dict[str, dict[str, None]] = {}
    repeated: dict[str, None] = {}
    for label in as_labels(labels):
        words = label_queries(label)
        if words[0] in queries:
            repeated[words[0]] = None
        queries.setdefault(words[0], {}).update(dict.fromkeys(words))
    return tuple("; ".join(words) for words in queries.values()), list(repeated)


def label_queries(label: str) -> list[str]:
    """The synonyms of one label, separated by ";", the name first; white space within them becomes one space."""
    return [query for part in label.split(";") if (query := " ".join(part.split()))]


def as_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Check 1 to MOST_LABELS labels, every one a string that can be seen, of at most LONGEST_LABEL characters.

    InputError for anything else, a lone string and control characters included (white space is fine).
    """
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        found = f"the single string {labels[:40]!r}" if isinstance(labels, str) else repr(labels)
        raise InputError(f"got {found} as labels, expected a list of strings")
    labels = tuple(labels)
    if not labels:
        raise InputError("got no labels, expected at least one word or phrase")
    if len(labels) > MOST_LABELS:
        raise InputError(f"got {len(labels)} labels, expected at most {MOST_LABELS}; ask for some after the others")
    for label in labels:
        if not isinstance(label, str) or not any(c.isprintable() and c not in " ;" for c in label):
            raise InputError(f"got {str(label)[:40]!r} as a label, expected a word or phrase")
        if len(label) > LONGEST_LABEL:
            raise InputError(f"got a label of {len(label)} characters, expected at most {LONGEST_LABEL}: {label[:40]}…")
        if any(unicodedata.category(c) in ("Cc", "Cs") and not c.isspace() for c in label):
            found = f"the label {label[:40]!r} with control characters or broken text"
            raise InputError(f"got {found}, expected plain words")
    return labels


def as_sentence(sentence: str) -> str:
    """Check one sentence, as `as_labels` checks a label. InputError also for a list, which holds several."""
    if not isinstance(sentence, str):
        raise InputError(f"got a sentence of type {type(sentence).__name__}, expected one string; ask one at a time")
    return as_labels([sentence])[0]


@dataclass(frozen=True)
class LabelPrompts:
    """L labels, each asked for by one or more queries.

    names: L display names (a label's first word). queries: Q words or phrases.
    query_label: for each query the index of its label, ascending.
    """

    names: tuple[str, ...]
    queries: tuple[str, ...]
    query_label: tuple[int, ...]

    def __repr__(self) -> str:
        return f"LabelPrompts({len(self.names)} labels, {len(self.queries)} queries: {reprlib.repr(self.names)})"

    @classmethod
    def parse(cls, labels: "Sequence[str] | LabelPrompts") -> "LabelPrompts":
        """Labels as given in Python or by a class file: synonyms within one label are separated by ";".

        A label is taken as it stands, commas included, but for white space, which becomes one space. Duplicate labels
        stay (the first wins a tie). InputError for an empty list or a blank label.
        """
        if isinstance(labels, LabelPrompts):
            return labels
        groups = [label_queries(label) for label in as_labels(labels)]
        return cls(
            tuple(group[0] for group in groups),
            tuple(query for group in groups for query in group),
            tuple(index for index, group in enumerate(groups) for _ in group),
        )

    def select(self, places: Sequence[int]) -> "tuple[LabelPrompts, list[int]]":
        """Those of some labels, places ascending, and the places of their queries among all."""
        label_of = {place: label for label, place in enumerate(places)}
        queries = [n for n, place in enumerate(self.query_label) if place in label_of]
        names = tuple(self.names[place] for place in places)
        labels = tuple(label_of[self.query_label[n]] for n in queries)
        return LabelPrompts(names, tuple(self.queries[n] for n in queries), labels), queries

    def best_query(self, values: Float[Tensor, "..."], dim: int = 1) -> Float[Tensor, "..."]:
        """The largest value among each label's queries: Q values along `dim` become L."""
        if len(self.queries) == len(self.names):
            return values
        values = values.movedim(dim, 0)
        label = constants(values.device, self.query_label, dtype=torch.long).view(-1, *[1] * (values.ndim - 1))
        best = values.new_full((len(self.names), *values.shape[1:]), -torch.inf)
        return best.scatter_reduce(0, label.expand_as(values), values, "amax").movedim(0, dim)


def label_probabilities(logits: Float32[Tensor, "Q y x"], prompts: LabelPrompts) -> Float32[Tensor, "L y x"]:
    """Softmax of 50 * logits over all queries, then the maximum over each label's queries (method 8.3, 8.4b)."""
    return prompts.best_query((TEMPERATURE * logits).softmax(0), 0)


def absent_labels(
    tokens: RegionTokens, text: Float[Tensor, "Q D"], control: Float[Tensor, "K D"], prompts: LabelPrompts
) -> list[int]:
    """Places of the labels that score no better in this image than words of other things do.

    A label's score is the cosine of its best query with the region that shows it best; it is absent unless that is
    larger than the same of every control word. All labels of an image without a region are.

    text, control: embeddings of the labels' queries and of control words.
    """
    if len(tokens) == 0:
        return list(range(len(prompts.names)))
    best = prompts.best_query(tokens.similarity(text)).amax(0)
    return (best <= tokens.similarity(control).amax()).nonzero()[:, 0].tolist()


def region_scores(
    tokens: RegionTokens, text: Float[Tensor, "Q D"], labels: "Sequence[str] | LabelPrompts"
) -> tuple[Float32[np.ndarray, "R L"], Float32[np.ndarray, "R L"]]:
    """Cosine and probability of every label for every region, as a pixel that only this region covers has them.

    text: embeddings of the labels' queries (`LabelPrompts.parse(labels).queries`), in their order. A label's
    cosine is that of its best query; its probability the largest of its queries' in the softmax of 50 * logits
    over all queries (method 8.3). InputError when text and labels do not belong together.
    """
    prompts = LabelPrompts.parse(labels)
    if len(text) != len(prompts.queries):
        raise InputError(f"got {len(text)} text embeddings for {len(prompts.queries)} queries; encode the queries")
    cosine = prompts.best_query(tokens.similarity(text))
    probability = label_probabilities(tokens.logits(text).T[:, :, None], prompts)[:, :, 0].T
    cosine, probability = read(cosine.float(), probability.float())
    return cosine.numpy(), probability.numpy()
