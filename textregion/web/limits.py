"""What a visitor of the page may ask for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from textregion.errors import InputError, at_least

MEGABYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """Bounds on what the page's users send and on what is kept for them.

    max_pixels: pixels of an image. max_bytes: bytes of an image file. max_labels: labels of one question.
    max_characters: length of one label or sentence. cache_bytes: memory of the encoded images that are kept.
    queue_size: waiting requests; further ones are turned away.
    """

    max_pixels: int = 24_000_000
    max_bytes: int = 20 * MEGABYTE
    max_labels: int = 50
    max_characters: int = 200
    cache_bytes: int = 1024 * MEGABYTE
    queue_size: int = 20

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            at_least(name, value)


def read_upload(path: str | Path, max_bytes: int) -> bytes:
    """The bytes of an uploaded file. InputError when it is gone, empty or too large; its path is never named."""
    try:
        size = Path(path).stat().st_size
        if size > max_bytes:
            raise InputError(f"this file has {size / MEGABYTE:.1f} MB, more than the limit of {max_bytes / MEGABYTE:g}")
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError("this image is no longer kept here; upload it again") from error
    if not data:
        raise InputError("this file is empty; choose a PNG, JPEG or WebP image")
    return data


def parse_labels(text: str, limits: Limits) -> tuple[str, ...]:
    """Labels separated by commas or line ends; blanks and repetitions are left out. InputError for too many or long."""
    labels = tuple(dict.fromkeys(word for part in text.replace("\n", ",").split(",") if (word := part.strip(" ;\t"))))
    if not labels:
        raise InputError("type one or more labels, separated by commas: dog, sofa, floor")
    if len(labels) > limits.max_labels:
        raise InputError(f"got {len(labels)} labels, more than the limit of {limits.max_labels}; leave some out")
    check_lengths(labels, limits)
    return labels


def parse_sentence(text: str, limits: Limits) -> str:
    """A sentence, its blanks evened out. InputError when it is empty or too long."""
    sentence = " ".join(text.split())
    if not sentence:
        raise InputError("type what to look for: the red star")
    check_lengths([sentence], limits)
    return sentence


def check_lengths(labels: Sequence[str], limits: Limits) -> None:
    """InputError for the first label that is longer than the limit."""
    for label in labels:
        if len(label) > limits.max_characters:
            raise InputError(
                f"got {len(label)} characters in {label[:30]!r}…, more than the limit of {limits.max_characters}"
            )
