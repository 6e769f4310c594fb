"""Presets: backbone, SAM 2 size, clicks and recipe under one name (presets.yaml), and the segmenter one stands for."""

from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import open_clip
import torch
from torch import nn

from textregion.backbones import SPECS, Backbone, BackboneSpec, ClipBackbone, find_spec
from textregion.backbones.base import OPEN_CLIP_PREFIX
from textregion.backbones.loading import (
    RANDOM_SEED,
    load_backbone,
    random_backbone,
    seeded,
    tokenizer_asset,
    tokenizer_of,
    weight_asset,
)
from textregion.concepts import ConceptLabeller
from textregion.config import SegmenterConfig
from textregion.devices import resolve_device
from textregion.errors import InputError
from textregion.masks import MaskGenerator, Sam2MaskGenerator, find_source
from textregion.masks.sam2_model import build_sam2, load_sam2, sam2_asset, size_of
from textregion.regionspot.loading import load_regionspot, pop_options
from textregion.tiny import models as tinyworld
from textregion.weights import Asset, locate_all
from textregion.yaml_files import read_yaml

if TYPE_CHECKING:
    from textregion.segmenter import TextRegionSegmenter

FILE = read_yaml(Path(__file__).with_name("presets.yaml"), "the table of presets")
GivenPath = str | Path | None
DEFAULTS = FILE["defaults"]
TINY_WORLD = "tinyworld"
FROM_PRESET = "preset"
FAST_SAM2, FAST_CLICKS, FAST_TEMPLATES = "small", 12, 7
NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # as torch names what a processor can do
OWN_KEYS = ("backbone", "mask_source", "sam2", "with_memory", "published", "note")  # of a row that are no options
CONFIG_OPTIONS = tuple(f.name for f in fields(SegmenterConfig))
MASK_FIELDS = tuple(f for f in fields(Sam2MaskGenerator) if f.name not in ("model", "dtype", "compile"))
MASK_OPTIONS = tuple(f.name for f in MASK_FIELDS)


@dataclass(frozen=True)
class Preset:
    """One entry of presets.yaml.

    backbone: a row of the registry. mask_source: by its name, "sam2" being sam2, a SAM 2.1 size. with_memory: whether
    it is meant to be used with a region memory, which is the user's. published: figures of papers for this pairing, or
    ''. masks: options of Sam2MaskGenerator. options: fields of SegmenterConfig.
    """

    name: str
    backbone: str
    mask_source: str = "sam2"
    sam2: str = "large"
    with_memory: bool = False
    published: str = ""
    note: str = ""
    masks: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_row(cls, name: str, row: dict[str, Any]) -> "Preset":
        """From a flat row: every key goes where it belongs; YAML's lists become tuples."""
        row = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
        own = {key: row.pop(key) for key in OWN_KEYS if key in row}
        masks = {key: row.pop(key) for key in MASK_OPTIONS if key in row}
        return cls(name, **own, masks=masks, options=row)


@cache
def _table() -> dict[str, Preset]:
    rows = {name: {"backbone": name, **row} for name, row in FILE["presets"].items()}
    rows |= {name: {"backbone": name} for name in SPECS if name not in rows}
    return {name: Preset.of_row(name, {**DEFAULTS, **row}) for name, row in rows.items()}


def preset_names() -> tuple[str, ...]:
    """All names `find_preset` knows, `tiny` first."""
    return tuple(_table())


def find_preset(name: str) -> Preset:
    """A preset by name; InputError listing the valid names.

    Besides the table, "open_clip:MODEL/TAG" is any open_clip vision transformer with a class token.
    """
    if isinstance(name, str) and name.startswith(OPEN_CLIP_PREFIX):
        return Preset.of_row(name, {**DEFAULTS, "backbone": name})
    if name not in _table():
        valid = ", ".join(_table())
        raise InputError(f"unknown preset {name!r}; expected one of {valid}, or {OPEN_CLIP_PREFIX}MODEL/TAG")
    return _table()[name]


def fast_preset(preset: Preset) -> Preset:
    """A preset for somebody who waits: a smaller SAM 2.1, 12 x 12 clicks for 16 x 16, 7 prompts a label.

    Results differ from the preset's own: `python -m eval.bench fast` says by how much. Benchmarks never use it. The
    tiny world keeps its SAM 2, of which there is one size.
    """
    clicks = preset.masks.get("points_per_side", 16)
    masks = {**preset.masks, "points_per_side": FAST_CLICKS if clicks == 16 else clicks}
    sam2 = preset.sam2 if preset.sam2 == TINY_WORLD else FAST_SAM2
    return replace(preset, sam2=sam2, masks=masks, options={**preset.options, "templates": FAST_TEMPLATES})


def fast_dtype() -> str:
    """Arithmetic of the image-text model in the fast mode: bfloat16 on a CPU that has it, else as always."""
    known = getattr(torch.cpu, "get_capabilities", dict)()  # of older torch: not told
    return "bfloat16" if any(known.get(name) for name in NATIVE_BFLOAT16) else "auto"


def assets_of(name: str) -> list[Asset]:
    """The files a preset needs; none for `tiny`, whose weights are in the package, nor for masks of transformers."""
    preset = find_preset(name)
    return [asset for asset, _ in _requests(preset, wants_sam2=preset.mask_source == "sam2").values()]


def needs_of(name: str) -> list[str]:
    """What a preset needs besides the files that are fetched for it, in words; [] for most."""
    preset = find_preset(name)
    source, found = find_source(preset.mask_source), []
    family = None if preset.backbone == TINY_WORLD else find_spec(preset.backbone).family
    if source.repository or family == "tipsv2":
        found.append("setup_env.sh --transformers")
    if source.repository:
        found.append(f"{source.repository}{' (gated: your token)' * source.gated}")
    if preset.with_memory:
        found.append("a --memory of yours")
    return found


def build(
    segmenter_class: "type[TextRegionSegmenter]",
    name: str,
    *,
    clip_checkpoint: GivenPath = None,
    clip_download_root: GivenPath = None,
    sam2_checkpoint: GivenPath = None,
    sam3_checkpoint: GivenPath = None,
    model_cfg: GivenPath = None,
    mask_generator: MaskGenerator | str | None = FROM_PRESET,
    random_weights: bool = False,
    fast: bool = False,
    **options: Any,
) -> "TextRegionSegmenter":
    """A segmenter from a preset; weights are located as textregion/weights.py says, all of them before any is loaded.

    clip_checkpoint, sam2_checkpoint: explicit weight files (or folders of weights), which must exist.
    sam3_checkpoint: SAM 3's folder in the hub's layout, for label_filter presence.
    clip_download_root: weights folder or hub cache, for all models. model_cfg: SAM 2.1 size, or YAML.
    mask_generator: "preset" is the preset's source, "sam2" its SAM 2, "slic" superpixels; "sam2-hf", "sam3", "eomt"
        models of transformers, whose weights (a folder in the hub's layout) sam2_checkpoint gives; None for given masks
        only; or a generator of your own.
    random_weights: the real architectures without any file, the same every time; results mean nothing.
    fast: other settings that take less time and give other results (`fast_preset`, `fast_dtype`); options win over it.
    options: those of Sam2MaskGenerator (points_per_side, …) and of the segmenter (scale, device, …); they override the
        preset's. For boxes also RegionSpot's (regionspot/loading.py): regionspot_checkpoint, a trained or published
        head; sam1_checkpoint, SAM v1's weights, which published heads need; regionspot_side, 224 or 336, for published
        heads of ViT-L/14; regionspot_isolate, True for tokens independent of the other boxes;
        regionspot_use_class_token.
    Raises InputError in one line for anything that does not exist or fit.
    """
    preset = fast_preset(find_preset(name)) if fast else find_preset(name)
    if fast and resolve_device(options.get("device", "auto")).type == "cpu":
        options = {"dtype": fast_dtype(), **options}
    regionspot = pop_options(options)
    of_masks = {key: options.pop(key) for key in MASK_OPTIONS if key in options}
    own = [name for name, p in signature(segmenter_class).parameters.items() if p.kind is p.KEYWORD_ONLY]
    if unknown := sorted(options.keys() - {*CONFIG_OPTIONS, *own}):
        known = sorted(
            {*CONFIG_OPTIONS, *own, *MASK_OPTIONS, *signature(build).parameters} - {"segmenter_class", "name"}
        )
        raise InputError(f"unknown options {', '.join(unknown)}; expected some of {', '.join(known)}")
    if mask_generator == FROM_PRESET:
        mask_generator = preset.mask_source
    if isinstance(mask_generator, str) and mask_generator != "sam2":
        source = find_source(mask_generator)
        if source.repository and random_weights:
            raise InputError(f"random weights are not for the mask source {mask_generator}; give its weights")
        known = {f.name for f in fields(source.generator)} if is_dataclass(source.generator) else set()
        of_source = {key: value for key, value in {**preset.masks, **of_masks}.items() if key in known}
        mask_generator = source.make(sam2_checkpoint, clip_download_root, **of_source)
    wants_sam2, concepts = isinstance(mask_generator, str), options.pop("concepts", None)
    if concepts is None and options.get("label_filter", "none") == "presence":
        if random_weights:
            raise InputError("random weights are not for label_filter presence; leave one of the two out")
        concepts = ConceptLabeller.from_weights(sam3_checkpoint, clip_download_root)
    elif sam3_checkpoint is not None:
        raise InputError("got sam3_checkpoint without label_filter presence, which it is for; add it")
    if random_weights:
        explicit = {"--clip_checkpoint": clip_checkpoint, "--sam2_checkpoint": sam2_checkpoint}
        if given := [flag for flag, path in explicit.items() if path is not None]:
            raise InputError(f"got {given[0]} and random weights, which exclude each other; leave one out")
        backbone, sam2 = _random_models(preset, model_cfg, wants_sam2)
    else:
        requests = _requests(preset, clip_checkpoint, sam2_checkpoint, model_cfg, wants_sam2)
        found = dict(zip(requests, locate_all(list(requests.values()), clip_download_root), strict=True))
        backbone = _load_backbone(preset, found)
        sam2 = _load_sam2(preset, found.get("sam2"), model_cfg, sam2_checkpoint is not None) if wants_sam2 else None
    if wants_sam2:
        mask_generator = Sam2MaskGenerator(sam2, **{**preset.masks, **of_masks})
    segmenter = segmenter_class(backbone, mask_generator, concepts=concepts, **{**preset.options, **options})
    if regionspot:
        segmenter.regionspot = load_regionspot(segmenter.backbone, segmenter.mask_generator, **regionspot)
    return segmenter


def _requests(
    preset: Preset, clip: GivenPath = None, sam2: GivenPath = None, model_cfg: GivenPath = None, wants_sam2: bool = True
) -> dict[str, tuple[Asset, GivenPath]]:
    """The files to look for, each with the path the user gave for it."""
    requests = {}
    if preset.backbone != TINY_WORLD:
        spec = find_spec(preset.backbone)
        requests["backbone"] = (weight_asset(spec), clip)
        if (tokenizer := tokenizer_asset(spec)) is not None:
            requests["tokenizer"] = (tokenizer, clip)
    elif clip is not None:
        raise InputError(f"preset {preset.name} brings its own image-text model; leave --clip_checkpoint out")
    if wants_sam2 and (preset.sam2 != TINY_WORLD or sam2 is not None or model_cfg is not None):
        size = size_of(model_cfg) or (preset.sam2 if preset.sam2 != TINY_WORLD else "large")
        if size_of(model_cfg) is None and model_cfg is not None and sam2 is None:
            raise InputError(f"model_cfg {model_cfg} is not a published size; give its weights as --sam2_checkpoint")
        requests["sam2"] = (sam2_asset(size), sam2)
    return requests


def _load_backbone(preset: Preset, found: dict[str, Path]) -> Backbone:
    if preset.backbone == TINY_WORLD:
        return ClipBackbone.from_model(*tinyworld.load_clip(), name=preset.name)
    spec = find_spec(preset.backbone)
    return load_backbone(spec, found["backbone"], tokenizer_of(spec, found.get("tokenizer")))


def _load_sam2(preset: Preset, path: Path | None, model_cfg: GivenPath, explicit: bool) -> nn.Module:
    """An explicit file without model_cfg may be of any published size; a found one is of the preset's."""
    if path is None:
        return tinyworld.load_sam2()
    return load_sam2(path, model_cfg if explicit or model_cfg is not None else preset.sam2)


def _random_models(preset: Preset, model_cfg: GivenPath, wants_sam2: bool) -> tuple[Backbone, nn.Module | None]:
    """Seeded, on the CPU, without touching the global random state."""
    with seeded(RANDOM_SEED):
        if preset.backbone == TINY_WORLD:
            backbone = ClipBackbone.from_model(tinyworld.build_clip(), tinyworld.tokenizer(), name=preset.name)
        else:
            backbone = random_backbone(find_spec(preset.backbone))
    if not wants_sam2:
        return backbone, None
    with seeded(RANDOM_SEED):
        own = model_cfg is None and preset.sam2 == TINY_WORLD
        return backbone, tinyworld.build_sam2().eval() if own else build_sam2(model_cfg or preset.sam2)


# ---------------------------------------------------------------------- names of the published programs


PUBLISHED_DEFAULTS = {
    "openai": "clip-vit-l14-336",
    "laion2b_s32b_b79k": "openclip-vit-h14",
    "siglip2": "siglip2-l16-256",
    "meta": "pe-core-l14-336",
}


def preset_for(clip_pretrained: str | None = None, clip_architecture: str | None = None) -> str:
    """The preset that the published programs' two flags mean.

    clip_pretrained: openai, laion2b_s32b_b79k, siglip2 or meta (default openai), or another tag of open_clip.
    clip_architecture: in any published spelling, e.g. ViT-L/14@336px, ViT-H-14, ViT-L-16-SigLIP2-256,
    PE-Core-L14-336, PE-Core-B16-224; default: the one the published programs used with these weights. An architecture
    that exists with one set of weights only needs no clip_pretrained.
    Raises InputError for a pair that does not exist, listing those that do.
    """
    pretrained = clip_pretrained or "openai"
    if clip_architecture is None and pretrained in PUBLISHED_DEFAULTS:
        return PUBLISHED_DEFAULTS[pretrained]
    fits = [name for name, spec in SPECS.items() if _plain(clip_architecture or "") in _spellings(spec)]
    of_weights = [name for name in fits if pretrained in _pretrained_names(SPECS[name])]
    if of_weights or (clip_pretrained is None and len(fits) == 1):
        return (of_weights or fits)[0]
    if clip_architecture and pretrained in open_clip.list_pretrained_tags_by_model(clip_architecture):
        return f"{OPEN_CLIP_PREFIX}{clip_architecture}/{pretrained}"
    known = {tag: [spec for spec in SPECS.values() if tag in _pretrained_names(spec)] for tag in PUBLISHED_DEFAULTS}
    architectures = {
        tag: [spec.open_clip[0].removesuffix("-quickgelu") for spec in rows] for tag, rows in known.items()
    }
    valid = "; ".join(f"{tag}: {', '.join(names)}" for tag, names in architectures.items())
    raise InputError(f"no model {clip_architecture!r} with weights {pretrained!r}; expected one of {valid}")


def _pretrained_names(spec: BackboneSpec) -> tuple[str, ...]:
    return (spec.open_clip[1], "siglip2") if spec.name.startswith("siglip2") else (spec.open_clip[1],)


def _spellings(spec: BackboneSpec) -> set[str]:
    return {_plain(name) for name in (spec.name, spec.open_clip[0], spec.original.removesuffix(".pt")) if name}


def _plain(name: str) -> str:
    """ViT-L/14@336px, ViT-L-14-336-quickgelu -> vitl14336."""
    return "".join(c for c in name.lower().removesuffix("px") if c.isalnum()).removesuffix("quickgelu")
