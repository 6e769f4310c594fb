"""Options as dataclass fields that carry their own help, and SegmenterConfig, the one list of those of a segmenter.

Flags, presets, the mmseg model, `--help` and the fingerprint of a run all follow from its fields, so a new option is
added here and nowhere else.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any

from textregion.crops import RESIZE_METHODS
from textregion.errors import InputError, at_least, fraction, one_of, sides
from textregion.pooling import RECIPES, PoolingRecipe

LABEL_FILTERS = ("none", "presence")
MEMORY_OPTIONS = ("memory_alpha", "memory_neighbours")  # which decide labels, and no token


def option(default: Any, help: str, **flag: Any) -> Any:
    """A dataclass field with a default and its help; flag: further arguments of its command-line flag (choices, …)."""
    return field(default=default, metadata={"help": help, "flag": flag})


@dataclass(frozen=True)
class SegmenterConfig:
    """Every option of a TextRegionSegmenter that decides its results, validated once, when it is made.

    The help beside a field is its documentation. InputError says what was got and what is expected.
    """

    recipe: PoolingRecipe | str = option(
        "demo", "pooling switches of CLIP by name (method 7.2), in Python also a PoolingRecipe", choices=(*RECIPES,)
    )
    scale: tuple[int, int] = option(
        (2016, 672),
        "two sides in pixels the image is fitted into, aspect kept (method 1.2); larger is finer and slower: time "
        "grows with the number of tiles, (long side / crop_size) * (short side / crop_size)",
    )
    crop_size: int | None = option(None, "side of a crop in pixels; default the model's own", metavar="N")
    resize_method: str = option(
        "multi_resolution", "whole image and tiles, or one squashed crop: fast and coarse", choices=RESIZE_METHODS
    )
    antialias: bool = option(True, "shrink crops with antialiasing; benchmarks were published without (method 1.5)")
    global_patch_threshold: float | None = option(
        0.07,
        "patches that score below it speak for no region, useful range 0..0.3, scores lie in [-2, 2] (method 6)",
        metavar="D",
    )
    mask_type: str = option("soft", "patch weights, an ablation (method 5.1)", choices=("soft", "hard"))
    pool_feature: str = option(
        "value", "of CLIP's last block, an ablation (method 7.6)", choices=("value", "input", "output")
    )
    upsample_times: int = option(1, "finer patch grid for CLIP, an ablation (method 4)", metavar="N")
    mask_size: str = option(
        "resized", "full size of generated masks: that image's (method 5.2)", choices=("resized", "original")
    )
    global_splits: tuple[int, int] = option(
        (1, 1), "rows and columns the whole-image crop is split into; 1 2 for Cityscapes (method 2.4)"
    )
    dense_fallback: bool = option(
        False, "label pixels outside all regions from CLIP's dense features (method 8.4a); off: the first label"
    )
    mode_per_mask: bool = option(
        False, "every mask takes the most frequent label of its pixels, the smallest first (method 8.7)"
    )
    label_filter: str = option(
        "none",
        "presence: labels that SAM 3 does not see in the image are left out before its pixels are labelled, the first "
        "one excepted (docs/methods.md); needs its weights and transformers",
        choices=LABEL_FILTERS,
    )
    presence_threshold: float = option(0.5, "0..1, from which on label_filter presence keeps a label", metavar="X")
    memory_alpha: float = option(
        0.5, "share of a region memory's support in region logits, 0 to 1, where there is a memory", metavar="A"
    )
    memory_neighbours: int = option(20, "regions of the memory that support one (K)", metavar="K")
    templates: int = option(
        80,
        "prompts a label is put into and averaged over: OpenAI's 80, which results were published with, open_clip's 7 "
        "simple ones, or 1, 'a photo of a …'; the time that words take grows with them (method 8.1). Without this flag "
        "the demo and the page take 7 on a CPU",
        choices=(80, 7, 1),
    )
    box_masks: str = option(
        "sam", "which patches of a box encode_boxes pools: those of SAM 2's mask, or all", choices=("sam", "box")
    )

    def __post_init__(self) -> None:
        set_ = object.__setattr__  # the only writes to a frozen instance: its own values, tidied
        set_(self, "recipe", PoolingRecipe.named(self.recipe))
        set_(self, "scale", sides(self.scale))
        set_(self, "global_splits", sides(self.global_splits, "global_splits"))
        set_(self, "antialias", bool(self.antialias))
        set_(self, "mode_per_mask", bool(self.mode_per_mask))
        for f in fields(self):
            if f.name != "recipe" and (choices := f.metadata["flag"].get("choices")):
                one_of(f.name, getattr(self, f.name), choices)
        if self.recipe.further_terms and self.pool_feature != "value":
            raise InputError(f"got pool_feature {self.pool_feature!r} with recipe {self.recipe.name}, expected 'value'")
        at_least("upsample_times", self.upsample_times)
        fraction("presence_threshold", self.presence_threshold)
        if self.crop_size is not None:
            at_least("crop_size", self.crop_size)
        at_least("memory_neighbours", self.memory_neighbours)
        fraction("memory_alpha", self.memory_alpha)
        threshold = self.global_patch_threshold
        if threshold is not None and not (isinstance(threshold, Real) and -2 <= threshold <= 2):
            raise InputError(f"got global_patch_threshold {threshold}, expected -2..2 or None for off")


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Short hash of JSON-able settings, independent of the order of their keys; other values count by their text."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
