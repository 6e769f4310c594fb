"""Image-text models: one file per family, one registry row per variant."""

from utils.backbones.base import FAMILIES, SPECS, Backbone, BackboneSpec, find_spec
from utils.backbones.clip import ClipBackbone
from utils.backbones.perception import PerceptionBackbone
from utils.backbones.siglip import SiglipBackbone

__all__ = [
    "FAMILIES",
    "SPECS",
    "Backbone",
    "BackboneSpec",
    "ClipBackbone",
    "PerceptionBackbone",
    "SiglipBackbone",
    "find_spec",
]
