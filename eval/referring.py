"""Referring expressions: one region for every sentence, its box compared with the ground truth's (method 10).

The program is eval_referring.py. The data are RefCOCO, RefCOCO+ and RefCOCOg in their preprocessed layout:
<split>.jsonl and <dataset>_dets_dict.json. All boxes are (x, y, width, height) in pixels.
"""

import argparse
import hashlib
import json
import math
import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType

from eval.contact_sheet import FOUND, GROUND_TRUTH, RgbImage, beside, spotlight
from eval.results import SCORED, WRONG, Skipped
from eval.tasks import Record, Records, Task, image_file, long_notes, percent, run_task, shared_arguments
from textregion.cli.command_line import Parser
from textregion.errors import InputError
from textregion.image_names import id_key
from textregion.images import load_image
from textregion.labeling import Box, box_ious, is_hit, snap
from textregion.outputs.pictures import draw_box
from textregion.render import from_rle, to_rle
from textregion.segmenter import TextRegionSegmenter
from textregion.storage import read_json
from textregion.types import RegionTokens

COCO_SPLITS = [f"{dataset}_{split}" for dataset in ("refcoco", "refcoco+") for split in ("val", "testa", "testb")]
SPLITS = (*COCO_SPLITS, "refcocog_val", "refcocog_test")
PROPOSALS = ("detections", "gt", "none")
PLAIN_COCO = re.compile(r"COCO_[a-z0-9]+_\d{12}\.\w+")  # nothing to cut
PUBLISHED = {"scale": (2016, 2016), "recipe": "demo", "antialias": True}
EXAMPLES = """examples:
  python eval_referring.py --input_file_root reclip_data --image_root train2014
  python -m eval.prepare.tiny_tasks
  python eval_referring.py --preset tiny --input_file_root data/tiny_tasks/referring \\
      --image_root data/tiny_tasks/referring/images --visualize 8
  torchrun --nproc_per_node 4 eval_referring.py …     (four GPUs, or four CPU processes)"""


@dataclass(frozen=True)
class Expression:
    """One line of a split: a thing in an image, and the sentences that refer to it.

    image: file name below the image root. ground_truth: boxes of the thing, any of which counts. candidates: boxes
    an answer is snapped to. snaps: whether an answer is snapped at all.
    """

    split: str
    line: int
    image: str
    ground_truth: tuple[Box, ...]
    candidates: tuple[Box, ...]
    sentences: tuple[str, ...]
    snaps: bool = True

    @property
    def name(self) -> str:
        """How reports call it."""
        return f"{self.split} line {self.line}"


class ReferringTask(Task):
    """One pass over the images of any splits, whatever number of splits and sentences share an image.

    root: folder of the annotations. images: folder of the images. proposals: what boxes are snapped to.
    InputError when a file is missing.
    """

    name = "referring expressions"
    benchmark = "refcoco"
    part = "split"
    published = PUBLISHED
    sheet_note = (
        "Left, green: gold box. Right, in colour: the chosen region; pink: its outline and the box that was scored."
    )

    def __init__(self, root: Path, images: Path, splits: Sequence[str], proposals: str = "detections") -> None:
        self.root, self.images, self.splits, self.proposals = root, images, tuple(splits), proposals
        self.expressions, self.unusable = read_splits(root, splits, proposals)

    def items(self) -> list[str]:
        """The images, in order of first appearance."""
        return [name for name, asked in self.expressions.items() if any(e.sentences for e in asked)]

    def settings(self) -> dict:
        """Splits, proposals, and a hash of the annotations."""
        digest = hashlib.sha256(repr(self.expressions).encode()).hexdigest()[:16]
        return {"splits": list(self.splits), "proposals": self.proposals, "annotations": digest}

    def roots(self) -> dict[str, Path]:
        """Annotations and images."""
        return {"annotations_root": self.root, "image_root": self.images}

    def files(self, item: str) -> list[Path]:
        """The image."""
        return [self.images / item]

    def image_row(self, item: str, record: Record) -> dict[str, float]:
        """Accuracy on the image's sentences, and the counts that it is made of."""
        counts, sentences = self.count(record), len(record["answers"])
        row = {"accuracy": percent(counts["right"], counts["scored"]), "sentences": sentences}
        return {**row, "scored": counts["scored"], "right": counts["right"], "regions": record["regions"]}

    def answer(self, segmenter: TextRegionSegmenter, item: str) -> Record:
        """{"answers": one per sentence, in order, "regions": R}."""
        with image_file(self.images / item):
            regions = segmenter.encode_image(self.images / item)
        numbered = [(asked, number) for asked in self.expressions[item] for number in range(len(asked.sentences))]
        return {"regions": len(regions), "answers": [answer_sentence(segmenter, regions, *one) for one in numbered]}

    def count(self, record: Record) -> Counter:
        """Sentences that are right, and that are scored."""
        verdicts = [answer["right"] for answer in record.get("answers", ()) if "right" in answer]
        return Counter(right=sum(verdicts), scored=len(verdicts))

    def running(self, counts: Counter) -> str:
        """Accuracy so far."""
        return f"accuracy {100 * counts['right'] / max(counts['scored'], 1):.1f} % of {counts['scored']}"

    def metrics(self, records: Records) -> dict[str, float]:
        """Accuracy over the scored sentences of each split that was asked about."""
        parts = self.parts(records)
        return {f"{split} accuracy": part["accuracy"] for split, part in parts.items() if part["sentences"]}

    def scored(self, records: Records) -> int:
        """The scored sentences."""
        return sum(self.count(record)["scored"] for record in records.values())

    def parts(self, records: Records) -> dict[str, dict]:
        """Per split: accuracy (of what was scored; and with all that was not scored taken as wrong), and counts."""
        rows = {}
        for split in self.splits:
            sentences = sum(len(e.sentences) for image in records for e in self.expressions[image] if e.split == split)
            answers = [answer for record in records.values() for answer in record.get("answers", ())]
            verdicts = [answer["right"] for answer in answers if answer["split"] == split and "right" in answer]
            scored, right = len(verdicts), sum(verdicts)
            shares = {"accuracy": percent(right, scored), "accuracy, unscored as wrong": percent(right, sentences)}
            rows[split] = {**shares, "sentences": sentences, "scored": scored, "right": right}
        return rows

    def asked(self, item: str) -> str:
        """The sentences about an image."""
        return f"; {sum(len(expression.sentences) for expression in self.expressions[item])} sentences"

    def noted(self, item: str, record: Record) -> list[Skipped]:
        """Boxes that cannot be snapped, sentences that could not be answered as they should be."""
        unsnapped = [e for e in self.expressions[item] if e.snaps and e.sentences and not e.candidates]
        found = [Skipped(e.name, "no detections", "boxes are not snapped", SCORED) for e in unsnapped]
        return found + [Skipped(answer["id"], *note) for answer in record["answers"] for note in answer["notes"]]

    def predictions(self, records: Records) -> Iterator[dict]:
        """Image, sentence, chosen region and its mask, boxes, IoU, verdict."""
        answers = ((image, answer) for image, record in records.items() for answer in record.get("answers", ()))
        return ({"image": image, **answer} for image, answer in answers)

    def cell(self, answer: dict) -> tuple[RgbImage, list[str]]:
        """The image with the ground truth's boxes, beside it the chosen region and the scored box; the sentence."""
        image = meant = load_image(self.images / answer["image"])
        for box in answer["gold"]:
            meant = draw_box(meant, tuple(box), GROUND_TRUTH)
        found = draw_box(spotlight(image, from_rle(answer["mask"]), FOUND), tuple(answer["box"]), FOUND)
        snapped = "" if answer["detection"] is None else f", detection {answer['detection']}"
        return beside(meant, found), [f"“{answer['sentence']}”", f"IoU {answer['iou']:.2f}{snapped}"]


def answer_sentence(
    segmenter: TextRegionSegmenter, regions: RegionTokens, expression: Expression, number: int
) -> Record:
    """The region a sentence refers to, its box, snapped if asked for, and whether that is right.

    A sentence without words gets no verdict; one for which there is no region is wrong.
    """
    sentence, notes = expression.sentences[number], []
    answer = {"id": f"{expression.name}, sentence {number + 1}", "split": expression.split, "line": expression.line}
    answer |= {"sentence": sentence, "gold": expression.ground_truth, "notes": notes}
    if not sentence.strip():
        notes.append(["empty sentence", "it has no words"])
        return answer
    notes += long_notes(segmenter, [sentence.lower()])
    found = segmenter.refer(regions, sentence, published=True)
    answer["region"] = found.region
    if found.box is None:
        notes.append(["no region found", f"{len(regions)} regions, no box", WRONG])
        return {**answer, "box": None, "iou": 0.0, "right": False}
    box, detection = snap(found.box, expression.candidates) if expression.snaps else (found.box, None)
    iou = float(box_ious(box, expression.ground_truth).max())
    answer |= {"score": found.score, "region_box": found.box, "box": box, "detection": detection}
    return {**answer, "iou": iou, "right": is_hit(iou), "mask": to_rle(found.mask)}


# ---------------------------------------------------------------------- the data


def find_splits(root: Path, chosen: Sequence[str] | None = None) -> list[str]:
    """The chosen splits, or all that are there; InputError when one (or every one) is not there."""
    if not root.is_dir():
        raise InputError(f"no folder {root}; expected one with {SPLITS[0]}.jsonl and others (docs/tasks.md)")
    there = [split for split in SPLITS if (root / f"{split}.jsonl").is_file()]
    if chosen is None and not there:
        raise InputError(f"{root} has none of {', '.join(f'{split}.jsonl' for split in SPLITS)}")
    for split in chosen or ():
        if split not in there:
            raise InputError(f"no file {root / split}.jsonl; there are: {', '.join(there) or 'none'}")
    return list(dict.fromkeys(chosen or there))


def read_splits(
    root: Path, splits: Sequence[str], proposals: str = "detections"
) -> tuple[dict[str, list[Expression]], list[Skipped]]:
    """All expressions of some splits, by image in order of first appearance, and the lines that could not be used.

    A line that is there twice counts once. InputError for a missing file.
    """
    expressions: dict[str, list[Expression]] = {}
    unusable: list[Skipped] = []
    datasets = dict.fromkeys(split.rsplit("_", 1)[0] for split in splits if proposals == "detections")
    detections = {dataset: read_detections(root / f"{dataset}_dets_dict.json") for dataset in datasets}
    for split in splits:
        first: dict[bytes, int] = {}
        for number, line in enumerate((root / f"{split}.jsonl").read_bytes().split(b"\n"), start=1):
            line = line.removeprefix(BOM_UTF8).strip()
            if not line:
                continue
            if first.setdefault(line, number) != number:
                told = f"the same as line {first[line]}"
                unusable.append(Skipped(f"{split} line {number}", "repeated line", told, "counted once"))
                continue
            try:
                expression = read_line(line, split, number, proposals, detections.get(split.rsplit("_", 1)[0], {}))
            except InputError as error:
                unusable.append(Skipped(f"{split} line {number}", "broken line", str(error)))
                continue
            expressions.setdefault(expression.image, []).append(expression)
            if not expression.sentences:
                unusable.append(Skipped(expression.name, "no sentences", "the list of sentences is empty"))
    return expressions, unusable


def read_line(line: bytes, split: str, number: int, proposals: str, detections: dict) -> Expression:
    """One line of <split>.jsonl. Ids may be numbers or text; a sentence of null has no words.

    InputError when it is no JSON, lacks a field, has two boxes of one id, or its ann_id has no box.
    """
    try:
        datum = json.loads(line.decode("utf-8"))
        boxes: dict[str, Box] = {}
        for annotation in datum["anns"]:
            box = as_box(annotation["bbox"])
            if boxes.setdefault(id_key(annotation["id"]), box) != box:
                raise ValueError(f"the annotation {annotation['id']} has two boxes")
        wanted = datum["ann_id"] if isinstance(datum["ann_id"], list) else [datum["ann_id"]]
        ground_truth = tuple(boxes[key] for key in map(id_key, wanted) if key in boxes)
        sentences = tuple(_words(sentence["raw"]) for sentence in datum["sentences"])
        image, image_id = image_name(datum["file_name"]), id_key(datum["image_id"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"not as expected ({type(error).__name__}: {error})") from error
    if not ground_truth:
        raise InputError(f"none of ann_id {wanted} is among the {len(boxes)} anns")
    candidates = tuple(boxes.values()) if proposals == "gt" else detections.get(image_id, ())
    return Expression(split, number, image, ground_truth, candidates, sentences, snaps=proposals != "none")


def _words(raw: object) -> str:
    if not isinstance(raw, (str, NoneType)):
        raise TypeError(f"got the sentence {raw!r}, expected text")
    return raw or ""


def image_name(file_name: str) -> str:
    """The image's own name: of COCO names the last "_"-part, the annotation's number, is cut (method 10).

    COCO_train2014_000000581857_16.jpg -> COCO_train2014_000000581857.jpg. Other names stay. "/" between folders,
    also where the file has Windows' separator.
    """
    folder, slash, name = file_name.replace("\\", "/").rpartition("/")
    if "coco" in name.lower() and not PLAIN_COCO.fullmatch(name):
        name = name.rsplit("_", 1)[0] + ".jpg"
    return f"{folder}{slash}{name}"


def read_detections(path: Path) -> dict[str, tuple[Box, ...]]:
    """Detected boxes by image (`id_key`), in both formats: {image id: [xywh, …]}, or [{"image_id", "box"}, …].

    InputError when the file is missing or something else.
    """
    if not path.is_file():
        raise InputError(f"no detections {path}; put them there, or run with --proposals gt or none")
    found: dict[str, list[Box]] = {}
    content = read_json(path, "detected boxes by image id")
    try:
        if isinstance(content, dict):
            rows = [(image_id, row) for image_id, boxes in content.items() for row in boxes]
        else:
            rows = [(row["image_id"], row) for row in content]
        for image_id, row in rows:
            found.setdefault(id_key(image_id), []).append(as_box(row["box"] if isinstance(row, dict) else row))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a JSON file of detections ({type(error).__name__}: {error})") from error
    return {image_id: tuple(boxes) for image_id, boxes in found.items()}


def as_box(numbers: Sequence[float]) -> Box:
    """Four finite numbers (x, y, width, height); ValueError otherwise."""
    try:
        box = tuple(float(number) for number in numbers)
    except OverflowError as error:
        raise ValueError("a box with a number too large for one") from error
    if len(box) != 4 or not all(math.isfinite(number) for number in box):
        raise ValueError(f"got the box {numbers!r}, expected x, y, width, height")
    return box


# ---------------------------------------------------------------------- the program


def parser() -> Parser:
    """The flags."""
    made = Parser(
        prog="eval_referring.py",
        description="Referring expressions on RefCOCO, RefCOCO+, RefCOCOg: accuracy of the chosen boxes (IoU > 0.5).",
        epilog=EXAMPLES,
    )
    add = made.add_argument_group("the data").add_argument
    files = "with <split>.jsonl, <dataset>_dets_dict.json"
    add("--input_file_root", type=Path, required=True, metavar="DIR", help=files)
    add("--image_root", type=Path, required=True, metavar="DIR", help="COCO's images (train2014)")
    add("--splits", nargs="+", choices=SPLITS, metavar="SPLIT", help=f"of {', '.join(SPLITS)} (default: all there)")
    boxes = "boxes that answers snap to: detections, gt (those of the annotations) or none (default detections)"
    add("--proposals", choices=PROPOSALS, default="detections", help=boxes)
    shared_arguments(made, "scale 2016 2016, recipe demo, antialias True")
    return made


def make_task(options: argparse.Namespace) -> ReferringTask:
    """The task that the flags describe; InputError for missing data."""
    splits = find_splits(options.input_file_root, options.splits)
    return ReferringTask(options.input_file_root, options.image_root, splits, options.proposals)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_task(parser(), make_task, "referring", arguments)
