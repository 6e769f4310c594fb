"""Image-text models: one file per kind of tower, one registry row per variant; every module here is found by itself."""

from textregion.backbones.base import FAMILIES, SPECS, Backbone, BackboneSpec, find_spec, register_backbone
from textregion.backbones.clip import ClipBackbone
from textregion.backbones.timm_tower import PerceptionBackbone, SiglipBackbone
from textregion.plugins import import_all

import_all(__name__, __path__, "textregion.backbones")

__all__ = ["FAMILIES", "SPECS", "Backbone", "BackboneSpec", "ClipBackbone", "PerceptionBackbone", "SiglipBackbone"]
__all__ += ["find_spec", "register_backbone"]
