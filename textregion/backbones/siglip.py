"""SigLIP and SigLIP 2 through open_clip and timm (method 3.4, 7.4, 8.2)."""

from typing import Any

from torch import Tensor, nn

from textregion.backbones.base import BackboneSpec, register_backbone
from textregion.backbones.timm_tower import TimmBackbone, timm_stand_in


@register_backbone(
    *(
        BackboneSpec(name, "siglip", (model, "webli"), crop_size, width, megabytes)
        for name, model, crop_size, width, megabytes in (
            ("siglip2-b32-256", "ViT-B-32-SigLIP2-256", 256, 768, 1507),
            ("siglip2-b16", "ViT-B-16-SigLIP2", 224, 768, 1501),
            ("siglip2-b16-256", "ViT-B-16-SigLIP2-256", 256, 768, 1501),
            ("siglip2-b16-384", "ViT-B-16-SigLIP2-384", 384, 768, 1502),
            ("siglip2-b16-512", "ViT-B-16-SigLIP2-512", 512, 768, 1503),
            ("siglip2-l16-256", "ViT-L-16-SigLIP2-256", 256, 1024, 3526),
            ("siglip2-l16-384", "ViT-L-16-SigLIP2-384", 384, 1024, 3527),
            ("siglip2-l16-512", "ViT-L-16-SigLIP2-512", 512, 1024, 3529),
            ("siglip2-so400m-14", "ViT-SO400M-14-SigLIP2", 224, 1152, 4542),
            ("siglip2-so400m-14-378", "ViT-SO400M-14-SigLIP2-378", 378, 1152, 4544),
            ("siglip2-so400m-16-256", "ViT-SO400M-16-SigLIP2-256", 256, 1152, 4543),
            ("siglip2-so400m-16-384", "ViT-SO400M-16-SigLIP2-384", 384, 1152, 4544),
            ("siglip2-so400m-16-512", "ViT-SO400M-16-SigLIP2-512", 512, 1152, 4546),
            ("siglip2-gopt16-256", "ViT-gopt-16-SigLIP2-256", 256, 1536, 7486),
            ("siglip2-gopt16-384", "ViT-gopt-16-SigLIP2-384", 384, 1536, 7488),
            ("siglip-b16", "ViT-B-16-SigLIP", 224, 768, 813),
            ("siglip-b16-256", "ViT-B-16-SigLIP-256", 256, 768, 813),
            ("siglip-b16-i18n-256", "ViT-B-16-SigLIP-i18n-256", 256, 768, 1483),
            ("siglip-b16-384", "ViT-B-16-SigLIP-384", 384, 768, 814),
            ("siglip-b16-512", "ViT-B-16-SigLIP-512", 512, 768, 815),
            ("siglip-l16-256", "ViT-L-16-SigLIP-256", 256, 1024, 2609),
            ("siglip-l16-384", "ViT-L-16-SigLIP-384", 384, 1024, 2610),
            ("siglip-so400m-14", "ViT-SO400M-14-SigLIP", 224, 1152, 3509),
            ("siglip-so400m-14-378", "ViT-SO400M-14-SigLIP-378", 378, 1152, 3512),
            ("siglip-so400m-14-384", "ViT-SO400M-14-SigLIP-384", 384, 1152, 3512),
            ("siglip-so400m-16-i18n-256", "ViT-SO400M-16-SigLIP-i18n-256", 256, 1152, 4510),
        )
    )
)
class SiglipBackbone(TimmBackbone):
    """A SigLIP model: region logits are cosine * exp(logit_scale) + logit_bias."""

    family = "siglip"
    kind = "a SigLIP"
    interpolation = "bicubic"

    @classmethod
    def detect(cls, model_name: str, config: dict[str, Any]) -> bool:
        """By the name of its timm tower."""
        return "siglip" in config["vision_cfg"].get("timm_model_name", "")

    @classmethod
    def owns(cls, state: dict[str, Tensor]) -> bool:
        """A latent attention pool, and no norm before the blocks."""
        return "visual.trunk.attn_pool.latent" in state and "visual.trunk.norm_pre.weight" not in state

    @classmethod
    def stand_in(cls, spec: BackboneSpec) -> nn.Module:
        """As wide as the embedding, since these towers have no projection."""
        return timm_stand_in(spec, embed_dim=spec.width, num_heads=8, weight_init="skip")

    @property
    def logit_scale(self) -> float:
        """exp of the model's learned temperature."""
        return float(self.model.logit_scale.exp())

    @property
    def logit_bias(self) -> float:
        """The model's learned bias."""
        return float(self.model.logit_bias) if self.model.logit_bias is not None else 0.0
