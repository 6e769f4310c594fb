"""Prompts through a text tower, without the padding where leaving it out changes nothing.

CLIP's and PE's text towers are causal and read the result at the end-of-text token: no position behind that token can
influence it, so a batch is cut to its longest prompt (a prompt of ten words fills 13 of 77 positions). SigLIP's tower
looks in both directions and reads the last position: its prompts keep the full context.
"""

import open_clip
import torch
from jaxtyping import Float, Float32, Int
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn
from torch.nn import functional as F

from textregion.runtime import in_parts

PROMPTS_PER_BATCH = 512


def embed_prompts(
    model: nn.Module, tokens: Int[Tensor, "N context"], batch: int = PROMPTS_PER_BATCH
) -> Float32[Tensor, "N D"]:
    """Unit text embeddings of tokenised prompts; arguments as of `prompt_vectors`."""
    return F.normalize(prompt_vectors(model, tokens, batch), dim=-1)


@torch.inference_mode()
def prompt_vectors(
    model: nn.Module, tokens: Int[Tensor, "N context"], batch: int = PROMPTS_PER_BATCH
) -> Float32[Tensor, "N D"]:
    """What the text tower says of tokenised prompts, not normalised, in batches of prompts of similar length.

    model: an open_clip model. batch: most prompts at once, at least 1; fewer where memory does not suffice. Equal to
    `model.encode_text` at the full context up to float rounding.
    """
    if not reads_end_of_text(model):
        parts = in_parts(lambda *ends: model.encode_text(tokens[slice(*ends)]), len(tokens), batch, tokens.device)
        return torch.cat(parts).float()
    lengths = prompt_lengths(model, tokens)
    order = torch.argsort(lengths, stable=True)

    def embed(start: int, stop: int) -> Tensor:
        chunk = order[start:stop]
        return _embed_short(model, tokens[chunk, : int(lengths[chunk[-1]])])

    vectors = torch.cat(in_parts(embed, len(tokens), batch, tokens.device)).float()
    return torch.empty_like(vectors).index_copy_(0, order, vectors)


def reads_end_of_text(model: nn.Module) -> bool:
    """Whether the tower is causal and pools at the end-of-text token, so that what follows it has no influence."""
    text = getattr(model, "text", model)
    if not isinstance(text, (open_clip.CLIP, TextTransformer)):
        return False
    plain = getattr(text, "cls_emb", None) is None and not getattr(text, "output_tokens", False)
    return plain and text.attn_mask is not None and _pooling(text)[0] in ("argmax", "eos")


def prompt_lengths(model: nn.Module, tokens: Int[Tensor, "N context"]) -> Int[Tensor, " N"]:
    """Positions up to and including the one that is pooled."""
    pool_type, end = _pooling(getattr(model, "text", model))
    ends = tokens.argmax(1) if pool_type == "argmax" else (tokens == end).int().argmax(1)
    return ends + 1


def _pooling(text: nn.Module) -> tuple[str, int | None]:
    """How the tower pools, and its end-of-text token; open_clip's two classes name them differently."""
    if isinstance(text, TextTransformer):
        return text.pool_type, text.eos_id
    return text.text_pool_type, getattr(text, "text_eos_id", None)


def _embed_short(model: nn.Module, tokens: Int[Tensor, "N n"]) -> Float[Tensor, "N D"]:
    """open_clip's own forward pass of a causal text tower, for a context of n instead of its full length."""
    text = getattr(model, "text", model)
    length = tokens.shape[1]
    dtype = text.transformer.get_cast_dtype()
    x = text.token_embedding(tokens).to(dtype) + text.positional_embedding[:length].to(dtype)
    x = text.ln_final(text.transformer(x, attn_mask=text.attn_mask[:length, :length]))
    pool_type, end = _pooling(text)
    pooled = text_global_pool(x, tokens, pool_type, eos_token_id=end)
    if text.text_projection is None:
        return pooled
    linear = isinstance(text.text_projection, nn.Linear)
    return text.text_projection(pooled) if linear else pooled @ text.text_projection
