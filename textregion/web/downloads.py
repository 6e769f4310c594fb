"""The files a user takes home: the picture, the label map, the numbers."""

import io
import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

from textregion.outputs.annotations import coco_json, labels_json, region_rows
from textregion.render import encode_mask, label_map_image
from textregion.web.pictures import Look, draw
from textregion.web.session import Encoded, Question, Workbench, enlarge


def file_stem(name: str | None) -> str:
    """A user's file name without ending and without anything unusual."""
    return re.sub(r"[^\w-]+", "_", Path(name or "").stem).strip("_")[:60] or "image"


def picture_png(bench: Workbench, image: Encoded, path: str, question: Question, look: Look) -> bytes:
    """What the page shows, in the image's own resolution or the page's, whichever is larger, as PNG."""
    size = max(image.size, image.shown.shape[:2])
    answer = bench.answer(image, question, size)
    pixels = enlarge(bench.pixels(path), size)
    return encode_png(Image.fromarray(draw(pixels, answer, look, *patch_scores(bench, image))))


def label_map_png(bench: Workbench, image: Encoded, question: Question) -> bytes:
    """Label indices in the image's own resolution, as palette PNG; for a sentence 255 in its region, 0 elsewhere."""
    answer = bench.answer(image, question, image.size)
    if answer.grounding is not None:
        return encode_png(Image.fromarray(answer.grounding.mask.astype(np.uint8) * 255))
    return encode_png(label_map_image(answer.result.label_map, answer.result.palette))


def numbers_json(bench: Workbench, image: Encoded, question: Question, name: str) -> bytes:
    """Labels, every region's scores, and the masks as COCO (outputs/annotations.py), in the image's own resolution.

    For a sentence: the region it refers to, its box, score and mask, and every region's score.
    """
    answer = bench.answer(image, question, image.size)
    rows = region_rows(image.regions, bench.embed(answer.words), answer.words, top=len(answer.names))
    content = {"file": name, "preset": bench.preset}
    if answer.grounding is None:
        content |= {"threshold": question.threshold, **labels_json(answer.result), "regions": rows}
        content["coco"] = coco_json([(name, answer.result)])
    else:
        found = answer.grounding
        mask = None if found.region is None else encode_mask(found.mask)
        content |= {"sentence": answer.names[0], "region": found.region, "box": found.box, "score": found.score}
        content |= {"mask": mask, "regions": rows}
    return json.dumps(content, indent=1, ensure_ascii=False).encode()


def patch_scores(bench: Workbench, image: Encoded) -> tuple[np.ndarray | None, float | None]:
    """Global-patch scores (Ph, Pw) of an image and the value below which patches were removed; None without removal."""
    found = image.regions.patch_scores
    return None if found is None else found.cpu().numpy(), bench.segmenter.config.global_patch_threshold


def encode_png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
