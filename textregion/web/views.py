"""From what the browser sends to what the page shows, still without gradio. Bad input becomes one line, never more."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from textregion.errors import InputError
from textregion.outputs.pictures import draw_regions
from textregion.tiny.models import unknown_words
from textregion.web import downloads, panels
from textregion.web.pictures import Look, draw
from textregion.web.session import Encoded, Question, Workbench, region_mask

EMPTY = "Start with an image: drop one, or choose one of the drawn scenes."
LABELS, SENTENCE = "Labels", "Sentence"
FILES: dict[str, Callable[..., tuple[str, bytes]]]


@dataclass(frozen=True)
class View:
    """What the page shows: a picture or none, and pieces of HTML. answered: whether there is something to save."""

    notice: str
    picture: UInt8[np.ndarray, "h w 3"] | None = None
    legend: str = ""
    scores: str = ""
    answered: bool = False


@dataclass(frozen=True)
class Controls:
    """The page's controls as a browser sends them: nothing is known about their types yet.

    upload: {"path", "orig_name", …} of the image's file, or None.
    """

    upload: Any
    mode: Any
    text: Any
    threshold: Any
    opacity: Any
    switches: Any

    @property
    def path(self) -> str:
        """Where the uploaded file lies. InputError when there is none."""
        path = self.upload.get("path") if isinstance(self.upload, dict) else None
        if not isinstance(path, str):
            raise InputError(EMPTY)
        return path

    @property
    def name(self) -> str:
        """The file's name as the user knows it, harmless."""
        return downloads.file_stem(str(self.upload.get("orig_name") or ""))

    @property
    def question(self) -> Question:
        """What is asked."""
        return Question.of(self.text, self.mode == SENTENCE, self.threshold)

    @property
    def look(self) -> Look:
        """How it is drawn."""
        return Look.of(self.opacity, self.switches)


def view(bench: Workbench, controls: Controls, point: tuple[float, float] | None = None) -> View:
    """The page for these controls. point: where the picture was clicked last, as shares (x, y) of its sides."""
    if not controls.upload:
        return View(panels.notice(EMPTY, "hint"))
    try:
        image = bench.open(controls.path)
    except InputError as error:
        return View(panels.notice(sentence_case(error), "error"))
    if isinstance(controls.text, str) and not controls.text.strip(" ,;\n\t"):
        return unasked(image, controls)
    try:
        return answered(bench, image, controls, point)
    except InputError as error:
        return View(panels.notice(sentence_case(error), "error"), image.shown)


def unasked(image: Encoded, controls: Controls) -> View:
    """An image without words: its regions, and what to do next."""
    what = "a sentence such as: the red star" if controls.mode == SENTENCE else "labels, separated by commas"
    text = f"{len(image.regions)} regions found. Now type {what}."
    return View(panels.notice(text, "hint"), draw_regions(image.shown, image.regions.masks))


def answered(bench: Workbench, image: Encoded, controls: Controls, point: tuple[float, float] | None) -> View:
    """An image with words."""
    question, look = controls.question, controls.look
    answer = bench.ask(image, question)
    region = None if point is None else answer.region_at(point)
    selected = None if region is None else region_mask(image.regions.masks, region, image.shown.shape[:2])
    picture = draw(image.shown, answer, look, *downloads.patch_scores(bench, image), selected)
    unknown = unknown_words(list(answer.words)) if bench.preset == "tiny" else []
    note = panels.summary(image, unknown, look.heat_map)
    return View(note, picture, panels.legend(answer), panels.scores(answer, region, point is not None), True)


def save(bench: Workbench, controls: Controls, kind: str) -> tuple[str, bytes]:
    """(file name, content) of a download; kind: a key of FILES. InputError as `view` shows it."""
    return FILES[kind](bench, bench.open(controls.path), controls)


def save_picture(bench: Workbench, image: Encoded, controls: Controls) -> tuple[str, bytes]:
    """The picture as shown, without the clicked region."""
    data = downloads.picture_png(bench, image, controls.path, controls.question, controls.look)
    return f"{controls.name}_picture.png", data


def save_label_map(bench: Workbench, image: Encoded, controls: Controls) -> tuple[str, bytes]:
    """The label map."""
    return f"{controls.name}_labels.png", downloads.label_map_png(bench, image, controls.question)


def save_numbers(bench: Workbench, image: Encoded, controls: Controls) -> tuple[str, bytes]:
    """Scores and masks."""
    return f"{controls.name}.json", downloads.numbers_json(bench, image, controls.question, controls.name)


FILES = {"picture": save_picture, "labels": save_label_map, "numbers": save_numbers}


def share_of(answer_size: tuple[int, int], index: Any) -> tuple[float, float]:
    """A click at pixel (x, y) of a picture (h, w) as shares of its sides. InputError for anything else."""
    numbers = isinstance(index, (list, tuple)) and len(index) == 2 and all(isinstance(n, (int, float)) for n in index)
    height, width = answer_size
    if not numbers or not (0 <= index[0] <= width and 0 <= index[1] <= height):
        raise InputError("that click was not in the picture; click again")
    return min(index[0] / width, 1.0), min(index[1] / height, 1.0)


def sentence_case(error: InputError) -> str:
    """The error's line as a sentence."""
    text = str(error)
    return text[:1].upper() + text[1:]
