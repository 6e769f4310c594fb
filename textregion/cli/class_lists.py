"""Labels that are asked for as a list: `@ade20k`, the built-in lists by name, and `@FILE`, a label per line.

The words are those of `textregion/classes/`, of two spellings the natural one ("traffic light"). `@coco` are COCO's 80
things without the background that the benchmark adds; of others with a background (`@voc21`, `@context60`) it is the
first label, with its synonyms. LVIS' 1203 names are not here: no free list of them comes with any package.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from textregion.errors import InputError
from textregion.storage import read_text
from textregion.text import read_class_file

FOLDER = Path(__file__).resolve().parents[1] / "classes"
LISTS = {
    **{"ade20k": "ade20k", "coco": "coco_object", "coco_stuff": "coco_stuff164k", "cityscapes": "city_scapes"},
    **{name: name for name in ("context59", "context60", "tiny", "voc20", "voc21")},
}
WITHOUT_FIRST = ("coco",)  # whose first line is a background that is no class of the data set
SIGN = "@"


def expand(labels: Sequence[str]) -> list[str]:
    """Labels in their order, each `@NAME` and `@FILE` replaced by its list. InputError for what is neither."""
    return [word for label in labels for word in (named_list(label[1:]) if label.startswith(SIGN) else [label])]


def named_list(name: str) -> list[str]:
    """The labels of a built-in list, or of a file. InputError when there is none of this name."""
    if name in LISTS:
        natural = FOLDER / f"{LISTS[name]}.natural.txt"
        labels = read_class_file(natural if natural.is_file() else FOLDER / f"{LISTS[name]}.txt")
        return labels[1:] if name in WITHOUT_FIRST else labels
    if not os.path.isfile(name):
        lists = ", ".join(f"{SIGN}{known}" for known in LISTS)
        raise InputError(f"got {SIGN}{name}, which is neither a built-in list ({lists}) nor a file of labels")
    return read_labels_file(Path(name))


def read_labels_file(path: Path) -> list[str]:
    """One label per line, commas included, synonyms separated by ";"; blank lines and comments (# …) are left out.

    UTF-8, with or without a byte order mark. InputError: missing, not text, no label in it.
    """
    lines = [line.strip() for line in read_text(path, "a text file with one label per line").splitlines()]
    labels = [line for line in lines if line and not line.startswith("#")]
    if not labels:
        raise InputError(f"{path} holds no label; expected one per line")
    return labels


def text_cache() -> Path | None:
    """The user's folder of text embeddings, made when missing; None, after a warning, where it cannot be made."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "textregion" / "text"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        warnings.warn(f"text embeddings are not kept: cannot write {folder} ({error.strerror})", stacklevel=2)
        return None
    return folder if os.access(folder, os.W_OK) else None
