"""Where regions come from: SAM 2's automatic masks (method 9), prompts, given masks, label maps, superpixels."""

from textregion.masks.base import MaskGenerator
from textregion.masks.ground_truth import GroundTruthMasks
from textregion.masks.precomputed import PrecomputedMasks, read_masks
from textregion.masks.prompts import BoxMaskGenerator, PointMaskGenerator, masks_from_boxes, masks_from_points
from textregion.masks.registry import SOURCES, MaskSource, automatic_sources, find_source, register
from textregion.masks.sam2 import Sam2MaskGenerator
from textregion.masks.slic import SlicMasks

register("sam2", needs="a SAM 2 model of the sam2 package")(Sam2MaskGenerator)

__all__ = [
    "SOURCES",
    "BoxMaskGenerator",
    "GroundTruthMasks",
    "MaskGenerator",
    "MaskSource",
    "PointMaskGenerator",
    "PrecomputedMasks",
    "Sam2MaskGenerator",
    "SlicMasks",
    "automatic_sources",
    "find_source",
    "masks_from_boxes",
    "masks_from_points",
    "read_masks",
    "register",
]
