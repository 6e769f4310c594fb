"""SAM 3's tracker asked as SAM 2 is: the same clicks, filters and fusion on another encoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from textregion.masks.base import Size, register_mask_source
from textregion.masks.clicks import NOTHING_FILTERED
from textregion.masks.hub import load_model, transformers_class
from textregion.masks.sam2_hf import TransformersClickGenerator

WHAT = "the mask source sam3"
HALF = (0.5, 0.5, 0.5)


@register_mask_source("sam3", needs="a Sam3TrackerModel of transformers", repository="facebook/sam3", gated=True)
@dataclass(eq=False)
class Sam3MaskGenerator(TransformersClickGenerator):
    """Proposes regions with a Sam3TrackerModel of transformers: 1008 px, mean and standard deviation 0.5."""

    mean: ClassVar = HALF
    std: ClassVar = HALF

    @classmethod
    def from_weights(cls, where: str | Path, root: str | Path | None = None, **options: Any) -> "Sam3MaskGenerator":
        """where: a folder in the hub's layout or the hub's "owner/name" (gated). InputError: as of `load_model`."""
        return cls(load_model("Sam3TrackerModel", where, WHAT, root), **options)

    @classmethod
    def example(cls, sam2: nn.Module, image_size: Size) -> "Sam3MaskGenerator":
        """Four clicks on a small random model, nothing filtered."""
        return cls(transformers_class("Sam3TrackerModel", WHAT)(small_config()), 2, **NOTHING_FILTERED)


def small_config() -> Any:
    """A model of 112 px with 8 x 8 patches and masks of 32 x 32."""
    sizes = {"image_size": 112, "pretrain_image_size": 56, "patch_size": 14, "window_size": 4}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "global_attn_indexes": [1]}
    backbone = {"model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64, **sizes, **layers}
    vision = transformers_class("Sam3VisionConfig", WHAT)(
        backbone_config=backbone, fpn_hidden_size=32, backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]]
    )
    decoder = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    return transformers_class("Sam3TrackerConfig", WHAT)(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": 112},
        mask_decoder_config=decoder,
    )
