"""Perception Encoder (PE-Core) through open_clip and timm, whose rotary positions are right (method 3.3, 7.3)."""

from textregion.backbones.base import BackboneSpec, register
from textregion.backbones.timm_tower import TimmBackbone


@register(
    *(
        BackboneSpec(name, "pe", (model, "meta"), crop_size, width, megabytes, original=f"{original}.pt")
        for name, model, crop_size, width, megabytes, original in (
            ("pe-core-t16-384", "PE-Core-T-16-384", 384, 512, 278, "PE-Core-T16-384"),
            ("pe-core-s16-384", "PE-Core-S-16-384", 384, 512, 349, "PE-Core-S16-384"),
            ("pe-core-b16", "PE-Core-B-16", 224, 1024, 1791, "PE-Core-B16-224"),
            ("pe-core-l14-336", "PE-Core-L-14-336", 336, 1024, 2685, "PE-Core-L14-336"),
            ("pe-core-bigg14-448", "PE-Core-bigG-14-448", 448, 1280, 9677, "PE-Core-G14-448"),
        )
    )
)
class PerceptionBackbone(TimmBackbone):
    """A PE-Core model, with or without class token; regions pool the patch tokens only."""

    family = "pe"
    interpolation = "bilinear"
