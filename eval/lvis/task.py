"""Box recognition: the probability of every name for every box, by one method (method 3)."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from eval.lvis.average_precision import ABSENT, KINDS, average_precision
from eval.lvis.boxes import Boxes, BoxSet
from eval.lvis.detections import KEPT, best_detections
from eval.lvis.pictures import contact_sheets
from eval.lvis.truth import FREQUENCIES, Truth
from eval.skipped import WRONG, Skipped
from eval.tasks import Record, Records, odd_image, to_rle
from textregion.errors import InputError
from textregion.images import load_image
from textregion.regionspot.model import probabilities
from textregion.regionspot.text import clean_name, encode_names
from textregion.segmenter import TextRegionSegmenter
from textregion.types import RegionTokens

NAMES_AT_ONCE = 50
UNDETECTED = "counted as without detections"


class LvisTask:
    """One method's names for the boxes of every image.

    truth, boxes: what was read. images: folder of the images. method: "textregion" or "regionspot". clean_names:
    names as people write them instead of raw ones. models: what the method is made of, for the settings.
    masks: whether the method's masks are a model's, not the boxes themselves, so that mask AP can be told.
    All boxes of an image are encoded together. The names are encoded once; an image with n boxes then costs the
    encoders' time, n * K cosines for K names, and their sorting, and leaves at most 300 detections and n masks in
    the journal (about 10 kB, and a few 100 bytes a mask).
    """

    benchmark = "lvis"
    part = "frequency"
    published: Mapping = {}

    def __init__(
        self,
        truth: Truth,
        boxes: BoxSet,
        images: Path,
        method: str,
        clean_names: bool = False,
        models: dict | None = None,
        masks: bool = True,
    ) -> None:
        self.truth, self.boxes, self.images = truth, boxes, images
        self.method, self.clean_names, self.models = method, clean_names, models or {}
        self.masks = masks and truth.has_masks
        self.name = f"box recognition, {method}"
        self._text: Tensor | None = None

    def items(self) -> list[str]:
        """The images' ids, in the order of the file."""
        return [str(number) for number in self.truth.images]

    def settings(self) -> dict:
        """Method, hashes of the annotations and boxes, how names are written, what is kept, the method's models."""
        files = {"annotations": self.truth.digest, "boxes": self.boxes.source}
        names = "clean" if self.clean_names else "raw"
        return {"method": self.method, **files, "names": names, "kept": KEPT, "models": self.models}

    def answer(self, segmenter: TextRegionSegmenter, item: str) -> Record:
        """{"boxes": n, "named": best name per box, "confidence": its probability, "found": detections, "masks"}.

        Of true boxes also how many are "right". A box without a token has the name None. {"unreadable": [kind,
        reason]} where the image is missing, damaged or of another size than the annotations say.
        """
        boxes = self.boxes.of_image.get(int(item), Boxes())
        record: Record = {"boxes": len(boxes)}
        if len(boxes) == 0:
            return record
        image = self.truth.images[int(item)]
        path = image.find(self.images)
        with odd_image(record, path):
            pixels = _of_size(load_image(path), image.size)
        if "unreadable" in record:
            return record
        regions = segmenter.encode_boxes(pixels, np.array(boxes.xyxy, np.float32), method=self.method)
        found = probabilities(regions.similarity(self.text(segmenter)), softmax_scale(segmenter))
        record |= _best_names(regions, found, len(boxes))
        if self.boxes.are_true:
            record["right"] = sum(a == b for a, b in zip(record["named"], boxes.names, strict=True))
        return {**record, **self._detections(regions, found, boxes)}

    def text(self, segmenter: TextRegionSegmenter) -> Float32[Tensor, "K D"]:
        """The names' embeddings, as the method wants them; made at the first image."""
        if self._text is None:
            names = [category.name for category in self.truth.categories]
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
        """The image's best detections; box by its number among all boxes, masks of the boxes they name."""
        kept = regions.source_index.to(found.device)
        scores = None if self.boxes.are_true else torch.tensor(boxes.scores, device=found.device)[kept]
        best = best_detections(found, scores)
        numbers = kept[best.box].tolist()
        detections = {"box": numbers, "category": best.category.tolist(), "score": best.score.tolist()}
        if not self.masks:
            return {"found": detections}
        named = zip(numbers, best.box.tolist(), strict=True)
        return {"found": detections, "masks": {number: _mask(regions, row) for number, row in dict(named).items()}}

    def count(self, record: Record) -> Counter:
        """Boxes that were asked about, and of true ones those named right."""
        return Counter(boxes=len(record.get("named", ())), right=record.get("right", 0))

    def running(self, counts: Counter) -> str:
        """Top-1 accuracy so far, where there is a truth."""
        if not self.boxes.are_true:
            return f"{counts['boxes']} boxes"
        return f"top-1 {100 * counts['right'] / max(counts['boxes'], 1):.1f} % of {counts['boxes']}"

    def metrics(self, records: Records) -> dict[str, float]:
        """Top-1 accuracy where the boxes are true, overall and by frequency; box AP; mask AP where there are masks."""
        figures = {}
        if self.boxes.are_true:
            counts = self._by_frequency(records)
            figures["top-1"] = _accuracy(sum(counts.values(), Counter()))
            figures |= {f"top-1 {name}": _accuracy(counts[letter]) for letter, name in FREQUENCIES.items()}
        images = [int(item) for item, record in records.items() if "unreadable" not in record]
        kinds = [kind for kind in KINDS if kind == "box" or self.masks]
        for kind in tqdm(kinds, "average precision", unit="kind", disable=None, leave=False):
            found = average_precision(self.truth, list(self._results(records, kind)), images, kind)
            figures |= {f"{kind} {name}": value for name, value in found.items()}
        return figures

    def parts(self, records: Records) -> dict[str, dict]:
        """Per frequency: how many categories there are; of true boxes how many, how many named right, the share."""
        counts = self._by_frequency(records)
        rows = {}
        for letter, name in FREQUENCIES.items():
            rows[name] = {"categories": sum(one.frequency == letter for one in self.truth.categories)}
            if self.boxes.are_true:
                rows[name] |= {"boxes": counts[letter]["boxes"], "right": counts[letter]["right"]}
                rows[name]["top-1"] = _accuracy(counts[letter])
        return rows

    def _by_frequency(self, records: Records) -> dict[str | None, Counter]:
        """{"r", "c", "f" or None: true boxes, and those named right}."""
        counts = {letter: Counter() for letter in (*FREQUENCIES, None)}
        for item, record in records.items():
            names = self.boxes.of_image.get(int(item), Boxes()).names
            for name, named in zip(names, record.get("named", ()), strict=False):  # no answers in unreadable images
                row = counts[self.truth.categories[name].frequency]
                row["boxes"] += 1
                row["right"] += name == named
        return counts

    def _results(self, records: Records, kind: str) -> Iterator[dict]:
        """What LVIS calls results, one per detection: boxes as xywh, masks as RLE."""
        for item, record in records.items():
            found = record.get("found", {"box": [], "category": [], "score": []})
            for box, category, score in zip(found["box"], found["category"], found["score"], strict=True):
                row = {"image_id": int(item), "category_id": self.truth.categories[category].id, "score": score}
                if kind == "box":
                    x1, y1, x2, y2 = self.boxes.of_image[int(item)].xyxy[box]
                    yield {**row, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                else:
                    yield {**row, "segmentation": record["masks"][str(box)]}

    def skipped(self, records: Records) -> list[Skipped]:
        """Odd annotations and boxes, images that cannot be read or have no boxes, boxes that got no token."""
        found = [*self.truth.skipped, *self.boxes.skipped]
        for item, record in records.items():
            if "unreadable" in record:
                kind, reason = record["unreadable"]
                found.append(Skipped(f"image {item}", kind, f"{reason}; {record['boxes']} boxes"))
            elif record["boxes"] == 0:
                found.append(Skipped(f"image {item}", "image without boxes", "nothing to name", UNDETECTED))
            for place, name in enumerate(record.get("named", ()), start=1):
                if name is None:
                    effect = WRONG if self.boxes.are_true else UNDETECTED
                    found.append(
                        Skipped(f"image {item} box {place}", "box without a token", "no patch is left", effect)
                    )
        return found

    def predictions(self, records: Records) -> Iterator[dict]:
        """LVIS results, masks included where there are any."""
        if not self.masks:
            yield from self._results(records, "box")
            return
        for box, mask in zip(self._results(records, "box"), self._results(records, "mask"), strict=True):
            yield {**box, **mask}

    def sheets(self, records: Records, count: int) -> dict[str, Image.Image]:
        """right.png and wrong.png: boxes, the names they got and the true ones."""
        return contact_sheets(self.truth, self.boxes, self.images, records, count)


def softmax_scale(segmenter: TextRegionSegmenter) -> float:
    """Factor from cosine to logit, the same for both methods: the image-text model's own (100 for OpenAI's CLIP)."""
    return float(segmenter.backbone.model.logit_scale.exp())


def _of_size(pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """The image, if it has the size the annotations say; else InputError, for its boxes would lie elsewhere."""
    if pixels.shape[:2] != size:
        raise InputError(
            f"it has {pixels.shape[1]} x {pixels.shape[0]} pixels, the annotations say {size[1]} x {size[0]}"
        )
    return pixels


def _best_names(regions: RegionTokens, found: Float32[Tensor, "R K"], count: int) -> Record:
    """The most probable name of each of `count` boxes and its probability; None for boxes without a token."""
    named: list[int | None] = [None] * count
    confidence: list[float | None] = [None] * count
    best = found.max(1)
    for box, name, value in zip(
        regions.source_index.tolist(), best.indices.tolist(), best.values.tolist(), strict=True
    ):
        named[box], confidence[box] = name, value
    return {"named": named, "confidence": confidence}


def _mask(regions: RegionTokens, row: int) -> dict:
    """SAM's mask of a box at the image's own size, as RLE: where its logits are above 0."""
    return to_rle(regions.masks.select(torch.tensor([row])).binary()[0].cpu().numpy())


def _accuracy(counts: Counter) -> float:
    return 100 * counts["right"] / counts["boxes"] if counts["boxes"] else ABSENT
