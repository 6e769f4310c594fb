"""CLIP and OpenCLIP vision transformers with a class token: regions pool the last block's values (method 3.1, 7.1)."""

from math import sqrt
from typing import Any

import open_clip
import torch
from jaxtyping import Bool, Float, Float32
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
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
from textregion.backbones.transformers_names import CLIP_MARK, clip_to_open_clip
from textregion.errors import InputError
from textregion.pooling import PoolingRecipe, weighted_sum

HALF = (0.5, 0.5, 0.5)
CLASS_WEIGHT = 0.5  # of a region's class token beside the terms of its values
Tokens = Float[Tensor, "T N C"]  # the class token first


@register_backbone(
    BackboneSpec("clip-vit-b32", "clip", ("ViT-B-32-quickgelu", "openai"), 224, 512, 605),
    BackboneSpec("clip-vit-b16", "clip", ("ViT-B-16-quickgelu", "openai"), 336, 512, 598),
    BackboneSpec("clip-vit-l14", "clip", ("ViT-L-14-quickgelu", "openai"), 336, 768, 1710),
    BackboneSpec("clip-vit-l14-336", "clip", ("ViT-L-14-336-quickgelu", "openai"), 336, 768, 1712),
    BackboneSpec("openclip-vit-b16", "clip", ("ViT-B-16", "laion2b_s34b_b88k"), 336, 512, 598),
    BackboneSpec("openclip-vit-l14", "clip", ("ViT-L-14", "laion2b_s32b_b82k"), 336, 768, 1710, mean=HALF, std=HALF),
    BackboneSpec("openclip-vit-h14", "clip", ("ViT-H-14", "laion2b_s32b_b79k"), 336, 1024, 3944),
    BackboneSpec("openclip-vit-bigg14", "clip", ("ViT-bigG-14", "laion2b_s39b_b160k"), 336, 1280, 10158),
)
class ClipBackbone(Backbone):
    """A CLIP model of open_clip whose image tower is its own `VisionTransformer` with a class token."""

    family = "clip"
    kind = "a CLIP"
    mean = OPENAI_DATASET_MEAN
    std = OPENAI_DATASET_STD
    usual_crop_size = 336
    has_dense_fallback = True

    @classmethod
    def detect(cls, model_name: str, config: dict[str, Any]) -> bool:
        """Every model with an image tower of open_clip's own; `check` refuses those of another form."""
        return "timm_model_name" not in config["vision_cfg"]

    @classmethod
    def owns(cls, state: dict[str, Tensor]) -> bool:
        """A class token and a projection, without the attention pool of Meta's Perception Encoder; or transformers'."""
        opened = "visual.class_embedding" in state and "visual.proj" in state
        return CLIP_MARK in state or (opened and "visual.attn_pool.probe" not in state)

    @classmethod
    def to_open_clip(cls, state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """transformers' CLIPModel."""
        return clip_to_open_clip(state)

    @classmethod
    def stand_in(cls, spec: BackboneSpec) -> nn.Module:
        """Two blocks of width 48."""
        config = model_config(spec)
        vision = config["vision_cfg"] | {"layers": 2, "width": 48, "head_width": 24}
        quick_gelu = config.get("quick_gelu", False)
        return open_clip.CLIP(spec.width, vision, small_text(config), quick_gelu=quick_gelu).eval()

    @staticmethod
    def check(model: nn.Module) -> None:
        """The last block must be plain: LN, packed-QKV attention, residual, LN, MLP, residual (method 3.1)."""
        visual = getattr(model, "visual", None)
        if not isinstance(visual, VisionTransformer):
            raise InputError(
                f"the image tower is {type(visual).__name__}, expected open_clip's VisionTransformer; "
                "use SiglipBackbone or PerceptionBackbone for timm towers"
            )
        if visual.attn_pool is not None or visual.pool_type != "tok" or visual.final_ln_after_pool:
            raise InputError("the image tower pools by attention or average, expected pooling by its class token")
        block = visual.transformer.resblocks[-1]
        if type(block) is not ResidualAttentionBlock or not isinstance(block.attn, nn.MultiheadAttention):
            raise InputError(f"the last block is {type(block).__name__}, expected a plain ResidualAttentionBlock")
        if not isinstance(block.ls_1, nn.Identity):
            raise InputError("the last block scales its branches (LayerScale), expected a plain residual block")
        if block.attn.in_proj_weight is None:
            raise InputError("the last block's attention has separate projections, expected a packed in-projection")

    def check_terms(self, recipe: PoolingRecipe) -> None:
        """The spatial term needs blocks in the middle; the class tokens, every block like the last one."""
        blocks = list(self.model.visual.transformer.resblocks.children())
        if recipe.spatial:
            middle_blocks(len(blocks))
        if recipe.class_token and not all(type(block) is ResidualAttentionBlock for block in blocks):
            raise InputError(f"recipe {recipe.name} needs plain blocks throughout; take semantic")

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.model.visual.conv1.kernel_size[0]

    @property
    def width(self) -> int:
        """D of the joint embedding."""
        return self.model.visual.proj.shape[1]

    @property
    def last_block(self) -> ResidualAttentionBlock:
        """The block whose values regions pool."""
        return self.model.visual.transformer.resblocks[-1]

    @torch.inference_mode()
    def encode_crops(
        self,
        crops: Crops,
        pool_feature: str = "value",
        dense: bool = False,
        spatial: bool = False,
        inside: Bool[Tensor, "T R P"] | None = None,
    ) -> CropFeatures:
        """Values of the last block ("value"), or its input or output tokens (ablation, method 7.6); no class token.

        dense: also unit patch features after self-self attention (method 8.4a). spatial: also the values of the middle
        blocks; inside: also class tokens, which see the class token and these patches (method 7.7).
        """
        visual = self.model.visual
        patches = visual.conv1(crops)
        tokens = patches.flatten(2).transpose(1, 2)
        start = visual.class_embedding.to(tokens.dtype).expand(len(tokens), 1, -1)
        tokens = torch.cat([start, tokens], 1) + self.position_embedding(patches.shape[-1]).to(tokens.dtype)
        tokens, middle, classes = self._through_blocks(visual.ln_pre(tokens), spatial, inside)
        if pool_feature == "value":
            pooled = self._in_projection(tokens, 2)
        else:
            pooled = tokens if pool_feature == "input" else self._block_by_block([self.last_block], tokens)
        return CropFeatures(
            _as_maps(pooled[:, 1:]),
            _as_maps(self._dense(tokens)[:, 1:]) if dense else None,
            None if middle is None else _as_maps(self._in_projection(middle, 2)[:, 1:]),
            None if classes is None else visual.ln_post(classes),
            None if inside is None else inside.sum(2),
        )

    def _through_blocks(
        self, tokens: Tokens, spatial: bool, inside: Bool[Tensor, "T R P"] | None
    ) -> tuple[Tokens, Tokens | None, Float[Tensor, "T R C"] | None]:
        """(the last block's input, the mean of the middle blocks' outputs, the class tokens after the last block)."""
        blocks = self.model.visual.transformer.resblocks
        middle = middle_blocks(len(blocks)) if spatial else range(0)
        total, classes = None, None
        if inside is not None:
            classes = tokens[:, :1].expand(-1, inside.shape[1], -1)
            seen = torch.cat([inside.new_ones(*inside.shape[:2], 1), inside], 2)
        for n, block in enumerate(blocks):
            if inside is not None:
                classes = _class_tokens_through(block, classes, tokens, seen)
            if n < len(blocks) - 1:
                tokens = self._block_by_block([block], tokens)
            if n in middle:
                total = tokens if total is None else total + tokens
        return tokens, None if total is None else total / len(middle), classes

    def position_embedding(self, side: int) -> Float[Tensor, "N C"]:
        """Class row kept, grid rows resized bicubically with scale (g + 0.1) / sqrt(N) per side (method 3.2)."""
        embedding = self.model.visual.positional_embedding
        known = int(sqrt(len(embedding) - 1))
        if known == side:
            return embedding
        grid = embedding[1:].float().T.unflatten(1, (known, known))[None]
        grid = F.interpolate(grid, scale_factor=(side + 0.1) / known, mode="bicubic", align_corners=False)
        return torch.cat([embedding[:1], grid[0].flatten(1).T.to(embedding.dtype)])

    def _block_by_block(self, blocks, tokens: Tokens) -> Tokens:
        batch_first = self.model.visual.transformer.batch_first
        tokens = tokens if batch_first else tokens.transpose(0, 1)
        for block in blocks:
            tokens = block(tokens)
        return tokens if batch_first else tokens.transpose(0, 1)

    def _in_projection(self, tokens: Tokens, part: int) -> Tokens:
        """Query (0), key (1) or value (2) third of the packed in-projection of LN1(tokens), with bias."""
        block = self.last_block
        thirds = slice(part * tokens.shape[-1], (part + 1) * tokens.shape[-1])
        bias = block.attn.in_proj_bias
        return F.linear(block.ln_1(tokens), block.attn.in_proj_weight[thirds], None if bias is None else bias[thirds])

    def _dense(self, tokens: Tokens) -> Float32[Tensor, "T N D"]:
        """The last block with softmax(q q' / sqrt d) + softmax(k k' / sqrt d) as its attention (method 8.4a)."""
        block = self.last_block
        heads = block.attn.num_heads
        query, key, value = (self._in_projection(tokens, i).unflatten(2, (heads, -1)).transpose(1, 2) for i in range(3))
        attended = F.scaled_dot_product_attention(query, query, value)
        attended = attended + F.scaled_dot_product_attention(key, key, value)
        tokens = tokens + block.attn.out_proj(attended.transpose(1, 2).flatten(2))
        return self.project(tokens + block.mlp(block.ln_2(tokens)))

    def project(self, tokens: Float[Tensor, "... C"]) -> Float32[Tensor, "... D"]:
        """Tokens of the last block to unit vectors of the joint embedding."""
        visual = self.model.visual
        return F.normalize((visual.ln_post(tokens) @ visual.proj).float(), dim=-1)

    @torch.inference_mode()
    def pool(
        self,
        features: Patches,
        weights: Weights,
        recipe: PoolingRecipe,
        unit_values: bool,
        pool_feature: str = "value",
        spatial: Patches | None = None,
        classes: Float32[Tensor, "R C"] | None = None,
    ) -> Float32[Tensor, "R D"]:
        """Soft sum of values, out-projection, optional MLP residual, LN_post, projection, unit length (method 7.1).

        spatial, classes: of the recipe's further terms, which are added before the projection (method 7.7).
        Cost: R * P * C for the sum and R rows through the projections; patches are never repeated per region.
        """
        block, visual = self.last_block, self.model.visual
        pooled = weighted_sum(F.normalize(features, dim=-1) if unit_values else features, weights).to(self.dtype)
        if pool_feature == "value":
            pooled = block.attn.out_proj(pooled)
            if recipe.mlp_residual:
                pooled = pooled + block.mlp(block.ln_2(pooled))
        if not recipe.further_terms:
            return self.project(pooled)
        terms = [visual.ln_post(pooled)] if recipe.value else []
        if recipe.spatial and spatial is not None:
            terms.append(visual.ln_post(block.attn.out_proj(weighted_sum(spatial, weights).to(self.dtype))))
        if recipe.class_token and classes is not None:
            terms.append(CLASS_WEIGHT * classes.to(self.dtype))
        return F.normalize((torch.stack(terms).sum(0) @ visual.proj).float(), dim=-1)


def middle_blocks(layers: int) -> range:
    """The blocks (0-based) whose outputs are averaged for the spatial term: n of them, up to the last but two.

    n is 5 of 12 blocks, 12 of 24, 28 of 32, else all from block 2 on, at least one. InputError below three blocks.
    """
    if layers < 3:
        raise InputError(f"the image tower has {layers} blocks; recipe corrclip needs 3, take corrclip-no-spatial")
    count = {12: 5, 24: 12, 32: 28}.get(layers, max(layers - 4, 1))
    return range(layers - 2 - count, layers - 2)


def _class_tokens_through(
    block: ResidualAttentionBlock,
    classes: Float[Tensor, "T R C"],
    tokens: Tokens,
    seen: Bool[Tensor, "T R N"],
) -> Float[Tensor, "T R C"]:
    """Class tokens through a block in which each sees some of the true tokens, and no copy is seen by any."""
    attention = block.attn
    (query_weight, *others), bias = attention.in_proj_weight.chunk(3), attention.in_proj_bias
    query_bias, *other_biases = (None, None, None) if bias is None else bias.chunk(3)
    normed = block.ln_1(tokens)
    query = F.linear(block.ln_1(classes), query_weight, query_bias)
    key, value = (F.linear(normed, weight, b) for weight, b in zip(others, other_biases, strict=True))
    query, key, value = (x.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None])
    classes = classes + block.ls_1(attention.out_proj(attended.transpose(1, 2).flatten(2)))
    return classes + block.ls_2(block.mlp(block.ln_2(classes)))


def _as_maps(tokens: Tokens) -> Float[Tensor, "T C g g"]:
    side = int(sqrt(tokens.shape[1]))
    return tokens.transpose(1, 2).unflatten(2, (side, side))
