"""SigLIP and Perception Encoder (PE-Core): timm towers whose attention pool is a masked mean (method 7.3-5)."""

from typing import Any

import timm
import torch
from jaxtyping import Float32
from open_clip.model import CustomTextCLIP
from open_clip.timm_model import TimmModel
from timm.layers import AttentionPoolLatent
from timm.models import eva
from torch import Tensor, nn
from torch.nn import functional as F

from textregion.backbones.base import (
    Backbone,
    BackboneSpec,
    CropFeatures,
    Crops,
    Patches,
    Weights,
    model_config,
    register_backbone,
    small_text,
)
from textregion.backbones.transformers_names import SIGLIP_MARK, siglip_to_open_clip
from textregion.errors import InputError
from textregion.pooling import PoolingRecipe, masked_mean


class TimmBackbone(Backbone):
    """Patch tokens after all blocks and the final norm; regions pool them with equal weights."""

    mean = std = (0.5, 0.5, 0.5)
    global_weight = 0.5

    @staticmethod
    def check(model: nn.Module) -> None:
        """The tower must be timm's, with a latent attention pool (the released SigLIP and PE models)."""
        visual = getattr(model, "visual", None)
        if not isinstance(visual, TimmModel):
            raise InputError(f"the image tower is {type(visual).__name__}, expected a timm tower (SigLIP or PE)")
        if not isinstance(getattr(visual.trunk, "attn_pool", None), AttentionPoolLatent):
            raise InputError(f"the image tower {type(visual.trunk).__name__} has no latent attention pool")

    @property
    def trunk(self) -> nn.Module:
        """timm's tower."""
        return self.model.visual.trunk

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.trunk.patch_embed.patch_size[0]

    @property
    def width(self) -> int:
        """D of the joint embedding."""
        head = self.trunk.head
        return head.out_features if isinstance(head, nn.Linear) else self.trunk.attn_pool.out_features

    def check_crop_size(self, crop_size: int) -> None:
        """These towers take their own input size only."""
        own = self.model.visual.image_size[0]
        if crop_size != own:
            raise InputError(f"got crop_size {crop_size}, expected {own}, the input size of {self.name}")

    @torch.inference_mode()
    def encode_crops(self, crops: Crops, pool_feature: str = "value", dense: bool = False) -> CropFeatures:
        """Tokens of all blocks after the final norm, class token dropped (method 3.3, 3.4). No dense features."""
        if pool_feature != "value":
            raise InputError(f"got pool_feature {pool_feature!r}, expected 'value': the ablation exists for CLIP only")
        maps = self.trunk.forward_intermediates(crops, indices=1, norm=True, intermediates_only=True)
        return CropFeatures(maps[-1])

    @torch.inference_mode()
    def pool(
        self, features: Patches, weights: Weights, recipe: PoolingRecipe, unit_values: bool, pool_feature: str = "value"
    ) -> Float32[Tensor, "R D"]:
        """Mean over patches with weight > 0, value and output projections, head, unit length; recipes do not apply.

        This equals the model's own attention pooling with one constant key for all patches, without its MLP.
        Cost: R * P * C for the mean and R rows through the projections.
        """
        pool = self.trunk.attn_pool
        mean = masked_mean(features, weights).to(self.dtype)
        width = pool.kv.out_features // 2
        bias = None if pool.kv.bias is None else pool.kv.bias[width:]
        value = F.linear(mean, pool.kv.weight[width:], bias)
        pooled = self.trunk.head(self.trunk.fc_norm(pool.proj(value)))
        return F.normalize(pooled.float(), dim=-1)


def timm_stand_in(spec: BackboneSpec, **tower: Any) -> CustomTextCLIP:
    """A row's form with one small block; tower: arguments of the timm model, its width among them."""
    config = model_config(spec)
    vision = config["vision_cfg"]
    classes = spec.width if vision["timm_proj"] is None else 0  # timm's own head is the projection
    options = {"global_pool": vision["timm_pool"], "num_classes": classes, "depth": 1, "mlp_ratio": 0.25, **tower}
    trunk = timm.create_model(vision["timm_model_name"], **options)
    for parameter in trunk.parameters():  # quicker than the tower's own initialisation
        nn.init.uniform_(parameter, -0.05, 0.05)
    placeholder = vision | {"timm_model_name": "test_vit"}  # replaced at once; only the text tower is wanted
    bias = config.get("init_logit_bias")
    model = CustomTextCLIP(spec.width, placeholder, small_text(config), init_logit_bias=bias)
    model.visual.trunk = trunk
    return model.eval()


@register_backbone(
    BackboneSpec("pe-core-t16-384", "pe", ("PE-Core-T-16-384", "meta"), 384, 512, 278, "PE-Core-T16-384.pt"),
    BackboneSpec("pe-core-s16-384", "pe", ("PE-Core-S-16-384", "meta"), 384, 512, 349, "PE-Core-S16-384.pt"),
    BackboneSpec("pe-core-b16", "pe", ("PE-Core-B-16", "meta"), 224, 1024, 1791, "PE-Core-B16-224.pt"),
    BackboneSpec("pe-core-l14-336", "pe", ("PE-Core-L-14-336", "meta"), 336, 1024, 2685, "PE-Core-L14-336.pt"),
    BackboneSpec("pe-core-bigg14-448", "pe", ("PE-Core-bigG-14-448", "meta"), 448, 1280, 9677, "PE-Core-G14-448.pt"),
)
class PerceptionBackbone(TimmBackbone):
    """A PE-Core model with timm's right rotary positions (method 3.3, 7.3); regions pool the patch tokens only."""

    family = "pe"
    kind = "a Perception Encoder"
    interpolation = "bilinear"

    @classmethod
    def detect(cls, model_name: str, config: dict[str, Any]) -> bool:
        """By the name of its timm tower."""
        return "pe_core" in config["vision_cfg"].get("timm_model_name", "")

    @classmethod
    def owns(cls, state: dict[str, Tensor]) -> bool:
        """Meta's layout, or open_clip's: a latent attention pool, and a norm before the blocks."""
        opened = "visual.trunk.attn_pool.latent" in state and "visual.trunk.norm_pre.weight" in state
        return opened or "visual.attn_pool.probe" in state

    @classmethod
    def to_open_clip(cls, state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Meta's own files: their image tower through timm's converter."""
        if "visual.attn_pool.attn.in_proj_weight" not in state or "visual.conv1.weight" not in state:
            return state
        try:
            trunk = eva.checkpoint_filter_fn(dict(state), model.visual.trunk)
        except (KeyError, AttributeError, RuntimeError) as error:
            raise InputError(f"the file is a Perception Encoder, but not of this form ({error})") from error
        text = {k: v for k, v in state.items() if not k.startswith("visual.")}
        return {**text, **{f"visual.trunk.{k}": v for k, v in trunk.items()}}

    @classmethod
    def stand_in(cls, spec: BackboneSpec) -> nn.Module:
        """A block of width 64."""
        return timm_stand_in(spec, embed_dim=64, num_heads=4, attn_pool_num_heads=4)


@register_backbone(
    BackboneSpec("siglip2-b32-256", "siglip", ("ViT-B-32-SigLIP2-256", "webli"), 256, 768, 1507),
    BackboneSpec("siglip2-b16", "siglip", ("ViT-B-16-SigLIP2", "webli"), 224, 768, 1501),
    BackboneSpec("siglip2-b16-256", "siglip", ("ViT-B-16-SigLIP2-256", "webli"), 256, 768, 1501),
    BackboneSpec("siglip2-b16-384", "siglip", ("ViT-B-16-SigLIP2-384", "webli"), 384, 768, 1502),
    BackboneSpec("siglip2-b16-512", "siglip", ("ViT-B-16-SigLIP2-512", "webli"), 512, 768, 1503),
    BackboneSpec("siglip2-l16-256", "siglip", ("ViT-L-16-SigLIP2-256", "webli"), 256, 1024, 3526),
    BackboneSpec("siglip2-l16-384", "siglip", ("ViT-L-16-SigLIP2-384", "webli"), 384, 1024, 3527),
    BackboneSpec("siglip2-l16-512", "siglip", ("ViT-L-16-SigLIP2-512", "webli"), 512, 1024, 3529),
    BackboneSpec("siglip2-so400m-14", "siglip", ("ViT-SO400M-14-SigLIP2", "webli"), 224, 1152, 4542),
    BackboneSpec("siglip2-so400m-14-378", "siglip", ("ViT-SO400M-14-SigLIP2-378", "webli"), 378, 1152, 4544),
    BackboneSpec("siglip2-so400m-16-256", "siglip", ("ViT-SO400M-16-SigLIP2-256", "webli"), 256, 1152, 4543),
    BackboneSpec("siglip2-so400m-16-384", "siglip", ("ViT-SO400M-16-SigLIP2-384", "webli"), 384, 1152, 4544),
    BackboneSpec("siglip2-so400m-16-512", "siglip", ("ViT-SO400M-16-SigLIP2-512", "webli"), 512, 1152, 4546),
    BackboneSpec("siglip2-gopt16-256", "siglip", ("ViT-gopt-16-SigLIP2-256", "webli"), 256, 1536, 7486),
    BackboneSpec("siglip2-gopt16-384", "siglip", ("ViT-gopt-16-SigLIP2-384", "webli"), 384, 1536, 7488),
    BackboneSpec("siglip-b16", "siglip", ("ViT-B-16-SigLIP", "webli"), 224, 768, 813),
    BackboneSpec("siglip-b16-256", "siglip", ("ViT-B-16-SigLIP-256", "webli"), 256, 768, 813),
    BackboneSpec("siglip-b16-i18n-256", "siglip", ("ViT-B-16-SigLIP-i18n-256", "webli"), 256, 768, 1483),
    BackboneSpec("siglip-b16-384", "siglip", ("ViT-B-16-SigLIP-384", "webli"), 384, 768, 814),
    BackboneSpec("siglip-b16-512", "siglip", ("ViT-B-16-SigLIP-512", "webli"), 512, 768, 815),
    BackboneSpec("siglip-l16-256", "siglip", ("ViT-L-16-SigLIP-256", "webli"), 256, 1024, 2609),
    BackboneSpec("siglip-l16-384", "siglip", ("ViT-L-16-SigLIP-384", "webli"), 384, 1024, 2610),
    BackboneSpec("siglip-so400m-14", "siglip", ("ViT-SO400M-14-SigLIP", "webli"), 224, 1152, 3509),
    BackboneSpec("siglip-so400m-14-378", "siglip", ("ViT-SO400M-14-SigLIP-378", "webli"), 378, 1152, 3512),
    BackboneSpec("siglip-so400m-14-384", "siglip", ("ViT-SO400M-14-SigLIP-384", "webli"), 384, 1152, 3512),
    BackboneSpec("siglip-so400m-16-i18n-256", "siglip", ("ViT-SO400M-16-SigLIP-i18n-256", "webli"), 256, 1152, 4510),
)
class SiglipBackbone(TimmBackbone):
    """A SigLIP or SigLIP 2 model: region logits are cosine * exp(logit_scale) + logit_bias (method 3.4, 7.4, 8.2)."""

    family = "siglip"
    kind = "a SigLIP"

    @classmethod
    def detect(cls, model_name: str, config: dict[str, Any]) -> bool:
        """By the name of its timm tower."""
        return "siglip" in config["vision_cfg"].get("timm_model_name", "")

    @classmethod
    def owns(cls, state: dict[str, Tensor]) -> bool:
        """A latent attention pool, and no norm before the blocks; or transformers' names of it."""
        opened = "visual.trunk.attn_pool.latent" in state and "visual.trunk.norm_pre.weight" not in state
        return opened or SIGLIP_MARK in state

    @classmethod
    def to_open_clip(cls, state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """transformers' SiglipModel and Siglip2Model."""
        return siglip_to_open_clip(state)

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
