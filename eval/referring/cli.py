"""The command line of eval_referring.py."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from eval.referring.data import PROPOSALS, SPLITS, find_splits
from eval.referring.task import ReferringTask
from eval.task_cli import run_task, shared_arguments
from textregion.cli.command_line import Parser

EXAMPLES = """examples:
  python eval_referring.py --input_file_root reclip_data --image_root train2014
  python -m eval.prepare.tiny_tasks
  python eval_referring.py --preset tiny --input_file_root data/tiny_tasks/referring \\
      --image_root data/tiny_tasks/referring/images --visualize 8
  torchrun --nproc_per_node 4 eval_referring.py …     (four GPUs, or four CPU processes)"""


def parser() -> Parser:
    """The flags."""
    made = Parser(
        prog="eval_referring.py",
        description="Referring expressions on RefCOCO, RefCOCO+, RefCOCOg: accuracy of the chosen boxes (IoU > 0.5).",
        epilog=EXAMPLES,
    )
    add = made.add_argument_group("the data").add_argument
    add(
        "--input_file_root",
        type=Path,
        required=True,
        metavar="DIR",
        help="with <split>.jsonl, <dataset>_dets_dict.json",
    )
    add("--image_root", type=Path, required=True, metavar="DIR", help="COCO's images (train2014)")
    add("--splits", nargs="+", choices=SPLITS, metavar="SPLIT", help=f"of {', '.join(SPLITS)} (default: all there)")
    add(
        "--proposals",
        choices=PROPOSALS,
        default="detections",
        help="boxes that answers snap to: detections, gt (those of the annotations) or none (default detections)",
    )
    shared_arguments(made, "scale 2016 2016, recipe demo, antialias True")
    return made


def make_task(options: argparse.Namespace) -> ReferringTask:
    """The task that the flags describe; InputError for missing data."""
    splits = find_splits(options.input_file_root, options.splits)
    return ReferringTask(options.input_file_root, options.image_root, splits, options.proposals)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_task(parser(), make_task, "referring", arguments)
