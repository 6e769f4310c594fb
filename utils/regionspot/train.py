"""Train RegionSpot's head: python -m utils.regionspot.train --help."""

import argparse
import hashlib
import logging
import sys
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.utils.data import DataLoader

from textregion.backbones import Backbone
from textregion.cli.command_line import output_folder, run_program
from textregion.errors import InputError, needs
from textregion.regionspot.box_tokens import BoxTokenSource, Sam1BoxTokens, Sam2BoxTokens, load_sam1
from textregion.regionspot.checkpoint import load_head, save_head
from textregion.regionspot.head import RegionSpotHead
from textregion.regionspot.model import RegionSpot, check_backbone, map_width
from textregion.regionspot.text import encode_names
from textregion.storage import load_tensors, save_tensors
from textregion.text_cache import model_fingerprint
from utils.regionspot.accuracy import score
from utils.regionspot.arguments import make_parser, parse_data, plan_of
from utils.regionspot.batches import StepBatches
from utils.regionspot.data import read_dataset
from utils.regionspot.token_cache import TokenCache
from utils.regionspot.training_loop import Plan, Trainer, cut_log, draw_curve
from utils.regionspot.training_state import checkpoints, load_state

if TYPE_CHECKING:
    from accelerate import Accelerator

PATIENCE = timedelta(days=2)  # processes wait for the slowest one's share of the cache
HEAD = "head.safetensors"
TEXT_KIND = "RegionSpotNames"
D1 = "--published-augmentation: SAM's tokens are those of the unchanged image and no longer fit the one CLIP sees"


def import_accelerate() -> ModuleType:
    """The optional package; InputError saying how to install it."""
    with needs("training", layer="eval"):
        import accelerate
    return accelerate


def load_parts(options: argparse.Namespace) -> tuple[Backbone, BoxTokenSource]:
    """The frozen CLIP, and the SAM that answers with tokens, on the CPU."""
    from textregion.segmenter import TextRegionSegmenter

    names = ("clip_checkpoint", "clip_download_root", "sam2_checkpoint")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.sam1_checkpoint is not None:
        given["mask_generator"] = None
    segmenter = TextRegionSegmenter.from_preset(options.preset, device="cpu", dtype="float32", **given)
    check_backbone(segmenter.backbone)
    if options.sam1_checkpoint is not None:
        return segmenter.backbone, Sam1BoxTokens(load_sam1(options.sam1_checkpoint))
    return segmenter.backbone, Sam2BoxTokens(segmenter.mask_generator)


def make_model(options: argparse.Namespace) -> RegionSpot:
    """Frozen parts and the head to train: from --init, or PyTorch's starting values, all layers alike."""
    backbone, source = load_parts(options)
    own = {"isolate": options.isolate, "use_class_token": not options.no_class_token}
    hidden, layers, side, antialias, state = options.hidden, options.layers, options.side, False, None
    if options.init is not None:
        start, origin = load_head(options.init, backbone.name, source.name)
        if side not in (None, origin["side"]):
            raise InputError(f"{options.init} was trained at input side {origin['side']}, got {side}; leave it out")
        side, antialias, state = origin["side"], origin.get("antialias", False), start.state_dict()
        hidden, layers = start.decoder.layers[0].linear1.out_features, len(start.decoder.layers)
    widths = map_width(backbone), backbone.width, source.token_width
    head = RegionSpotHead(*widths, hidden, layers, options.dropout, **own)
    if state is not None:
        head.load_state_dict(state)
    return RegionSpot(backbone, source, head, side, antialias)


def cache_folder(options: argparse.Namespace) -> Path:
    """Where tokens and names are kept."""
    return options.cache or options.output / "cache"


def fill_caches(
    accelerator: "Accelerator", model: RegionSpot, specs: Sequence[str], options: argparse.Namespace
) -> list[TokenCache]:
    """Read the data sets and complete their caches, each process a share of the images."""
    model.to(accelerator.device)
    caches = []
    for name, (annotations, images) in parse_data(specs).items():
        dataset = read_dataset(name, annotations, images, merge_names=not options.keep_equal_names)
        accelerator.print(dataset.describe())
        caches.append(TokenCache(cache_folder(options) / annotations.stem, dataset, model, options.cache_maps))
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


def settings_of(model: RegionSpot, caches: Sequence[TokenCache], options: argparse.Namespace, plan: Plan) -> dict:
    """What decides the course of a training: a run goes on only with the same."""
    head = model.head
    return {
        "data": [[cache.dataset.name, len(cache.usable()), len(cache.dataset.names)] for cache in caches],
        "clip": model.backbone.name,
        "sam": model.box_tokens.name,
        "side": model.side,
        "antialias": model.antialias,
        "isolate": head.isolate,
        "use_class_token": head.use_class_token,
        "hidden": head.decoder.layers[0].linear1.out_features,
        "layers": len(head.decoder.layers),
        "dropout": options.dropout,
        "init": str(options.init) if options.init else None,
        "steps": plan.steps,
        "batch": options.batch,
        "learning_rate": plan.learning_rate,
        "weight_decay": plan.weight_decay,
        "warm_up": plan.warm_up,
        "drops": list(plan.drops),
        "clip_norm": plan.clip_norm,
        "seed": options.seed,
        "precision": options.precision,
        "published_padding": plan.repeat_boxes,
        "published_augmentation": options.published_augmentation,
    }


def check(options: argparse.Namespace) -> None:
    """Combinations that cannot be; a warning for the one that may not be wanted."""
    if options.published_augmentation and options.cache_maps:
        raise InputError("got --published-augmentation and --cache-maps; a kept map cannot change, leave one out")
    if options.published_augmentation:
        warnings.warn(D1, stacklevel=2)
    if checkpoints(options.output) and not options.resume:
        raise InputError(f"{options.output} holds a run; go on with --resume or choose another --output")


def train(options: argparse.Namespace) -> None:
    """The whole program: caches, training, head, curve, scores. InputError for bad input."""
    accelerate = import_accelerate()
    plan = plan_of(options)
    output_folder(options.output)
    check(options)
    patience = accelerate.InitProcessGroupKwargs(timeout=PATIENCE)
    accelerator = accelerate.Accelerator(
        cpu=options.device == "cpu", mixed_precision=options.precision, kwargs_handlers=[patience]
    )
    if options.batch < accelerator.num_processes:
        raise InputError(f"got --batch {options.batch} for {accelerator.num_processes} processes, expected one each")
    torch.manual_seed(options.seed)  # the same starting values in every process
    model = make_model(options)
    caches = fill_caches(accelerator, model, options.data, options)
    with accelerator.main_process_first():
        texts = [name_vectors(cache_folder(options), model.backbone, cache.dataset.names) for cache in caches]
    settings = settings_of(model, caches, options, plan) | {"processes": accelerator.num_processes}
    trainer = Trainer(accelerator, model, texts, plan, options.output, settings)
    torch.manual_seed(options.seed + accelerator.process_index)  # another dropout in each
    start = load_state(accelerator, options.output, settings) if options.resume else 0
    if accelerator.is_main_process:
        cut_log(options.output, start)
    share = accelerator.process_index, accelerator.num_processes
    batches = StepBatches(
        caches, plan.steps, options.batch, options.seed, *share, plan.repeat_boxes, options.published_augmentation
    )
    trainer.train(loader(batches, start, options.workers), start)
    if accelerator.is_main_process:
        finish(model, caches, settings, options)
    accelerator.wait_for_everyone()
    validate(accelerator, model, options)


def loader(batches: StepBatches, start: int, workers: int) -> DataLoader:
    """The batches from a step on, made ahead by other processes if there are any."""
    steps = range(start, len(batches))
    own = torch.Generator()  # so that starting the loader leaves the random state of dropout alone
    # Python 3.14 would not fork any more, and pickle the caches, whose many tensors are more than it can pass on.
    context = "fork" if workers and sys.platform == "linux" else None
    return DataLoader(
        batches, batch_size=None, sampler=steps, num_workers=workers, generator=own, multiprocessing_context=context
    )


def finish(model: RegionSpot, caches: Sequence[TokenCache], settings: dict, options: argparse.Namespace) -> None:
    """Write the head and the curve."""
    origin = {name: settings[name] for name in ("clip", "side", "sam", "antialias")}
    path = options.output / HEAD
    save_head(path, model.head, {**origin, "training": settings}, half=options.half)
    print(f"head: {path} ({path.stat().st_size / 1e6:.1f} MB), curve: {draw_curve(options.output)}")


def validate(accelerator: "Accelerator", model: RegionSpot, options: argparse.Namespace) -> None:
    """Score the data sets of --val, which every process helps to encode."""
    for cache in fill_caches(accelerator, model, options.val, options):
        if accelerator.is_main_process:
            text = name_vectors(cache_folder(options), model.backbone, cache.dataset.names)
            print(f"{cache.dataset.name}: {score(model, cache, text)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    options = make_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    return run_program(lambda: train(options))


if __name__ == "__main__":
    sys.exit(main())
