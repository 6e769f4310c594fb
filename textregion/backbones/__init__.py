"""Image-text models: one file per family, one registry row per variant."""

from textregion.backbones.base import FAMILIES, SPECS, Backbone, BackboneSpec, find_spec
from textregion.backbones.clip import ClipBackbone
from textregion.backbones.perception import PerceptionBackbone
from textregion.backbones.siglip import SiglipBackbone

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
