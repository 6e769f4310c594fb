"""Starting values for the tiny SAM 2. Without them training collapses: the decoder ignores the point."""

import torch
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.transformer import Attention, TwoWayTransformer
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn

from utils.tiny.sam2_decoding import encode

COARSE_STD = 0.5  # of the coarse image features, beside position encodings of about one
CROSS_GAIN = 2.0


def _normal(layer: nn.Module, gain: float, inputs: int) -> None:
    nn.init.normal_(layer.weight, std=(gain / inputs) ** 0.5)
    nn.init.zeros_(layer.bias)


def tie_queries_to_keys(attention: Attention) -> None:
    """Equal query and key projections: with position encodings a point attends to its own place."""
    nn.init.orthogonal_(attention.q_proj.weight, gain=CROSS_GAIN)
    attention.k_proj.weight.copy_(attention.q_proj.weight)
    nn.init.zeros_(attention.q_proj.bias)
    nn.init.zeros_(attention.k_proj.bias)


def pass_values_through(attention: Attention) -> None:
    """Value and output projections that undo each other, so that a token receives what it attends to."""
    nn.init.orthogonal_(attention.v_proj.weight)
    attention.out_proj.weight.copy_(2 * attention.v_proj.weight.T)
    nn.init.zeros_(attention.v_proj.bias)
    nn.init.zeros_(attention.out_proj.bias)


def _initialise_transformer(transformer: TwoWayTransformer) -> None:
    to_image = [layer.cross_attn_token_to_image for layer in transformer.layers]
    to_image.append(transformer.final_attn_token_to_image)
    for attention in [*to_image, *(layer.cross_attn_image_to_token for layer in transformer.layers)]:
        tie_queries_to_keys(attention)
    for attention in to_image:
        pass_values_through(attention)
    first = transformer.layers[0].self_attn
    for layer in (first.v_proj, first.out_proj):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)


def _initialise_decoder(decoder: MaskDecoder) -> None:
    decoder.iou_token.weight.mul_(0.1)
    decoder.mask_tokens.weight.mul_(0.3)
    for network in decoder.output_hypernetworks_mlps:
        for layer in network.layers.children():
            _normal(layer, 2.0, layer.in_features)
    for layer in (decoder.output_upscaling[0], decoder.output_upscaling[3]):
        _normal(layer, 2.0, layer.in_channels)
    for layer in (decoder.conv_s0, decoder.conv_s1):
        _normal(layer, 1.0, layer.in_channels)


@torch.no_grad()
def initialise(model: SAM2Base) -> None:
    """Sets the starting values of decoder, prompts and neck; the trunk keeps the library's."""
    _initialise_transformer(model.sam_mask_decoder.transformer)
    _initialise_decoder(model.sam_mask_decoder)
    prompts = model.sam_prompt_encoder
    for embedding in (prompts.not_a_point_embed, prompts.no_mask_embed, *prompts.point_embeddings.children()):
        embedding.weight.mul_(0.1)
    for level in model.image_encoder.neck.convs:
        nn.init.zeros_(level.conv.bias)


@torch.no_grad()
def rescale_neck(model: SAM2Base, images: Tensor) -> None:
    """Scales the neck so that the coarse features of `images` (B, 3, S, S) get a std of COARSE_STD."""
    factor = COARSE_STD / encode(model, images).coarse.std()
    for level in model.image_encoder.neck.convs[:2]:
        level.conv.weight.mul_(factor)
        level.conv.bias.mul_(factor)
