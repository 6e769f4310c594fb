"""Referring expressions: one region for every sentence, its box compared with the gold boxes (method 10)."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from eval.referring.data import Expression, read_splits
from eval.referring.pictures import contact_sheets
from eval.skipped import SCORED, WRONG, Skipped
from eval.tasks import Record, Records, odd_image, to_rle, too_long
from textregion.grounding import box_ious, is_hit, snap
from textregion.segmenter import TextRegionSegmenter
from textregion.types import RegionTokens

PUBLISHED = {"scale": (2016, 2016), "recipe": "demo", "antialias": True}


class ReferringTask:
    """One pass over the images of any splits, whatever number of splits and sentences share an image.

    root: folder of the annotations. images: folder of the images. proposals: what boxes are snapped to.
    InputError when a file is missing.
    """

    name = "referring expressions"
    benchmark = "refcoco"
    part = "split"
    published = PUBLISHED

    def __init__(self, root: Path, images: Path, splits: Sequence[str], proposals: str = "detections") -> None:
        self.root, self.images, self.proposals = root, images, proposals
        self.splits = tuple(splits)
        self.expressions = read_splits(root, splits, proposals)

    def items(self) -> list[str]:
        """The images, in order of first appearance."""
        return [name for name, asked in self.expressions.of_image.items() if any(e.sentences for e in asked)]

    def settings(self) -> dict:
        """Splits, proposals, and a hash of the annotations."""
        digest = hashlib.sha256(repr(self.expressions.of_image).encode()).hexdigest()[:16]
        return {"splits": list(self.splits), "proposals": self.proposals, "annotations": digest}

    def answer(self, segmenter: TextRegionSegmenter, item: str) -> Record:
        """{"answers": one per sentence, in order, "regions": R}, or {"unreadable": [kind, reason]}."""
        record: Record = {}
        path = self.images / item
        with odd_image(record, path):
            regions = segmenter.encode_image(path)
        if "unreadable" in record:
            return record
        asked = self.expressions.of_image[item]
        numbered = [(expression, number) for expression in asked for number in range(len(expression.sentences))]
        return {"regions": len(regions), "answers": [answer_sentence(segmenter, regions, *one) for one in numbered]}

    def count(self, record: Record) -> Counter:
        """Sentences that are right, and that are scored."""
        answers = [answer for answer in record.get("answers", ()) if "right" in answer]
        return Counter(right=sum(answer["right"] for answer in answers), scored=len(answers))

    def running(self, counts: Counter) -> str:
        """Accuracy so far."""
        return f"accuracy {100 * counts['right'] / max(counts['scored'], 1):.1f} % of {counts['scored']}"

    def metrics(self, records: Records) -> dict[str, float]:
        """Accuracy over the scored sentences of each split that was asked about."""
        parts = self.parts(records)
        return {f"{split} accuracy": part["accuracy"] for split, part in parts.items() if part["sentences"]}

    def parts(self, records: Records) -> dict[str, dict]:
        """Per split: accuracy (of what was scored; and with all that was not scored taken as wrong), and counts."""
        rows = {split: Counter() for split in self.splits}
        for image, record in records.items():
            for expression in self.expressions.of_image[image]:
                rows[expression.split]["sentences"] += len(expression.sentences)
            for answer in record.get("answers", ()):
                rows[answer["split"]]["scored"] += "right" in answer
                rows[answer["split"]]["right"] += answer.get("right", False)
        return {split: _row(counts) for split, counts in rows.items()}

    def skipped(self, records: Records) -> list[Skipped]:
        """Broken lines, images that are not there, sentences that could not be answered as they should be."""
        found = list(self.expressions.skipped)
        for image, record in records.items():
            if "unreadable" in record:
                kind, reason = record["unreadable"]
                sentences = sum(len(e.sentences) for e in self.expressions.of_image[image])
                found.append(Skipped(image, kind, f"{reason}; {sentences} sentences"))
                continue
            for expression in self.expressions.of_image[image]:
                if expression.snaps and expression.sentences and not expression.candidates:
                    found.append(Skipped(expression.name, "no detections", "boxes are not snapped", SCORED))
            for answer in record["answers"]:
                found += [Skipped(answer["id"], *note) for note in answer["notes"]]
        return found

    def predictions(self, records: Records) -> Iterator[dict]:
        """Image, sentence, chosen region and its mask, boxes, IoU, verdict."""
        for image, record in records.items():
            for answer in record.get("answers", ()):
                yield {"image": image, **answer}

    def sheets(self, records: Records, count: int) -> dict[str, Image.Image]:
        """right.png and wrong.png: the first cases of each."""
        return contact_sheets(self.images, records, count)


def answer_sentence(
    segmenter: TextRegionSegmenter, regions: RegionTokens, expression: Expression, number: int
) -> Record:
    """The region a sentence refers to, its box, snapped if asked for, and whether that is right.

    A sentence without words gets no verdict; one for which there is no region is wrong.
    """
    sentence = expression.sentences[number]
    answer: Record = {
        "id": f"{expression.name}, sentence {number + 1}",
        "split": expression.split,
        "line": expression.line,
        "sentence": sentence,
        "gold": expression.gold,
        "notes": [],
    }
    if not sentence.strip():
        answer["notes"].append(["empty sentence", "it has no words"])
        return answer
    if too_long(segmenter, sentence.lower()):
        answer["notes"].append(["long sentence", "its end may lie beyond the model's context", SCORED])
    found = segmenter.refer(regions, sentence)
    if found.box is None:
        answer["notes"].append(["no region found", f"{len(regions)} regions, no box", WRONG])
        return {**answer, "region": found.region, "box": None, "iou": 0.0, "right": False}
    box, detection = snap(found.box, expression.candidates) if expression.snaps else (found.box, None)
    iou = float(box_ious(box, expression.gold).max())
    return {
        **answer,
        "region": found.region,
        "score": found.score,
        "region_box": found.box,
        "box": box,
        "detection": detection,
        "iou": iou,
        "right": is_hit(iou),
        "mask": to_rle(found.mask),
    }


def _row(counts: Counter) -> dict[str, float]:
    sentences, scored, right = (counts[name] for name in ("sentences", "scored", "right"))
    return {
        "accuracy": 100 * right / scored if scored else float("nan"),
        "accuracy, unscored as wrong": 100 * right / sentences if sentences else float("nan"),
        "sentences": sentences,
        "scored": scored,
        "right": right,
    }
