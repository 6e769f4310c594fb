"""Flags and start of the evaluations that question region tokens."""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from eval.sharding import LAUNCHERS
from eval.tasks import Run, Task, evaluate
from textregion.cli.command_line import Parser, Sides, boolean, output_folder, positive, run_program
from textregion.errors import InputError
from textregion.pooling import RECIPES
from textregion.presets import preset_for

MODEL_FLAGS = (
    "clip_checkpoint",
    "clip_download_root",
    "sam2_checkpoint",
    "model_cfg",
    "points_per_side",
    "recipe",
    "scale",
    "antialias",
    "dtype",
)


def shared_arguments(parser: Parser, published: str, proposes: bool = True) -> None:
    """Flags that all programs have. published: what the published evaluation used, for the help; "" if there was none.

    proposes: whether regions are proposed; else the flags about that are left out.
    """
    add = parser.add_argument_group("which models").add_argument
    add("--preset", metavar="NAME", help="backbone and SAM 2 by name (default clip-vit-l14-336)")
    add("--clip_pretrained", metavar="TAG", help="instead of --preset: openai, laion2b_s32b_b79k, siglip2 or meta")
    add("--clip_architecture", metavar="NAME", help="instead of --preset: ViT-L/14@336px, PE-Core-L14-336, …")
    add("--clip_checkpoint", metavar="FILE", help="image-text weights on disk")
    add("--clip_download_root", metavar="DIR", help="where weights are looked for and kept")
    add("--sam2_checkpoint", metavar="FILE", help="SAM 2.1 weights on disk")
    add("--model_cfg", metavar="SIZE|YAML", help="SAM 2.1 tiny, small, base+ or large, or the file's own")
    add("--random_weights", action="store_true", help="real architectures, random weights: a dry run, no download")
    add("--dtype", help="auto (float16 on CUDA, else float32), float32, float16, bfloat16")
    default = f"as published, {published}; preset tiny: its own" if published else "the preset's own"
    add = parser.add_argument_group(f"how (default: {default})").add_argument
    add("--recipe", choices=tuple(RECIPES), help="pooling recipe of CLIP")
    add("--scale", nargs="+", action=Sides, metavar="N", help="fit the image into these two sides")
    if proposes:
        add("--points_per_side", type=positive, metavar="N", help="SAM 2 clicks per side (the preset's, 16)")
    add("--antialias", type=boolean, metavar="BOOL", help="shrink crops with antialiasing")
    add = parser.add_argument_group("the run").add_argument
    add(
        "--work-dir",
        "--work_dir",
        type=Path,
        metavar="DIR",
        help="results, journal, pictures (default out/TASK/PRESET)",
    )
    add("--limit", type=positive, metavar="N", help="only the first N images")
    add("--resume", action="store_true", help="go on where an interrupted run in the same work dir stopped")
    add(
        "--save-predictions",
        "--save_predictions",
        action="store_true",
        help="also predictions.jsonl, masks as COCO RLE",
    )
    add("--visualize", type=positive, default=0, metavar="N", help="contact sheets of up to N right and N wrong cases")
    if proposes:
        add(
            "--mask-cache",
            "--mask_cache",
            type=Path,
            metavar="DIR",
            help="keep SAM 2's masks, and use those that are there",
        )
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N (default auto)")
    add("--launcher", choices=LAUNCHERS, help="default: pytorch when torchrun started this, else none")
    add("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)


def run_of(options: argparse.Namespace, task: str) -> Run:
    """The run that the flags describe. InputError for models that do not exist or flags that exclude each other."""
    named = options.clip_pretrained or options.clip_architecture
    if options.preset and named:
        raise InputError("give either --preset or --clip_pretrained/--clip_architecture, not both")
    preset = options.preset or preset_for(options.clip_pretrained, options.clip_architecture)
    model = {name: value for name in MODEL_FLAGS if (value := getattr(options, name, None)) is not None}
    if options.random_weights:
        model["random_weights"] = True
    started = "pytorch" if "TORCHELASTIC_RUN_ID" in os.environ else "none"
    return Run(
        preset=preset,
        work_dir=options.work_dir or Path("out") / task / preset.replace("/", "-"),
        model=model,
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
