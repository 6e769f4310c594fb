"""Flags and start of the evaluations that question region tokens."""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from eval.sharding import LAUNCHERS
from eval.tasks import Run, Task, evaluate
from textregion.cli.command_line import Parser, output_folder, positive, run_program
from textregion.cli.flags import add_model_flags, add_option_flags, chosen_preset, given_options
from textregion.errors import InputError


def shared_arguments(parser: Parser, published: str, proposes: bool = True) -> None:
    """Flags that all programs have. published: what the published evaluation used, for the help; "" if there was none.

    proposes: whether regions are proposed, so that their masks can be kept.
    """
    add_model_flags(parser)
    add_option_flags(parser, f"as published, {published}; preset tiny: its own" if published else "the preset's own")
    add = parser.add_argument_group("the run").add_argument
    add(
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="results, journal, pictures (default out/TASK/PRESET)",
    )
    add("--limit", type=positive, metavar="N", help="only the first N images")
    add("--resume", action="store_true", help="go on where an interrupted run in the same work dir stopped")
    add(
        "--save-predictions",
        action="store_true",
        help="also predictions.jsonl, masks as COCO RLE",
    )
    add("--visualize", type=positive, default=0, metavar="N", help="contact sheets of up to N right and N wrong cases")
    if proposes:
        add(
            "--mask-cache",
            type=Path,
            metavar="DIR",
            help="keep SAM 2's masks, and use those that are there",
        )
    add("--launcher", choices=LAUNCHERS, help="default: pytorch when torchrun started this, else none")
    add("--local-rank", type=int, help=argparse.SUPPRESS)


def run_of(options: argparse.Namespace, task: str) -> Run:
    """The run that the flags describe. InputError for models that do not exist or flags that exclude each other."""
    preset = chosen_preset(options) or "clip-vit-l14-336"
    started = "pytorch" if "TORCHELASTIC_RUN_ID" in os.environ else "none"
    return Run(
        preset=preset,
        work_dir=options.work_dir or Path("out") / task / preset.replace("/", "-"),
        model=given_options(options),
        limit=options.limit,
        resume=options.resume,
        save_predictions=options.save_predictions,
        visualize=options.visualize,
        mask_cache=getattr(options, "mask_cache", None),
        launcher=options.launcher or started,
        local_rank=options.local_rank,
        device=options.device,
    )


def run_task(
    parser: Parser, make: Callable[[argparse.Namespace], Task], name: str, arguments: Sequence[str] | None
) -> int:
    """Parse, evaluate, print; returns the exit code: 0, or 2 after one line about bad input."""
    options = parser.parse_args(arguments)

    def body() -> None:
        run = run_of(options, name)
        task = make(options)
        output_folder(run.work_dir, "--work-dir")
        with resumable():
            done = evaluate(task, run)
        if done is not None:
            print(f"{done[1]}\nwritten to {run.work_dir / 'results.json'} and {run.work_dir / 'results.md'}")

    return run_program(body)


@contextmanager
def resumable() -> Iterator[None]:
    """What goes wrong with the disk in the body (full, lost) is one line that says how to go on."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{error}; put that right, then go on with --resume: finished images are kept") from error
