"""The flags about models, alike in every program: which weights, and every option of SegmenterConfig and SAM 2's masks.

A flag that is not given leaves the option as the preset (or a benchmark's config) has it.
"""

import argparse
from dataclasses import fields
from types import UnionType
from typing import Any, get_args

from textregion.cli.command_line import BOOLEAN, Parser, Sides
from textregion.concepts import THRESHOLDS, ConceptLabeller
from textregion.config import SegmenterConfig
from textregion.errors import InputError, fraction
from textregion.masks import automatic_sources
from textregion.presets import MASK_FIELDS, find_preset, preset_for

WEIGHTS = {
    "clip_checkpoint": ("FILE", "image-text weights on disk"),
    "clip_download_root": ("DIR", "where weights are looked for and kept"),
    "sam2_checkpoint": ("FILE", "SAM 2.1 weights on disk"),
    "sam3_checkpoint": (
        "DIR",
        "SAM 3's folder in the hub's layout, for label_filter presence, --method sam3-concepts",
    ),
    "model_cfg": ("SIZE|YAML", "SAM 2.1 tiny, small, base+ or large, or the file's own configuration"),
}
REGIONSPOT = ("regionspot_checkpoint", "sam1_checkpoint", "regionspot_side", "regionspot_isolate")
PARSING = {
    bool: BOOLEAN,
    int: {"type": int, "metavar": "N"},
    float: {"type": float, "metavar": "X"},
    str: {},
    tuple: {"nargs": "+", "action": Sides, "metavar": "N"},
}
OPTIONS = (*fields(SegmenterConfig), *MASK_FIELDS)
CONCEPT_OPTIONS = tuple(f for f in fields(ConceptLabeller) if f.name in THRESHOLDS)


def add_model_flags(parser: Parser, default_preset: str = "clip-vit-l14-336") -> None:
    """Which backbone and SAM 2, by preset or by the published programs' two flags, and where their weights are."""
    add = parser.add_argument_group("which models").add_argument
    add("--preset", metavar="NAME", help=f"backbone, SAM 2 and recipe by name (default {default_preset})")
    add("--clip_pretrained", metavar="TAG", help="instead of --preset: openai, laion2b_s32b_b79k, siglip2 or meta")
    names = "ViT-L/14@336px, ViT-B/16, ViT-H-14, ViT-L-16-SigLIP2-256, PE-Core-L14-336, …"
    add("--clip_architecture", metavar="NAME", help=f"instead of --preset: {names}")
    for name, (metavar, text) in WEIGHTS.items():
        add(f"--{name}", metavar=metavar, help=text)
    add("--random_weights", action="store_true", help="real architectures, random weights: a dry run, no download")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps (default auto)")
    add("--dtype", help="auto (float16 on CUDA, else float32), float32/fp32, float16/fp16, bfloat16/bf16")


def add_option_flags(parser: Parser, default: str = "the preset's") -> None:
    """One flag per option of SegmenterConfig and of SAM 2's masks; default: what holds without a flag, for the help."""
    group = parser.add_argument_group(f"how (default: {default}; in brackets: of most presets)")
    for field in OPTIONS:
        members = get_args(field.type) if isinstance(field.type, UnionType) else (field.type,)
        kind = next((kind for kind in (bool, int, float, str) if kind in members), tuple)
        told = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        text = (field.metadata["help"] + f" ({told})" * (told is not None)).replace("%", "%%")
        group.add_argument(f"--{field.name}", **{**PARSING[kind], **field.metadata["flag"]}, help=text)
    no_removal = "False: no patch is left out, whatever it scores (True)"
    group.add_argument("--remove_global_patch", **BOOLEAN, help=no_removal)


def add_regionspot_flags(parser: Parser) -> None:
    """The trained head that --method regionspot asks."""
    add = parser.add_argument_group("with --method regionspot").add_argument
    add("--regionspot_checkpoint", metavar="FILE", help="a head you trained, or a published one (preset tiny: shipped)")
    add("--sam1_checkpoint", metavar="FILE", help="SAM v1 ViT-B weights, which published heads need")
    add("--regionspot_side", type=int, metavar="N", help="224 or 336: CLIP's input side of a published ViT-L/14 head")
    isolate = "a box's result does not depend on the other boxes (default: as the head was trained; published: False)"
    add("--regionspot_isolate", **BOOLEAN, help=isolate)


def add_concept_flags(parser: Parser) -> None:
    """The thresholds of --method sam3-concepts; its weights are --sam3_checkpoint."""
    group = parser.add_argument_group("with --method sam3-concepts")
    for field in CONCEPT_OPTIONS:
        group.add_argument(
            f"--{field.name}", type=float, metavar="X", help=f"{field.metadata['help']} ({field.default})"
        )


def concept_thresholds(args: argparse.Namespace) -> dict[str, float]:
    """Those that the user gave, as arguments of a ConceptLabeller; InputError before its weights are read."""
    given = {f.name: value for f in CONCEPT_OPTIONS if (value := getattr(args, f.name)) is not None}
    for name, value in given.items():
        fraction(name, value)
    return given


def add_memory_flags(parser: Parser) -> None:
    """--memory and what its keys are; alpha and K are options of SegmenterConfig."""
    add = parser.add_argument_group("with a region memory").add_argument
    table = "a table of textregion index whose regions support an image's, which are left out themselves (none)"
    add("--memory", metavar="TABLE", help=f"{table}; see --memory_alpha, --memory_neighbours")
    key = "what regions are found by: token, or a timm tower added by textregion index --add_keys (token)"
    add("--memory_key", metavar="NAME", help=key)
    add("--memory_key_checkpoint", metavar="FILE", help="that tower's weights on disk (fetched)")


def mask_source_flag(parser: argparse._ArgumentGroup, more: str = "", **options: Any) -> None:
    """--masks; more: what else the program takes."""
    text = f"where regions come from: {', '.join(automatic_sources())}{more}"
    parser.add_argument("--masks", metavar="SOURCE", help=text, **options)


def chosen_preset(args: argparse.Namespace) -> str | None:
    """The preset that the flags name, None without one. InputError for flags that exclude each other or fit nothing."""
    if not (args.clip_pretrained or args.clip_architecture):
        return args.preset
    if args.preset:
        raise InputError("give either --preset or --clip_pretrained/--clip_architecture, not both")
    return preset_for(args.clip_pretrained, args.clip_architecture)


def default_source(args: argparse.Namespace) -> str:
    """Where regions come from without --masks: as the preset has it; InputError for one that does not exist."""
    return find_preset(args.preset).mask_source if args.preset else "sam2"


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Only what the user gave, as arguments of `TextRegionSegmenter.from_preset`."""
    names = (*WEIGHTS, *REGIONSPOT, *(field.name for field in OPTIONS), "dtype")
    options = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    if args.random_weights:
        options["random_weights"] = True
    if getattr(args, "remove_global_patch", None) is False:
        options["global_patch_threshold"] = None
    return options
