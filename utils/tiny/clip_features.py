"""Features inside a CLIP vision tower: value maps of the last block, and how to compare them with text."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transformer import VisionTransformer
from torch import Tensor

MIDDLE_BLOCK = 1  # the block whose output the objectness side loss reads


class VisionFeatures(NamedTuple):
    """Middle and last: (B, 1+P, C) tokens after MIDDLE_BLOCK and before the last block. Values: (B, P, C)."""

    middle: Tensor
    last: Tensor
    values: Tensor


def normalise(images: np.ndarray, size: int) -> Tensor:
    """(B, H, W, 3) uint8 RGB to (B, 3, size, size) float32, resized by area and normalised for CLIP."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(row)[:, None, None] for row in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    return (F.interpolate(pixels, size=(size, size), mode="area") - mean) / std


def vision_features(visual: VisionTransformer, images: Tensor) -> VisionFeatures:
    """Runs all blocks but the last; the last gives only its attention's value vectors of the patches."""
    *blocks, final = visual.transformer.resblocks
    tokens = visual._embeds(images)
    middle = tokens
    for index, block in enumerate(blocks):
        tokens = block(tokens)
        middle = tokens if index == MIDDLE_BLOCK else middle
    width, attention = tokens.shape[-1], final.attn
    patches = final.ln_1(tokens)[:, 1:]
    values = F.linear(patches, attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
    return VisionFeatures(middle, tokens, values)


def embed_values(visual: VisionTransformer, values: Tensor) -> Tensor:
    """Value vectors, pooled or not, (..., C) to unit vectors (..., D) comparable with text."""
    attended = visual.transformer.resblocks[-1].attn.out_proj(values)
    return F.normalize(visual.ln_post(attended) @ visual.proj, dim=-1)


def embed_image(visual: VisionTransformer, last: Tensor) -> Tensor:
    """The ordinary image embedding from `VisionFeatures.last`: (B, 1+P, C) to unit vectors (B, D)."""
    tokens = visual.transformer.resblocks[-1](last)
    return F.normalize(visual.ln_post(tokens)[:, 0] @ visual.proj, dim=-1)
