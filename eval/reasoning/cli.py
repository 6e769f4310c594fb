"""The command line of eval_reason_seg.py."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from eval.reasoning.data import SPLITS
from eval.reasoning.task import QUERY_TYPES, ReasoningTask
from eval.task_cli import run_task, shared_arguments
from textregion.cli.command_line import Parser, boolean
from textregion.errors import InputError
from textregion.grounding import ANY_OTHER_THING, ANYTHING_BUT
from textregion.presets import TINY_WORLD, find_preset

EXAMPLES = """examples:
  python eval_reason_seg.py --dataset_dir ReasonSeg --interpreted_query_dir answers
  python eval_reason_seg.py --dataset_dir ReasonSeg --splits val
  python -m eval.prepare.tiny_tasks
  python eval_reason_seg.py --preset tiny --dataset_dir data/tiny_tasks/reasoning \\
      --interpreted_query_dir data/tiny_tasks/answers --visualize 8
  torchrun --nproc_per_node 4 eval_reason_seg.py …     (four GPUs, or four CPU processes)"""


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
