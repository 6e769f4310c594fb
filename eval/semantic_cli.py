"""Command lines of eval_semantic.py and what eval_all_semantic.py shares with it."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from mmengine.config import DictAction

from eval.sharding import LAUNCHERS
from textregion.cli.command_line import Parser, positive, run_program
from textregion.cli.flags import add_model_flags, add_option_flags, chosen_preset, given_options, mask_source_flag
from textregion.masks import automatic_sources


def shared_arguments(parser: Parser) -> None:
    """Flags that both programs have."""
    group = parser.add_argument_group("the run")
    add = group.add_argument
    add("--data-root", metavar="DIR", help="where the data lie (default: $TEXTREGION_DATA, else data)")
    add("--limit", type=positive, metavar="N", help="only the first N images of each benchmark")
    add("--resume", action="store_true", help="go on where an interrupted run in the same work dir stopped")
    choices = (*automatic_sources(), "ground-truth")
    mask_source_flag(group, " or ground-truth, an ablation (default: sam2)", choices=choices)
    add("--mask-cache", metavar="DIR", help="keep SAM 2's masks there and use those that are there")
    add("--names", choices=("published", "natural"), help="spelling of the prompt words (default: published)")
    add("--cfg-options", nargs="+", action=DictAction, default={}, metavar="K=V", help="override config values")
    add_model_flags(parser, "the config's")
    add_option_flags(parser, "the config's; recipe and dense_fallback: auto, as published for the weights")


def parser() -> Parser:
    """The flags of eval_semantic.py."""
    made = Parser(prog="eval_semantic.py", description="Evaluate one segmentation benchmark.")
    add = made.add_argument
    add("--config", required=True, type=Path, help="of configs/cfg_ds")
    add("--work-dir", type=Path, metavar="DIR", help="results, journal, logs (default: out/<config>/<backbone>)")
    add("--draw", action="store_true", help="draw predictions through mmseg's SegVisualizationHook")
    add("--launcher", choices=LAUNCHERS, default="none", help="none, pytorch (torchrun) or slurm (srun)")
    add("--local-rank", type=int, help="given by some launchers")
    shared_arguments(made)
    return made


def model_arguments(options: argparse.Namespace) -> dict:
    """The model arguments that were given as flags; InputError for a backbone that is not known."""
    given = {name: value for name in ("names", "masks", "mask_cache") if (value := getattr(options, name)) is not None}
    preset = chosen_preset(options)
    return {**given, **given_options(options), **({"preset": preset} if preset else {})}


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit code is 1 when images were skipped, else as `run_program` says."""
    options = parser().parse_args(arguments)
    if options.data_root:
        os.environ["TEXTREGION_DATA"] = options.data_root
    first = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) == 0
    return run_program(lambda: _run(options), "the same command with --resume goes on", tells=first)


def _run(options: argparse.Namespace) -> int:
    model = model_arguments(options)
    from eval.semantic import Evaluation, evaluate, load_config, summary

    config = load_config(options.config, model, options.cfg_options)
    work_dir = options.work_dir or Path("out") / config.benchmark.name / config.model.preset.replace("/", "-")
    flags = {field.name: getattr(options, field.name, None) for field in fields(Evaluation)}
    results = evaluate(Evaluation(**{**flags, "work_dir": work_dir, "model": model}))
    if results is None:
        return 0
    print("\n".join(summary(results, work_dir)))
    return 1 if results.skipped else 0
