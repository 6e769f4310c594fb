"""Perception Encoder (PE-Core) through open_clip and timm, whose rotary positions are right (spec 3.3, 7.3)."""

from utils.backbones.base import BackboneSpec, register
from utils.backbones.timm_tower import TimmBackbone


@register(
    BackboneSpec("pe-core-t16-384", "pe", ("PE-Core-T-16-384", "meta"), 384, 512, 280),
    BackboneSpec("pe-core-s16-384", "pe", ("PE-Core-S-16-384", "meta"), 384, 512, 350),
    BackboneSpec("pe-core-b16", "pe", ("PE-Core-B-16", "meta"), 224, 1024, 1790),
    BackboneSpec("pe-core-l14-336", "pe", ("PE-Core-L-14-336", "meta"), 336, 1024, 2684),
    BackboneSpec("pe-core-bigg14-448", "pe", ("PE-Core-bigG-14-448", "meta"), 448, 1280, 9664),
)
class PerceptionBackbone(TimmBackbone):
    """A PE-Core model, with or without class token; regions pool the patch tokens only."""

    family = "pe"
    interpolation = "bilinear"
