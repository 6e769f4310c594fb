"""The trained part of RegionSpot: two linear layers around torch's own transformer decoder (RegionSpot 1)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

TOKEN_WIDTH = 256
HEADS = 8


class RegionSpotHead(nn.Module):
    """Region embeddings from SAM's box tokens and CLIP's feature map (RegionSpot 1.2, 1.7, 1.9).

    clip_width: D of CLIP's map. embed_width: E of the space shared with text. token_width: T of SAM's tokens.
    hidden: width inside the decoder's MLPs. dropout: 0..1, in training only.
    isolate: a box sees no other box, so that its embedding does not depend on its companions; as published (False)
        it does (RegionSpot 4, D3).
    use_class_token: whether boxes may look at the first row of CLIP's map; as published, yes.
    Names of parameters are those of published checkpoints.
    """

    def __init__(
        self,
        clip_width: int,
        embed_width: int,
        token_width: int = TOKEN_WIDTH,
        hidden: int = 2048,
        layers: int = 3,
        dropout: float = 0.1,
        isolate: bool = False,
        use_class_token: bool = True,
    ) -> None:
        super().__init__()
        self.isolate = isolate
        self.use_class_token = use_class_token
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

        padding: True where a row of `tokens` is no box; such rows are nobody's companions and their results mean
            nothing. Every image needs at least one box.
        """
        if not self.use_class_token:
            clip_map = clip_map[:, 1:]
        alone = None
        if self.isolate:
            alone = ~torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
            padding = None  # a box that sees itself alone sees no padding either
        decoded = self.decoder(self.to_clip(tokens), clip_map, tgt_mask=alone, tgt_key_padding_mask=padding)
        return self.projector(decoded)


def unit(embeddings: Float[Tensor, "*rows E"]) -> Float[Tensor, "*rows E"]:
    """Rows of length 1: s / (||s|| + 1e-7) (RegionSpot 1.12)."""
    return embeddings / (embeddings.norm(dim=-1, keepdim=True) + 1e-7)
