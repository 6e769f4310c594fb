"""Train RegionSpot's head: python -m utils.regionspot.train --help."""

import sys

if __name__ == "__main__":  # before what takes seconds to import: Ctrl-C meanwhile is one line too
    from eval import start

    sys.exit(start("python -m utils.regionspot.train", "utils.regionspot.train"))

import argparse
import hashlib
import logging
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from eval.identity import code_identity, state_hash
from eval.results import resumable
from eval.run_folder import held
from textregion.backbones import Backbone
from textregion.cli.command_line import Parser, output_folder, positive, run_program
from textregion.cli.flags import add_model_flags, chosen_preset, given_options
from textregion.config import fingerprint
from textregion.errors import InputError, needs, one_of
from textregion.regionspot.box_tokens import Sam1BoxTokens, Sam2BoxTokens, load_sam1
from textregion.regionspot.loading import load_head, save_head
from textregion.regionspot.model import RegionSpot, RegionSpotHead, check_backbone, encode_names, map_width
from textregion.runtime import package_versions
from textregion.segmenter import TextRegionSegmenter
from textregion.storage import file_hash, load_tensors, save_tensors
from textregion.text import model_fingerprint
from utils.regionspot.compare import score
from utils.regionspot.data import TokenCache, parse_data, read_dataset
from utils.regionspot.training import Plan, StepBatches, Trainer, checkpoints, cut_log, draw_curve, load_state, loader

if TYPE_CHECKING:
    from accelerate import Accelerator

PRESET = "clip-vit-b16"
HEAD = "head.safetensors"
PATIENCE = timedelta(days=2)  # processes wait for the slowest one's share of the cache
TEXT_KIND = "RegionSpotNames"
CHANGEABLE = ("save_every", "keep", "log_every")  # what a run may change when it goes on

DESCRIPTION = """Train RegionSpot's head on boxes with names; CLIP and SAM stay frozen.

SAM's tokens of all boxes are computed once and kept (--cache), then the head is trained. The defaults are the published
ones, made for millions of images: 450000 steps. CLIP and SAM work in float32 on the GPU there is, or with --device cpu
without. On several GPUs start it with
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
    """All options; those of the plan are its fields."""
    parser = Parser(prog="python -m utils.regionspot.train", description=DESCRIPTION)
    add, spec = parser.add_argument_group("data").add_argument, "NAME=FILE:FOLDER"
    sets = "COCO-format annotations and their images' folder; several data sets are equally likely in each step"
    add("--data", nargs="+", required=True, metavar=spec, help=sets)
    add("--val", nargs="+", default=[], metavar=spec, help="boxes to score at the end")
    add("--keep-equal-names", action="store_true", help="categories of one name stay apart (published)")
    add("--output", type=Path, required=True, metavar="DIR", help="head, log, curve and checkpoints")
    add("--cache", type=Path, metavar="DIR", help="SAM's tokens (default OUTPUT/cache)")
    maps = "keep CLIP's maps too: faster steps for 0.3 (ViT-B/16) to 1.2 MB (ViT-L/14 at 336) per image"
    add("--cache-maps", action="store_true", help=maps)
    add("--workers", type=int, default=0, metavar="N", help="processes that read images (default 0: none)")
    add_model_flags(parser, PRESET)
    parser.set_defaults(dtype="float32")
    add = parser.add_argument_group("which head").add_argument
    sam1 = "SAM v1 ViT-B for the tokens, as published, instead of the preset's SAM 2"
    add("--sam1_checkpoint", metavar="FILE", help=sam1)
    add("--side", type=positive, metavar="PX", help="CLIP's input side (default: the model's own)")
    add("--init", type=Path, metavar="FILE", help="start from this head (default: random, PyTorch's)")
    add("--hidden", type=positive, default=2048, help="width of the head's MLPs (default 2048)")
    add("--layers", type=positive, default=3, help="decoder layers of the head (default 3)")
    add("--isolate", action="store_true", help="a box sees no other box, so its vector does not depend on them")
    add("--no-class-token", action="store_true", help="hide the class token of CLIP's map from boxes")
    add("--half", action="store_true", help="store the head as float16, half the size")
    add = parser.add_argument_group("training").add_argument
    add("--resume", action="store_true", help="go on exactly from the last checkpoint in --output")
    anyway = "as --resume, though that checkpoint is of another identity: the head will tell"
    add("--resume-anyway", action="store_true", help=anyway)
    for field in fields(Plan):
        flag = "--lr" if field.name == "learning_rate" else f"--{field.name.replace('_', '-')}"
        kind = {"action": "store_true"} if field.type is bool else {"type": field.type}
        told = "" if isinstance(field.default, (bool, tuple)) else f" (default {field.default})"
        options = {**kind, **field.metadata["flag"], "help": f"{field.metadata['help']}{told}"}
        add(flag, dest=field.name, **options)
    return parser


def plan_of(options: argparse.Namespace) -> Plan:
    """The training plan; warm-up and drops keep their published places in a shorter run.

    InputError for values and combinations that cannot be; a warning for the one that may not be wanted.
    """
    one_of("--device", options.device, ("auto", "cpu"))
    one_of("--dtype", options.dtype, ("float32", "fp32"))
    given = {field.name: value for field in fields(Plan) if (value := getattr(options, field.name)) is not None}
    steps = given.get("steps", Plan.steps)
    drops = tuple(given.pop("drops", (steps * 7 // 9, steps * 14 // 15)))
    plan = Plan(**{"warm_up": min(Plan.warm_up, steps // 20), "drops": drops, **given})
    if not 0 <= plan.dropout < 1:
        raise InputError(f"got --dropout {plan.dropout}, expected 0 to below 1")
    for name, value in (("--lr", plan.learning_rate), ("--clip-norm", plan.clip_norm)):
        if not 0 < value < float("inf"):
            raise InputError(f"got {name} {value}, expected a number above 0")
    if min(plan.warm_up, plan.weight_decay, options.workers, plan.seed) < 0:
        raise InputError("got a negative --warm-up, --weight-decay, --workers or --seed, expected 0 or more")
    if plan.published_augmentation and options.cache_maps:
        raise InputError("got --published-augmentation and --cache-maps; a kept map cannot change, leave one out")
    if plan.published_augmentation:
        line = "SAM's tokens are those of the unchanged image and no longer fit the one CLIP sees"
        warnings.warn(f"--published-augmentation: {line}", stacklevel=2)
    options.resume = options.resume or options.resume_anyway
    there = checkpoints(options.output) or (options.output / HEAD).is_file()
    if there and not options.resume:
        raise InputError(f"{options.output} holds a run; go on with --resume or choose another --output")
    return plan


def make_model(options: argparse.Namespace, dropout: float, segmenter: TextRegionSegmenter | None = None) -> RegionSpot:
    """The frozen CLIP, the SAM that answers with tokens, and the head to train, on the CPU.

    The head is that of --init, or has PyTorch's starting values, all layers alike. segmenter: as for `train`.
    """
    given = given_options(options)
    if (sam1 := given.pop("sam1_checkpoint", None)) is not None:
        given["mask_generator"] = None
    if segmenter is None:
        segmenter = TextRegionSegmenter.from_preset(chosen_preset(options) or PRESET, device="cpu", **given)
    backbone = segmenter.backbone
    check_backbone(backbone)
    source = Sam2BoxTokens(segmenter.mask_generator) if sam1 is None else Sam1BoxTokens(load_sam1(sam1))
    if options.random_weights:  # no cache and no head of theirs is taken for one of real weights
        backbone.name, source.name = (f"{model.name} (random weights)" for model in (backbone, source))
    own = {"isolate": options.isolate, "use_class_token": not options.no_class_token, "dropout": dropout}
    if options.init is not None:
        head, origin = load_head(options.init, backbone.name, source.name, options.side, **own)
        return RegionSpot(backbone, source, head, origin["side"], origin.get("antialias", False))
    widths = map_width(backbone), backbone.width, source.token_width
    head = RegionSpotHead(*widths, options.hidden, options.layers, **own)
    return RegionSpot(backbone, source, head, options.side)


def fill_caches(
    accelerator: "Accelerator", model: RegionSpot, specs: Sequence[str], options: argparse.Namespace
) -> list[TokenCache]:
    """Read the data sets and complete their caches, each process a share of the images."""
    model.to(accelerator.device)
    caches = []
    for name, (annotations, images) in parse_data(specs).items():
        dataset = read_dataset(name, annotations, images, merge_names=not options.keep_equal_names)
        accelerator.print(dataset.describe())
        caches.append(TokenCache(options.cache / annotations.stem, dataset, model, options.cache_maps))
        own = dataset.images[accelerator.process_index :: accelerator.num_processes]
        counts = caches[-1].fill(own, quiet=not accelerator.is_main_process)
        unusable = accelerator.reduce(torch.tensor(counts["unusable"], device=accelerator.device), "sum").item()
        if unusable:
            accelerator.print(f"{name}: {unusable} images could not be used; see the warnings above")
    accelerator.wait_for_everyone()
    return caches


def name_vectors(folder: Path, backbone: Backbone, names: Sequence[str]) -> Float32[Tensor, "K E"]:
    """`encode_names`, kept on disk: 13000 names are a million prompts."""
    key = hashlib.sha256("\0".join([model_fingerprint(backbone), *names]).encode()).hexdigest()[:32]
    path = folder / f"names-{key}.safetensors"
    if path.is_file():
        return load_tensors(path, TEXT_KIND)[0]["text"].to(backbone.device)
    text = encode_names(backbone, names)
    save_tensors(path, {"text": text}, {"kind": TEXT_KIND, "names": list(names)})
    return text


def settings_of(
    model: RegionSpot, caches: Sequence[TokenCache], options: argparse.Namespace, plan: Plan, processes: int
) -> dict:
    """The identity of a training, everything that decides its course: a run goes on only with the same.

    Annotations, images and weights by their content, wherever they lie.
    """
    head, init = model.head, options.init
    data = {}
    for cache, (annotations, _) in zip(caches, parse_data(options.data).values(), strict=True):
        data[cache.dataset.name] = {
            "annotations": file_hash(annotations),
            "images": fingerprint(cache.sources()),
            "usable": len(cache.usable()),
            "names": fingerprint({"names": list(cache.dataset.names)}),
        }
    sams = {name: state_hash(part) for name, part in vars(model.box_tokens).items() if isinstance(part, nn.Module)}
    weights = {"clip": state_hash(model.backbone.model), "words": model_fingerprint(model.backbone), **sams}
    return {
        "data": data,
        "weights": weights,
        "device": model.backbone.device.type,
        "processes": processes,
        "code": code_identity(),
        "versions": package_versions(),
        "clip": model.backbone.name,
        "sam": model.box_tokens.name,
        "side": model.side,
        "antialias": model.antialias,
        "isolate": head.isolate,
        "use_class_token": head.use_class_token,
        "hidden": head.decoder.layers[0].linear1.out_features,
        "layers": len(head.decoder.layers),
        "init": file_hash(init) if init else None,
        **{name: value for name, value in asdict(plan).items() if name not in CHANGEABLE},
    }


def hold(accelerator: "Accelerator", folder: Path, stack: ExitStack) -> None:
    """Lock the folder of the training, in all processes together. InputError when another one holds it."""
    from accelerate.utils import gather_object

    refused = ""
    if accelerator.is_main_process:
        try:
            stack.enter_context(held(folder, "--output"))
        except InputError as error:
            refused = str(error)
    if told := [one for one in gather_object([refused]) if one]:
        raise InputError(told[0])


def train(options: argparse.Namespace, segmenter: TextRegionSegmenter | None = None) -> None:
    """The whole program: caches, training, head, curve, scores. InputError for bad input.

    segmenter: whose CLIP and SAM 2 are taken instead of those that the options name.
    """
    with needs("training", layer="eval"):
        import accelerate  # noqa: F401
    plan = plan_of(options)
    options.cache = options.cache or options.output / "cache"
    output_folder(options.output)
    with resumable(), ExitStack() as stack:
        _train(options, plan, stack, segmenter)


def _train(options: argparse.Namespace, plan: Plan, stack: ExitStack, segmenter: TextRegionSegmenter | None) -> None:
    """As `train`, its folder held by the stack for as long as it works."""
    import accelerate

    handlers = [accelerate.InitProcessGroupKwargs(timeout=PATIENCE)]
    on_cpu = options.device == "cpu"
    accelerator = accelerate.Accelerator(cpu=on_cpu, mixed_precision=plan.precision, kwargs_handlers=handlers)
    process, processes = accelerator.process_index, accelerator.num_processes
    if plan.batch < processes:
        raise InputError(f"got --batch {plan.batch} for {processes} processes, expected one each")
    hold(accelerator, options.output, stack)
    torch.manual_seed(plan.seed)  # the same starting values in every process
    model = make_model(options, plan.dropout, segmenter)
    caches = fill_caches(accelerator, model, options.data, options)
    with accelerator.main_process_first():
        texts = [name_vectors(options.cache, model.backbone, cache.dataset.names) for cache in caches]
    settings = settings_of(model, caches, options, plan, processes)
    trainer = Trainer(accelerator, model, texts, plan, options.output, settings)
    torch.manual_seed(plan.seed + process)  # another dropout in each
    start = 0
    if options.resume:
        start, trainer.anyway = load_state(accelerator, options.output, settings, options.resume_anyway)
    if accelerator.is_main_process:
        cut_log(options.output, start)
    trainer.train(loader(StepBatches(caches, plan, process, processes), start, options.workers), start)
    if accelerator.is_main_process:
        origin = {name: settings[name] for name in ("clip", "side", "sam", "antialias")} | {"training": settings}
        origin |= {"resumed_anyway": trainer.anyway} if trainer.anyway else {}
        path = options.output / HEAD
        save_head(path, model.head, origin, options.half)
        print(f"head: {path} ({path.stat().st_size / 1e6:.1f} MB), curve: {draw_curve(options.output)}")
    accelerator.wait_for_everyone()
    for cache in fill_caches(accelerator, model, options.val, options):
        if accelerator.is_main_process:
            text = name_vectors(options.cache, model.backbone, cache.dataset.names)
            print(f"{cache.dataset.name}: {score(model, cache, text)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    options = make_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    return run_program(lambda: train(options), "the same command with --resume goes on from the last checkpoint")
