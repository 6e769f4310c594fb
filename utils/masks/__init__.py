"""Where regions come from: SAM 2's automatic masks (spec 9), prompts, given masks, label maps, superpixels."""

from utils.masks.base import MaskGenerator
from utils.masks.ground_truth import GroundTruthMasks
from utils.masks.precomputed import PrecomputedMasks, read_masks
from utils.masks.prompts import BoxMaskGenerator, PointMaskGenerator, masks_from_boxes, masks_from_points
from utils.masks.registry import SOURCES, MaskSource, automatic_sources, find_source, register
from utils.masks.sam2 import Sam2MaskGenerator
from utils.masks.slic import SlicMasks

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
