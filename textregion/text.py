"""From label words to unit text embeddings: class files, synonyms, 80 templates, cache (method 8.1, 8.4b, 8.6)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path

from open_clip import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor

from textregion.errors import InputError
from textregion.types import as_labels

TEMPLATES = tuple(OPENAI_IMAGENET_TEMPLATES)
LONGEST_TEMPLATE = max(TEMPLATES, key=lambda template: len(template("")))


@dataclass(frozen=True)
class LabelPrompts:
    """L labels, each asked for by one or more queries.

    names: L display names (a label's first word). queries: Q words or phrases.
    query_label: for each query the index of its label, ascending.
    """

    names: tuple[str, ...]
    queries: tuple[str, ...]
    query_label: tuple[int, ...]

    @classmethod
    def parse(cls, labels: "Sequence[str] | LabelPrompts") -> "LabelPrompts":
        """Labels as given by a user or a class file: synonyms within one label are separated by ";".

        White space within a label becomes one space. Duplicate labels stay (the first wins a tie). InputError for an
        empty list or a blank label.
        """
        if isinstance(labels, LabelPrompts):
            return labels
        groups = [[q for part in label.split(";") if (q := " ".join(part.split()))] for label in as_labels(labels)]
        return cls(
            tuple(group[0] for group in groups),
            tuple(query for group in groups for query in group),
            tuple(index for index, group in enumerate(groups) for _ in group),
        )

    @property
    def has_synonyms(self) -> bool:
        """Whether any label has more than one query."""
        return len(self.queries) > len(self.names)


def fills_context(label: str, tokenizer: Callable[[list[str]], Tensor]) -> bool:
    """Whether the label's longest prompt reaches the end of the model's context, so that words may be cut off."""
    prompt = LONGEST_TEMPLATE(label)
    plain, longer = tokenizer([prompt, f"{prompt} more"])
    return bool((plain == longer).all())


def read_class_file(path: str | Path) -> list[str]:
    """One label per line, synonyms separated by "; ", UTF-8; blank lines are left out."""
    path = Path(path)
    if not isfile(path):
        raise InputError(f"no class file {path}; expected a text file with one label per line")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} is not a UTF-8 text file ({error}); expected one label per line") from error
    return [line.strip() for line in lines if line.strip()]
