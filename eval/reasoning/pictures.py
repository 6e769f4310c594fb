"""Contact sheets of reasoning segmentation: what was found, and the outline of what was meant."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from PIL import Image

from eval.contact_sheet import FOUND, GOLD, Picture, beside, contact_sheet, contour, spotlight, spread
from eval.reasoning.data import IGNORED, paint
from eval.tasks import from_rle
from textregion.images import load_image

if TYPE_CHECKING:
    from eval.reasoning.task import Item

NOTE = "Left, green: truth; white: pixels that do not count. Right, in colour: what was found."
SIDE = {"right": "above", "wrong": "at most"}


def contact_sheets(items: "Mapping[str, Item]", answers: Sequence[dict], count: int) -> dict[str, Image.Image]:
    """{"right": …, "wrong": …}, up to `count` cases each (right: IoU > 0.5); no sheet where there are none."""
    sheets = {}
    for name, right in (("right", True), ("wrong", False)):
        cases = [answer for answer in answers if answer["right"] is right]
        if cases:
            cells = [(draw(items[answer["image"]], answer), caption(answer)) for answer in spread(cases, count)]
            sheets[name] = contact_sheet(
                f"{name.capitalize()} (IoU {SIDE[name]} 0.5): {len(cells)} of {len(cases)}", cells, NOTE
            )
    return sheets


def draw(item: "Item", answer: dict) -> Picture:
    """The image with the truth's outline and ignored pixels in white, beside it what was found."""
    image = load_image(item.path)
    truth = paint(item.question.shapes, image.shape[:2])
    meant = contour(image, truth == 1, GOLD)
    meant[truth == IGNORED] = 255
    return beside(meant, spotlight(image, from_rle(answer["mask"]), FOUND))


def caption(answer: dict) -> list[str]:
    """The question, what was looked for, and the IoU."""
    asked = [f"“{answer['sentence']}”"]
    if answer["target"] != answer["sentence"].lower():
        asked.append(f"looked for: {answer['target']}")
    return [*asked, f"{answer['kind']}, IoU {answer['iou']:.2f}"]
