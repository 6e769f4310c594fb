"""The command line of `python -m utils.regionspot.train`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from textregion.cli.command_line import Parser, positive
from textregion.errors import InputError
from utils.regionspot.training_loop import Plan

DESCRIPTION = """Train RegionSpot's head on boxes with names; CLIP and SAM stay frozen.

SAM's tokens of all boxes are computed once and kept (--cache), then the head is trained. The defaults are the published
ones, made for millions of images: 450000 steps. On several GPUs start it with
  accelerate launch -m utils.regionspot.train ...      or      torchrun --nproc_per_node 8 -m utils.regionspot.train ...

The tiny world, on a CPU in minutes:
  python -m eval.prepare.tiny_lvis --output tiny --scenes 400 --train-scenes 6000
  python -m utils.regionspot.train --preset tiny --data tiny=tiny/lvis_tiny_train.json:tiny/images \\
    --val tiny=tiny/lvis_tiny_val.json:tiny/images --cache-maps --layers 1 --hidden 256 --isolate \\
    --steps 2600 --batch 32 --lr 1e-3 --output outputs/regionspot_tiny

Objects365, then three data sets from there on (two stages, as published):
  python -m utils.regionspot.train --preset clip-vit-b16 --output stage1 --data o365=o365.json:o365/images
  python -m utils.regionspot.train --preset clip-vit-b16 --output stage2 --init stage1/head.safetensors \\
    --data o365=o365.json:o365/images v3det=v3det.json:v3det/images openimages=openimages.json:openimages/images
"""


def make_parser() -> Parser:
    """All options; what they mean for a run is in `plan_of` and in train.py."""
    parser = Parser(prog="python -m utils.regionspot.train", description=DESCRIPTION)
    data = parser.add_argument_group("data")
    spec = "NAME=FILE:FOLDER"
    data.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar=spec,
        help="COCO-format annotations and their images' folder; several data sets are equally likely in each step",
    )
    data.add_argument("--val", nargs="+", default=[], metavar=spec, help="boxes to score at the end")
    data.add_argument("--keep-equal-names", action="store_true", help="categories of one name stay apart (published)")
    data.add_argument("--output", type=Path, required=True, metavar="DIR", help="head, log, curve and checkpoints")
    data.add_argument("--cache", type=Path, default=None, metavar="DIR", help="SAM's tokens (default OUTPUT/cache)")
    data.add_argument(
        "--cache-maps",
        action="store_true",
        help="keep CLIP's maps too: faster steps for 0.3 (ViT-B/16) to 1.2 MB (ViT-L/14 at 336) per image",
    )
    data.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that read images (default 0: none)"
    )
    _add_models(parser)
    _add_schedule(parser)
    return parser


def _add_models(parser: Parser) -> None:
    models = parser.add_argument_group("models")
    models.add_argument("--preset", default="clip-vit-b16", help="which CLIP and SAM 2 (default clip-vit-b16)")
    models.add_argument("--clip_checkpoint", metavar="FILE", help="CLIP's weights, instead of looking for them")
    models.add_argument("--sam2_checkpoint", metavar="FILE", help="SAM 2's weights, instead of looking for them")
    models.add_argument("--clip_download_root", metavar="DIR", help="folder of weights or hub cache")
    models.add_argument(
        "--sam1_checkpoint",
        metavar="FILE",
        help="SAM v1 ViT-B for the tokens, as published, instead of the preset's SAM 2",
    )
    models.add_argument("--side", type=positive, metavar="PX", help="CLIP's input side (default: the model's own)")
    models.add_argument("--init", type=Path, metavar="FILE", help="start from this head (default: random, PyTorch's)")
    models.add_argument("--hidden", type=positive, default=2048, help="width of the head's MLPs (default 2048)")
    models.add_argument("--layers", type=positive, default=3, help="decoder layers of the head (default 3)")
    models.add_argument("--dropout", type=float, default=0.1, help="0 to below 1 (default 0.1)")
    models.add_argument(
        "--isolate", action="store_true", help="a box sees no other box, so its vector does not depend on them"
    )
    models.add_argument("--no-class-token", action="store_true", help="hide the class token of CLIP's map from boxes")
    models.add_argument("--half", action="store_true", help="store the head as float16, half the size")


def _add_schedule(parser: Parser) -> None:
    default = Plan()
    plan = parser.add_argument_group("training")
    plan.add_argument("--steps", type=positive, default=default.steps, metavar="N", help="default 450000")
    plan.add_argument("--batch", type=positive, default=16, metavar="N", help="images of all processes (default 16)")
    plan.add_argument("--lr", type=float, default=default.learning_rate, help="AdamW's learning rate (default 2.5e-5)")
    plan.add_argument("--weight-decay", type=float, default=default.weight_decay, help="default 1e-4")
    plan.add_argument("--clip-norm", type=float, default=default.clip_norm, help="largest gradient norm (default 1)")
    plan.add_argument("--warm-up", type=int, metavar="N", help="steps (default 1000, at most a twentieth of --steps)")
    plan.add_argument(
        "--drops",
        type=positive,
        nargs="*",
        metavar="STEP",
        help="where the learning rate falls to a tenth (default at 7/9 and 14/15 of --steps: 350000 420000)",
    )
    plan.add_argument("--seed", type=int, default=40244023, help="of weights, batches and dropout (default 40244023)")
    plan.add_argument(
        "--precision", choices=("no", "bf16", "fp16"), default="no", help="mixed precision of the head (default no)"
    )
    plan.add_argument(
        "--device", choices=("auto", "cpu"), default="auto", help="default auto: GPUs where there are any"
    )
    plan.add_argument(
        "--published-padding",
        action="store_true",
        help="repeat boxes up to the batch's largest count, all counting, instead of masked padding",
    )
    plan.add_argument(
        "--published-augmentation",
        action="store_true",
        help="flip and crop CLIP's image; SAM's cached tokens then no longer fit it",
    )
    plan.add_argument("--resume", action="store_true", help="go on exactly from the last checkpoint in --output")
    plan.add_argument(
        "--save-every", type=positive, default=default.save_every, metavar="N", help="steps (default 1000)"
    )
    plan.add_argument("--keep", type=positive, default=default.keep, metavar="N", help="checkpoints (default 2)")
    plan.add_argument("--log-every", type=positive, default=default.log_every, metavar="N", help="steps (default 20)")


def plan_of(options: argparse.Namespace) -> Plan:
    """The training plan; warm-up and drops keep their published places in a shorter run."""
    steps = options.steps
    drops = (steps * 7 // 9, steps * 14 // 15) if options.drops is None else tuple(options.drops)
    warm_up = min(Plan.warm_up, steps // 20) if options.warm_up is None else options.warm_up
    if not 0 <= options.dropout < 1:
        raise InputError(f"got --dropout {options.dropout}, expected 0 to below 1")
    for name, value in (("--lr", options.lr), ("--clip-norm", options.clip_norm)):
        if not 0 < value < float("inf"):
            raise InputError(f"got {name} {value}, expected a number above 0")
    if warm_up < 0 or options.weight_decay < 0 or options.workers < 0 or options.seed < 0:
        raise InputError("got a negative --warm-up, --weight-decay, --workers or --seed, expected 0 or more")
    return Plan(
        steps,
        options.lr,
        options.weight_decay,
        warm_up,
        drops,
        options.clip_norm,
        options.published_padding,
        options.save_every,
        options.keep,
        options.log_every,
    )


def parse_data(specs: Sequence[str]) -> dict[str, tuple[Path, Path]]:
    """{name: (annotations, images' folder)} of NAME=FILE:FOLDER; InputError for another form or a repeated name."""
    found: dict[str, tuple[Path, Path]] = {}
    for spec in specs:
        name, equals, rest = spec.partition("=")
        file, colon, folder = rest.rpartition(":")
        if not (name and equals and colon and file and folder) or "/" in name:
            raise InputError(f"got the data set {spec!r}, expected NAME=annotations.json:images_folder")
        if name in found:
            raise InputError(f"got two data sets named {name!r}; give each a name of its own")
        found[name] = (Path(file), Path(folder))
    return found
