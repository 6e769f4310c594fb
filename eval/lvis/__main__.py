"""Evaluate box recognition: python -m eval.lvis --annotations FILE --image_root DIR.

The methods are evaluated one after the other and shown side by side, beside what RegionSpot's authors report.
"""

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save

from eval.journal import processes
from eval.lvis.data import GROUND_TRUTH, Annotations, BoxSet, read_annotations, read_boxes
from eval.lvis.task import LvisTask, softmax_scale
from eval.results import Results, Skipped, figure, published_figures, skipped_line
from eval.tasks import Run, build_segmenter, evaluate_with, resumable, run_of, shared_arguments
from textregion.cli.command_line import Parser, output_folder, run_program
from textregion.cli.flags import REGIONSPOT, add_regionspot_flags
from textregion.errors import InputError
from textregion.regionspot.loading import METHODS, load_regionspot
from textregion.segmenter import TextRegionSegmenter
from textregion.storage import write_atomically
from textregion.tables import markdown_table

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
    add(
        "--boxes",
        default=GROUND_TRUTH,
        metavar="gt|FILE",
        help="the annotations' boxes (gt, the default), or a detector's: JSON, image id -> boxes (x1 y1 x2 y2) and "
        "scores, or COCO results (image_id, bbox as x y width height, score)",
    )
    add("--clean_names", action="store_true", help='"bat_(animal)" is read as "bat" (default: raw, as published)')
    add = made.add_argument_group("the methods").add_argument
    both = f"{', '.join(METHODS)} (default: both)"
    add("--method", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME", help=both)
    add_regionspot_flags(made)
    shared_arguments(made, "", proposes=False)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code: 0, or 2 after one line about bad input."""
    options = parser().parse_args(arguments)

    def body() -> None:
        run = run_of(options, "lvis")
        annotations = read_annotations(options.annotations)
        boxes = read_boxes(options.boxes, annotations)
        if not options.image_root.is_dir():
            raise InputError(f"no folder {options.image_root}; --image_root is the folder of the images")
        output_folder(run.work_dir, "--work-dir")
        with resumable():
            evaluate_methods(options, run, annotations, boxes)

    return run_program(body)


def evaluate_methods(options: argparse.Namespace, run: Run, annotations: Annotations, boxes: BoxSet) -> None:
    """Every method with the same models in the same processes; the first process prints and writes the table."""
    done: dict[str, tuple[Results, list[Skipped]]] = {}
    with processes(run.launcher, run.device, run.local_rank) as group:
        segmenter = build_segmenter(LvisTask, run, group.device)
        models = {method: method_models(segmenter, method) for method in options.method}
        for method, made_of in models.items():
            masks = method != "textregion" or segmenter.config.box_masks == "sam"
            task = LvisTask(annotations, boxes, options.image_root, method, options.clean_names, made_of, masks)
            ignored = REGIONSPOT if method == "textregion" else ()  # settings tell of no head that is not used
            model = {name: value for name, value in run.model.items() if name not in ignored}
            results = evaluate_with(segmenter, task, replace(run, work_dir=run.work_dir / method, model=model), group)
            if results is not None:
                done[method] = results
    if done:
        report(run, annotations, boxes, done)


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


def report(run: Run, annotations: Annotations, boxes: BoxSet, done: dict[str, tuple[Results, list[Skipped]]]) -> None:
    """One table of all methods, on the terminal and in results.md."""
    rows = side_by_side({method: results.metrics for method, (results, _) in done.items()})
    facts = [f"annotations: {len(annotations.images)} images, {len(annotations.categories)} names"]
    if len(annotations.categories) != LVIS_NAMES:
        facts[0] += f"; LVIS v1 has {LVIS_NAMES}: the published figures are of other data"
    facts += [f"boxes: {'of the annotations' if boxes.are_ground_truth else f'a detector’s, file {boxes.source}'}"]
    facts += [
        f"{method}: {results.backbone}, {results.items} images; {skipped_line(skipped)}"
        for method, (results, skipped) in done.items()
    ]
    note = TABLE_NOTE[0].upper() + TABLE_NOTE[1:] + "."
    lines = ["# LVIS: names of boxes", "", *markdown_table(rows[0], rows[1:]), "", note, ""]
    lines += [f"- {fact}" for fact in facts]
    write_atomically(run.work_dir / "results.md", "".join(f"{line}\n" for line in lines).encode())
    print(as_text(rows), TABLE_NOTE, *facts, f"written to {run.work_dir / 'results.md'}", sep="\n")


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


if __name__ == "__main__":
    sys.exit(main())
