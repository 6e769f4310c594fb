"""Perception Encoder (PE-Core) through open_clip and timm, whose rotary positions are right (method 3.3, 7.3)."""

from typing import Any

from timm.models import eva
from torch import Tensor, nn

from textregion.backbones.base import BackboneSpec, register_backbone
from textregion.backbones.timm_tower import TimmBackbone, timm_stand_in
from textregion.errors import InputError


@register_backbone(
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
