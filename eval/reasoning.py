"""Reasoning segmentation: one question an image, the described thing against everything else (method 11).

The program is eval_reason_seg.py. ReasonSeg lies on disk as <split>/<name>.jpg beside <name>.json with polygons and
questions; it is scored by gIoU and cIoU.
"""

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Int32, UInt8

from eval.contact_sheet import FOUND, GROUND_TRUTH, RgbImage, beside, contour, spotlight
from eval.results import SCORED, Skipped
from eval.tasks import Record, Records, Task, image_file, long_notes, percent, run_task, shared_arguments
from textregion.cli.command_line import Parser, boolean
from textregion.errors import InputError
from textregion.images import load_image
from textregion.labeling import ANY_OTHER_THING, ANYTHING_BUT, TARGET, nearest, target_prompts
from textregion.presets import TINY_WORLD, find_preset
from textregion.render import from_rle, to_rle
from textregion.segmenter import TextRegionSegmenter

SPLITS = ("val", "test")
IMAGES = (".jpg", ".jpeg", ".png")
IGNORED = 255
EPSILON = 1e-5
QUERY_TYPES = ("overall", "short", "long")
PUBLISHED = {"scale": (2016, 672), "recipe": "semantic-fp32", "min_size": 0, "antialias": False}
EXAMPLES = """examples:
  python eval_reason_seg.py --dataset_dir ReasonSeg --interpreted_query_dir answers
  python eval_reason_seg.py --dataset_dir ReasonSeg --splits val
  python -m eval.prepare.tiny_tasks
  python eval_reason_seg.py --preset tiny --dataset_dir data/tiny_tasks/reasoning \\
      --interpreted_query_dir data/tiny_tasks/answers --visualize 8
  torchrun --nproc_per_node 4 eval_reason_seg.py …     (four GPUs, or four CPU processes)"""


@dataclass(frozen=True)
class Shape:
    """A polygon: label as annotated, points (x, y) in whole pixels."""

    label: str
    points: Int32[np.ndarray, "N 2"]


@dataclass(frozen=True)
class Question:
    """What is asked of one image. text: the first text of the item. kind: "short", or "long" (a whole sentence)."""

    text: str
    kind: str
    shapes: tuple[Shape, ...]


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
        self.root, self.splits, self.answers, self.query_type = root, tuple(splits), answers, query_type
        self.others = placeholder or (ANY_OTHER_THING if answers is None else ANYTHING_BUT)
        self.unusable: list[Skipped] = []
        self.items_by_name: dict[str, Item] = {}
        images = [(split, path) for split in splits for path in find_items(find_split(root, split))]
        alike = Counter((split, path.stem) for split, path in images)
        in_splits = Counter(stem for _, stem in alike)
        for split, path in images:
            name = f"{split}/{path.name}"
            try:
                if alike[split, path.stem] > 1:
                    raise InputError(f"{alike[split, path.stem]} images have {path.stem}.json; leave one of them there")
                question = read_question(path.with_suffix(".json"))
                if query_type in ("overall", question.kind):
                    target = question.text.lower()
                    if answers is not None:
                        answer = read_answer(answers, split, path.stem, in_splits[path.stem] == 1)
                        target = target_words(answer, question)
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

    def roots(self) -> dict[str, Path | None]:
        """Images with their annotations, and the interpreted answers."""
        return {"dataset_dir": self.root, "answers_root": self.answers}

    def files(self, item: str) -> list[Path]:
        """The image."""
        return [self.items_by_name[item].path]

    def image_row(self, item: str, record: Record) -> dict[str, float]:
        """IoU and what it is made of."""
        one = record["intersection"], record["union"]
        counts = {"intersection": one[0], "union": one[1], "regions": record["regions"]}
        return {"IoU": 100 * item_iou(*one), **counts}

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
        label_map = segmenter.reason(regions, asked.target, self.others).label_map
        found = nearest(label_map == TARGET, pixels.shape[:2])
        intersection, union = overlap(found, paint(asked.question.shapes, pixels.shape[:2]))
        record = {"notes": notes, "intersection": intersection, "union": union, "regions": len(regions)}
        return {**record, "box": list(cv2.boundingRect(found.astype(np.uint8))), "mask": to_rle(found)}

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
                iou, item = item_iou(record["intersection"], record["union"]), self.items_by_name[name]
                asked = {"sentence": item.question.text, "target": item.target, "kind": item.question.kind}
                yield {"image": name, **asked, "iou": iou, "right": iou > 0.5, **record}

    def cell(self, answer: dict) -> tuple[RgbImage, list[str]]:
        """The image with the ground truth's outline, ignored pixels in white; beside it what was found; the words."""
        item = self.items_by_name[answer["image"]]
        image = load_image(item.path)
        ground_truth = paint(item.question.shapes, image.shape[:2])
        meant = contour(image, ground_truth == 1, GROUND_TRUTH)
        meant[ground_truth == IGNORED] = 255
        caption = [f"“{answer['sentence']}”", f"{answer['kind']}, IoU {answer['iou']:.2f}"]
        if answer["target"] != answer["sentence"].lower():
            caption.insert(1, f"looked for: {answer['target']}")
        return beside(meant, spotlight(image, from_rle(answer["mask"]), FOUND)), caption


def target_words(answer: str, question: Question) -> str:
    """What is looked for: the answer, and for a short question the answer and the question; in lower case."""
    return (answer if question.kind == "long" else f"{answer}, {question.text}").lower()


# ---------------------------------------------------------------------- the data


def find_split(root: Path, split: str) -> Path:
    """<root>/<split> or <root>/ReasonSeg/<split>; InputError when there is none."""
    for folder in (root / split, root / "ReasonSeg" / split):
        if folder.is_dir():
            return folder
    wanted = "unpack ReasonSeg there (docs/tasks.md), or choose other --splits"
    raise InputError(f"no folder {root / split}; {wanted}")


def find_items(folder: Path) -> list[Path]:
    """The images, sorted by name, and <name>.jpg for annotations whose image is not there. InputError for none.

    Hidden files, as macOS leaves them (._name.jpg), are none of either.
    """
    shown = [path for path in folder.iterdir() if not path.name.startswith(".")]
    images = [path for path in shown if path.suffix.lower() in IMAGES]
    stems = {path.stem for path in images}
    missing = [path.with_suffix(IMAGES[0]) for path in shown if path.suffix == ".json" and path.stem not in stems]
    if not images and not missing:
        raise InputError(f"{folder} has no images; unpack ReasonSeg there")
    return sorted([*images, *missing])


def read_json(path: Path) -> dict:
    """A JSON object in UTF-8, else Windows' cp1252. InputError when missing, or neither."""
    if not path.is_file():
        raise InputError(f"no file {path}")
    data = path.read_bytes()
    try:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252")
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON in UTF-8 or cp1252 ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__}, expected a JSON object")
    return content


def first_text(texts: str | Sequence[str] | None) -> str | None:
    """The text, or the first of a list of texts; None when there is no word in it."""
    if isinstance(texts, (list, tuple)):
        texts = texts[0] if texts else None
    return texts if isinstance(texts, str) and texts.strip() else None


def read_question(path: Path) -> Question:
    """One annotation file; InputError when it lacks a text or has a shape that is no polygon."""
    content = read_json(path)
    text = first_text(content.get("text"))
    if text is None:
        raise InputError(f"{path} has no text")
    try:
        shapes = tuple(Shape(_label(shape["label"]), _points(shape["points"])) for shape in content["shapes"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} has a shape that is no polygon ({type(error).__name__}: {error})") from error
    return Question(text, "long" if content.get("is_sentence") else "short", shapes)


def _label(label: object) -> str:
    if label is None:
        raise TypeError("got no label, expected the name of what is outlined")
    return str(label)


def _points(points: Sequence[Sequence[float]]) -> Int32[np.ndarray, "N 2"]:
    array = np.array(points, np.float64)
    if array.ndim != 2 or array.shape[1] != 2 or len(array) == 0 or not np.isfinite(array).all():
        raise ValueError(f"got points of shape {array.shape}, expected (N, 2) finite numbers")
    return array.astype(np.int32)  # cuts off decimals, as published


def read_answer(folder: Path, split: str, name: str, alone: bool = True) -> str:
    """The first interpreted answer of an item: `answers[0]` of <folder>/<split>/<name>.json or <folder>/<name>.json.

    alone: whether no other split has an item of that name; else the second file may be the answer to that one.
    InputError when there is no file or no answer in it.
    """
    paths = (folder / split / f"{name}.json", folder / f"{name}.json")
    path = next((path for path in paths if path.is_file()), paths[0])
    if path == paths[1] and not alone:
        raise InputError(f"{path} may be the answer to {name} of several splits; expected {paths[0]}")
    answer = first_text(read_json(path).get("answers"))
    if answer is None:
        raise InputError(f"{path} has no answers")
    return answer


def paint(shapes: Sequence[Shape], size: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
    """Ground truth: 1 target, 0 elsewhere, 255 pixels that do not count.

    "flag" shapes are left out. The others are painted, outline and inside, from the largest to the smallest area
    of what they paint (of equals the first listed comes last); a label with "ignore" in it paints 255.
    """
    painted = []
    for shape in shapes:
        if shape.label.lower() != "flag":
            outlined = cv2.polylines(np.zeros(size, np.uint8), [shape.points], isClosed=True, color=1, thickness=1)
            mask = cv2.fillPoly(outlined, [shape.points], 1) > 0
            painted.append((mask.sum(), mask, IGNORED if "ignore" in shape.label.lower() else 1))
    ground_truth = np.zeros(size, np.uint8)
    for _, mask, value in sorted(painted, key=lambda one: one[0])[::-1]:
        ground_truth[mask] = value
    return ground_truth


def overlap(found: Bool[np.ndarray, "H W"], ground_truth: UInt8[np.ndarray, "H W"]) -> tuple[int, int]:
    """(intersection, union) of the foreground in pixels; pixels whose ground truth is 255 do not count."""
    counted, wanted = ground_truth != IGNORED, ground_truth == 1
    return int((found & wanted).sum()), int(((found | wanted) & counted).sum())


def item_iou(intersection: int, union: int) -> float:
    """I / (U + 1e-5), 1 when the union is empty."""
    return intersection / (union + EPSILON) if union else 1.0


def iou_metrics(overlaps: Sequence[tuple[int, int]]) -> dict[str, float]:
    """{"gIoU": mean over the items, "cIoU": of all pixels together} in percent; NaN without any."""
    intersection, union = (sum(one[side] for one in overlaps) for side in (0, 1))
    giou = percent(sum(item_iou(*one) for one in overlaps), len(overlaps))
    return {"gIoU": giou, "cIoU": percent(intersection, union)}


# ---------------------------------------------------------------------- the program


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
    answers = "look for the interpreted answers, not the questions (default: when their folder is given)"
    add("--use_interpreted_query", type=boolean, nargs="?", const=True, metavar="BOOL", help=answers)
    add("--splits", nargs="+", choices=SPLITS, default=list(SPLITS), metavar="SPLIT", help="val, test (default both)")
    add("--eval_query_type", choices=QUERY_TYPES, default="overall", help="ask only some questions (default overall)")
    others = (
        f'words for everything else; {{target}} is replaced (default "{ANYTHING_BUT}" with interpreted answers; '
        f'without, and for preset tiny, which has not learned "anything but": "{ANY_OTHER_THING}")'
    )
    add("--placeholder", metavar="WORDS", help=others)
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
