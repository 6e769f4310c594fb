"""Heads on disk: our own files, which say what they were made for, and the authors' checkpoints; and what fits them.

The authors' weights are under their own licence (CC BY-NC 4.0); none are shipped here.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from textregion.backbones import Backbone, ClipBackbone
from textregion.checkpoints import check_fit, read_state
from textregion.errors import InputError
from textregion.masks.base import MaskGenerator
from textregion.masks.sam2 import Sam2MaskGenerator
from textregion.regionspot.box_tokens import Sam1BoxTokens, Sam2BoxTokens, load_sam1
from textregion.regionspot.model import HEADS, RegionSpot, RegionSpotHead, check_backbone, check_widths, input_side
from textregion.storage import load_tensors, save_tensors

METHODS = ("textregion", "regionspot")  # of TextRegionSegmenter.encode_boxes
TINY = "tiny"  # the backbone that the shipped head belongs to
SHIPPED_HEAD = Path(__file__).parent / "weights" / "tiny_head.safetensors"
KIND = "RegionSpotHead"
NEEDED = {"clip": str, "side": int, "sam": str}
OPTIONS = ("isolate", "use_class_token")
TENSORS_OF_LAYER = 18
PREFIX = "model."
FROZEN = ("clip_model.", "sam.")  # what a published file may carry along
PUBLISHED_SAM = "sam1:vit_b"
PUBLISHED_LAYERS = 3
# (D, E) of published heads -> the input sides there are, each with the CLIP it belongs to (RegionSpot 6).
PUBLISHED = {
    (768, 512): {224: "clip-vit-b16"},
    (1024, 768): {224: "clip-vit-l14", 336: "clip-vit-l14-336"},
}
Loaded = tuple[RegionSpotHead, dict[str, Any]]  # a head and its origin


def save_head(path: str | Path, head: RegionSpotHead, origin: dict[str, Any], half: bool = False) -> None:
    """Write a head and what it belongs to, in one step.

    origin: `clip` (the backbone's name), `side` (of CLIP's input in pixels) and `sam` (the box tokens' name) are
    needed; `antialias` and anything else that fits into JSON (how it was trained) may be added. half: store float16.
    """
    if missing := [name for name in NEEDED if name not in origin]:
        raise InputError(f"got an origin without {', '.join(missing)}; expected {', '.join(NEEDED)}")
    state = {name: value.half() if half else value for name, value in head.state_dict().items()}
    options = {"isolate": head.isolate, "use_class_token": head.use_class_token}
    save_tensors(path, state, {"kind": KIND, "options": options, "origin": origin})


def load_head(
    path: str | Path, clip: str | None = None, sam: str | None = None, side: int | None = None, **options: bool | float
) -> Loaded:
    """A head that `save_head` wrote, float32, in eval mode, and its origin.

    clip, sam, side: what the origin must say, where given. options: isolate, use_class_token, default as saved;
    dropout. InputError in one line: missing, damaged, something else, or made for another CLIP, SAM or input side.
    """
    state, saved, origin = _read(path)
    for what, name in (("clip", clip), ("sam", sam)):
        if name is not None and origin[what] != name:
            raise InputError(f"{path} was trained with {origin[what]}, got {name}; use what it was trained with")
    if side not in (None, origin["side"]):
        raise InputError(f"{path} was trained at input side {origin['side']}, got {side}; leave it out")
    return _build(state, path, **{**saved, **options}), origin


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, bool], dict[str, Any]]:
    """(tensors, options, origin) of a file of `save_head`."""
    state, meta = load_tensors(path, KIND)
    origin, options = meta.get("origin"), meta.get("options")
    told = isinstance(origin, dict) and all(isinstance(origin.get(name), kind) for name, kind in NEEDED.items())
    if not told or not isinstance(options, dict):
        raise InputError(f"{path} does not say what it was made for; save it again with save_head")
    if not set(options) <= set(OPTIONS) or not all(isinstance(value, bool) for value in options.values()):
        raise InputError(f"{path} has the options {str(options)[:80]}, expected {' and '.join(OPTIONS)}, true or false")
    return state, options, origin


def load_published(path: str | Path, clip: ClipBackbone, side: int | None = None, **options: bool) -> Loaded:
    """A checkpoint of the authors' program (RegionSpot 6), strictly, and its origin as of `save_head`.

    path: a `.pth` file whose key `model` holds `model.to_clip.weight`, …; a frozen CLIP or SAM in it is passed over.
    clip: the CLIP to use it with. side: CLIP's input side it was trained at, 224 or 336; needed where the shapes fit
    both (ViT-L/14). options: isolate, use_class_token; default as published. InputError in one line: missing, damaged,
    with code in it, any key missing, unexpected or of another shape, or made for another CLIP.
    """
    check_backbone(clip)
    state = read_state(path)
    if any(name.startswith(PREFIX) for name in state):  # read_state takes it off where all names have it
        raise InputError(f"{path} is no RegionSpot checkpoint: some of its names do not start with {PREFIX!r}")
    own = {name: value for name, value in state.items() if not name.startswith(FROZEN)}
    head = _build(own, path, PUBLISHED_LAYERS, **options)
    check_widths(head, clip)
    sides = PUBLISHED.get((head.to_clip.out_features, head.projector.out_features))
    if sides is None:  # of a CLIP that was never published for
        side = side or input_side(clip)
    elif side is None and len(sides) > 1:
        known = " or ".join(f"{side} ({name})" for side, name in sides.items())
        raise InputError(f"the shapes of {path} do not tell its input side; give regionspot_side {known}")
    else:
        side = side or next(iter(sides))
        if side not in sides:
            raise InputError(f"got regionspot_side {side}, {path} can be of {' or '.join(map(str, sides))}")
        if input_side(clip) != side:
            raise InputError(f"a head of input side {side} belongs to {sides[side]}, got {clip.name}; take that preset")
    return head, {"clip": clip.name, "side": side, "sam": PUBLISHED_SAM}


def _build(
    state: dict[str, Tensor], source: str | Path, layers: int | None = None, **options: bool | float
) -> RegionSpotHead:
    """A head with these weights, float32, in eval mode; all sizes are read off the shapes, then all must fit.

    layers: how many it must have, default as many as there are. options: of RegionSpotHead.
    """
    try:
        clip_width, token_width = state["to_clip.weight"].shape
        embed_width, _ = state["projector.weight"].shape
        hidden, _ = state["decoder.layers.0.linear1.weight"].shape
    except (KeyError, ValueError) as error:
        raise InputError(f"{source} is no RegionSpot head: {error} is missing or no matrix") from error
    if clip_width % HEADS:
        raise InputError(f"{source} is no RegionSpot head: its width {clip_width} is no multiple of {HEADS}")
    layers = layers or len({name.split(".")[2] for name in state if name.startswith("decoder.layers.")})
    if layers * TENSORS_OF_LAYER > len(state):
        raise InputError(f"{source} is no RegionSpot head: {len(state)} tensors are too few for {layers} layers")
    sizes = clip_width, embed_width, token_width, hidden, layers
    with torch.device("meta"):  # so that nothing is made of sizes that only a small tensor claims
        check_fit(RegionSpotHead(*sizes, **options), state, "a RegionSpot head", source)
    head = RegionSpotHead(*sizes, **options)
    head.load_state_dict({name: value.float() for name, value in state.items()})
    return head.eval()


def is_own(path: str | Path) -> bool:
    """Whether a file is one that `save_head` wrote, by its metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            return "textregion" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def load_regionspot(
    backbone: Backbone,
    mask_generator: MaskGenerator | None = None,
    checkpoint: str | Path | None = None,
    sam1_checkpoint: str | Path | None = None,
    side: int | None = None,
    **options: bool,
) -> RegionSpot:
    """RegionSpot around a CLIP, and a SAM 2 where its head was trained with one.

    checkpoint: a head of `python -m utils.regionspot.train`, or a published one; default the shipped head of the tiny
    models. sam1_checkpoint: SAM v1's weights, which published heads need. side: CLIP's input side, where a published
    head's shapes do not tell it. options: isolate, use_class_token; default as the head was trained.
    InputError in one line for anything that is missing or does not fit.
    """
    check_backbone(backbone)
    if checkpoint is None and backbone.name != TINY:
        raise InputError(f"no RegionSpot head is shipped for {backbone.name}; give one as regionspot_checkpoint")
    path = Path(SHIPPED_HEAD if checkpoint is None else checkpoint)
    if not path.is_file():
        raise InputError(f"no RegionSpot head at {path}; check the path")
    own = is_own(path)
    sam = _read(path)[2]["sam"] if own else PUBLISHED_SAM
    kind, _, size = sam.partition(":")
    if kind == "sam1":
        if sam1_checkpoint is None:
            raise InputError(f"{path} needs SAM v1 {size}; give its weights as sam1_checkpoint (sam_{size}_….pth)")
        source = Sam1BoxTokens(load_sam1(sam1_checkpoint, size), sam)
    elif isinstance(mask_generator, Sam2MaskGenerator):
        source = Sam2BoxTokens(mask_generator)
    else:
        raise InputError(f"{path} needs the SAM 2 it was trained with ({sam}) as mask generator")
    if own:
        head, origin = load_head(path, backbone.name, source.name, side, **options)
    else:
        head, origin = load_published(path, backbone, side, **options)
    return RegionSpot(backbone, source, head, origin["side"], origin.get("antialias", False))


def pop_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take RegionSpot's options out of a segmenter's, by their names there; those that are None count as not given.

    InputError for a file that does not exist, so that nothing is loaded in vain.
    """
    plain = ("checkpoint", "side", "isolate", "use_class_token")
    names = {"sam1_checkpoint": "sam1_checkpoint", **{f"regionspot_{name}": name for name in plain}}
    found = {own: value for name, own in names.items() if (value := options.pop(name, None)) is not None}
    for name in ("checkpoint", "sam1_checkpoint"):
        if name in found and not Path(found[name]).is_file():
            raise InputError(f"no file {found[name]}; check the path")
    return found
