"""Command lines of eval_semantic.py and what eval_all_semantic.py shares with it."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from mmengine.config import DictAction

from eval.sharding import LAUNCHERS
from textregion.backbones import SPECS
from textregion.cli.command_line import positive
from textregion.errors import InputError
from textregion.masks import automatic_sources


def shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that both programs have."""
    add = parser.add_argument
    add("--data-root", metavar="DIR", help="where the data lie (default: $TEXTREGION_DATA, else data)")
    add("--limit", type=positive, metavar="N", help="only the first N images of each benchmark")
    add("--resume", action="store_true", help="go on where an interrupted run in the same work dir stopped")
    add("--masks", choices=(*automatic_sources(), "ground-truth"), help="source of the regions (default: sam2)")
    add("--mask-cache", metavar="DIR", help="keep SAM 2's masks there and use those that are there")
    add("--names", choices=("published", "natural"), help="spelling of the prompt words (default: published)")
    add("--recipe", help="pooling recipe: auto, demo, semantic or semantic-fp32 (default: auto)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N (default: auto)")
    add("--dtype", help="auto, float32, float16 or bfloat16 (default: auto, float16 on CUDA)")
    add("--clip_checkpoint", metavar="FILE", help="weights of the image-text model")
    add("--clip_download_root", metavar="DIR", help="folder with weights, or to fetch them to")
    add("--sam2_checkpoint", metavar="FILE", help="weights of SAM 2.1")
    add("--random-weights", action="store_true", help="the architectures without weights; numbers mean nothing")
    add("--cfg-options", nargs="+", action=DictAction, default={}, metavar="K=V", help="override config values")


def parser() -> argparse.ArgumentParser:
    """The flags of eval_semantic.py."""
    made = argparse.ArgumentParser(prog="eval_semantic.py", description="Evaluate one segmentation benchmark.")
    add = made.add_argument
    add("--config", required=True, type=Path, help="of configs/cfg_ds")
    add("--work-dir", type=Path, metavar="DIR", help="results, journal, logs (default: out/<config>/<backbone>)")
    add("--preset", help="backbone and SAM 2 under one name (default: the config's)")
    add("--clip_pretrained", metavar="TAG", help="instead of --preset: openai, laion2b_s32b_b79k, meta, webli, …")
    add("--clip_architecture", metavar="NAME", help="instead of --preset: ViT-B/16, ViT-L-14-336, PE-Core-L14-336, …")
    add("--draw", action="store_true", help="draw predictions through mmseg's SegVisualizationHook")
    add("--launcher", choices=LAUNCHERS, default="none", help="none, pytorch (torchrun) or slurm (srun)")
    add("--local-rank", "--local_rank", type=int, help="given by some launchers")
    shared_arguments(made)
    return made


MODEL_FLAGS = (
    "names",
    "recipe",
    "dtype",
    "masks",
    "mask_cache",
    "clip_checkpoint",
    "clip_download_root",
    "sam2_checkpoint",
)


def model_arguments(options: argparse.Namespace) -> dict:
    """The model arguments that were given as flags; InputError for a backbone that is not known."""
    given = {name: value for name in MODEL_FLAGS if (value := getattr(options, name)) is not None}
    if options.random_weights:
        given["random_weights"] = True
    preset = options.preset or preset_of(options.clip_architecture, options.clip_pretrained)
    return {**given, "preset": preset} if preset else given


def preset_of(architecture: str | None, pretrained: str | None) -> str | None:
    """The preset that the paper's flags mean, e.g. ("ViT-B/16", "openai"); None when neither is given.

    InputError, with those that exist, when none or several fit.
    """
    if architecture is None and pretrained is None:
        return None
    fits = [
        name
        for name, row in SPECS.items()
        if (architecture is None or _plain(architecture) == _plain(row.open_clip[0]))
        and (pretrained is None or _plain(row.open_clip[1]).startswith(_plain(pretrained)))
    ]
    if len(fits) == 1:
        return fits[0]
    known = "; ".join(f"{a.removesuffix('-quickgelu')} {t}" for a, t in (row.open_clip for row in SPECS.values()))
    fitting = f"{len(fits)} fit ({', '.join(fits)})" if fits else "none fits"
    raise InputError(
        f"got --clip_architecture {architecture} --clip_pretrained {pretrained}, {fitting}; expected one of {known}"
    )


def _plain(name: str) -> str:
    """ViT-L/14@336px, ViT-L-14-336-quickgelu -> vitl14336."""
    name = name.lower().replace("quickgelu", "").removesuffix("px")
    return "".join(character for character in name if character.isalnum())


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; 0, 1 when images were skipped, 2 after one line on stderr, 130 when stopped by Ctrl-C."""
    options = parser().parse_args(arguments)
    if options.data_root:
        os.environ["TEXTREGION_DATA"] = options.data_root
    try:
        return _run(options)
    except (InputError, OSError) as error:
        return _say(f"error: {error}", 2)
    except torch.OutOfMemoryError:
        return _say("error: out of GPU memory; try --cfg-options model.crops_per_batch=4, then --resume", 2)
    except KeyboardInterrupt:
        return _say("interrupted; the same command with --resume goes on", 130)


def _say(line: str, code: int) -> int:
    """One line from the first process only."""
    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) == 0:
        print(line, file=sys.stderr)
    return code


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
