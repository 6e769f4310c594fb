"""Boxes with names: as plain data for other programs, and drawn into their image."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from textregion.boxes_file import GivenBoxes
from textregion.outputs.annotations import DIGITS
from textregion.outputs.lettering import font, shorten
from textregion.outputs.pictures import palette, with_footer
from textregion.regionspot.model import probabilities
from textregion.text import LabelPrompts
from textregion.types import RegionTokens

MOST = 60  # boxes in one picture
SMALLEST, LARGEST = 800, 2400  # pixels, of the picture's longer side


def box_rows(
    tokens: RegionTokens,
    given: GivenBoxes,
    text: Float[Tensor, "Q D"],
    labels: "Sequence[str] | LabelPrompts",
    scale: float,
    top: int = 5,
) -> list[dict]:
    """One entry per box, in order: where it is, what it may be, best first.

    {"box": its number, "xyxy" in pixels, "detector_score" or None, "region": index into the tokens or None where the
    box has none, "predicted_iou" of its mask or None, "labels": [{"index", "name", "cosine", "probability", "score"}]}

    probability: softmax over the queries of scale * logit, the largest of a label's queries. score: times the
    detector's score, or the probability itself where there is none (RegionSpot 3.3). text: embeddings of the
    labels' queries. Boxes without a token have no labels.
    """
    prompts = LabelPrompts.parse(labels)
    cosine = _per_label(tokens.similarity(text), prompts, -1.0)
    probability = _per_label(probabilities(tokens.logits(text), scale), prompts, 0.0)
    region_of = {int(box): region for region, box in enumerate(tokens.source_index)}
    rows = []
    for number, box in enumerate(given.boxes):
        region = region_of.get(number)
        row = {
            "box": number,
            "xyxy": [round(float(value), 2) for value in box],
            "detector_score": None if given.scores is None else round(float(given.scores[number]), DIGITS),
            "region": region,
            "predicted_iou": None if region is None else round(float(tokens.masks.predicted_iou[region]), DIGITS),
        }
        factor = 1.0 if given.scores is None else float(given.scores[number])
        named = [] if region is None else _named(cosine[region], probability[region], prompts.names, factor, top)
        rows.append({**row, "labels": named})
    return rows


def _per_label(values: Float[Tensor, "R Q"], prompts: LabelPrompts, lowest: float) -> Float[np.ndarray, "R L"]:
    """The largest of every label's queries."""
    label = torch.tensor(prompts.query_label, device=values.device).expand_as(values)
    found = values.new_full((len(values), len(prompts.names)), lowest).scatter_reduce(1, label, values, "amax")
    return found.float().cpu().numpy()


def _named(
    cosine: Float[np.ndarray, " L"], probability: Float[np.ndarray, " L"], names: Sequence[str], factor: float, top: int
) -> list[dict]:
    return [
        {
            "index": int(index),
            "name": names[index],
            "cosine": round(float(cosine[index]), DIGITS),
            "probability": round(float(probability[index]), DIGITS),
            "score": round(float(probability[index]) * factor, DIGITS),
        }
        for index in np.argsort(-probability, kind="stable")[:top]
    ]


def boxes_picture(image: UInt8[np.ndarray, "H W 3"], rows: Sequence[dict], note: str = "") -> Image.Image:
    """The image with every box in a colour of its own, its best label and score; of very many only the best MOST."""
    longest = max(image.shape[:2])
    factor = min(max(longest, SMALLEST), LARGEST) / longest
    picture = Image.fromarray(image)
    picture = picture.resize((max(1, round(picture.width * factor)), max(1, round(picture.height * factor))))
    shown = sorted(rows, key=lambda row: -row["labels"][0]["score"] if row["labels"] else 1.0)[:MOST]
    size = min(max(max(picture.size) // 60, 13), 40)
    draw, colours = ImageDraw.Draw(picture), palette(len(rows))
    placed = [(row, [factor * value for value in row["xyxy"]], tuple(colours[row["box"]].tolist())) for row in shown]
    for _, box, colour in placed:
        draw.rectangle(box, outline=colour, width=max(2, size // 6))
    for row, box, colour in placed:  # after all boxes, so that no line runs through a name
        _name(draw, box, _words(row), colour, size)
    count = f"{len(rows)} boxes" if len(shown) == len(rows) else f"The {len(shown)} best of {len(rows)} boxes"
    words = f"{count}; all labels and scores: boxes.json."
    return with_footer(np.asarray(picture), note=f"{words} {note}".strip())


def _words(row: dict) -> str:
    if not row["labels"]:
        return f"#{row['box']} no token"
    best = row["labels"][0]
    return f"#{row['box']} {best['name']} {best['score']:.0%}"


def _name(draw: ImageDraw.ImageDraw, box: Sequence[float], words: str, colour: tuple, size: int) -> None:
    """The words on a strip of the box's colour above it, or within it where there is no room, inside the picture."""
    width, height = draw.im.size
    words = shorten(words, size, width - 8)
    length, strip = font(size).getlength(words) + 6, size + 5
    x = min(max(box[0], 0), max(width - length, 0))
    y = box[1] - strip if box[1] >= strip else min(box[1], height - strip)
    draw.rectangle((x, y, x + length, y + strip), fill=colour)
    dark = 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2] < 130
    draw.text((x + 3, y + 1), words, "white" if dark else "black", font(size))
