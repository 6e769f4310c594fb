"""TIPSv2 (arXiv 2604.12012): towers of the package transformers; a region is the last block on its mean values."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn
from torch.nn import functional as F

from textregion.backbones.base import (
    Backbone,
    BackboneSpec,
    CropFeatures,
    Crops,
    Patches,
    Weights,
    register_backbone,
)
from textregion.errors import InputError, needs
from textregion.pooling import PoolingRecipe, weighted_sum

PAD = 0  # the token behind the end of a prompt
MARK = "vision_model.embeddings.register_tokens"
CONTEXT = 64


@dataclass(frozen=True)
class Size:
    """A published size. layers, heads: of the image tower and of the text tower; hidden: numbers within text MLPs."""

    layers: tuple[int, int]
    heads: tuple[int, int]
    hidden: int
    mlp_ratio: float = 4.0
    swiglu: bool = False


SIZES = {
    "tipsv2-b14": Size((12, 12), (12, 12), 3072),
    "tipsv2-l14": Size((24, 12), (16, 16), 4096),
    "tipsv2-so400m14": Size((27, 27), (16, 16), 4304, 4304 / 1152),
    "tipsv2-g14": Size((40, 12), (24, 24), 6144, swiglu=True),
}


class Tipsv2(nn.Module):
    """transformers' Tipsv2Model seen as an open_clip model: `visual`, `encode_text`, `context_length`, `vocab_size`."""

    def __init__(self, vision: dict[str, Any], text: dict[str, Any]) -> None:
        super().__init__()
        with needs("TIPSv2", layer="transformers", extra="transformers"):
            from transformers import Tipsv2Config, Tipsv2Model
        towers = Tipsv2Model(Tipsv2Config(vision_config=vision, text_config=text))
        self.visual, self.text_tower, self.temperature = towers.vision_model, towers.text_model, towers.temperature
        self.visual.image_size = self.visual.config.image_size
        self.context_length, self.vocab_size = CONTEXT, self.text_tower.config.vocab_size

    def encode_text(self, tokens: Int[Tensor, "N context"]) -> Float[Tensor, "N D"]:
        """The mean of a prompt's words after the text tower; PAD does not count."""
        return self.text_tower(input_ids=tokens, attention_mask=(tokens != PAD).long()).pooler_output


@register_backbone(
    BackboneSpec("tipsv2-b14", "tipsv2", ("TIPSv2-B-14", "webli"), 448, 768, 784, repository="google/tipsv2-b14"),
    BackboneSpec("tipsv2-l14", "tipsv2", ("TIPSv2-L-14", "webli"), 448, 1024, 1952, repository="google/tipsv2-l14"),
    BackboneSpec(
        "tipsv2-so400m14", "tipsv2", ("TIPSv2-So400m-14", "webli"), 448, 1152, 3447, repository="google/tipsv2-so400m14"
    ),
    BackboneSpec("tipsv2-g14", "tipsv2", ("TIPSv2-g-14", "webli"), 448, 1536, 6100, repository="google/tipsv2-g14"),
)
class Tipsv2Backbone(Backbone):
    """A Tipsv2Model: class token, one register, patches; image and text share one space without a projection.

    With the last block's attention replaced by the values, a patch x becomes

        y = x + ls1(proj(V(norm1(x)))),   z = unit(norm(y + ls2(mlp(norm2(y)))))

    which is the dense feature. A region takes the means of x and of V over its patches, by their weights, and goes the
    same way on from there: one patch alone gives its dense feature.
    """

    family = "tipsv2"
    kind = "a TIPSv2"
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)
    interpolation = "bilinear"
    has_dense_fallback = True

    @classmethod
    def owns(cls, state: dict[str, Tensor]) -> bool:
        """A register in transformers' names, or in those of `Tipsv2`."""
        return MARK in state or MARK.replace("vision_model", "visual") in state

    @classmethod
    def to_open_clip(cls, state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """transformers' Tipsv2Model; published files have no temperature, and the method needs none."""
        homes = {"vision_model": "visual", "text_model": "text_tower"}
        parts = ((name.partition("."), value) for name, value in state.items())
        renamed = {f"{homes.get(first, first)}{dot}{rest}": value for (first, dot, rest), value in parts}
        return {"temperature": model.temperature.detach(), **renamed}

    @classmethod
    def build(cls, spec: BackboneSpec) -> nn.Module:
        """The published sizes."""
        size = SIZES[spec.name]
        vision = {"hidden_size": spec.width, "mlp_ratio": size.mlp_ratio, "use_swiglu_ffn": size.swiglu}
        vision |= {"num_hidden_layers": size.layers[0], "num_attention_heads": size.heads[0]}
        text = {"hidden_size": spec.width, "intermediate_size": size.hidden}
        text |= {"num_hidden_layers": size.layers[1], "num_attention_heads": size.heads[1]}
        return Tipsv2(vision, text)

    @classmethod
    def stand_in(cls, spec: BackboneSpec) -> nn.Module:
        """One block in each tower, few words."""
        vision = {"hidden_size": spec.width, "mlp_ratio": 0.25, "use_swiglu_ffn": SIZES[spec.name].swiglu}
        text = {"hidden_size": spec.width, "intermediate_size": 32, "vocab_size": 503}
        return Tipsv2(*(part | {"num_hidden_layers": 1, "num_attention_heads": 2} for part in (vision, text)))

    @staticmethod
    def check(model: nn.Module) -> None:
        """The model must be a `Tipsv2`."""
        if not isinstance(model, Tipsv2):
            raise InputError(f"the model is {type(model).__name__}, expected a TIPSv2")

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.model.visual.config.patch_size

    @property
    def width(self) -> int:
        """D of the joint embedding, and of the tower."""
        return self.model.visual.config.hidden_size

    @torch.inference_mode()
    def encode_crops(self, crops: Crops, pool_feature: str = "value", dense: bool = False) -> CropFeatures:
        """The last block's input and its values, 2 D numbers a patch; dense: also its unit feature."""
        if pool_feature != "value":
            raise InputError(f"got pool_feature {pool_feature!r}, expected 'value': the ablation exists for CLIP only")
        visual = self.model.visual
        tokens = visual.embeddings(crops)
        last = visual.encoder.layer[-1]
        for block in visual.encoder.layer[:-1]:
            tokens = block(tokens)
        patches = tokens[:, 1 + visual.config.num_register_tokens :]
        values = last.attention.v_proj(last.norm1(patches))
        grid = (crops.shape[2] // self.patch_size, crops.shape[3] // self.patch_size)

        def as_maps(rows: Tensor) -> Tensor:
            return rows.transpose(1, 2).unflatten(2, grid)

        pooled = as_maps(torch.cat([patches, values], 2))
        return CropFeatures(pooled, as_maps(self.finish(patches, values)) if dense else None)

    def finish(self, x: Float[Tensor, "*N D"], values: Float[Tensor, "*N D"]) -> Float32[Tensor, "*N D"]:
        """The rest of the last block and the final norm, unit length."""
        last, visual = self.model.visual.encoder.layer[-1], self.model.visual
        y = x + last.layer_scale1(last.attention.o_proj(values))
        y = y + last.layer_scale2(last.mlp(last.norm2(y)))
        return F.normalize(visual.layernorm(y).float(), dim=-1)

    @torch.inference_mode()
    def pool(
        self, features: Patches, weights: Weights, recipe: PoolingRecipe, unit_values: bool, pool_feature: str = "value"
    ) -> Float32[Tensor, "R D"]:
        """Weighted means of input and values, then the rest of the block; recipes do not apply.

        Cost: 2 R * P * D for the means and R rows through the block.
        """
        shares = weights / weights.sum(1, keepdim=True)
        x, values = weighted_sum(features, shares).to(self.dtype).chunk(2, 1)
        return self.finish(x, values)
