"""Prompt words of a benchmark: textregion/classes/<name>.txt, published or natural spelling (method 8.6)."""

from collections.abc import Sequence
from pathlib import Path

from textregion.errors import InputError
from textregion.text import read_class_file

FOLDER = Path(__file__).resolve().parents[1] / "textregion" / "classes"
SPELLINGS = ("published", "natural")


def read_classes(classes: str | Sequence[str], names: str = "published") -> list[str]:
    """Labels, one entry per class, synonyms separated by "; ".

    classes: name of a list in textregion/classes, path of a class file, or the labels themselves.
    names: "published" is what the paper's figures were made with ("trafficlight"), "natural" what one would
    write ("traffic light"); lists without a natural file have one spelling only. InputError for unknown ones.
    """
    if names not in SPELLINGS:
        raise InputError(f"got names {names!r}, expected one of {', '.join(SPELLINGS)}")
    if not isinstance(classes, str):
        return list(classes)
    if classes.endswith(".txt"):
        return read_class_file(classes)
    published, natural = FOLDER / f"{classes}.txt", FOLDER / f"{classes}.natural.txt"
    if not published.is_file():
        known = sorted(path.stem for path in FOLDER.glob("*.txt") if ".natural" not in path.name)
        raise InputError(f"no class list {classes!r}; expected a .txt file or one of {', '.join(known)}")
    return read_class_file(natural if names == "natural" and natural.is_file() else published)
