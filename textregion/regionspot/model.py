"""Frozen CLIP, frozen SAM and the trained head, joined: boxes of an image become region tokens (RegionSpot 1)."""

import torch
from jaxtyping import Float, Float32
from numpy.typing import ArrayLike
from torch import Tensor

from textregion.backbones import ClipBackbone
from textregion.errors import InputError, at_least
from textregion.images import ImageInput, load_image
from textregion.regionspot.box_tokens import BoxTokens, BoxTokenSource
from textregion.regionspot.clip_map import clip_map, squash
from textregion.regionspot.head import RegionSpotHead, unit
from textregion.types import RegionTokens

RECIPE = "regionspot"


class RegionSpot:
    """Recognises boxes.

    backbone: the CLIP whose map the head sees. box_tokens: the SAM whose tokens it sees. head: trained with both.
    side: of the square that CLIP sees, in pixels, default the backbone's own input size. antialias: whether the image
    is shrunk to it with antialiasing; as the published demo, not.
    InputError when the parts do not fit each other. They are ordinary attributes; head and box tokens are moved to the
    backbone's device.
    """

    def __init__(
        self,
        backbone: ClipBackbone,
        box_tokens: BoxTokenSource,
        head: RegionSpotHead,
        side: int | None = None,
        antialias: bool = False,
    ) -> None:
        check_backbone(backbone)
        self.side = input_side(backbone) if side is None else at_least("side", side)
        backbone.check_crop_size(self.side)
        self.backbone = backbone
        self.box_tokens = box_tokens.to(backbone.device)
        self.head = head.eval().requires_grad_(False).to(backbone.device)
        self.antialias = bool(antialias)
        check_widths(head, map_width(backbone), backbone.width, f"CLIP {backbone.name}")
        if head.to_clip.in_features != box_tokens.token_width:
            raise InputError(
                f"the head reads SAM tokens of width {head.to_clip.in_features}, {box_tokens.name} has "
                f"{box_tokens.token_width}; give the SAM it was trained with"
            )

    @property
    def scale(self) -> float:
        """Factor from cosine to logit: CLIP's own (RegionSpot 1.12), about 100 for published weights."""
        return float(self.backbone.model.logit_scale.exp())

    def to(self, device: torch.device | str) -> "RegionSpot":
        """Move all three parts; returns self."""
        self.backbone.to(device, self.backbone.dtype)
        self.box_tokens.to(device)
        self.head.to(device)
        return self

    @torch.inference_mode()
    def encode(self, image: ImageInput, boxes: ArrayLike | Tensor) -> RegionTokens:
        """One unit vector per box, in order, comparable with text; the masks are SAM's of these boxes.

        image: path, PIL image, (H, W, 3) uint8 RGB array or encoded bytes. boxes: (n, 4), x1 y1 x2 y2 in pixels; n = 0
        is a normal result. Unless the head isolates, a token depends on the other boxes given (RegionSpot 1.7).
        InputError for an unreadable image or bad boxes.
        """
        pixels = load_image(image)
        found, masks = self.box_tokens.encode(pixels, boxes)
        tokens = self.embed(found.tokens, self.clip_map(pixels))
        kept = torch.arange(len(tokens), device=tokens.device)
        grid = (self.side // self.backbone.patch_size,) * 2
        scale, bias = self.backbone.logit_scale, self.backbone.logit_bias
        return RegionTokens(tokens, masks, kept, grid, self.backbone.name, RECIPE, scale, bias)

    @torch.inference_mode()
    def frozen(self, image: ImageInput, boxes: ArrayLike | Tensor) -> tuple[BoxTokens, Float32[Tensor, "L D"]]:
        """All that the frozen models say: what the head needs, and what training keeps (RegionSpot 2)."""
        pixels = load_image(image)
        return self.box_tokens.encode(pixels, boxes)[0], self.clip_map(pixels)

    @torch.inference_mode()
    def clip_map(self, image: ImageInput) -> Float32[Tensor, "L D"]:
        """CLIP's map of one image, L = 1 + (side / patch)^2."""
        square = squash(load_image(image), self.side, self.antialias, self.backbone.device)
        return clip_map(self.backbone.model.visual, self.backbone.normalise(square[None]))[0].float()

    @torch.inference_mode()
    def embed(self, tokens: Float32[Tensor, "n T"], clip_map: Float32[Tensor, "L D"]) -> Float32[Tensor, "n E"]:
        """The head's unit vectors of n boxes of one image; n = 0 is fine."""
        if len(tokens) == 0:
            return tokens.new_zeros(0, self.backbone.width)
        return unit(self.head(tokens[None], clip_map[None])[0])


def check_backbone(backbone: object) -> None:
    """InputError for anything but a CLIP with a class token, whose map the head was made for."""
    if not isinstance(backbone, ClipBackbone):
        kind = getattr(backbone, "family", type(backbone).__name__)
        raise InputError(f"RegionSpot works with CLIP models, got {kind}; take a preset such as clip-vit-l14-336")


def check_widths(head: RegionSpotHead, clip_width: int, embed_width: int, what: str) -> None:
    """InputError when the head was made for a CLIP of other widths."""
    own = (head.to_clip.out_features, head.projector.out_features)
    if own != (clip_width, embed_width):
        raise InputError(
            f"the head is for a CLIP of widths {own[0]} and {own[1]}, {what} has {clip_width} and {embed_width}; "
            "give the CLIP it was trained with"
        )


def map_width(backbone: ClipBackbone) -> int:
    """D, the width of CLIP's map."""
    return backbone.model.visual.conv1.out_channels


def input_side(backbone: ClipBackbone) -> int:
    """The side in pixels that CLIP itself was trained at."""
    size = backbone.model.visual.image_size
    return size if isinstance(size, int) else int(size[0])


def probabilities(
    similarity: Float[Tensor, "R K"], scale: float, detector_scores: Float[Tensor, " R"] | None = None
) -> Float32[Tensor, "R K"]:
    """Softmax over the names of scale * cosine, times the detector's score of the box if given (RegionSpot 3.3).

    similarity: cosines in -1..1. scale: e.g. `RegionSpot.scale`. detector_scores: 0..1 of each box.
    """
    found = (similarity.float() * scale).softmax(-1)
    return found if detector_scores is None else found * detector_scores.to(found)[:, None]
