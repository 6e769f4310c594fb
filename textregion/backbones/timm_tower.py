"""What SigLIP 2 and Perception Encoder share: a timm tower whose attention pool is a masked mean (method 7.3-5)."""

from typing import Any

import timm
import torch
from jaxtyping import Float, Float32
from open_clip.model import CustomTextCLIP
from open_clip.timm_model import TimmModel
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn
from torch.nn import functional as F

from textregion.backbones.base import Backbone, BackboneSpec, CropFeatures, model_config, small_text
from textregion.errors import InputError
from textregion.pooling import PoolingRecipe, masked_mean


class TimmBackbone(Backbone):
    """Patch tokens after all blocks and the final norm; regions pool them with equal weights."""

    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)
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
    def encode_crops(
        self, crops: Float[Tensor, "T 3 S S"], pool_feature: str = "value", dense: bool = False
    ) -> CropFeatures:
        """Tokens of all blocks after the final norm, class token dropped (method 3.3, 3.4). No dense features."""
        if pool_feature != "value":
            raise InputError(f"got pool_feature {pool_feature!r}, expected 'value': the ablation exists for CLIP only")
        maps = self.trunk.forward_intermediates(crops, indices=1, norm=True, intermediates_only=True)
        return CropFeatures(maps[-1])

    @torch.inference_mode()
    def pool(
        self,
        features: Float32[Tensor, "P C"],
        weights: Float32[Tensor, "R P"],
        recipe: PoolingRecipe,
        unit_values: bool,
        pool_feature: str = "value",
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
    """A row's form with one small block: its input size, patches, kind of pooling and embedding width.

    tower: arguments of the timm model, its width among them.
    """
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
