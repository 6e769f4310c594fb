"""Contact sheets of referring expressions: the region that was chosen, its box, the gold box."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from eval.contact_sheet import FOUND, GOLD, Picture, contact_sheet, tint
from eval.tasks import from_rle
from utils.images import load_image
from utils.visualize import draw_box

NOTE = "pink: the chosen region and the box that was scored; green: gold box"


def contact_sheets(images: Path, records: Mapping[str, dict], count: int) -> dict[str, Image.Image]:
    """{"right": …, "wrong": …}, each with up to `count` sentences in the order of the data; none of a kind, no sheet."""
    sheets = {}
    for name, right in (("right", True), ("wrong", False)):
        cases = [
            (image, answer)
            for image, record in records.items()
            for answer in record.get("answers", ())
            if answer.get("right") is right and answer["box"] is not None
        ]
        if cases[:count]:
            cells = [(draw(images / image, answer), caption(answer)) for image, answer in cases[:count]]
            sheets[name] = contact_sheet(f"{name.capitalize()}: {len(cells)} of {len(cases)}", cells, NOTE)
    return sheets


def draw(path: Path, answer: dict) -> Picture:
    """The image with the chosen region, the scored box and the gold boxes."""
    picture = tint(load_image(path), from_rle(answer["mask"]), FOUND)
    for box in answer["gold"]:
        picture = draw_box(picture, tuple(box), GOLD)
    return draw_box(picture, tuple(answer["box"]), FOUND)


def caption(answer: dict) -> list[str]:
    """The sentence, and what became of it."""
    snapped = "" if answer["detection"] is None else f", detection {answer['detection']}"
    return [f"“{answer['sentence']}”", f"IoU {answer['iou']:.2f}{snapped}"]
