"""From words to unit text embeddings: labels and synonyms, 80 templates, the text tower, a cache on disk (method 8.1).

Prompts go through the tower without the padding where leaving it out changes nothing. CLIP's and PE's towers are causal
and read the result at the end-of-text token: no position behind it can influence it, so a batch is cut to its longest
prompt (a prompt of ten words fills 13 of 77 positions). SigLIP's tower looks in both directions and reads the last
position: its prompts keep the full context.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import open_clip
import torch
from jaxtyping import Float, Float32, Int
from open_clip import OPENAI_IMAGENET_TEMPLATES
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn
from torch.nn import functional as F

from textregion.errors import InputError
from textregion.runtime import in_parts
from textregion.storage import load_tensors, read_text, save_tensors

if TYPE_CHECKING:
    from textregion.backbones.base import Backbone

TEMPLATES = tuple(OPENAI_IMAGENET_TEMPLATES)
PROMPTS_PER_BATCH = 512
CACHE_KIND = "TextEmbedding"
CACHE_FORMAT = 1
PromptTokens = Int[Tensor, "N context"]
logger = logging.getLogger(__name__)


def fills_context(label: str, tokenizer: Callable[[list[str]], Tensor]) -> bool:
    """Whether the label's longest prompt reaches the end of the model's context, so that words may be cut off."""
    longest = max((template(label) for template in TEMPLATES), key=len)
    plain, longer = tokenizer([longest, f"{longest} more"])
    return bool((plain == longer).all())


def read_class_file(path: str | Path) -> list[str]:
    """One label per line, synonyms separated by "; ", UTF-8; blank lines are left out. InputError if unreadable."""
    lines = read_text(path, "a text file with one label per line").splitlines()
    return [line.strip() for line in lines if line.strip()]


# ---------------------------------------------------------------------- the text tower


def embed_prompts(model: nn.Module, tokens: PromptTokens, batch: int = PROMPTS_PER_BATCH) -> Float32[Tensor, "N D"]:
    """Unit text embeddings of tokenised prompts; arguments as of `prompt_vectors`."""
    return F.normalize(prompt_vectors(model, tokens, batch), dim=-1)


@torch.inference_mode()
def prompt_vectors(model: nn.Module, tokens: PromptTokens, batch: int = PROMPTS_PER_BATCH) -> Float32[Tensor, "N D"]:
    """What the text tower says of tokenised prompts, not normalised, in batches of prompts of similar length.

    model: an open_clip model. batch: most prompts at once, at least 1; fewer where memory does not suffice. Equal to
    `model.encode_text` at the full context up to float rounding.
    """
    if not reads_end_of_text(model):
        parts = in_parts(lambda *ends: model.encode_text(tokens[slice(*ends)]), len(tokens), batch, tokens.device)
        return torch.cat(parts).float()
    lengths = prompt_lengths(model, tokens)
    order = torch.argsort(lengths, stable=True)
    longest = lengths[order].tolist()  # one read of the device for all batches

    def embed(start: int, stop: int) -> Tensor:
        return _embed_short(model, tokens[order[start:stop], : longest[stop - 1]])

    vectors = torch.cat(in_parts(embed, len(tokens), batch, tokens.device)).float()
    return torch.empty_like(vectors).index_copy_(0, order, vectors)


def reads_end_of_text(model: nn.Module) -> bool:
    """Whether the tower is causal and pools at the end-of-text token, so that what follows it has no influence."""
    text = getattr(model, "text", model)
    if not isinstance(text, (open_clip.CLIP, TextTransformer)):
        return False
    plain = getattr(text, "cls_emb", None) is None and not getattr(text, "output_tokens", False)
    return plain and text.attn_mask is not None and _pooling(text)[0] in ("argmax", "eos")


def prompt_lengths(model: nn.Module, tokens: PromptTokens) -> Int[Tensor, " N"]:
    """Positions up to and including the one that is pooled."""
    pool_type, end = _pooling(getattr(model, "text", model))
    return 1 + (tokens.argmax(1) if pool_type == "argmax" else (tokens == end).int().argmax(1))


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


# ---------------------------------------------------------------------- the cache on disk


class TextCache:
    """Unit embeddings of labels, by the content of the model that made them.

    folder: where the files are kept; made when needed. backbone: the model; its text tower's weights are hashed once,
    at the first use (about a second per GB), so other weights never find these files; later changes are not noticed.
    """

    def __init__(self, folder: str | Path, backbone: "Backbone") -> None:
        if not isinstance(folder, (str, Path)):
            raise InputError(f"got the text cache {folder!r}, expected the path of a folder")
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"got the text cache {folder}, which is a file; expected a folder")
        self.backbone = backbone

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that an embedding depends on besides the label."""
        return model_fingerprint(self.backbone)

    def path(self, label: str) -> Path:
        """The file of a label."""
        name = hashlib.sha256(label.encode()).hexdigest()[:32]
        return self.folder / self.fingerprint[:32] / f"{name}.safetensors"

    def load(self, labels: Sequence[str]) -> dict[str, Float32[Tensor, " D"]]:
        """Those of the labels that are there, on the model's device; a damaged file counts as not there."""
        found = {label: self._read(label) for label in labels if self.path(label).is_file()}
        return {label: value.to(self.backbone.device) for label, value in found.items() if value is not None}

    def save(self, labels: Sequence[str], embeddings: Float32[Tensor, "L D"]) -> None:
        """Write one file per label, each in one step. InputError when the folder cannot be written."""
        for label, embedding in zip(labels, embeddings, strict=True):
            meta = {"kind": CACHE_KIND, "fingerprint": self.fingerprint, "label": label}
            try:
                save_tensors(self.path(label), {"embedding": embedding}, meta)
            except OSError as error:
                why = f"cannot write the text cache {self.folder} ({error})"
                raise InputError(f"{why}; free space or leave it out") from error

    def _read(self, label: str) -> Float32[Tensor, " D"] | None:
        path = self.path(label)
        try:
            tensors, meta = load_tensors(path, CACHE_KIND)
        except InputError as error:
            logger.warning("text cache: %s; made again", error)
            return None
        embedding = tensors.get("embedding")
        expected = {"fingerprint": self.fingerprint, "label": label}
        if meta != expected or embedding is None or embedding.shape != (self.backbone.width,):
            logger.warning("text cache: %s was made for something else; made again", path)
            return None
        return embedding


def model_fingerprint(backbone: "Backbone") -> str:
    """Hash of the text tower's weights, its arithmetic, the templates and what the tokenizer makes of them."""
    prompts = [template("the Grey-haired dog's 2 sofas, große Straße") for template in TEMPLATES]
    described = [CACHE_FORMAT, str(backbone.dtype), backbone.device.type, prompts]
    digest = hashlib.sha256(json.dumps(described).encode())
    digest.update(_bytes(backbone.tokenizer(prompts)))
    for name, tensor in sorted(backbone.model.state_dict().items()):
        if not name.startswith("visual."):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """The stored bytes of a tensor of any dtype (numpy knows no bfloat16)."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
