"""Box recognition: the probability of every name for every box, by one method (method 3)."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from tqdm import tqdm

from eval.contact_sheet import FOUND, GROUND_TRUTH, RgbImage, beside
from eval.lvis.data import FREQUENCIES, Annotations, Box, Boxes, BoxSet
from eval.lvis.scoring import KEPT, KINDS, average_precision, best_detections
from eval.results import WRONG, Skipped
from eval.tasks import Record, Records, Task, image_file, percent
from textregion.errors import InputError
from textregion.images import load_image
from textregion.labeling import box_ious, is_hit
from textregion.outputs.pictures import draw_box
from textregion.regionspot.model import probabilities
from textregion.regionspot.text import clean_name, encode_names
from textregion.render import to_rle
from textregion.segmenter import TextRegionSegmenter
from textregion.types import RegionTokens

NAMES_AT_ONCE = 50
UNDETECTED = "counted as without detections"
MARGIN = 0.25  # of the box's sides, around the closer look


class LvisTask(Task):
    """One method's names for the boxes of every image.

    annotations, boxes: what was read. images: folder of the images. method: "textregion" or "regionspot".
    clean_names: names as people write them instead of raw ones. models: what the method is made of, for the settings.
    masks: whether the method's masks are a model's, not the boxes themselves, so that mask AP can be told.
    All boxes of an image are encoded together. The names are encoded once; an image with n boxes then costs the
    encoders' time, n * K cosines for K names, and their sorting, and leaves at most 300 detections and n masks in
    the journal (about 10 kB, and a few 100 bytes a mask).
    """

    benchmark = "lvis"
    part = "frequency"
    sheet_unit = " boxes"
    sheet_note = "Left: the box, green where the name is right, pink where it is wrong. Right: a closer look."

    def __init__(
        self,
        annotations: Annotations,
        boxes: BoxSet,
        images: Path,
        method: str,
        clean_names: bool = False,
        models: dict | None = None,
        masks: bool = True,
    ) -> None:
        self.annotations, self.boxes, self.images = annotations, boxes, images
        self.method, self.clean_names, self.models = method, clean_names, models or {}
        self.masks = masks and annotations.has_masks
        self.name = f"box recognition, {method}"
        self.unusable = [*annotations.skipped, *boxes.skipped]
        self._text: Tensor | None = None

    def items(self) -> list[str]:
        """The images' ids, in the order of the file."""
        return [str(number) for number in self.annotations.images]

    def settings(self) -> dict:
        """Method, hashes of the annotations and boxes, how names are written, what is kept, the method's models."""
        files = {"annotations": self.annotations.digest, "boxes": self.boxes.source}
        names = "clean" if self.clean_names else "raw"
        return {"method": self.method, **files, "names": names, "kept": KEPT, "models": self.models}

    def answer(self, segmenter: TextRegionSegmenter, item: str) -> Record:
        """{"boxes": n, "named": best name per box, "confidence": its probability, "found": detections, "masks"}.

        Of the annotations' boxes also how many are "right". A box without a token has the name None.
        ImageError also for one of another size than the annotations say: its boxes would lie elsewhere.
        """
        boxes = self.of_image(item)
        if len(boxes) == 0:
            return {"boxes": 0}
        image = self.annotations.images[int(item)]
        path = image.find(self.images)
        with image_file(path):
            pixels = load_image(path)
            height, width = pixels.shape[:2]
            if (height, width) != (image.height, image.width):
                said = f"the annotations say {image.width} x {image.height}"
                raise InputError(f"it has {width} x {height} pixels, {said}")
        regions = segmenter.encode_boxes(pixels, np.array(boxes.xyxy, np.float32), method=self.method)
        found = probabilities(regions.similarity(self.text(segmenter)), softmax_scale(segmenter))
        record = {"boxes": len(boxes), **_best_names(regions, found, len(boxes))}
        if self.boxes.are_ground_truth:
            record["right"] = sum(a == b for a, b in zip(record["named"], boxes.names, strict=True))
        return {**record, **self._detections(regions, found, boxes)}

    def of_image(self, item: str) -> Boxes:
        """The boxes of an image that are to be named."""
        return self.boxes.of_image.get(int(item), Boxes())

    def text(self, segmenter: TextRegionSegmenter) -> Float32[Tensor, "K D"]:
        """The names' embeddings, as the method wants them; made at the first image."""
        if self._text is None:
            names = [category.name for category in self.annotations.categories]
            if self.clean_names:
                names = [clean_name(name) for name in names]
            if self.method == "regionspot":
                self._text = encode_names(segmenter.backbone, names)
            else:
                starts = tqdm(range(0, len(names), NAMES_AT_ONCE), "names", disable=len(names) < 4 * NAMES_AT_ONCE)
                parts = [segmenter.encode_text(names[start : start + NAMES_AT_ONCE]) for start in starts]
                self._text = torch.cat(parts)
        return self._text

    def _detections(self, regions: RegionTokens, found: Float32[Tensor, "R K"], boxes: Boxes) -> Record:
        """The image's best detections; box by its number among all boxes, masks of the boxes they name.

        A mask is SAM's at the image's own size, where its logits are above 0, as RLE.
        """
        sources = regions.source_index.to(found.device)
        scores = None if self.boxes.are_ground_truth else torch.tensor(boxes.scores, device=found.device)[sources]
        best = best_detections(found, scores)
        numbers = sources[best.box].tolist()
        detections = {"box": numbers, "category": best.category.tolist(), "score": best.score.tolist()}
        if not self.masks:
            return {"found": detections}
        rows = dict(zip(numbers, best.box.tolist(), strict=True))
        masks = {number: regions.masks.select(torch.tensor([row])) for number, row in rows.items()}
        return {"found": detections, "masks": {n: to_rle(mask.binary()[0].cpu().numpy()) for n, mask in masks.items()}}

    def count(self, record: Record) -> Counter:
        """Boxes that were asked about, and of the annotations' those named right."""
        return Counter(boxes=len(record.get("named", ())), right=record.get("right", 0))

    def running(self, counts: Counter) -> str:
        """Top-1 accuracy so far, where there are right answers."""
        if not self.boxes.are_ground_truth:
            return f"{counts['boxes']} boxes"
        return f"top-1 {100 * counts['right'] / max(counts['boxes'], 1):.1f} % of {counts['boxes']}"

    def metrics(self, records: Records) -> dict[str, float]:
        """Top-1 accuracy on the annotations' boxes, overall and by frequency; box AP; mask AP where there are masks."""
        metrics = {}
        if self.boxes.are_ground_truth:
            counts = sum(map(self.count, records.values()), Counter())
            metrics["top-1"] = percent(counts["right"], counts["boxes"])
            metrics |= {f"top-1 {name}": row["top-1"] for name, row in self.parts(records).items()}
        images = [int(item) for item, record in records.items() if "unreadable" not in record]
        kinds = [kind for kind in KINDS if kind == "box" or self.masks]
        for kind in tqdm(kinds, "average precision", unit="kind", disable=None, leave=False):
            found = average_precision(self.annotations, list(self.predictions(records)), images, kind)
            metrics |= {f"{kind} {name}": value for name, value in found.items()}
        return metrics

    def parts(self, records: Records) -> dict[str, dict]:
        """Per frequency: how many categories; of the annotations' boxes how many, how many named right, the share."""
        rows = {}
        for letter, name in FREQUENCIES.items():
            chosen = {index for index, one in enumerate(self.annotations.categories) if one.frequency == letter}
            rows[name] = {"categories": len(chosen)}
            if self.boxes.are_ground_truth:
                verdicts = [
                    named == category
                    for item, record in records.items()
                    for named, category in zip(record.get("named", ()), self.of_image(item).names, strict=False)
                    if category in chosen
                ]
                right, boxes = sum(verdicts), len(verdicts)
                rows[name] |= {"boxes": boxes, "right": right, "top-1": percent(right, boxes)}
        return rows

    def title(self, item: str) -> str:
        """The word "image" and its id."""
        return f"image {item}"

    def asked(self, item: str) -> str:
        """The boxes of an image."""
        return f"; {len(self.of_image(item))} boxes"

    def noted(self, item: str, record: Record) -> list[Skipped]:
        """Images without boxes, boxes that got no token."""
        if record["boxes"] == 0:
            return [Skipped(self.title(item), "image without boxes", "nothing to name", UNDETECTED)]
        effect = WRONG if self.boxes.are_ground_truth else UNDETECTED
        nameless = [place for place, name in enumerate(record["named"], start=1) if name is None]
        return [Skipped(f"image {item} box {n}", "box without a token", "no patch is left", effect) for n in nameless]

    def predictions(self, records: Records) -> Iterator[dict]:
        """What LVIS calls results, one per detection: boxes as xywh, where there are masks these too, as RLE."""
        for item, record in records.items():
            found = record.get("found", {"box": [], "category": [], "score": []})
            for box, category, score in zip(found["box"], found["category"], found["score"], strict=True):
                row = {"image_id": int(item), "category_id": self.annotations.categories[category].id, "score": score}
                row["bbox"] = list(_xywh(self.of_image(item).xyxy[box]))
                yield {**row, "segmentation": record["masks"][str(box)]} if self.masks else row

    def shown(self, records: Records) -> Iterator[dict]:
        """Boxes with the name they got, its probability, and the right name; names by index.

        A detector's box has the name of the object it overlaps most, with IoU > 0.5; others are not shown.
        """
        for item, record in records.items():
            own = self.of_image(item)
            names = own.names if self.boxes.are_ground_truth else overlapped_names(self.annotations, int(item), own)
            answers = zip(own.xyxy, record.get("named", ()), names, record.get("confidence", ()), strict=False)
            for box, named, category, confidence in answers:
                if named is not None and category is not None:
                    found = {"image": int(item), "box": box, "named": named, "confidence": confidence}
                    yield {**found, "category": category, "right": named == category}

    def cell(self, answer: dict) -> tuple[RgbImage, list[str]]:
        """The image with the box, beside it the box's surroundings, enlarged; the name it got and the right one."""
        image = load_image(self.annotations.images[answer["image"]].find(self.images))
        named, right = (self.annotations.categories[answer[key]].name for key in ("named", "category"))
        colour = GROUND_TRUTH if answer["right"] else FOUND
        marked = draw_box(image, _xywh(answer["box"]), colour)
        caption = [f"“{named}” {answer['confidence']:.2f}", f"true: “{right}”, image {answer['image']}"]
        return beside(marked, closer(image, answer["box"])), caption


def softmax_scale(segmenter: TextRegionSegmenter) -> float:
    """Factor from cosine to logit, the same for both methods: the image-text model's own (100 for OpenAI's CLIP)."""
    return float(segmenter.backbone.model.logit_scale.exp())


def _best_names(regions: RegionTokens, found: Float32[Tensor, "R K"], count: int) -> Record:
    """The most probable name of each of `count` boxes and its probability; None for boxes without a token."""
    named: list[int | None] = [None] * count
    confidence: list[float | None] = [None] * count
    values, names = (best.tolist() for best in found.max(1))
    for row, box in enumerate(regions.source_index.tolist()):
        named[box], confidence[box] = names[row], values[row]
    return {"named": named, "confidence": confidence}


def _xywh(box: Box) -> Box:
    x1, y1, x2, y2 = box
    return x1, y1, x2 - x1, y2 - y1


def overlapped_names(annotations: Annotations, image: int, boxes: Boxes) -> list[int | None]:
    """For each box the name, by index, of the object it overlaps most, or None where no IoU is above 0.5."""
    objects = annotations.objects_of.get(image, [])
    names: list[int | None] = []
    for box in boxes.xyxy:
        ious = box_ious(_xywh(box), [tuple(thing["bbox"]) for thing in objects])
        best = int(ious.argmax()) if len(ious) and is_hit(ious.max()) else None
        names.append(None if best is None else annotations.index[objects[best]["category_id"]])
    return names


def closer(image: RgbImage, box: Box) -> RgbImage:
    """The box and a margin, as large as fits into a white picture of the image's size."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = box
    dx, dy = MARGIN * (x2 - x1), MARGIN * (y2 - y1)
    left, top = max(int(x1 - dx), 0), max(int(y1 - dy), 0)
    cut = image[top : max(int(y2 + dy), top + 1), left : max(int(x2 + dx), left + 1)]
    factor = min(height / cut.shape[0], width / cut.shape[1])
    size = max(int(cut.shape[1] * factor), 1), max(int(cut.shape[0] * factor), 1)
    out = np.full_like(image, 255)
    out[: size[1], : size[0]] = cv2.resize(cut, size, interpolation=cv2.INTER_CUBIC)
    return out
