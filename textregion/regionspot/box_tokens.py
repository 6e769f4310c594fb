"""SAM's own vector of a box: what its mask decoder says before it draws the mask (RegionSpot 1.1, 5)."""

from abc import ABC, abstractmethod
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from textregion.boxes import boxes_inside
from textregion.checkpoints import load_strictly, read_state
from textregion.errors import InputError, at_least, needs
from textregion.masks.clicks import LOGIT_LIMIT
from textregion.masks.prompts import box_prompts, soft_masks
from textregion.masks.sam2 import Sam2MaskGenerator
from textregion.masks.sam2_model import SIZES
from textregion.runtime import in_parts
from textregion.types import RegionMasks

SINGLE_MASK = 1  # SAM v1's decoder returns one row for the IoU, then the single mask's token
TINY_TRUNK = (32, 9)
RgbImage = UInt8[np.ndarray, "H W 3"]
Decoded = tuple[Float32[Tensor, "n T"], Float[Tensor, "n h w"], Float32[Tensor, " n"]]


class BoxTokenSource(ABC):
    """Where box tokens come from.

    sam: the model, which knows its `device` and moves with `to`. name: which SAM that is. token_width: T.
    """

    def __init__(self, sam: nn.Module | Sam2MaskGenerator, name: str, token_width: int) -> None:
        self.sam, self.name, self.token_width = sam, name, token_width

    def to(self, device: torch.device | str) -> "BoxTokenSource":
        """Move the model; returns self."""
        self.sam.to(device)
        return self

    @torch.inference_mode()
    def encode(self, image: RgbImage, boxes: ArrayLike | Tensor) -> tuple[Float32[Tensor, "n T"], RegionMasks]:
        """Tokens and masks of boxes (n, 4), x1 y1 x2 y2 in pixels; n = 0 is fine. InputError as of `boxes_inside`."""
        size = (image.shape[0], image.shape[1])
        inside = boxes_inside(boxes, size)
        if len(inside) == 0:
            return torch.zeros(0, self.token_width, device=self.sam.device), RegionMasks.empty(size, self.sam.device)
        tokens, *masks = self.decode(image, inside)
        return tokens, soft_masks(*masks, size, size)

    @abstractmethod
    def decode(self, image: RgbImage, boxes: Float32[Tensor, "n 4"]) -> Decoded:
        """What SAM says about n >= 1 boxes that lie inside the image.

        (tokens, logits, predicted IoU): the decoder's token of the single mask, float32; the low-res mask logits of the
        whole image, clamped to +-32, half precision; float32.
        """


class Sam2BoxTokens(BoxTokenSource):
    """Box tokens of a SAM 2, prompted the one way its own image predictor does: two corners and a padding point.

    sam: whose model is asked; its grid and filters are not used. name: which SAM 2 it is, default its size, or the
    width and depth of its image trunk where that is no published one.
    """

    def __init__(self, sam: Sam2MaskGenerator, name: str | None = None) -> None:
        decoder = sam.model.sam_mask_decoder
        if decoder.dynamic_multimask_via_stability:
            raise InputError(
                "this SAM 2 may take a mask from another token (dynamic_multimask_via_stability); "
                "build it with apply_postprocessing=False"
            )
        trunk = sam.model.image_encoder.trunk
        shape = (trunk.patch_embed.proj.out_channels, len(trunk.blocks))
        sizes = {TINY_TRUNK: "tinyworld", **{size.trunk: size.name for size in SIZES.values()}}
        name = name or f"sam2:{sizes.get(shape, f'{shape[0]}x{shape[1]}')}"
        super().__init__(sam, name, decoder.transformer_dim)

    def decode(self, image: RgbImage, boxes: Float32[Tensor, "n 4"]) -> Decoded:
        """As `BoxTokenSource.decode`."""
        points, labels = box_prompts(boxes, (image.shape[0], image.shape[1]))
        logits, predicted_iou, tokens = self.sam.decode_with_tokens(self.sam.encode(image), points, labels, False)
        return tokens[:, 0], logits[:, 0], predicted_iou[:, 0]


class Sam1BoxTokens(BoxTokenSource):
    """Box tokens of a SAM v1 of the `segment-anything` package: box prompts, single mask (RegionSpot 1.1, 1.6).

    sam: a `segment_anything.modeling.Sam`, e.g. `load_sam1(path)`. name: which one it is. boxes_at_once: most boxes
    decoded at once, at least 1; fewer are taken where memory does not suffice. Same result.
    """

    def __init__(self, sam: nn.Module, name: str = "sam1:vit_b", boxes_at_once: int = 64) -> None:
        segment_anything()
        super().__init__(sam.eval().requires_grad_(False), name, sam.mask_decoder.transformer_dim)
        self.boxes_at_once = at_least("boxes_at_once", boxes_at_once)

    def decode(self, image: RgbImage, boxes: Float32[Tensor, "n 4"]) -> Decoded:
        """As `BoxTokenSource.decode`; InputError for an image so thin that its resize would leave it without a row."""
        predictor = segment_anything().SamPredictor(self.sam)
        size, transform = (image.shape[0], image.shape[1]), predictor.transform
        if min(transform.get_preprocess_shape(*size, transform.target_length)) < 1:
            raise InputError(f"got an image of {size[1]} x {size[0]} pixels, which is too thin for SAM")
        predictor.set_image(image)
        scaled = transform.apply_boxes_torch(boxes, size).to(self.sam.device)

        prompts, decoder = self.sam.prompt_encoder, self.sam.mask_decoder

        def decode(start: int, stop: int) -> Decoded:
            outputs = []
            sparse, dense = prompts(points=None, boxes=scaled[start:stop], masks=None)
            with decoder.transformer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output)):
                logits, predicted_iou = decoder(predictor.features, prompts.get_dense_pe(), sparse, dense, False)
            states, _ = outputs[0]
            cut = without_padding(logits, predictor.input_size, self.sam.image_encoder.img_size)
            return states[:, SINGLE_MASK], cut[:, 0].clamp(-LOGIT_LIMIT, LOGIT_LIMIT).half(), predicted_iou[:, 0]

        parts = in_parts(decode, len(scaled), self.boxes_at_once, self.sam.device)
        tokens, logits, predicted_iou = (torch.cat(values) for values in zip(*parts, strict=True))
        return tokens, logits, predicted_iou


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
    registry = segment_anything().sam_model_registry
    if model_type not in registry:
        raise InputError(f"got SAM v1 {model_type!r}, expected one of {', '.join(registry)}")
    state = read_state(path)
    sam = registry[model_type]()
    load_strictly(sam, state, f"SAM v1 {model_type}", path)
    return sam


def segment_anything() -> ModuleType:
    """The optional package; InputError saying how to install it."""
    with needs("SAM v1", layer="eval", extra="regionspot"):
        return import_module("segment_anything")
