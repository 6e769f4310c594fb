"""SAM 2's mask decoder for many clicks or boxes on one image: the package's function for half its work.

Weights and modules are the `sam2` package's own; this is another order of the same sums, so results differ by rounding
only. P positions of the image, C channels, H heads of c channels (D = H c, the inner width), T tokens of a prompt (IoU,
masks, the click's points, perhaps an object score), N prompts.

1. Layer 0 sees the same image for every prompt: its keys, values and image-side queries are made once (`SharedImage`),
   and the tokens of all prompts attend to them as if they were one prompt's.
2. Elsewhere the image-side projections C -> D are absorbed into the tokens' rows, where those are fewer (H T < D):
   (x W) q = x (W q), and A (x W) = (A x) W. The output projection likewise: (A v) W = A (v W).
3. The position part of keys and queries, W pe + b, does not depend on the prompt: made once per image.
4. Upscaling stays in the order of the low-resolution positions: a transposed convolution of stride 2 is one matrix
   product, normalisation and activation are per position, so only the finished logits are shuffled, and only of the
   masks that are kept; prompts that are dropped by their predicted IoU are not upscaled at all.

Operations per prompt at 1024 px (P 4096, C 256, D 128, T 8): 1.8 instead of 3.6 thousand million.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from textregion.errors import InputError

LAYERS = 2


@dataclass(frozen=True)
class SharedImage:
    """What all prompts on an image have in common.

    rows: image embedding plus the embedding of "no mask prompt". keys, values: layer 0's, for its tokens. queries:
    layer 0's, for its image. positions: W pe + b of layer 1's keys and queries, and of the last attention's keys.
    coarse, fine: what upscaling adds at two and four times the resolution, in the order of the positions. grid: (h, w).
    """

    rows: Float[Tensor, "P C"]
    keys: Float[Tensor, "H P c"]
    values: Float[Tensor, "H P c"]
    queries: Float[Tensor, "H c P"]
    positions: tuple[Float[Tensor, "H c P"], Float[Tensor, "H c P"], Float[Tensor, "H c P"]]
    coarse: Float[Tensor, "#P C1"]
    fine: Float[Tensor, "#Q C0"]
    grid: tuple[int, int]


@dataclass(frozen=True)
class Attended:
    """N prompts after the transformer. tokens: theirs. rows: the image's, as each of them sees it."""

    tokens: Float[Tensor, "N T C"]
    rows: Float[Tensor, "N P C"]

    def take(self, which: Int[Tensor, " n"]) -> "Attended":
        """Some of the prompts."""
        return Attended(self.tokens[which], self.rows[which])


def unsupported(model: nn.Module) -> str | None:
    """Why this decoder cannot stand for a model's own; None if it can."""
    from sam2.modeling.sam.mask_decoder import MaskDecoder  # here: all else works without the package
    from sam2.modeling.sam.transformer import Attention, TwoWayTransformer

    decoder = getattr(model, "sam_mask_decoder", None)
    transformer = getattr(decoder, "transformer", None)
    if type(decoder) is not MaskDecoder or type(transformer) is not TwoWayTransformer:
        return f"its mask decoder is a {type(decoder).__name__} with a {type(transformer).__name__}"
    if len(transformer.layers) != LAYERS:
        return f"its mask decoder has {len(transformer.layers)} layers instead of {LAYERS}"
    attentions = [transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        attentions += [layer.self_attn, layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    if any(type(attention) is not Attention for attention in attentions):
        return "its mask decoder attends in another way"
    if [layer.skip_first_layer_pe for layer in transformer.layers] != [True, False]:
        return "the positions of its mask decoder's layers are added elsewhere"
    if len(decoder.output_upscaling) != 5:
        return "its mask decoder enlarges masks in another way"
    return None


class SharedImageDecoder:
    """The mask decoder of a `sam2` model for prompts that share one image; no mask prompts.

    model: a SAM2Base in eval mode, whose weights are used as they are at every call. InputError for one whose decoder
    is built otherwise (other depths, other attention): its own decoder is the one to use.
    """

    def __init__(self, model: nn.Module) -> None:
        if (reason := unsupported(model)) is not None:
            raise InputError(f"this SAM 2 does not fit decoder 'shared' ({reason}); use decoder 'sam2'")
        self.prompts, self.decoder = model.sam_prompt_encoder, model.sam_mask_decoder
        self.transformer = self.decoder.transformer
        self.heads = self.transformer.num_heads
        self.layers = [*self.transformer.layers.children()]
        self.upscaling = [*self.decoder.output_upscaling.children()]

    def image(self, embedding: Float[Tensor, "1 C h w"], high_resolution: list[Tensor]) -> SharedImage:
        """Once per image. high_resolution: (1, C/8, 4h, 4w) and (1, C/4, 2h, 2w); not used by a model without."""
        first, second = self.layers
        last, height, width = self.transformer.final_attn_token_to_image, *embedding.shape[2:]
        rows = (embedding + self.prompts.no_mask_embed.weight.reshape(1, -1, 1, 1))[0].flatten(1).T.contiguous()
        positions = self.prompts.get_dense_pe()[0].flatten(1).T.to(rows.dtype)
        placed = rows + positions
        enlarge, _, _, enlarge_more, _ = self.upscaling
        coarse, fine = enlarge.bias.repeat(1, 4), enlarge_more.bias.repeat(1, 4)
        if self.decoder.use_high_res_features:
            large, half = (features[0] for features in high_resolution)
            blocks = half.unflatten(2, (width, 2)).unflatten(1, (height, 2)).permute(1, 3, 2, 4, 0)
            coarse = coarse + blocks.reshape(height * width, -1)
            blocks = large.unflatten(2, (width, 2, 2)).unflatten(1, (height, 2, 2)).permute(1, 4, 2, 5, 3, 6, 0)
            fine = fine + blocks.reshape(height * width * 4, -1)
        return SharedImage(
            rows=rows,
            keys=self._split(first.cross_attn_token_to_image.k_proj(placed)),
            values=self._split(first.cross_attn_token_to_image.v_proj(rows)),
            queries=self._split(first.cross_attn_image_to_token.q_proj(placed)).mT.contiguous(),
            positions=(
                self._split(second.cross_attn_token_to_image.k_proj(positions)).mT.contiguous(),
                self._split(second.cross_attn_image_to_token.q_proj(positions)).mT.contiguous(),
                self._split(last.k_proj(positions)).mT.contiguous(),
            ),
            coarse=coarse,
            fine=fine,
            grid=(height, width),
        )

    def attend(self, image: SharedImage, prompts: Float[Tensor, "N K C"]) -> Attended:
        """The two-way transformer for N prompts of K embedded points each."""
        decoder, (first, second) = self.decoder, self.layers
        own = [decoder.obj_score_token.weight] if decoder.pred_obj_scores else []
        own = torch.cat([*own, decoder.iou_token.weight, decoder.mask_tokens.weight])
        start = torch.cat([own.expand(len(prompts), -1, -1), prompts], 1)

        tokens = first.norm1(first.self_attn(start, start, start))
        tokens = first.norm2(tokens + self._ask_shared(first.cross_attn_token_to_image, tokens + start, image))
        tokens = first.norm3(tokens + first.mlp(tokens))
        rows = self._tell(first.cross_attn_image_to_token, tokens + start, tokens, image.rows, image.queries)
        rows = first.norm4(rows)

        placed, (keys, queries, last_keys) = tokens + start, image.positions
        tokens = second.norm1(tokens + second.self_attn(placed, placed, tokens))
        tokens = second.norm2(tokens + self._ask(second.cross_attn_token_to_image, tokens + start, rows, keys))
        tokens = second.norm3(tokens + second.mlp(tokens))
        rows = self._tell(second.cross_attn_image_to_token, tokens + start, tokens, rows, queries)
        rows = second.norm4(rows)

        last = self.transformer.final_attn_token_to_image
        tokens = self.transformer.norm_final_attn(tokens + self._ask(last, tokens + start, rows, last_keys))
        return Attended(tokens, rows)

    def predicted_iou(self, attended: Attended, multimask_output: bool = True) -> Float[Tensor, "N M"]:
        """Of the three masks of every prompt, or (M = 1) of the single one."""
        found = self.decoder.iou_prediction_head(attended.tokens[:, int(self.decoder.pred_obj_scores)])
        return found[:, 1:] if multimask_output else found[:, :1]

    def mask_tokens(self, attended: Attended, multimask_output: bool = True) -> Float[Tensor, "N Z C"]:
        """As the package's decoder returns them: of the three masks where the model is built so, else the first."""
        tokens = self._mask_tokens(attended)
        three = multimask_output and self.decoder.use_multimask_token_for_obj_ptr
        return tokens[:, 1:] if three else tokens[:, :1]

    def masks(self, image: SharedImage, attended: Attended, multimask_output: bool = True) -> Float[Tensor, "N M y x"]:
        """Logits at four times the grid: of three masks a prompt, or of the single one."""
        enlarge, norm, activation, enlarge_more, activation_more = self.upscaling
        count, (height, width) = len(attended.rows), image.grid
        finer = _add_product(image.coarse, attended.rows, enlarge.weight.permute(0, 2, 3, 1).flatten(1))
        finer = finer.unflatten(2, (4, -1)).flatten(1, 2)
        finer = activation(F.layer_norm(finer, finer.shape[-1:], norm.weight, norm.bias, norm.eps))
        finest = _add_product(image.fine, finer, enlarge_more.weight.permute(0, 2, 3, 1).flatten(1))
        finest = activation_more(finest).unflatten(2, (4, -1)).flatten(1, 2)
        kept = range(1, self.decoder.num_mask_tokens) if multimask_output else range(1)
        tokens, networks = self._mask_tokens(attended), self.decoder.output_hypernetworks_mlps
        weights = torch.stack([networks[i](tokens[:, i]) for i in kept], 1)
        logits = torch.bmm(weights, finest.mT)
        logits = logits.view(count, len(kept), height, width, 2, 2, 2, 2).permute(0, 1, 2, 4, 6, 3, 5, 7)
        return logits.reshape(count, len(kept), 4 * height, 4 * width)

    def _mask_tokens(self, attended: Attended) -> Float[Tensor, "N m C"]:
        start = int(self.decoder.pred_obj_scores) + 1
        return attended.tokens[:, start : start + self.decoder.num_mask_tokens]

    def _split(self, x: Float[Tensor, "*N n D"]) -> Float[Tensor, "*N H n c"]:
        """The heads' parts of every row."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def _absorbs(self, attention: nn.Module, tokens: Float[Tensor, "N T C"]) -> bool:
        """Whether the tokens of all heads are fewer than the inner width, so that absorbing a projection saves work."""
        return self.heads * tokens.shape[1] < attention.internal_dim

    def _ask_shared(
        self, attention: nn.Module, tokens: Float[Tensor, "N T C"], image: SharedImage
    ) -> Float[Tensor, "N T C"]:
        """Tokens attend to the image that all prompts share."""
        queries = self._split(attention.q_proj(tokens).flatten(0, 1))
        found = F.scaled_dot_product_attention(queries[None], image.keys[None], image.values[None])[0]
        return attention.out_proj(found.transpose(0, 1).flatten(1)).unflatten(0, tokens.shape[:2])

    def _ask(
        self,
        attention: nn.Module,
        tokens: Float[Tensor, "N T C"],
        rows: Float[Tensor, "N P C"],
        positions: Float[Tensor, "H c P"],
    ) -> Float[Tensor, "N T C"]:
        """Tokens attend to the image as their prompt sees it. positions: what the keys have beside the rows' part."""
        queries, heads = self._split(attention.q_proj(tokens)), self.heads
        queries = queries * queries.shape[-1] ** -0.5
        if not self._absorbs(attention, tokens):
            keys = self._split(F.linear(rows, attention.k_proj.weight)) + positions.mT
            found = F.scaled_dot_product_attention(queries, keys, self._split(attention.v_proj(rows)), scale=1)
            return attention.out_proj(found.transpose(1, 2).flatten(2))
        weight, bias = (part.unflatten(0, (heads, -1)) for part in (attention.v_proj.weight, attention.v_proj.bias))
        scores = self._scores(queries, attention.k_proj.weight, rows, positions)
        seen = torch.bmm(scores.softmax(2), rows).unflatten(1, (heads, -1))
        found = torch.einsum("nhtd,hcd->nhtc", seen, weight) + bias[:, None]
        return attention.out_proj(found.transpose(1, 2).flatten(2))

    def _tell(
        self,
        attention: nn.Module,
        placed: Float[Tensor, "N T C"],
        tokens: Float[Tensor, "N T C"],
        rows: Float[Tensor, "... P C"],
        positions: Float[Tensor, "H c P"],
    ) -> Float[Tensor, "N P C"]:
        """The image's rows plus what they read from the tokens.

        placed: tokens with the positions of their prompts, for the keys. rows: (N, P, C), or (P, C) where all prompts
        share them; then positions are the whole queries.
        """
        keys, values, heads = self._split(attention.k_proj(placed)), self._split(attention.v_proj(tokens)), self.heads
        keys = keys * keys.shape[-1] ** -0.5
        if rows.ndim == 3 and not self._absorbs(attention, tokens):
            queries = self._split(F.linear(rows, attention.q_proj.weight)) + positions.mT
            found = F.scaled_dot_product_attention(queries, keys, values, scale=1)
            return rows + attention.out_proj(found.transpose(1, 2).flatten(2))
        if rows.ndim == 2:
            scores = torch.einsum("nhtc,hcp->nhtp", keys, positions)
        else:
            scores = self._scores(keys, attention.q_proj.weight, rows, positions).unflatten(1, (heads, -1))
        out = torch.einsum("nhtc,dhc->nhtd", values, attention.out_proj.weight.unflatten(1, (heads, -1)))
        out = out + attention.out_proj.bias / heads  # the weights of a head's tokens add up to 1
        return _add_product(rows, scores.softmax(2).flatten(1, 2).mT, out.flatten(1, 2))

    def _scores(
        self,
        tokens: Float[Tensor, "N H T c"],
        weight: Float[Tensor, "D C"],
        rows: Float[Tensor, "N P C"],
        positions: Float[Tensor, "H c P"],
    ) -> Float[Tensor, "N HT P"]:
        """Products of the tokens with the projected rows and positions, the projection absorbed into the tokens."""
        absorbed = torch.einsum("nhtc,hcd->nhtd", tokens, weight.unflatten(0, (self.heads, -1))).flatten(1, 2)
        near = torch.einsum("nhtc,hcp->nhtp", tokens, positions).flatten(1, 2)
        return torch.baddbmm(near, absorbed, rows.mT)


def _add_product(
    base: Float[Tensor, "... D"], x: Float[Tensor, "N P C"], weight: Float[Tensor, "... C D"]
) -> Float[Tensor, "N P D"]:
    """base + x @ weight in one pass over memory; base and weight may be shared by all N."""
    size = (len(x), x.shape[1], weight.shape[-1])
    return torch.baddbmm(base.expand(size), x, weight.expand(len(x), -1, -1))
