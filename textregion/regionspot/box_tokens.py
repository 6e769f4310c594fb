"""SAM's own vector of a box: what its mask decoder says before it draws the mask (RegionSpot 1.1, 5).

A head works with the SAM that its training saw: published ones need SAM v1 ViT-B, the shipped tiny one the tiny SAM 2.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from textregion.boxes import boxes_inside
from textregion.checkpoints import load_strictly, read_state
from textregion.errors import InputError, at_least, needs
from textregion.masks.prompts import box_prompts, soft_masks
from textregion.masks.sam2 import LOGIT_LIMIT, Sam2MaskGenerator
from textregion.masks.sam2_model import SIZES
from textregion.runtime import in_parts
from textregion.types import RegionMasks

SINGLE_MASK = 1  # SAM v1's decoder returns one row for the IoU, then the single mask's token
TINY_TRUNK = (32, 9)


@dataclass(frozen=True)
class BoxTokens:
    """What SAM says about n boxes of one image.

    tokens: (n, T) float32, the decoder's token of the single mask. logits: (n, h, w), the low-res mask logits of the
    whole image, clamped to +-32, half precision. predicted_iou: (n,) float32.
    """

    tokens: Float32[Tensor, "n T"]
    logits: Float[Tensor, "n h w"]
    predicted_iou: Float32[Tensor, " n"]

    @classmethod
    def none(cls, token_width: int, device: torch.device) -> "BoxTokens":
        """No box at all: a normal result."""
        return cls(*(torch.zeros(shape, device=device) for shape in ((0, token_width), (0, 1, 1), (0,))))

    def masks(self, image_size: tuple[int, int]) -> RegionMasks:
        """One region per box, in their order, for an image of (H, W) pixels."""
        if len(self.tokens) == 0:
            return RegionMasks.empty(image_size, self.tokens.device)
        return soft_masks(self.logits, self.predicted_iou, image_size, image_size)


@runtime_checkable
class BoxTokenSource(Protocol):
    """Where box tokens come from. name: which SAM that is. token_width: T."""

    name: str
    token_width: int

    def to(self, device: torch.device | str) -> "BoxTokenSource":
        """Move the model; returns self."""
        ...

    def encode(self, image: UInt8[np.ndarray, "H W 3"], boxes: ArrayLike | Tensor) -> tuple[BoxTokens, RegionMasks]:
        """Tokens and masks of boxes (n, 4), x1 y1 x2 y2 in pixels; n = 0 is fine. InputError as of `boxes_inside`."""
        ...


class Sam2BoxTokens:
    """Box tokens of a SAM 2, prompted the one way its own image predictor does: two corners and a padding point.

    generator: whose model is asked; its grid and filters are not used. name: which SAM 2 it is, default its size.
    """

    def __init__(self, generator: Sam2MaskGenerator, name: str | None = None) -> None:
        decoder = generator.model.sam_mask_decoder
        if decoder.dynamic_multimask_via_stability:
            raise InputError(
                "this SAM 2 may take a mask from another token (dynamic_multimask_via_stability); "
                "build it with apply_postprocessing=False"
            )
        self.generator = generator
        self.name = name or f"sam2:{_size(generator.model)}"
        self.token_width: int = decoder.transformer_dim

    def to(self, device: torch.device | str) -> "Sam2BoxTokens":
        """Move the model; returns self."""
        self.generator.to(device)
        return self

    @torch.inference_mode()
    def encode(self, image: UInt8[np.ndarray, "H W 3"], boxes: ArrayLike | Tensor) -> tuple[BoxTokens, RegionMasks]:
        """As `BoxTokenSource.encode`."""
        size = (image.shape[0], image.shape[1])
        points, labels = box_prompts(boxes, size)
        if len(points) == 0:
            found = BoxTokens.none(self.token_width, self.generator.device)
        else:
            features = self.generator.encode(image)
            logits, predicted_iou, tokens = self.generator.decode_with_tokens(features, points, labels, False)
            found = BoxTokens(tokens[:, 0], logits[:, 0], predicted_iou[:, 0])
        return found, found.masks(size)


def _size(model: nn.Module) -> str:
    """A SAM 2's published size, or the width and depth of its image trunk where it has none."""
    trunk = model.image_encoder.trunk
    shape = (trunk.patch_embed.proj.out_channels, len(trunk.blocks))
    names = {TINY_TRUNK: "tinyworld", **{size.trunk: size.name for size in SIZES.values()}}
    return names.get(shape, f"{shape[0]}x{shape[1]}")


class Sam1BoxTokens:
    """Box tokens of a SAM v1 of the `segment-anything` package: box prompts, single mask (RegionSpot 1.1, 1.6).

    sam: a `segment_anything.modeling.Sam`, e.g. `load_sam1(path)`. name: which one it is. boxes_at_once: most boxes
    decoded at once, at least 1; fewer are taken where memory does not suffice. Same result.
    """

    def __init__(self, sam: nn.Module, name: str = "sam1:vit_b", boxes_at_once: int = 64) -> None:
        from_package("segment_anything.utils.transforms")
        self.sam = sam.eval().requires_grad_(False)
        self.name = name
        self.token_width: int = sam.mask_decoder.transformer_dim
        self.boxes_at_once = at_least("boxes_at_once", boxes_at_once)

    def to(self, device: torch.device | str) -> "Sam1BoxTokens":
        """Move the model; returns self."""
        self.sam.to(device)
        return self

    @torch.inference_mode()
    def encode(self, image: UInt8[np.ndarray, "H W 3"], boxes: ArrayLike | Tensor) -> tuple[BoxTokens, RegionMasks]:
        """As `BoxTokenSource.encode`."""
        size, device = (image.shape[0], image.shape[1]), self.sam.device
        inside = boxes_inside(boxes, size)
        if len(inside) == 0:
            found = BoxTokens.none(self.token_width, device)
            return found, found.masks(size)
        resize = self._resize(size)
        pixels = torch.from_numpy(resize.apply_image(image)).permute(2, 0, 1).float().to(device)
        embedding = self.sam.image_encoder(self.sam.preprocess(pixels)[None])
        scaled, filled = resize.apply_boxes_torch(inside, size).to(device), (pixels.shape[1], pixels.shape[2])

        def decode(start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
            return self._decode(embedding, scaled[start:stop], filled)

        parts = in_parts(decode, len(scaled), self.boxes_at_once, device)
        found = BoxTokens(*(torch.cat(values) for values in zip(*parts, strict=True)))
        return found, found.masks(size)

    def _resize(self, size: tuple[int, int]):
        """The package's own resize of the longest side; InputError for an image that it would leave without a row."""
        side = self.sam.image_encoder.img_size
        resize = from_package("segment_anything.utils.transforms").ResizeLongestSide(side)
        if min(resize.get_preprocess_shape(*size, side)) < 1:
            raise InputError(f"got an image of {size[1]} x {size[0]} pixels, which is too thin for SAM")
        return resize

    def _decode(
        self, embedding: Float[Tensor, "1 C e e"], boxes: Float32[Tensor, "n 4"], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, logits, predicted IoU) of boxes in pixels of the resized image, which has `size`."""
        sparse, dense = self.sam.prompt_encoder(points=None, boxes=boxes, masks=None)
        with _kept_output(self.sam.mask_decoder.transformer) as outputs:
            logits, predicted_iou = self.sam.mask_decoder(
                image_embeddings=embedding,
                image_pe=self.sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
        states, _ = outputs[0]
        cut = without_padding(logits, size, self.sam.image_encoder.img_size)
        return states[:, SINGLE_MASK], cut[:, 0].clamp(-LOGIT_LIMIT, LOGIT_LIMIT).half(), predicted_iou[:, 0]


@contextmanager
def _kept_output(module: nn.Module) -> Iterator[list]:
    """What the module returns meanwhile, call by call."""
    outputs: list = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


def without_padding(logits: Float[Tensor, "n 1 s s"], filled: tuple[int, int], frame: int) -> Float[Tensor, "n 1 h w"]:
    """The part of a padded map that the image fills, at its own resolution, rounded up to whole rows and columns.

    filled: (height, width) of the image within its frame, at the top left. frame: side of the frame, same unit.
    Where that is a whole number of rows and columns, the values are the map's own; else interpolated between them.
    """
    count, side = len(logits), logits.shape[-1]
    y, x = (length / frame for length in filled)
    part = logits.new_tensor([[x, 0, x - 1], [0, y, y - 1]]).expand(count, 2, 3)
    size = [-(-length * side // frame) for length in filled]
    grid = F.affine_grid(part, [count, 1, *size], align_corners=False)
    return F.grid_sample(logits, grid, mode="bilinear", padding_mode="border", align_corners=False)


def load_sam1(path: str | Path, model_type: str = "vit_b") -> nn.Module:
    """A published SAM v1 from its `.pth` file, strictly; "vit_b" is the one that published RegionSpot heads need.

    InputError in one line: package or file missing, damaged, or of another architecture.
    """
    registry = from_package("segment_anything").sam_model_registry
    if model_type not in registry:
        raise InputError(f"got SAM v1 {model_type!r}, expected one of {', '.join(registry)}")
    state = read_state(path)
    sam = registry[model_type]()
    load_strictly(sam, state, f"SAM v1 {model_type}", path)
    return sam


def from_package(module: str):
    """A module of the optional package `segment-anything`; InputError saying how to install it."""
    with needs("SAM v1", layer="eval", extra="regionspot"):
        return import_module(module)
