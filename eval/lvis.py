"""Box recognition on LVIS: name every given box, out of all names of the data set (RegionSpot method 3).

python -m eval.lvis --annotations FILE --image_root DIR. The methods are evaluated one after the other and shown side by
side, beside what RegionSpot's authors report.
"""

import sys

if __name__ == "__main__":  # before what takes seconds to import: Ctrl-C meanwhile is one line too
    from eval import start

    sys.exit(start("python -m eval.lvis", "eval.lvis"))

import argparse
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from eval.contact_sheet import FOUND, GROUND_TRUTH, RgbImage, beside
from eval.journal import processes
from eval.lvis_data import (
    ANNOTATED,
    FREQUENCIES,
    KINDS,
    Annotations,
    Box,
    Boxes,
    BoxSet,
    average_precision,
    read_annotations,
    read_boxes,
)
from eval.results import WRONG, Results, Skipped, figure, nothing_measured, published_figures, resumable, skipped_line
from eval.selection import DIGITS, default_folder
from eval.tasks import (
    GO_ON,
    Record,
    Records,
    Run,
    Task,
    build_segmenter,
    evaluate_with,
    identity_of,
    image_file,
    percent,
    run_of,
    shared_arguments,
)
from textregion.cli.command_line import Parser, output_folder, run_program
from textregion.cli.flags import REGIONSPOT, add_regionspot_flags
from textregion.errors import InputError
from textregion.images import load_image
from textregion.labeling import box_ious, is_hit
from textregion.outputs.pictures import draw_box
from textregion.regionspot.loading import METHODS, load_regionspot
from textregion.regionspot.model import clean_name, encode_names, probabilities
from textregion.render import markdown_table, to_rle
from textregion.segmenter import TextRegionSegmenter
from textregion.storage import read_json, write_atomically
from textregion.types import RegionTokens

LVIS_NAMES = 1203
EXAMPLES = """examples:
  python -m eval.lvis --annotations lvis_v1_val.json --image_root coco --boxes gt --preset clip-vit-l14-336 \\
      --regionspot_checkpoint regionspot_bl_336.pth --regionspot_side 336 --sam1_checkpoint sam_vit_b_01ec64.pth
  python -m eval.lvis --annotations lvis_v1_val.json --image_root coco --boxes glip_boxes.json --method textregion
  python -m eval.prepare.tiny_lvis
  python -m eval.lvis --preset tiny --annotations data/tiny_lvis/lvis_tiny_val.json \\
      --image_root data/tiny_lvis/images --visualize 9
  torchrun --nproc_per_node 4 -m eval.lvis …     (four GPUs, or four CPU processes)

Each method has a folder of its own in the work dir (journal, results.json, results.md, pictures); results.md beside
them has all in one table. A method that is finished costs nothing with --resume, so methods can be added later."""
TABLE_NOTE = (
    "published: its authors' figures on LVIS v1 val with GLIP-T's boxes, not measured here; "
    "–: nothing of that kind is annotated, or not published"
)
PUBLISHED_PREFIX = "LVIS "  # how metrics of LVIS begin in published.yaml
PUBLISHED_NAMES = {"AP_rare": "APr"}  # theirs: ours
KEPT = 900  # (box, name) pairs of an image, chosen by probability
COUNTED = 300  # of these, by score: what the `lvis` package counts of an image
NAMES_AT_ONCE = 50
UNDETECTED = "counted as without detections"
MARGIN = 0.25  # of the box's sides, around the closer look


@dataclass(eq=False)
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
    coco_results = True
    sheet_note = "Left: the box, green where the name is right, pink where it is wrong. Right: a closer look."

    annotations: Annotations
    boxes: BoxSet
    images: Path
    method: str
    clean_names: bool = False
    models: dict = field(default_factory=dict)
    masks: bool = True

    def __post_init__(self) -> None:
        self.masks = self.masks and self.annotations.has_masks
        self.name = f"box recognition, {self.method}"
        self.uses_regionspot = self.method == "regionspot"
        self.unusable = [*self.annotations.skipped, *self.boxes.skipped]
        self._text: Tensor | None = None

    def items(self) -> list[str]:
        """The images' ids, in the order of the file."""
        return [str(number) for number in self.annotations.images]

    def settings(self) -> dict:
        """Method, hashes of the annotations and boxes, how names are written, what is kept, the method's models."""
        files = {"annotations": self.annotations.digest, "boxes": self.boxes.source}
        names = "clean" if self.clean_names else "raw"
        return {"method": self.method, **files, "names": names, "kept": KEPT, "models": self.models}

    def roots(self) -> dict[str, Path]:
        """The images."""
        return {"image_root": self.images}

    def files(self, item: str) -> list[Path]:
        """The image, where it has boxes: others are not read."""
        return [self.annotations.images[int(item)].find(self.images)] if len(self.of_image(item)) else []

    def image_row(self, item: str, record: Record) -> dict[str, float]:
        """Of the annotations' boxes the share named right; how many boxes, how many right."""
        counts = self.count(record)
        if not self.boxes.are_ground_truth:
            return {"boxes": counts["boxes"]}
        share = percent(counts["right"], counts["boxes"])
        return {"top-1": share, "boxes": counts["boxes"], "right": counts["right"]}

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
                expected = f"the annotations say {image.width} x {image.height}"
                raise InputError(f"it has {width} x {height} pixels, {expected}")
        regions = segmenter.encode_boxes(pixels, np.array(boxes.xyxy, np.float32), method=self.method)
        found = probabilities(regions.similarity(self.text(segmenter)), softmax_scale(segmenter))
        record: Record = {"boxes": len(boxes), "named": [None] * len(boxes), "confidence": [None] * len(boxes)}
        sources, (values, names) = regions.source_index.tolist(), found.max(1)
        for box, value, name in zip(sources, values.tolist(), names.tolist(), strict=True):
            record["named"][box], record["confidence"][box] = name, value
        if self.boxes.are_ground_truth:
            record["right"] = sum(a == b for a, b in zip(record["named"], boxes.names, strict=True))
        return {**record, **self._detections(regions, found, boxes)}

    def of_image(self, item: str) -> Boxes:
        """The boxes of an image that are to be named."""
        return self.boxes.of_image.get(int(item), Boxes())

    def text(self, segmenter: TextRegionSegmenter) -> Float32[Tensor, "K D"]:
        """The names' embeddings, as the method wants them; made at the first image."""
        if self._text is None:
            raw = [category.name for category in self.annotations.categories]
            names = [clean_name(name) for name in raw] if self.clean_names else raw
            if self.method == "regionspot":
                self._text = encode_names(segmenter.backbone, names)
            else:
                starts = tqdm(range(0, len(names), NAMES_AT_ONCE), "names", disable=len(names) < 4 * NAMES_AT_ONCE)
                self._text = torch.cat([segmenter.encode_text(names[n : n + NAMES_AT_ONCE]) for n in starts])
        return self._text

    def _detections(self, regions: RegionTokens, found: Float32[Tensor, "R K"], boxes: Boxes) -> Record:
        """The image's best detections; box by its number among all boxes, masks of the boxes they name.

        A mask is SAM's at the image's own size, where its logits are above 0, as RLE.
        """
        sources = regions.source_index.to(found.device)
        scores = None if self.boxes.are_ground_truth else torch.tensor(boxes.scores, device=found.device)[sources]
        best = best_detections(found, scores)
        numbers = sources[best.box].tolist()
        record: Record = {"found": {"box": numbers, "category": best.category.tolist(), "score": best.score.tolist()}}
        if self.masks:
            rows = dict(zip(numbers, best.box.tolist(), strict=True))
            masks = {number: regions.masks.select(torch.tensor([row])) for number, row in rows.items()}
            record["masks"] = {number: to_rle(mask.binary()[0].cpu().numpy()) for number, mask in masks.items()}
        return record

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
            precision = average_precision(self.annotations, list(self.predictions(records)), images, kind)
            metrics |= {f"{kind} {name}": value for name, value in precision.items()}
        return metrics

    def scored(self, records: Records) -> int:
        """The named boxes."""
        return sum(self.count(record)["boxes"] for record in records.values())

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
        caption = [f"“{named}” {answer['confidence']:.2f}", f"true: “{right}”, image {answer['image']}"]
        return beside(draw_box(image, _xywh(answer["box"]), colour), closer(image, answer["box"])), caption


class Detections(NamedTuple):
    """D detections of an image, the best score first: box and category by index, score in [0, 1]."""

    box: Int[Tensor, " D"]
    category: Int[Tensor, " D"]
    score: Float32[Tensor, " D"]


def best_detections(
    probabilities: Float[Tensor, "R K"], detector: Float[Tensor, " R"] | None = None, kept: int = KEPT
) -> Detections:
    """The `kept` most probable of all R * K (box, name) pairs, scored, the best COUNTED of them (method 3.3).

    probabilities: of the K names of each box, in [0, 1]. detector: its score of each box, in [0, 1]: it multiplies
    the probability, but only after the choice. Without: the probability is the score. Of equals the first is taken,
    by box, then by name. Time and memory are O(R * K).
    """
    ranked, places = probabilities.float().flatten().sort(descending=True, stable=True)
    box, category = places[:kept] // max(probabilities.shape[1], 1), places[:kept] % max(probabilities.shape[1], 1)
    scores = ranked[:kept] if detector is None else ranked[:kept] * detector.float()[box]
    scores, order = (part[:COUNTED] for part in scores.sort(descending=True, stable=True))
    return Detections(box[order], category[order], scores)


def softmax_scale(segmenter: TextRegionSegmenter) -> float:
    """Factor from cosine to logit, the same for both methods: the image-text model's own (100 for OpenAI's CLIP)."""
    return float(segmenter.backbone.model.logit_scale.exp())


def _xywh(box: Box) -> Box:
    x1, y1, x2, y2 = box
    return x1, y1, x2 - x1, y2 - y1


def overlapped_names(annotations: Annotations, image: int, boxes: Boxes) -> list[int | None]:
    """For each box the name, by index, of the object it overlaps most, or None where no IoU is above 0.5."""
    objects = annotations.objects_of.get(image, [])
    names: list[int | None] = []
    for box in boxes.xyxy:
        ious = box_ious(_xywh(box), [tuple(thing["bbox"]) for thing in objects])
        hit = len(ious) and is_hit(ious.max())
        names.append(annotations.index[objects[ious.argmax()]["category_id"]] if hit else None)
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


# ---------------------------------------------------------------------- the program


def parser() -> Parser:
    """The flags."""
    made = Parser(
        prog="python -m eval.lvis",
        description="Name every box of LVIS: AP (by the lvis package) and, on true boxes, top-1 accuracy.",
        epilog=EXAMPLES,
    )
    add = made.add_argument_group("the data").add_argument
    add("--annotations", type=Path, required=True, metavar="FILE", help="lvis_v1_val.json, or another in LVIS's layout")
    add("--image_root", type=Path, required=True, metavar="DIR", help="images, flat or in train2017/ and val2017/")
    boxes = (
        "the annotations' boxes (gt, the default), or a detector's: JSON, image id or name -> boxes (x1 y1 x2 y2) and "
        "scores, or COCO results (image_id, bbox as x y width height, score)"
    )
    add("--boxes", default=ANNOTATED, metavar="gt|FILE", help=boxes)
    add("--clean_names", action="store_true", help='"bat_(animal)" is read as "bat" (default: raw, as published)')
    add = made.add_argument_group("the methods").add_argument
    both = f"{', '.join(METHODS)} (default: both)"
    add("--method", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME", help=both)
    add_regionspot_flags(made)
    shared_arguments(made, "", proposes=False)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code (`run_program`), 1 when images could not be used, 2 when none could."""
    options = parser().parse_args(arguments)

    def body() -> int:
        run = run_of(options, "lvis")
        annotations = read_annotations(options.annotations)
        boxes = read_boxes(options.boxes, annotations)
        if not options.image_root.is_dir():
            raise InputError(f"no folder {options.image_root}; --image_root is the folder of the images")
        if run.work_dir is not None:
            output_folder(run.work_dir, "--work-dir")
        with resumable():
            return evaluate_methods(options, run, annotations, boxes)

    return run_program(body, GO_ON)


def evaluate_methods(options: argparse.Namespace, run: Run, annotations: Annotations, boxes: BoxSet) -> int:
    """Every method with the same models in the same processes; the first process prints and writes the table.

    Returns the exit code: 1 when images could not be used. InputError when no method has measured anything.
    """
    done: dict[str, tuple[Results, list[Skipped]]] = {}
    work_dir = run.work_dir
    with processes(run.launcher, run.device, run.local_rank) as group:
        segmenter = build_segmenter(LvisTask, run, group.device)
        models = {method: method_models(segmenter, method) for method in options.method}
        for method, made_of in models.items():
            masks = method != "textregion" or segmenter.config.box_masks == "sam"
            task = LvisTask(annotations, boxes, options.image_root, method, options.clean_names, made_of, masks)
            ignored = REGIONSPOT if method == "textregion" else ()  # settings tell of no head that is not used
            model = {name: value for name, value in run.model.items() if name not in ignored}
            if work_dir is None:  # one for all methods, so its name tells what they have in common
                shared = {name: value for name, value in run.model.items() if name not in REGIONSPOT}
                common = LvisTask(annotations, boxes, options.image_root, "textregion", options.clean_names)
                identity = identity_of(segmenter, common, replace(run, model=shared), common.items())
                work_dir = default_folder(Path("out") / run.parent, run.preset, identity)
            results = evaluate_with(segmenter, task, replace(run, work_dir=work_dir / method, model=model), group)
            if results is not None:
                done[method] = results
    if done and work_dir is not None:
        report(work_dir, annotations, boxes, done)
        if all(results.without_numbers for results, _ in done.values()):
            method, (results, _) = next(iter(done.items()))
            raise nothing_measured(results.skipped, work_dir / method)
    return int(any(results.items < results.selection["count"] for results, _ in done.values()))


def method_models(segmenter: TextRegionSegmenter, method: str) -> dict:
    """What of a method's own models decides the numbers, for the settings. Loads RegionSpot's: InputError if it has
    no head, before anything is computed.
    """
    common = {"softmax_scale": softmax_scale(segmenter)}
    if method != "regionspot":
        return common
    if segmenter.regionspot is None:
        segmenter.regionspot = load_regionspot(segmenter.backbone, segmenter.mask_generator)
    spot = segmenter.regionspot
    state = {name: tensor.cpu().contiguous() for name, tensor in spot.head.state_dict().items()}
    head = {"weights": hashlib.sha256(save(state)).hexdigest()[:16], "isolate": spot.head.isolate}
    head["use_class_token"] = spot.head.use_class_token
    return {**common, "head": head, "sam": spot.box_tokens.name, "side": spot.side, "antialias": spot.antialias}


def report(
    work_dir: Path, annotations: Annotations, boxes: BoxSet, done: dict[str, tuple[Results, list[Skipped]]]
) -> None:
    """One table of all methods, on the terminal and in results.md; also of those that an earlier call measured."""
    earlier = earlier_methods(work_dir, done)
    rows = side_by_side({method: results.metrics for method, (results, _) in done.items()} | earlier)
    facts = [f"annotations: {len(annotations.images)} images, {len(annotations.categories)} names"]
    if len(annotations.categories) != LVIS_NAMES:
        facts[0] += f"; LVIS v1 has {LVIS_NAMES}: the published figures are of other data"
    facts += [f"boxes: {'of the annotations' if boxes.are_ground_truth else f'a detector’s, file {boxes.source}'}"]
    for method, (results, skipped) in done.items():
        told = f", {', '.join(results.marks)}" * bool(results.marks)
        facts.append(f"{method}: {results.backbone}, {results.items} images{told}; {skipped_line(skipped)}")
    lines = ["# LVIS: names of boxes", "", *markdown_table(rows[0], rows[1:]), ""]
    lines += [TABLE_NOTE[0].upper() + TABLE_NOTE[1:] + ".", "", *(f"- {fact}" for fact in facts)]
    write_atomically(work_dir / "results.md", "".join(f"{line}\n" for line in lines).encode())
    print(as_text(rows), TABLE_NOTE, *facts, f"written to {work_dir / 'results.md'}", sep="\n")


def earlier_methods(work_dir: Path, done: Mapping[str, object]) -> dict[str, dict[str, float]]:
    """{"method (earlier call: its identity, images)": metrics} of the methods that another call measured here."""
    found = {}
    for method in METHODS:
        path = work_dir / method / "results.json"
        if method not in done and path.is_file():
            told = read_json(path, "results of an earlier call")
            marks = "".join(f", {mark}" for mark in told["marks"])
            name = f"{method} (earlier call: {told['identity_hash'][:DIGITS]}, {told['items']} images{marks})"
            found[name] = {key: math.nan if value is None else value for key, value in told["metrics"].items()}
    return found


def side_by_side(metrics: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Rows of a table, the header first: a row per metric, a column per method, then the published heads.

    metrics: {method: {metric: percent}}.
    """
    published = published_columns()
    columns = [*metrics.values(), *published.values()]
    names = dict.fromkeys(name for column in metrics.values() for name in column)
    header = ["figure (%)", *metrics, *(f"{name} (published)" for name in published)]
    return [header, *([name, *(figure(column.get(name, float("nan"))) for column in columns)] for name in names)]


def published_columns() -> dict[str, dict[str, float]]:
    """{"RegionSpot BB": {"box AP": 20.9, "box APr": …}, …}, the metrics named as here."""
    columns: dict[str, dict[str, float]] = {}
    for one in published_figures():
        if one.where.startswith(PUBLISHED_PREFIX):
            kind, name = one.where.removeprefix(PUBLISHED_PREFIX).split(" ")
            column = columns.setdefault(f"{one.method} {one.backbone}", {})
            column[f"{kind} {PUBLISHED_NAMES.get(name, name)}"] = one.value
    return columns


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns for a terminal, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
