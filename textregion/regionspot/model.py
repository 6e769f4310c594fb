"""The trained head, the CLIP map it looks at, both joined with SAM, and names as the head knows them (RegionSpot 1)."""

import re
from collections.abc import Sequence
from math import isqrt

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from numpy.typing import ArrayLike
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from textregion.backbones import Backbone, ClipBackbone
from textregion.devices import to_device
from textregion.errors import InputError, at_least
from textregion.images import ImageInput, load_image
from textregion.labels import as_labels
from textregion.regionspot.box_tokens import BoxTokenSource
from textregion.text import TEMPLATES as IMAGENET_TEMPLATES
from textregion.text_tower import prompt_vectors
from textregion.types import RegionTokens

HEADS = 8
RECIPE = "regionspot"
TEMPLATES = (*IMAGENET_TEMPLATES, "{}.".format)
NAMES_AT_ONCE = 50
LEFT_OUT = re.compile(r"-(other|merged|stuff)\b|\([^()]*\)")
SPACES = re.compile(r"[\s_]+")


class RegionSpotHead(nn.Module):
    """Region embeddings from SAM's box tokens and CLIP's feature map (RegionSpot 1.2, 1.7, 1.9).

    clip_width: D of CLIP's map. embed_width: E of the space shared with text. token_width: T of SAM's tokens.
    hidden: width inside the decoder's MLPs. dropout: 0..1, in training only. isolate: a box sees no other box, so that
    its embedding does not depend on its companions; as published (False) it does (RegionSpot 4, D3). use_class_token:
    whether boxes may look at the first row of CLIP's map; as published, yes. Names of parameters are those of published
    checkpoints.
    """

    def __init__(
        self,
        clip_width: int,
        embed_width: int,
        token_width: int = 256,
        hidden: int = 2048,
        layers: int = 3,
        dropout: float = 0.1,
        isolate: bool = False,
        use_class_token: bool = True,
    ) -> None:
        super().__init__()
        self.isolate, self.use_class_token = isolate, use_class_token
        self.to_clip = nn.Linear(token_width, clip_width)
        layer = nn.TransformerDecoderLayer(clip_width, HEADS, hidden, dropout, "relu", batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, layers, nn.LayerNorm(clip_width))
        self.projector = nn.Linear(clip_width, embed_width)

    def forward(
        self,
        tokens: Float[Tensor, "B n T"],
        clip_map: Float[Tensor, "B L D"],
        padding: Bool[Tensor, "B n"] | None = None,
    ) -> Float[Tensor, "B n E"]:
        """Region embeddings, not normalised.

        padding: True where a row of `tokens` is no box: no box sees such a row, and its result means nothing. Every
        image needs at least one box.
        """
        clip_map, alone = clip_map if self.use_class_token else clip_map[:, 1:], None
        if self.isolate:  # a box that sees itself alone sees no padding either
            alone, padding = ~torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device), None
        decoded = self.decoder(self.to_clip(tokens), clip_map, tgt_mask=alone, tgt_key_padding_mask=padding)
        return self.projector(decoded)


def unit(embeddings: Float[Tensor, "*rows E"]) -> Float[Tensor, "*rows E"]:
    """Rows of length 1: s / (||s|| + 1e-7) (RegionSpot 1.12)."""
    return embeddings / (embeddings.norm(dim=-1, keepdim=True) + 1e-7)


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

    Not the resize of TextRegion's crops (method 3.2), and not open_clip's, which antialiases.
    """
    if (known := isqrt(len(embedding) - 1)) == side:
        return embedding
    grid = embedding[1:].float().T.unflatten(1, (known, known))[None]
    grid = F.interpolate(grid, (side, side), mode="bicubic", align_corners=False, antialias=False)
    return torch.cat([embedding[:1], grid[0].flatten(1).T.to(embedding.dtype)])


class RegionSpot:
    """Frozen CLIP, frozen SAM and the trained head, joined: boxes of an image become region tokens.

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
        check_widths(head, backbone)
        if head.to_clip.in_features != box_tokens.token_width:
            raise InputError(
                f"the head reads SAM tokens of width {head.to_clip.in_features}, {box_tokens.name} has "
                f"{box_tokens.token_width}; give the SAM it was trained with"
            )

    def __repr__(self) -> str:
        return f"RegionSpot({self.backbone!r}, {self.box_tokens.name}, {self.side} x {self.side} pixels)"

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
        sam_tokens, masks = self.box_tokens.encode(pixels, boxes)
        tokens = self.embed(sam_tokens, self.clip_map(pixels))
        source_index = torch.arange(len(tokens), device=tokens.device)
        grid = (self.side // self.backbone.patch_size,) * 2
        scale, bias = self.backbone.logit_scale, self.backbone.logit_bias
        return RegionTokens(tokens, masks, source_index, grid, self.backbone.name, RECIPE, scale, bias)

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


def check_widths(head: RegionSpotHead, backbone: ClipBackbone) -> None:
    """InputError when the head was made for a CLIP of other widths."""
    width, embed_width = head.to_clip.out_features, head.projector.out_features
    if (width, embed_width) != (map_width(backbone), backbone.width):
        raise InputError(
            f"the head is for a CLIP of widths {width} and {embed_width}, CLIP {backbone.name} has "
            f"{map_width(backbone)} and {backbone.width}; give the CLIP it was trained with"
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


@torch.inference_mode()
def encode_names(backbone: Backbone, names: Sequence[str], clean: bool = False) -> Float32[Tensor, "K E"]:
    """Unit text embeddings of class names: plain mean over 81 templates of the vectors as they are, then length 1.

    RegionSpot 1.11: the 80 ImageNet templates and the bare "{}."; unlike `encode_text`, the vectors are not
    normalised before the mean. clean: `clean_name` first; published heads were trained and scored on raw names
    ("bat_(animal)"). InputError for no names or a blank one.
    """
    names = [clean_name(name) if clean else name for name in as_labels(names)]
    starts, parts = range(0, len(names), NAMES_AT_ONCE), []
    for start in tqdm(starts, "names", disable=len(starts) < 4):
        chunk = names[start : start + NAMES_AT_ONCE]
        prompts = backbone.tokenizer([template(name) for name in chunk for template in TEMPLATES])
        vectors = prompt_vectors(backbone.model, prompts).unflatten(0, (len(chunk), -1))
        parts.append(F.normalize(vectors.mean(1), dim=-1))
    return torch.cat(parts)


def clean_name(name: str) -> str:
    """A data set's name as a person would write it: "bat_(animal)" is "bat", "wall-other" is "wall".

    Underscores become spaces, "(…)" and the endings -other, -merged, -stuff go; a name with nothing left stays.
    """
    return SPACES.sub(" ", LEFT_OUT.sub(" ", name)).strip() or name
