"""The text tower on many prompts: only the positions that matter, and those that prompts share once (method 8.1).

CLIP's and PE's towers are causal and read the result at the end-of-text token. So no position behind it can influence
it: a prompt of ten words is 13 of 77 positions. And what stands before a label in a template ("a photo of the large")
has the same keys and values whatever the label is: they are computed once per model (`encode_prefixes`), and a label
starts from them (`prompt_vectors(…, prefixes=…)`), which leaves 3 to 5 positions a prompt. Of the last block only the
position that is read is computed. SigLIP's tower looks in both directions and reads the last position: its prompts keep
the full context, and nothing is shared; there only fewer templates help.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from jaxtyping import Bool, Float, Float32, Int
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, text_global_pool
from torch import Tensor, nn
from torch.nn import functional as F

from textregion.devices import move, to_device
from textregion.runtime import in_parts

PROMPTS_PER_BATCH = 512
CPU_POSITIONS = 2048  # at once on a CPU, where more are not faster and take more memory
SHORT_PROMPT = 8  # positions, for the number of prompts in a batch
PromptTokens = Int[Tensor, "N context"]
Progress = Callable[[int], object]  # is told of so many prompts that are done


def embed_prompts(model: nn.Module, tokens: PromptTokens, batch: int = PROMPTS_PER_BATCH) -> Float32[Tensor, "N D"]:
    """Unit text embeddings of tokenised prompts; arguments as of `prompt_vectors`."""
    return F.normalize(prompt_vectors(model, tokens, batch), dim=-1)


@torch.inference_mode()
def prompt_vectors(
    model: nn.Module,
    tokens: PromptTokens,
    batch: int = PROMPTS_PER_BATCH,
    prefixes: "Prefixes | None" = None,
    which: Int[Tensor, " N"] | None = None,
    progress: Progress | None = None,
) -> Float32[Tensor, "N D"]:
    """What the text tower says of tokenised prompts, not normalised, on the model's device.

    model: an open_clip model. tokens, which: of the host, as tokenizers give them, so that the device is asked for
    nothing; a batch is one upload. batch: most prompts at once, at least 1; fewer on a CPU, or where memory is short.
    prefixes: of `encode_prefixes`; which: the prefix of every prompt, -1 for none; a prompt that does not begin with
    its prefix after all is computed whole. progress: told of the prompts of every batch that is done. Equal to
    `model.encode_text` at the full context up to float rounding.
    """
    causal, device, tokens = reads_end_of_text(model), next(model.parameters()).device, tokens.cpu()
    if device.type == "cpu":
        batch = min(batch, max(1, CPU_POSITIONS // (SHORT_PROMPT if causal else tokens.shape[1])))
    lengths = prompt_lengths(model, tokens) if causal else torch.full((len(tokens),), tokens.shape[1])
    sorts = len(tokens) > batch  # so that a batch's prompts are of similar length
    order = torch.argsort(lengths, stable=True) if sorts else torch.arange(len(tokens))
    if prefixes is not None and which is not None:
        which = prefixes.fitting(tokens, lengths, which)

    def embed(start: int, stop: int) -> Tensor:
        chosen = order[start:stop]
        own = tokens[chosen, : int(lengths[chosen].max())]
        if not causal:
            vectors = model.encode_text(to_device(own, device))
        elif prefixes is None or which is None:
            vectors = _embed_short(model, to_device(own, device))
        else:
            vectors = _embed_from(model, own, lengths[chosen], prefixes, which[chosen])
        if progress is not None:
            progress(stop - start)
        return vectors

    vectors = torch.cat(in_parts(embed, len(tokens), batch, device)).float()
    return vectors[to_device(torch.argsort(order), device)] if sorts else vectors


def text_part(model: nn.Module) -> Any:
    """What holds the text tower's weights: open_clip's CLIP itself, or the part `text` of its other models."""
    return getattr(model, "text", model)


def reads_end_of_text(model: nn.Module) -> bool:
    """Whether the tower is causal and pools at the end-of-text token, so that what follows it has no influence."""
    text = text_part(model)
    if not isinstance(text, (open_clip.CLIP, TextTransformer)):
        return False
    plain = getattr(text, "cls_emb", None) is None and not getattr(text, "output_tokens", False)
    return plain and text.attn_mask is not None and _pooling(text)[0] in ("argmax", "eos")


def prompt_lengths(model: nn.Module, tokens: PromptTokens) -> Int[Tensor, " N"]:
    """Positions up to and including the one that is pooled."""
    pool_type, end = _pooling(text_part(model))
    return 1 + (tokens.argmax(1) if pool_type == "argmax" else (tokens == end).int().argmax(1))


def _pooling(text: nn.Module) -> tuple[str, int | None]:
    """How the tower pools, and its end-of-text token; open_clip's two classes name them differently."""
    if isinstance(text, TextTransformer):
        return text.pool_type, text.eos_id
    return text.text_pool_type, getattr(text, "text_eos_id", None)


def _embed_short(model: nn.Module, tokens: Int[Tensor, "N n"]) -> Float[Tensor, "N D"]:
    """open_clip's own forward pass of a causal text tower, for a context of n instead of its full length."""
    text = text_part(model)
    length = tokens.shape[1]
    dtype = text.transformer.get_cast_dtype()
    x = text.token_embedding(tokens).to(dtype) + text.positional_embedding[:length].to(dtype)
    x = text.ln_final(text.transformer(x, attn_mask=text.attn_mask[:length, :length]))
    pool_type, end = _pooling(text)
    return _project(text, text_global_pool(x, tokens, pool_type, eos_token_id=end))


def _project(text: nn.Module, pooled: Float[Tensor, "N C"]) -> Float[Tensor, "N D"]:
    """The tower's projection, where it has one."""
    if text.text_projection is None:
        return pooled
    linear = isinstance(text.text_projection, nn.Linear)
    return text.text_projection(pooled) if linear else pooled @ text.text_projection


# ---------------------------------------------------------------------- what prompts share


@dataclass(frozen=True)
class Prefixes:
    """T beginnings of prompts after the tower: what a prompt needs of them.

    tokens: their ids, as long as the longest. lengths: positions of each; both on the host. keys, values: of every
    block, C wide, on the model's device.
    """

    tokens: Int[Tensor, "T p"]
    lengths: Int[Tensor, " T"]
    keys: list[Float[Tensor, "T p C"]]
    values: list[Float[Tensor, "T p C"]]

    def fitting(self, tokens: PromptTokens, lengths: Int[Tensor, " N"], which: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """`which`, with -1 for those of N prompts that do not begin with their prefix or are no longer than it."""
        shared = self.lengths[which]
        same = tokens[:, : self.tokens.shape[1]] == self.tokens[which]
        outside = torch.arange(self.tokens.shape[1]) >= shared[:, None]
        return torch.where((same | outside).all(1) & (shared < lengths) & (which >= 0), which, -1)


def shares_prefixes(model: nn.Module) -> bool:
    """Whether `encode_prefixes` knows the tower: causal, of open_clip's plain blocks."""
    if not reads_end_of_text(model):
        return False
    blocks = text_part(model).transformer.resblocks
    return len(blocks) > 0 and all(
        type(block) is ResidualAttentionBlock and block.attn.in_proj_weight is not None for block in blocks
    )


@torch.inference_mode()
def encode_prefixes(model: nn.Module, some: PromptTokens, others: PromptTokens) -> Prefixes:
    """What T pairs of prompts begin with alike, through the tower; the pooled position is never among it.

    some, others: the same T templates with two labels whose first tokens differ.
    """
    text = text_part(model)
    ends = torch.minimum(prompt_lengths(model, some), prompt_lengths(model, others)) - 1
    lengths = torch.minimum((some == others).int().cumprod(1).sum(1), ends)
    tokens = some[:, : int(lengths.max())]
    layout = _Layout.of(lengths)
    causal = layout.columns[:, None] >= layout.columns
    given = [*layout.inputs(tokens, torch.zeros_like(lengths)), layout.index, causal]
    (ids, positions, index, causal) = move(given, next(model.parameters()).device)
    x, keys, values = _embeddings(text, ids, positions), [], []
    for block in text.transformer.resblocks:
        query, key, value = (layout.padded(part, index) for part in _attention_inputs(block, x))
        keys.append(key)
        values.append(value)
        x = _after_attention(block, x, _attend(block, query, key, value, causal).flatten(0, 1)[index])
    return Prefixes(tokens, lengths, keys, values)


def _embed_from(
    model: nn.Module,
    tokens: PromptTokens,
    lengths: Int[Tensor, " N"],
    prefixes: Prefixes,
    which: Int[Tensor, " N"],
) -> Float[Tensor, "N D"]:
    """Prompts of the host, each from its prefix on: N rows of the tower's result (`which` as of `Prefixes.fitting`)."""
    text = text_part(model)
    begun = torch.where(which >= 0, prefixes.lengths[which], 0)
    layout = _Layout.of(lengths - begun)
    own = (begun[:, None] + layout.columns).clamp(max=tokens.shape[1] - 1)
    before = (torch.arange(prefixes.tokens.shape[1]) < begun[:, None])[:, None].expand(-1, len(layout.columns), -1)
    causal = (layout.columns[:, None] >= layout.columns).expand(len(tokens), -1, -1)
    allowed = torch.cat([before, causal], 2)
    read = allowed[torch.arange(len(tokens)), layout.lengths - 1][:, None]
    given = [*layout.inputs(tokens.gather(1, own), begun), layout.index, layout.ends, which, allowed, read]
    ids, positions, index, ends, which, allowed, read = move(given, prefixes.keys[0].device)
    x = _embeddings(text, ids, positions)
    *blocks, last = text.transformer.resblocks
    for block, keys, values in zip(blocks, prefixes.keys, prefixes.values, strict=False):
        query, key, value = (layout.padded(part, index) for part in _attention_inputs(block, x))
        key, value = torch.cat([keys[which], key], 1), torch.cat([values[which], value], 1)
        x = _after_attention(block, x, _attend(block, query, key, value, allowed).flatten(0, 1)[index])
    query, key, value = _attention_inputs(last, x)
    key = torch.cat([prefixes.keys[-1][which], layout.padded(key, index)], 1)
    value = torch.cat([prefixes.values[-1][which], layout.padded(value, index)], 1)
    attended = _attend(last, query[ends][:, None], key, value, read)[:, 0]
    return _project(text, text.ln_final(_after_attention(last, x[ends], attended)))


@dataclass(frozen=True)
class _Layout:
    """N prompts of different lengths, on the host: as rows, one after the other, and padded to the longest, of n.

    index: where the rows are among the N * n padded positions. ends: the row of each prompt's last position.
    """

    lengths: Int[Tensor, " N"]
    columns: Int[Tensor, " n"]
    index: Int[Tensor, " rows"]
    ends: Int[Tensor, " N"]

    @classmethod
    def of(cls, lengths: Int[Tensor, " N"]) -> "_Layout":
        columns = torch.arange(int(lengths.max()))
        index = (columns < lengths[:, None]).flatten().nonzero()[:, 0]
        return cls(lengths, columns, index, lengths.cumsum(0) - 1)

    def inputs(
        self, tokens: Int[Tensor, "N n"], begun: Int[Tensor, " N"]
    ) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
        """Ids and positions of the rows. begun: the position of each prompt's first token."""
        return tokens.flatten()[self.index], (begun[:, None] + self.columns).flatten()[self.index]

    def padded(self, rows: Float[Tensor, "rows C"], index: Int[Tensor, " rows"]) -> Float[Tensor, "N n C"]:
        """Rows with zeros between them; index: the layout's, where the rows are."""
        size = (len(self.lengths), len(self.columns))
        return rows.new_zeros(size[0] * size[1], rows.shape[1]).index_copy_(0, index, rows).unflatten(0, size)


def _embeddings(text: nn.Module, ids: Int[Tensor, " rows"], positions: Int[Tensor, " rows"]) -> Float[Tensor, "rows C"]:
    """The first block's input."""
    dtype = text.transformer.get_cast_dtype()
    return text.token_embedding(ids).to(dtype) + text.positional_embedding[positions].to(dtype)


def _attention_inputs(block: ResidualAttentionBlock, x: Float[Tensor, "rows C"]) -> tuple[Tensor, ...]:
    """Queries, keys and values of a block."""
    return F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)


def _attend(
    block: ResidualAttentionBlock, query: Tensor, key: Tensor, value: Tensor, allowed: Bool[Tensor, "*N q k"]
) -> Float[Tensor, "N q C"]:
    """Attention in the block's heads. allowed: which keys a query sees."""
    heads = block.attn.num_heads
    query, key, value = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    allowed = allowed[None, None] if allowed.ndim == 2 else allowed[:, None]
    return F.scaled_dot_product_attention(query, key, value, allowed).transpose(1, 2).flatten(2)


def _after_attention(
    block: ResidualAttentionBlock, x: Float[Tensor, "rows C"], attended: Float[Tensor, "rows C"]
) -> Float[Tensor, "rows C"]:
    """The rest of a block: its out-projection, its MLP, both residuals."""
    x = x + block.ls_1(block.attn.out_proj(attended))
    return x + block.ls_2(block.mlp(block.ln_2(x)))
