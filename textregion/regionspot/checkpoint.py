"""Heads on disk: our own safetensors files, which say what they were made for, and the authors' checkpoints.

The authors' weights are under their own licence (CC BY-NC 4.0); none are shipped here.
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from textregion.backbones import ClipBackbone
from textregion.checkpoints import load_strictly, read_state
from textregion.errors import InputError
from textregion.regionspot.head import HEADS, RegionSpotHead
from textregion.regionspot.model import check_backbone, check_widths, input_side, map_width
from textregion.storage import load_tensors, save_tensors

KIND = "RegionSpotHead"
NEEDED = ("clip", "side", "sam")
PREFIX = "model."
FROZEN = ("clip_model.", "sam.")  # what a published file may carry along
PUBLISHED_SAM = "sam1:vit_b"
PUBLISHED_LAYERS = 3
# (D, E) of published heads -> the input sides there are, each with the CLIP it belongs to (RegionSpot 6).
PUBLISHED = {
    (768, 512): {224: "clip-vit-b16"},
    (1024, 768): {224: "clip-vit-l14", 336: "clip-vit-l14-336"},
}


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
    path: str | Path, clip: str | None = None, sam: str | None = None, **options: bool
) -> tuple[RegionSpotHead, dict[str, Any]]:
    """A head that `save_head` wrote, float32, in eval mode, and its origin.

    clip, sam: names that the origin must have, where given. options: isolate, use_class_token; default as saved.
    InputError in one line: missing, damaged, something else, or made for another CLIP or SAM.
    """
    state, meta = load_tensors(path, KIND)
    origin = _origin(path, meta)
    for what, name in (("clip", clip), ("sam", sam)):
        if name is not None and origin[what] != name:
            raise InputError(f"{path} was trained with {origin[what]}, got {name}; use what it was trained with")
    return build_head(state, path, **{**meta["options"], **options}), origin


def read_origin(path: str | Path) -> dict[str, Any]:
    """What a head that `save_head` wrote was made for, without building it; errors as of `load_head`."""
    return _origin(path, load_tensors(path, KIND)[1])


def _origin(path: str | Path, meta: dict[str, Any]) -> dict[str, Any]:
    origin = meta.get("origin")
    if "options" not in meta or not isinstance(origin, dict) or any(name not in origin for name in NEEDED):
        raise InputError(f"{path} does not say what it was made for; save it again with save_head")
    return origin


def load_published(
    path: str | Path, clip: ClipBackbone, side: int | None = None, **options: bool
) -> tuple[RegionSpotHead, dict[str, Any]]:
    """A checkpoint of the authors' program (RegionSpot 6), strictly, and its origin as of `save_head`.

    path: a `.pth` file whose key `model` holds `model.to_clip.weight`, …; the frozen CLIP and SAM that it may carry are
    passed over. clip: the CLIP to use it with. side: CLIP's input side it was trained at, 224 or 336; needed where the
    shapes fit both (ViT-L/14). options: isolate, use_class_token; default as published.
    InputError in one line: missing, damaged, with code in it, any key missing, unexpected or of another shape, or made
    for another CLIP.
    """
    check_backbone(clip)
    state = read_state(path)
    if not all(name.startswith(PREFIX) for name in state):
        raise InputError(f"{path} is no RegionSpot checkpoint: its names do not start with {PREFIX!r}")
    state = {name.removeprefix(PREFIX): value for name, value in state.items()}
    own = {name: value for name, value in state.items() if not name.startswith(FROZEN)}
    head = build_head(own, path, PUBLISHED_LAYERS, **options)
    check_widths(head, map_width(clip), clip.width, f"CLIP {clip.name}")
    return head, {"clip": clip.name, "side": _side(path, head, clip, side), "sam": PUBLISHED_SAM}


def _side(path: str | Path, head: RegionSpotHead, clip: ClipBackbone, side: int | None) -> int:
    """The input side a published head was trained at, after checking that this CLIP is the one of that side."""
    sides = PUBLISHED.get((head.to_clip.out_features, head.projector.out_features))
    if sides is None:
        return side or input_side(clip)
    if side is None and len(sides) > 1:
        known = " or ".join(f"{side} ({name})" for side, name in sides.items())
        raise InputError(f"the shapes of {path} do not tell its input side; give regionspot_side {known}")
    side = side or next(iter(sides))
    if side not in sides:
        raise InputError(f"got regionspot_side {side}, {path} can be of {' or '.join(map(str, sides))}")
    if input_side(clip) != side:
        raise InputError(f"a head of input side {side} belongs to {sides[side]}, got {clip.name}; take that preset")
    return side


def build_head(
    state: dict[str, Tensor], source: str | Path, layers: int | None = None, **options: bool
) -> RegionSpotHead:
    """A head with these weights, float32, in eval mode; all sizes are read off the shapes, then all must fit.

    layers: how many it must have, default as many as there are. options: isolate, use_class_token.
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
    head = RegionSpotHead(clip_width, embed_width, token_width, hidden, layers, **options)
    load_strictly(head, {name: value.float() for name, value in state.items()}, "a RegionSpot head", source)
    return head.eval()


def is_own(path: str | Path) -> bool:
    """Whether a file is one that `save_head` wrote, by its metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            return "textregion" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False
