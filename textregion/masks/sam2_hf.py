"""SAM 2 by the package transformers instead of `sam2`, for machines where that does not build: the same masks."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from textregion.checkpoints import load_strictly, read_state
from textregion.devices import autocast
from textregion.masks.base import Pixels, Size, register_mask_source
from textregion.masks.clicks import NOTHING_FILTERED, ClickMaskGenerator, Decoded, ImageFeatures, limited
from textregion.masks.hub import load_model, transformers_class
from textregion.masks.sam2_model import SIZES, matching_size
from textregion.masks.sam2_names import to_sam2, to_transformers

WHAT = "the mask source sam2-hf"
REPOSITORY = SIZES["large"].repository


@dataclass(eq=False)
class TransformersClickGenerator(ClickMaskGenerator):
    """A model of transformers with SAM 2's prompts: Sam2Model or Sam3TrackerModel."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.model.mask_decoder.dynamic_multimask_via_stability = False  # as in `build_sam2` (method 9.2)

    @property
    def input_side(self) -> int:
        """Side in pixels of the square that the model sees."""
        return self.model.prompt_encoder.input_image_size

    @property
    def low_res_side(self) -> int:
        """Side of the masks that the decoder gives."""
        return self.model.prompt_encoder.mask_input_size[0]

    def encode(self, image: Pixels) -> ImageFeatures:
        """The image squashed to the model's input, normalised, encoded (method 9.1)."""
        with autocast(self.device, self.dtype):
            *high_resolution, embedding = self.model.get_image_embeddings(self.pixels(image))
        return ImageFeatures(embedding, high_resolution)

    def answering(self, features: ImageFeatures) -> Callable[[Tensor, Tensor, bool], Decoded]:
        """Prompt encoder and mask decoder, whose first axis is the image's."""
        positions = self.model.get_image_wide_positional_embeddings()

        def answer(points: Tensor, labels: Tensor, multimask_output: bool) -> Decoded:
            sparse, dense = self.model.prompt_encoder(points[None], labels[None], None, None)
            masks, predicted_iou, tokens, _ = self.model.mask_decoder(
                image_embeddings=features.embedding,
                image_positional_embeddings=positions,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask_output,
                high_resolution_features=features.high_resolution,
            )
            return Decoded(predicted_iou[0].float(), tokens[0].float(), limited(masks[0]).__getitem__)

        return answer


@register_mask_source("sam2-hf", needs="a Sam2Model of transformers", repository=REPOSITORY)
@dataclass(eq=False)
class Sam2HfMaskGenerator(TransformersClickGenerator):
    """Proposes regions with a Sam2Model of transformers: what `sam2` finds with the same weights, up to rounding."""

    @classmethod
    def from_weights(cls, where: str | Path, root: str | Path | None = None, **options: Any) -> "Sam2HfMaskGenerator":
        """where: a folder in the hub's layout, the hub's "owner/name", or a weight file of either package.

        A file's size is one of the published, recognised by its shapes. InputError: as of `load_model`.
        """
        if not Path(where).is_file():
            return cls(load_model("Sam2Model", where, WHAT, root), **options)
        state = to_sam2(read_state(where))
        model = transformers_class("Sam2Model", WHAT)(published_config(matching_size(state, where)))
        load_strictly(model, to_transformers(state), "SAM 2.1", where)
        return cls(model, **options)

    @classmethod
    def example(cls, sam2: nn.Module, image_size: Size) -> "Sam2HfMaskGenerator":
        """Four clicks on a small random model, nothing filtered."""
        config = published_config("tiny")
        trunk = config.vision_config.backbone_config
        trunk.hidden_size, trunk.blocks_per_stage, trunk.global_attention_blocks = 8, [1, 1, 2, 1], [3]
        trunk.embed_dim_per_stage, trunk.image_size = [8, 16, 32, 64], [128, 128]
        config.vision_config.backbone_channel_list = [64, 32, 16, 8]
        config.vision_config.fpn_hidden_size = config.prompt_encoder_config.hidden_size = 32
        config.vision_config.backbone_feature_sizes = [[32, 32], [16, 16], [8, 8]]
        config.prompt_encoder_config.image_size = 128
        config.mask_decoder_config.hidden_size, config.mask_decoder_config.mlp_dim = 32, 64
        config.mask_decoder_config.iou_head_hidden_dim = 32
        return cls(transformers_class("Sam2Model", WHAT)(config), 2, **NOTHING_FILTERED)


@dataclass(frozen=True)
class Trunk:
    """What differs between the published sizes, as the sam2 package's YAML files have it."""

    width: int = 96
    heads: int = 1
    blocks: tuple[int, ...] = (1, 2, 7, 2)
    whole: tuple[int, ...] = (5, 7, 9)
    windows: tuple[int, ...] = (8, 4, 14, 7)
    background: int = 7


TRUNKS = {
    "tiny": Trunk(),
    "small": Trunk(blocks=(1, 2, 11, 2), whole=(7, 10, 13)),
    "base+": Trunk(112, 2, (2, 3, 16, 3), (12, 16, 20), background=14),
    "large": Trunk(144, 2, (2, 6, 36, 4), (23, 33, 43), (8, 4, 16, 8)),
}


def published_config(size: str) -> Any:
    """transformers' Sam2Config of a published size, which its repository on the hub holds as config.json."""
    trunk = TRUNKS[size]
    widths = [trunk.width * 2**stage for stage in range(4)]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": trunk.width,
        "num_attention_heads": trunk.heads,
        "blocks_per_stage": list(trunk.blocks),
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [trunk.heads * 2**stage for stage in range(4)],
        "window_size_per_stage": list(trunk.windows),
        "global_attention_blocks": list(trunk.whole),
        "window_positional_embedding_background_size": [trunk.background] * 2,
    }
    vision_class = transformers_class("Sam2VisionConfig", WHAT)
    vision = vision_class(backbone_config=backbone, backbone_channel_list=widths[::-1])
    return transformers_class("Sam2Config", WHAT)(
        vision_config=vision, prompt_encoder_config={}, mask_decoder_config={}
    )
