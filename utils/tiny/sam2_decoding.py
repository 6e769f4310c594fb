"""Encoding images and decoding points with SAM 2, with the insides that training needs in view."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Pyramid(NamedTuple):
    """Feature maps (B, 12, S/4, S/4), (B, 24, S/8, S/8) and (B, 96, S/16, S/16)."""

    fine: Tensor
    middle: Tensor
    coarse: Tensor

    def repeated(self, times: int) -> "Pyramid":
        """Every image `times` times in a row."""
        return Pyramid(*(level.repeat_interleave(times, 0) for level in self))


class Decoded(NamedTuple):
    """Masks (N, 4, S/4, S/4) logits, predicted IoU (N, 4), and the weights (N, 4, K) that made the masks."""

    masks: Tensor
    iou: Tensor
    mask_weights: Tensor


def normalise(images: Tensor) -> Tensor:
    """(B, 3, S, S) float32 in [0, 1] to SAM 2's normalisation."""
    mean, std = (torch.tensor(row)[:, None, None] for row in (IMAGE_MEAN, IMAGE_STD))
    return (images - mean) / std


def encode(model: SAM2Base, images: Tensor) -> Pyramid:
    """Image features (B, 3, S, S) as the mask decoder takes them."""
    fine, middle, coarse = model.forward_image(images)["backbone_fpn"]
    return Pyramid(fine, middle, coarse + model.no_mem_embed.view(1, -1, 1, 1))


def upscale(decoder: MaskDecoder, source: Tensor, pyramid: Pyramid) -> Tensor:
    """The decoder's own upscaling: (N, 96, S/16, S/16) to per-pixel features (N, K, S/4, S/4)."""
    first, norm, activation, second, final = decoder.output_upscaling
    return final(second(activation(norm(first(source) + pyramid.middle))) + pyramid.fine)


def pixel_features(model: SAM2Base, pyramid: Pyramid) -> Tensor:
    """Upscaled features without any prompt: (B, K, S/4, S/4)."""
    channels = pyramid.coarse.permute(0, 2, 3, 1)
    source = F.layer_norm(channels, channels.shape[-1:]).permute(0, 3, 1, 2)
    return upscale(model.sam_mask_decoder, source, pyramid)


def decode(model: SAM2Base, pyramid: Pyramid, points: Tensor) -> Decoded:
    """Masks for one foreground point each: pyramid of N images, points (N, 1, 2) as (x, y) in pixels.

    The same as `MaskDecoder.predict_masks`, except that it also gives the mask weights.
    """
    decoder, prompts = model.sam_mask_decoder, model.sam_prompt_encoder
    labels = torch.ones(points.shape[:2], dtype=torch.int)
    sparse, dense = prompts(points=(points, labels), boxes=None, masks=None)
    queries = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([queries.expand(len(points), -1, -1), sparse], dim=1)
    positions = prompts.get_dense_pe().expand(len(points), -1, -1, -1)
    tokens, source = decoder.transformer(pyramid.coarse + dense, positions, tokens)
    features = upscale(decoder, source.transpose(1, 2).reshape(pyramid.coarse.shape), pyramid)
    networks = decoder.output_hypernetworks_mlps
    weights = torch.stack([network(tokens[:, 1 + index]) for index, network in enumerate(networks)], dim=1)
    masks = torch.einsum("nmk,nkhw->nmhw", weights, features)
    return Decoded(masks, decoder.iou_prediction_head(tokens[:, 0]), weights)
