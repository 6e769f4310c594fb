"""SigLIP and SigLIP 2 through open_clip and timm (spec 3.4, 7.4, 8.2)."""

from utils.backbones.base import BackboneSpec, register
from utils.backbones.timm_tower import TimmBackbone


@register(
    BackboneSpec("siglip2-b16", "siglip", ("ViT-B-16-SigLIP2", "webli"), 224, 768, 1501),
    BackboneSpec("siglip2-b16-512", "siglip", ("ViT-B-16-SigLIP2-512", "webli"), 512, 768, 1504),
    BackboneSpec("siglip2-l16-256", "siglip", ("ViT-L-16-SigLIP2-256", "webli"), 256, 1024, 3526),
    BackboneSpec("siglip2-so400m-16-384", "siglip", ("ViT-SO400M-16-SigLIP2-384", "webli"), 384, 1152, 4545),
)
class SiglipBackbone(TimmBackbone):
    """A SigLIP model: region logits are cosine * exp(logit_scale) + logit_bias."""

    family = "siglip"
    interpolation = "bicubic"

    @property
    def logit_scale(self) -> float:
        """exp of the model's learned temperature."""
        return float(self.model.logit_scale.exp())

    @property
    def logit_bias(self) -> float:
        """The model's learned bias."""
        return float(self.model.logit_bias) if self.model.logit_bias is not None else 0.0
