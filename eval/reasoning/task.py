"""Reasoning segmentation: one question an image, the described thing against everything else (method 11)."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from eval.reasoning.data import Question, find_items, find_split, paint, read_answer, read_question
from eval.reasoning.pictures import contact_sheets
from eval.reasoning.scores import figures, item_iou, overlap
from eval.skipped import SCORED, Skipped
from eval.tasks import Record, Records, odd_image, to_rle, too_long
from textregion.errors import InputError
from textregion.grounding import ANY_OTHER_THING, ANYTHING_BUT, TARGET, nearest, target_prompts
from textregion.images import load_image
from textregion.segmenter import TextRegionSegmenter

PUBLISHED = {"scale": (2016, 672), "recipe": "semantic-fp32", "min_size": 0, "antialias": False}
QUERY_TYPES = ("overall", "short", "long")


@dataclass(frozen=True)
class Item:
    """One image and its question. target: the words that are looked for."""

    path: Path
    split: str
    question: Question
    target: str

    @property
    def kind(self) -> str:
        """Whether the question is short or long."""
        return "long" if self.question.is_sentence else "short"


class ReasoningTask:
    """ReasonSeg's chosen splits, from one pass.

    root: the data set. answers: folder of interpreted answers, None to ask with the question's own words.
    query_type: "overall", "short" or "long" questions only. placeholder: words for everything else, in which
    {target} stands for the target; None as published. InputError when a folder is missing.
    """

    name = "reasoning segmentation"
    benchmark = "reason_seg"
    part = "split"
    published = PUBLISHED

    def __init__(
        self,
        root: Path,
        splits: Sequence[str],
        answers: Path | None = None,
        query_type: str = "overall",
        placeholder: str | None = None,
    ) -> None:
        if answers is not None and not answers.is_dir():
            raise InputError(f"no folder {answers} of interpreted queries; leave it out to ask with the questions")
        self.splits, self.answers, self.query_type = tuple(splits), answers, query_type
        self.others = placeholder or (ANY_OTHER_THING if answers is None else ANYTHING_BUT)
        self.unusable: list[Skipped] = []
        self.found: dict[str, Item] = {}
        for split in splits:
            for path in find_items(find_split(root, split)):
                self._add(path, split)

    def _add(self, path: Path, split: str) -> None:
        name = f"{split}/{path.name}"
        try:
            question = read_question(path.with_suffix(".json"))
            if self.query_type == "overall" or (self.query_type == "long") == question.is_sentence:
                self.found[name] = Item(path, split, question, self._target(question, split, path.stem))
        except InputError as error:
            self.unusable.append(Skipped(name, "unusable annotation", str(error)))

    def _target(self, question: Question, split: str, name: str) -> str:
        if self.answers is None:
            return question.text.lower()
        return target_words(read_answer(self.answers, split, name), question)

    def items(self) -> list[str]:
        """The images as <split>/<name>, sorted within a split."""
        return list(self.found)

    def settings(self) -> dict:
        """Splits, words, and a hash of targets and polygons."""
        told = [
            (name, item.target, item.kind, [(shape.label, shape.points.tolist()) for shape in item.question.shapes])
            for name, item in self.found.items()
        ]
        digest = hashlib.sha256(repr(told).encode()).hexdigest()[:16]
        asked = "interpreted answers" if self.answers is not None else "questions"
        chosen = {"splits": list(self.splits), "query_type": self.query_type}
        return {**chosen, "asked": asked, "others": self.others, "annotations": digest}

    def answer(self, segmenter: TextRegionSegmenter, item: str) -> Record:
        """Intersection and union in pixels, the found mask and notes; or {"unreadable": [kind, reason]}."""
        record: Record = {}
        asked = self.found[item]
        with odd_image(record, asked.path):
            pixels = load_image(asked.path)
            regions = segmenter.encode_image(pixels)
        if "unreadable" in record:
            return record
        queries = target_prompts(asked.target, self.others).queries
        record["notes"] = []
        for query in queries:  # one by one, so that no number depends on what was asked before
            segmenter.encode_text([query])
        if any(too_long(segmenter, query) for query in queries):
            record["notes"].append(["long sentence", "its end may lie beyond the model's context", SCORED])
        if len(regions) == 0:
            record["notes"].append(["no region found", "everything is background", SCORED])
        truth = paint(asked.question.shapes, pixels.shape[:2])
        found = nearest(segmenter.reason(regions, asked.target, self.others).label_map == TARGET, truth.shape)
        record["intersection"], record["union"] = overlap(found, truth)
        return {
            **record,
            "regions": len(regions),
            "box": list(cv2.boundingRect(found.astype(np.uint8))),
            "mask": to_rle(found),
        }

    def count(self, record: Record) -> Counter:
        """What gIoU and cIoU are made of."""
        if "union" not in record:
            return Counter()
        one = record["intersection"], record["union"]
        return Counter(items=1, iou=item_iou(*one), intersection=one[0], union=one[1])

    def running(self, counts: Counter) -> str:
        """gIoU and cIoU so far."""
        giou, ciou = counts["iou"] / max(counts["items"], 1), counts["intersection"] / max(counts["union"], 1)
        return f"gIoU {100 * giou:.1f} cIoU {100 * ciou:.1f}"

    def metrics(self, records: Records) -> dict[str, float]:
        """gIoU and cIoU of every split over all its questions, and over the short and the long ones."""
        parts = {part: row for part, row in self.parts(records).items() if row["items"]}
        return {f"{part} {name}": row[name] for part, row in parts.items() for name in ("gIoU", "cIoU")}

    def parts(self, records: Records) -> dict[str, dict]:
        """{"val overall": {"gIoU", "cIoU", "items", "scored"}, "val short": …, "val long": …, …}."""
        rows = {}
        for split in self.splits:
            for kind in QUERY_TYPES if self.query_type == "overall" else (self.query_type,):
                chosen = [
                    record
                    for name, record in records.items()
                    if self.found[name].split == split and kind in ("overall", self.found[name].kind)
                ]
                scored = [(record["intersection"], record["union"]) for record in chosen if "union" in record]
                rows[f"{split} {kind}"] = {**figures(scored), "items": len(chosen), "scored": len(scored)}
        return rows

    def skipped(self, records: Records) -> list[Skipped]:
        """Annotations that could not be used, images that are not there, answers that are not as they should be."""
        found = list(self.unusable)
        for name, record in records.items():
            if "unreadable" in record:
                found.append(Skipped(name, *record["unreadable"]))
            found += [Skipped(name, *note) for note in record.get("notes", ())]
        return found

    def predictions(self, records: Records) -> Iterator[dict]:
        """Image, text, target, found mask and its box, IoU, verdict (IoU > 0.5)."""
        for name, record in records.items():
            if "union" in record:
                iou = item_iou(record["intersection"], record["union"])
                item = self.found[name]
                told = {"image": name, "sentence": item.question.text, "target": item.target, "kind": item.kind}
                yield {**told, "iou": iou, "right": iou > 0.5, **record}

    def sheets(self, records: Records, count: int) -> dict[str, Image.Image]:
        """right.png and wrong.png: the first cases above and below an IoU of one half."""
        return contact_sheets(self.found, list(self.predictions(records)), count)


def target_words(answer: str, question: Question) -> str:
    """What is looked for: the answer, and for a short question the answer and the question; in lower case."""
    return (answer if question.is_sentence else f"{answer}, {question.text}").lower()
