"""Text to token ids: CLIP and PE bring their word pieces with open_clip; SigLIP's are a file on the hub."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import open_clip
import torch
from jaxtyping import Int
from open_clip.tokenizer import get_clean_fn
from torch import Tensor, nn

from textregion.backbones.base import BackboneSpec, Tokenizer, model_config
from textregion.errors import InputError
from textregion.weights import CLIP_VARIABLE, Asset

TOKENIZER_FILE = "tokenizer.json"


def tokenizer_asset(spec: BackboneSpec) -> Asset | None:
    """The tokenizer file of a row (SigLIP: its pieces are not in open_clip), or None where none is needed."""
    repository = _text_config(spec).get("hf_tokenizer_name")
    if not repository:
        return None
    what = f"tokenizer of {spec.name}"
    return Asset(what, repository, (TOKENIZER_FILE,), CLIP_VARIABLE, "--clip_checkpoint", companion=True)


def tokenizer_of(spec: BackboneSpec, path: Path | None = None) -> Tokenizer:
    """The row's own tokenizer: list of N strings -> (N, context) int64. path: its file, if it has one."""
    config = _text_config(spec)
    if path is None:
        return open_clip.get_tokenizer(spec.open_clip[0])
    return FileTokenizer(path, config["context_length"], config["tokenizer_kwargs"]["clean"])


def stand_in_tokenizer(model: nn.Module) -> Tokenizer:
    """CLIP's word pieces folded into a model's vocabulary, for random weights: no file is needed."""
    text = getattr(model, "text", model)
    simple = _word_pieces(text.context_length)
    size = text.vocab_size
    return simple if size >= simple.vocab_size else lambda texts: simple(texts) % size


@cache
def _word_pieces(context_length: int) -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer(context_length=context_length)


def _text_config(spec: BackboneSpec) -> dict:
    return model_config(spec)["text_cfg"]


def _checked(path: Path) -> str:
    """The file's text, if it is JSON that describes pieces (the library's own errors have no type of their own)."""
    try:
        text = path.read_text(encoding="utf-8")
        has_pieces = "vocab" in json.loads(text)["model"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a readable tokenizer file; download it again") from error
    if not has_pieces:
        raise InputError(f"{path} describes no pieces, expected the tokenizer.json of a SigLIP; download it again")
    return text


class FileTokenizer:
    """A `tokenizer.json` as SigLIP uses it: cleaned text, pieces, end-of-text, padded to the context length.

    Needs the small `tokenizers` package; open_clip itself would need all of `transformers` for the same.
    """

    def __init__(self, path: Path, context_length: int, clean: str) -> None:
        try:
            from tokenizers import Tokenizer as PieceTokenizer
        except ImportError as error:
            raise InputError("SigLIP's tokenizer needs the package tokenizers; pip install tokenizers") from error
        self.pieces = PieceTokenizer.from_str(_checked(path))
        self.clean = get_clean_fn(clean)
        self.context_length = context_length
        self.pieces.no_padding()
        self.pieces.enable_truncation(context_length)
        self.pad = self._pad_id(path)

    def _pad_id(self, path: Path) -> int:
        """From tokenizer_config.json where it lies beside, else by the piece's usual names."""
        config = path.with_name("tokenizer_config.json")
        named = json.loads(config.read_text(encoding="utf-8")).get("pad_token") if config.is_file() else "<pad>"
        token = named["content"] if isinstance(named, dict) else named
        found = self.pieces.token_to_id(token) if token else None
        return found if found is not None else self.pieces.token_to_id("</s>") or 0

    def __call__(self, texts: Sequence[str]) -> Int[Tensor, "N context"]:
        """Token ids, (N, context) int64."""
        encoded = self.pieces.encode_batch([self.clean(text) for text in texts])
        ids = torch.full((len(encoded), self.context_length), self.pad, dtype=torch.int64)
        for row, encoding in zip(ids, encoded, strict=True):
            row[: len(encoding.ids)] = torch.tensor(encoding.ids)
        return ids
