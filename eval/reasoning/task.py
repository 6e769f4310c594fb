"""Reasoning segmentation: one question an image, the described thing against everything else (method 11).

The program is eval_reason_seg.py.
"""

import argparse
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from eval.contact_sheet import FOUND, GROUND_TRUTH, RgbImage, beside, contour, spotlight
from eval.reasoning.data import (
    IGNORED,
    SPLITS,
    Question,
    find_items,
    find_split,
    iou_metrics,
    item_iou,
    overlap,
    paint,
    read_answer,
    read_question,
)
from eval.results import SCORED, Skipped
from eval.tasks import Record, Records, Task, image_file, long_notes, run_task, shared_arguments
from textregion.cli.command_line import Parser, boolean
from textregion.errors import InputError
from textregion.grounding import ANY_OTHER_THING, ANYTHING_BUT, TARGET, nearest, target_prompts
from textregion.images import load_image
from textregion.presets import TINY_WORLD, find_preset
from textregion.render import from_rle, to_rle
from textregion.segmenter import TextRegionSegmenter

PUBLISHED = {"scale": (2016, 672), "recipe": "semantic-fp32", "min_size": 0, "antialias": False}
QUERY_TYPES = ("overall", "short", "long")
EXAMPLES = """examples:
  python eval_reason_seg.py --dataset_dir ReasonSeg --interpreted_query_dir answers
  python eval_reason_seg.py --dataset_dir ReasonSeg --splits val
  python -m eval.prepare.tiny_tasks
  python eval_reason_seg.py --preset tiny --dataset_dir data/tiny_tasks/reasoning \\
      --interpreted_query_dir data/tiny_tasks/answers --visualize 8
  torchrun --nproc_per_node 4 eval_reason_seg.py …     (four GPUs, or four CPU processes)"""


@dataclass(frozen=True)
class Item:
    """One image and its question. target: the words that are looked for."""

    path: Path
    split: str
    question: Question
    target: str


class ReasoningTask(Task):
    """ReasonSeg's chosen splits, from one pass.

    root: the data set. answers: folder of interpreted answers, None to ask with the question's own words.
    query_type: "overall", "short" or "long" questions only. placeholder: words for everything else, in which
    {target} stands for the target; None as published. InputError when a folder is missing.
    """

    name = "reasoning segmentation"
    benchmark = "reason_seg"
    part = "split"
    published = PUBLISHED
    sheet_titles = ("Right (IoU above 0.5)", "Wrong (IoU at most 0.5)")
    sheet_note = "Left, green: truth; white: pixels that do not count. Right, in colour: what was found."

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
        self.items_by_name: dict[str, Item] = {}
        for split in splits:
            for path in find_items(find_split(root, split)):
                self._add(path, split)

    def _add(self, path: Path, split: str) -> None:
        name = f"{split}/{path.name}"
        try:
            question = read_question(path.with_suffix(".json"))
            if self.query_type in ("overall", question.kind):
                target = question.text.lower()
                if self.answers is not None:
                    target = target_words(read_answer(self.answers, split, path.stem), question)
                self.items_by_name[name] = Item(path, split, question, target)
        except InputError as error:
            self.unusable.append(Skipped(name, "unusable annotation", str(error)))

    def items(self) -> list[str]:
        """The images as <split>/<name>, sorted within a split."""
        return list(self.items_by_name)

    def settings(self) -> dict:
        """Splits, words, and a hash of targets and polygons."""
        told = [
            (name, item.target, item.question.kind, [(one.label, one.points.tolist()) for one in item.question.shapes])
            for name, item in self.items_by_name.items()
        ]
        digest = hashlib.sha256(repr(told).encode()).hexdigest()[:16]
        asked = "interpreted answers" if self.answers is not None else "questions"
        chosen = {"splits": list(self.splits), "query_type": self.query_type}
        return {**chosen, "asked": asked, "others": self.others, "annotations": digest}

    def answer(self, segmenter: TextRegionSegmenter, item: str) -> Record:
        """Intersection and union in pixels, the found mask and notes."""
        asked = self.items_by_name[item]
        with image_file(asked.path):
            pixels = load_image(asked.path)
            regions = segmenter.encode_image(pixels)
        queries = target_prompts(asked.target, self.others).queries
        for query in queries:  # one by one, so that no number depends on what was asked before
            segmenter.encode_text([query])
        notes = long_notes(segmenter, queries)
        if len(regions) == 0:
            notes.append(["no region found", "everything is background", SCORED])
        ground_truth = paint(asked.question.shapes, pixels.shape[:2])
        label_map = segmenter.reason(regions, asked.target, self.others).label_map
        found = nearest(label_map == TARGET, ground_truth.shape)
        intersection, union = overlap(found, ground_truth)
        return {
            "notes": notes,
            "intersection": intersection,
            "union": union,
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
                    records[name]
                    for name, item in self.items_by_name.items()
                    if name in records and item.split == split and kind in ("overall", item.question.kind)
                ]
                scored = [(record["intersection"], record["union"]) for record in chosen if "union" in record]
                rows[f"{split} {kind}"] = {**iou_metrics(scored), "items": len(chosen), "scored": len(scored)}
        return rows

    def predictions(self, records: Records) -> Iterator[dict]:
        """Image, text, target, found mask and its box, IoU, verdict (IoU > 0.5)."""
        for name, record in records.items():
            if "union" in record:
                iou = item_iou(record["intersection"], record["union"])
                item = self.items_by_name[name]
                told = {
                    "image": name,
                    "sentence": item.question.text,
                    "target": item.target,
                    "kind": item.question.kind,
                }
                yield {**told, "iou": iou, "right": iou > 0.5, **record}

    def cell(self, answer: dict) -> tuple[RgbImage, list[str]]:
        """The image with the ground truth's outline, ignored pixels in white; beside it what was found; the words."""
        item = self.items_by_name[answer["image"]]
        image = load_image(item.path)
        ground_truth = paint(item.question.shapes, image.shape[:2])
        meant = contour(image, ground_truth == 1, GROUND_TRUTH)
        meant[ground_truth == IGNORED] = 255
        caption = [f"“{answer['sentence']}”"]
        if answer["target"] != answer["sentence"].lower():
            caption.append(f"looked for: {answer['target']}")
        caption.append(f"{answer['kind']}, IoU {answer['iou']:.2f}")
        return beside(meant, spotlight(image, from_rle(answer["mask"]), FOUND)), caption


def target_words(answer: str, question: Question) -> str:
    """What is looked for: the answer, and for a short question the answer and the question; in lower case."""
    return (answer if question.kind == "long" else f"{answer}, {question.text}").lower()


def parser() -> Parser:
    """The flags."""
    made = Parser(
        prog="eval_reason_seg.py",
        description="Reasoning segmentation on ReasonSeg: gIoU and cIoU of short, long and all questions, in one pass.",
        epilog=EXAMPLES,
    )
    add = made.add_argument_group("the data").add_argument
    add("--dataset_dir", type=Path, required=True, metavar="DIR", help="with val/ and test/: images and their JSON")
    add("--interpreted_query_dir", type=Path, metavar="DIR", help="<split>/<name>.json or <name>.json with answers[0]")
    add(
        "--use_interpreted_query",
        type=boolean,
        nargs="?",
        const=True,
        metavar="BOOL",
        help="look for the interpreted answers, not the questions (default: when their folder is given)",
    )
    add("--splits", nargs="+", choices=SPLITS, default=list(SPLITS), metavar="SPLIT", help="val, test (default both)")
    add("--eval_query_type", choices=QUERY_TYPES, default="overall", help="ask only some questions (default overall)")
    add(
        "--placeholder",
        metavar="WORDS",
        help=f'words for everything else; {{target}} is replaced (default "{ANYTHING_BUT}" with interpreted answers; '
        f'without, and for preset tiny, which has not learned "anything but": "{ANY_OTHER_THING}")',
    )
    shared_arguments(made, "scale 2016 672, recipe semantic-fp32, min_size 0, antialias False")
    return made


def make_task(options: argparse.Namespace) -> ReasoningTask:
    """The task that the flags describe; InputError for missing data."""
    interpreted = options.use_interpreted_query
    if interpreted and options.interpreted_query_dir is None:
        raise InputError("got --use_interpreted_query without --interpreted_query_dir; give the folder of the answers")
    answers = None if interpreted is False else options.interpreted_query_dir
    splits = list(dict.fromkeys(options.splits))
    placeholder = options.placeholder
    if placeholder is None and options.preset and find_preset(options.preset).backbone == TINY_WORLD:
        placeholder = ANY_OTHER_THING
    return ReasoningTask(options.dataset_dir, splits, answers, options.eval_query_type, placeholder)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_task(parser(), make_task, "reason_seg", arguments)
