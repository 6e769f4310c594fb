"""Contact sheets of referring expressions: the region that was chosen, its box, the gold box."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from eval.contact_sheet import FOUND, GOLD, Picture, beside, contact_sheet, spotlight, spread
from eval.tasks import from_rle
from textregion.images import load_image
from textregion.outputs.pictures import draw_box

NOTE = "Left, green: gold box. Right, in colour: the chosen region; pink: its outline and the box that was scored."


def contact_sheets(images: Path, records: Mapping[str, dict], count: int) -> dict[str, Image.Image]:
    """{"right": …, "wrong": …}, up to `count` sentences each; no sheet where there are none."""
    sheets = {}
    for name, right in (("right", True), ("wrong", False)):
        cases = [
            (image, answer)
            for image, record in records.items()
            for answer in record.get("answers", ())
            if answer.get("right") is right and answer["box"] is not None
        ]
        if cases:
            cells = [(draw(images / image, answer), caption(answer)) for image, answer in spread(cases, count)]
            sheets[name] = contact_sheet(f"{name.capitalize()}: {len(cells)} of {len(cases)}", cells, NOTE)
    return sheets


def draw(path: Path, answer: dict) -> Picture:
    """The image with the gold boxes, beside it the chosen region and the scored box."""
    image = load_image(path)
    gold = image
    for box in answer["gold"]:
        gold = draw_box(gold, tuple(box), GOLD)
    found = spotlight(image, from_rle(answer["mask"]), FOUND)
    return beside(gold, draw_box(found, tuple(answer["box"]), FOUND))


def caption(answer: dict) -> list[str]:
    """The sentence, and what became of it."""
    snapped = "" if answer["detection"] is None else f", detection {answer['detection']}"
    return [f"“{answer['sentence']}”", f"IoU {answer['iou']:.2f}{snapped}"]
