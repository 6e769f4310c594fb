"""Where regions come from, one file per kind of source; every module here is found by itself."""

from textregion.masks.base import SOURCES, MaskGenerator, MaskSource, automatic_sources, describe_source, find_source
from textregion.masks.eomt import EomtMasks
from textregion.masks.given import GroundTruthMasks, PrecomputedMasks, read_masks
from textregion.masks.prompts import BoxMaskGenerator, PointMaskGenerator, masks_from_boxes, masks_from_points
from textregion.masks.sam2 import Sam2MaskGenerator
from textregion.masks.sam2_hf import Sam2HfMaskGenerator
from textregion.masks.sam3 import Sam3MaskGenerator
from textregion.masks.slic import SlicMasks
from textregion.plugins import import_all

import_all(__name__, __path__, "textregion.mask_sources")

__all__ = ["SOURCES", "BoxMaskGenerator", "EomtMasks", "GroundTruthMasks", "MaskGenerator", "MaskSource"]
__all__ += ["PointMaskGenerator", "PrecomputedMasks", "Sam2HfMaskGenerator", "Sam2MaskGenerator", "Sam3MaskGenerator"]
__all__ += ["SlicMasks", "automatic_sources", "describe_source", "find_source", "masks_from_boxes", "masks_from_points"]
__all__ += ["read_masks"]
