"""What programs ask of the page, without gradio: an image and words to files and numbers (docs/api.md)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from textregion.errors import InputError
from textregion.outputs.annotations import labels_json
from textregion.render import png_bytes
from textregion.web.cached_segmenter import CachedSegmenter, Question
from textregion.web.search import TableView
from textregion.web.views import Controls, answer_numbers, is_share, mask_png

UPLOAD = 'an uploaded image, {"path": what the upload answered, "meta": {"_type": "gradio.FileData"}}'


@dataclass(frozen=True)
class NamedFile:
    """A file of a reply. name: what it is called where it is saved."""

    name: str
    data: bytes


def segment(
    model: CachedSegmenter, upload: Any, labels: Any, threshold: Any
) -> tuple[NamedFile, dict[str, Any], NamedFile]:
    """(The label map as PNG, what its values mean, scores and masks of all regions as JSON), at the image's size.

    upload: as gradio sends files. labels: separated by commas. threshold: 0..1, less certain pixels get the first
    label. InputError for anything else.
    """
    if not isinstance(labels, str) or not is_share(threshold):
        told = f"got labels {labels!r:.60} and threshold {threshold!r:.20}"
        raise InputError(f'{told}, expected a text such as "dog, sofa" and a number from 0 to 1')
    name, path = _named(upload)
    image, question = model.open(path), Question(labels, threshold=float(threshold))
    answer = model.answer(image, question, image.size)
    numbers = json.dumps(answer_numbers(model, image, question, answer, name), ensure_ascii=False).encode()
    stem = Path(name).stem
    files = NamedFile(f"{stem}_labels.png", mask_png(answer)), NamedFile(f"{stem}.json", numbers)
    return files[0], labels_json(answer.result, image.regions, answer.note), files[1]


def refer(model: CachedSegmenter, upload: Any, sentence: Any) -> tuple[NamedFile, dict[str, Any]]:
    """(The mask of the region that a sentence refers to as PNG of 255 and 0; the region, its box and all scores).

    InputError for anything but an uploaded image and a text.
    """
    if not isinstance(sentence, str):
        raise InputError(f'got the sentence {sentence!r:.60}, expected a text such as "the red star"')
    name, path = _named(upload)
    image, question = model.open(path), Question(sentence, sentence=True)
    answer = model.answer(image, question, image.size)
    told = answer_numbers(model, image, question, answer, name)
    del told["mask"]  # the PNG is the same
    return NamedFile(f"{Path(name).stem}_mask.png", mask_png(answer)), told


def search(table: TableView, words: Any, without: Any, one_per_image: Any) -> tuple[str, list[dict[str, Any]]]:
    """(A line about the search, a row a hit, best first), as the tab Search shows them. InputError for no words.

    A row: {"score", "image": its file's name, "region", "box": [x1, y1, x2, y2], "area": share of the image, "picture":
    a NamedFile of the part around the region}.
    """
    found, rows = table.search(words, without, one_per_image), []
    for hit, (picture, _) in zip(found.hits, found.pictures, strict=True):
        name = Path(hit.image).name
        row = {"score": round(hit.score, 6), "image": name, "region": hit.region}
        row |= {"box": [round(float(value), 2) for value in hit.box], "area": round(hit.area, 6)}
        png = png_bytes(Image.fromarray(picture))
        rows.append({**row, "picture": NamedFile(f"{Path(name).stem}_{hit.region}.png", png)})
    return found.note, rows


def _named(upload: Any) -> tuple[str, str]:
    """(The user's name for an uploaded file, where it lies). InputError when it is none."""
    if not isinstance(upload, dict) or not isinstance(upload.get("path"), str):
        raise InputError(f"got the image {upload!r:.60}, expected {UPLOAD}")
    named = upload if upload.get("orig_name") else {**upload, "orig_name": Path(upload["path"]).name}
    return Controls(named, *[None] * 5).file_name, upload["path"]
