"""Referring expressions: one region for every sentence, its box compared with the ground truth's (method 10).

The program is eval_referring.py.
"""

import argparse
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from eval.contact_sheet import FOUND, GROUND_TRUTH, RgbImage, beside, spotlight
from eval.referring.data import PROPOSALS, SPLITS, Expression, find_splits, read_splits
from eval.results import SCORED, WRONG, Skipped
from eval.tasks import Record, Records, Task, image_file, long_notes, percent, run_task, shared_arguments
from textregion.cli.command_line import Parser
from textregion.grounding import box_ious, is_hit, snap
from textregion.images import load_image
from textregion.outputs.pictures import draw_box
from textregion.render import from_rle, to_rle
from textregion.segmenter import TextRegionSegmenter
from textregion.types import RegionTokens

PUBLISHED = {"scale": (2016, 2016), "recipe": "demo", "antialias": True}
EXAMPLES = """examples:
  python eval_referring.py --input_file_root reclip_data --image_root train2014
  python -m eval.prepare.tiny_tasks
  python eval_referring.py --preset tiny --input_file_root data/tiny_tasks/referring \\
      --image_root data/tiny_tasks/referring/images --visualize 8
  torchrun --nproc_per_node 4 eval_referring.py …     (four GPUs, or four CPU processes)"""


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
        self.images, self.splits, self.proposals = images, tuple(splits), proposals
        self.expressions, self.unusable = read_splits(root, splits, proposals)

    def items(self) -> list[str]:
        """The images, in order of first appearance."""
        return [name for name, asked in self.expressions.items() if any(e.sentences for e in asked)]

    def settings(self) -> dict:
        """Splits, proposals, and a hash of the annotations."""
        digest = hashlib.sha256(repr(self.expressions).encode()).hexdigest()[:16]
        return {"splits": list(self.splits), "proposals": self.proposals, "annotations": digest}

    def answer(self, segmenter: TextRegionSegmenter, item: str) -> Record:
        """{"answers": one per sentence, in order, "regions": R}."""
        path = self.images / item
        with image_file(path):
            regions = segmenter.encode_image(path)
        numbered = [(asked, number) for asked in self.expressions[item] for number in range(len(asked.sentences))]
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
        rows = {}
        for split in self.splits:
            asked = [e for image in records for e in self.expressions[image] if e.split == split]
            answers = [answer for record in records.values() for answer in record.get("answers", ())]
            verdicts = [answer["right"] for answer in answers if answer["split"] == split and "right" in answer]
            sentences, scored, right = sum(len(e.sentences) for e in asked), len(verdicts), sum(verdicts)
            rows[split] = {
                "accuracy": percent(right, scored),
                "accuracy, unscored as wrong": percent(right, sentences),
                "sentences": sentences,
                "scored": scored,
                "right": right,
            }
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
        for image, record in records.items():
            for answer in record.get("answers", ()):
                yield {"image": image, **answer}

    def cell(self, answer: dict) -> tuple[RgbImage, list[str]]:
        """The image with the ground truth's boxes, beside it the chosen region and the scored box; the sentence."""
        image = load_image(self.images / answer["image"])
        meant = image
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
    sentence = expression.sentences[number]
    answer: Record = {
        "id": f"{expression.name}, sentence {number + 1}",
        "split": expression.split,
        "line": expression.line,
        "sentence": sentence,
        "gold": expression.ground_truth,
        "notes": [],
    }
    if not sentence.strip():
        answer["notes"].append(["empty sentence", "it has no words"])
        return answer
    answer["notes"] += long_notes(segmenter, [sentence.lower()])
    found = segmenter.refer(regions, sentence)
    if found.box is None:
        answer["notes"].append(["no region found", f"{len(regions)} regions, no box", WRONG])
        return {**answer, "region": found.region, "box": None, "iou": 0.0, "right": False}
    box, detection = snap(found.box, expression.candidates) if expression.snaps else (found.box, None)
    iou = float(box_ious(box, expression.ground_truth).max())
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
