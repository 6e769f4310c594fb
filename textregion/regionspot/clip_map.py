"""What the head sees of an image: CLIP's map, straight out of the last block (RegionSpot 1.3 to 1.5)."""

from math import isqrt

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from textregion.runtime import to_device


def squash(
    image: UInt8[np.ndarray, "H W 3"], side: int, antialias: bool = False, device: torch.device | str = "cpu"
) -> Float32[Tensor, "3 S S"]:
    """The whole image as a square of `side` pixels, aspect not kept, RGB in 0..1, bilinear (RegionSpot 1.5).

    antialias: as current torchvision does by default; the published demo did not.
    """
    pixels = to_device(image, torch.device(device)).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False, antialias=antialias)[0]


@torch.inference_mode()
def clip_map(visual: VisionTransformer, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B L D"]:
    """Output of the last block as it is: no ln_post, no projection; L = 1 + (S / patch)^2, class token first.

    visual: an open_clip image tower with a class token. images: normalised, of its dtype; S is any multiple of the
    patch size. At the tower's own input size this is what a forward hook on `visual.transformer` sees.
    """
    patches = visual.conv1(images)
    tokens = patches.flatten(2).transpose(1, 2)
    start = visual.class_embedding.to(tokens.dtype).expand(len(tokens), 1, -1)
    positions = position_embedding(visual.positional_embedding, patches.shape[-1])
    tokens = torch.cat([start, tokens], 1) + positions.to(tokens.dtype)
    return visual.transformer(visual.ln_pre(tokens))


def position_embedding(embedding: Float[Tensor, "N D"], side: int) -> Float[Tensor, "L D"]:
    """Class row kept, patch rows resized to side x side, bicubic without antialias (RegionSpot 1.4).

    Not the resize of TextRegion's views (method 3.2), and not open_clip's, which antialiases.
    """
    known = isqrt(len(embedding) - 1)
    if known == side:
        return embedding
    grid = embedding[1:].float().T.unflatten(1, (known, known))[None]
    grid = F.interpolate(grid, (side, side), mode="bicubic", align_corners=False, antialias=False)
    return torch.cat([embedding[:1], grid[0].flatten(1).T.to(embedding.dtype)])
