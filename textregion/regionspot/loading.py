"""RegionSpot for a backbone that is already there: which head, which SAM."""

from pathlib import Path
from typing import Any

from textregion.backbones import Backbone
from textregion.errors import InputError
from textregion.masks.base import MaskGenerator
from textregion.masks.sam2 import Sam2MaskGenerator
from textregion.regionspot.box_tokens import BoxTokenSource, Sam1BoxTokens, Sam2BoxTokens, load_sam1
from textregion.regionspot.checkpoint import PUBLISHED_SAM, is_own, load_head, load_published, read_origin
from textregion.regionspot.model import RegionSpot, check_backbone

METHODS = ("textregion", "regionspot")  # of TextRegionSegmenter.encode_boxes
TINY = "tiny"  # the backbone that the shipped head belongs to
SHIPPED_HEAD = Path(__file__).parent / "weights" / "tiny_head.safetensors"


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
    source = box_tokens_of(read_origin(path)["sam"] if own else PUBLISHED_SAM, path, mask_generator, sam1_checkpoint)
    if not own:
        head, origin = load_published(path, backbone, side, **options)
    else:
        head, origin = load_head(path, backbone.name, source.name, **options)
        if side not in (None, origin["side"]):
            raise InputError(f"{path} was trained at input side {origin['side']}, got {side}; leave it out")
    return RegionSpot(backbone, source, head, origin["side"], origin.get("antialias", False))


def box_tokens_of(
    name: str, head: Path, mask_generator: MaskGenerator | None, sam1_checkpoint: str | Path | None
) -> BoxTokenSource:
    """The SAM that a head needs, by the name in its origin."""
    kind, _, size = name.partition(":")
    if kind == "sam1":
        if sam1_checkpoint is None:
            raise InputError(f"{head} needs SAM v1 {size}; give its weights as sam1_checkpoint (sam_{size}_….pth)")
        return Sam1BoxTokens(load_sam1(sam1_checkpoint, size), name)
    if not isinstance(mask_generator, Sam2MaskGenerator):
        raise InputError(f"{head} needs the SAM 2 it was trained with ({name}) as mask generator")
    return Sam2BoxTokens(mask_generator)


def pop_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take RegionSpot's options out of a segmenter's, by their names there; those that are None count as not given.

    InputError for a file that does not exist, so that nothing is loaded in vain.
    """
    names = {
        "regionspot_checkpoint": "checkpoint",
        "sam1_checkpoint": "sam1_checkpoint",
        "regionspot_side": "side",
        "regionspot_isolate": "isolate",
        "regionspot_use_class_token": "use_class_token",
    }
    found = {own: options.pop(name) for name, own in names.items() if name in options}
    for name in ("checkpoint", "sam1_checkpoint"):
        if found.get(name) is not None and not Path(found[name]).is_file():
            raise InputError(f"no file {found[name]}; check the path")
    return {name: value for name, value in found.items() if value is not None}
