"""From a registry row to a working backbone: architecture, tokenizer, weights in any published layout."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Int
from open_clip.model import CustomTextCLIP, convert_to_custom_text_state_dict
from open_clip.pretrained import get_pretrained_cfg
from open_clip.tokenizer import get_clean_fn
from torch import Tensor, nn

from textregion.backbones.base import FAMILIES, Backbone, BackboneSpec, Tokenizer, model_config
from textregion.backbones.transformers_names import CLIP_MARK, check_activation
from textregion.checkpoints import load_strictly, read_state
from textregion.errors import InputError, first_line
from textregion.storage import reading, stand_in
from textregion.weights import CLIP_VARIABLE, TRANSFORMERS_FILES, Asset

RANDOM_SEED = 0
SEEDING = threading.RLock()
OWN_CONTEXT = 64  # positions of the text towers that open_clip does not have
SIZE_ENTRIES = ("input_resolution", "context_length", "vocab_size")


def weight_asset(spec: BackboneSpec) -> Asset:
    """The weight file of a row, as open_clip's table says: safetensors first, then the older name."""
    if spec.repository:
        return Asset(spec.name, spec.repository, TRANSFORMERS_FILES, CLIP_VARIABLE, "--clip_checkpoint")
    model, tag = spec.open_clip
    entry = get_pretrained_cfg(model, tag)
    repository, _, file = entry["hf_hub"].rpartition("/")
    files = (file,) if file else ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    if file.endswith((".bin", ".pth")):
        files = (f"{file[:-4]}.safetensors", file)
    original = spec.original or (entry["url"].split("/")[-1] if tag == "openai" else "")
    return Asset(spec.name, repository, files, CLIP_VARIABLE, "--clip_checkpoint", original)


def build_model(spec: BackboneSpec) -> nn.Module:
    """The row's architecture, random float32 weights, no file read; InputError if its text tower is not open_clip's."""
    if spec.repository:
        return FAMILIES[spec.family].build(spec).eval()
    config = model_config(spec)
    if "hf_model_name" in config["text_cfg"] or "multimodal_cfg" in config:
        raise InputError(f"{spec.name} has a text tower outside open_clip or a caption decoder, which is not supported")
    model_class = CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    return model_class(**config).eval()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global random numbers on the CPU from a seed in the body, and as they were afterwards.

    One thread at a time: another would take the seeded state for the user's, and put that back.
    """
    with SEEDING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def random_backbone(spec: BackboneSpec, seed: int = RANDOM_SEED) -> Backbone:
    """The real architecture with random weights, for trying a program only; the global random state stays."""
    with seeded(seed):
        model = build_model(spec)
    return wrap(spec, model, stand_in_tokenizer(model))


def load_backbone(spec: BackboneSpec, path: str | Path, tokenizer: Tokenizer) -> Backbone:
    """The row's model with the weights of a file; the row decides preprocessing, crop size and pooling.

    Raises InputError in one line: missing, truncated, unsafe, wrong architecture or wrong family.
    """
    state = read_state(path)
    family = FAMILIES[spec.family]
    kind = kind_of(state)
    if kind not in (None, family.kind) and not family.owns(state):
        raise InputError(f"{path} is {kind}, but {spec.name} is {family.kind}; give its own weights")
    if CLIP_MARK in state:
        check_activation(path, bool(model_config(spec).get("quick_gelu", False)), spec.name)
    model = build_model(spec)
    load_strictly(model, to_open_clip(state, model, family), spec.name, path)
    return wrap(spec, model, tokenizer)


def wrap(spec: BackboneSpec, model: nn.Module, tokenizer: Tokenizer) -> Backbone:
    """The family's class around a model of the row, which decides crop size and preprocessing."""
    family = FAMILIES[spec.family]
    backbone = family(model, tokenizer, spec.name, spec.crop_size)
    backbone.mean, backbone.std = spec.mean or family.mean, spec.std or family.std
    backbone.interpolation = spec.interpolation or family.interpolation
    return backbone


def kind_of(state: dict[str, Tensor]) -> str | None:
    """What the names of a weight file's tensors tell: "a CLIP", "a SAM 2", …, or None."""
    if any(name.startswith(("image_encoder.trunk.", "vision_encoder.backbone.blocks.")) for name in state):
        return "a SAM 2"
    return next((family.kind for family in FAMILIES.values() if family.owns(state)), None)


def to_open_clip(state: dict[str, Tensor], model: nn.Module, family: type[Backbone]) -> dict[str, Tensor]:
    """Published layouts as open_clip's own: OpenAI's CLIP, the family's others, text tower at the top level.

    logit_scale and logit_bias are sometimes saved with one dimension more or less.
    """
    state = {k: v for k, v in state.items() if k not in SIZE_ENTRIES and not k.endswith("attn_mask")}
    state = family.to_open_clip(state, model)
    if isinstance(model, CustomTextCLIP) and "positional_embedding" in state:
        state = convert_to_custom_text_state_dict(state)
    own = dict(model.named_parameters())
    for name in ("logit_scale", "logit_bias"):
        if name in state and own.get(name) is not None and state[name].numel() == own[name].numel():
            state[name] = state[name].reshape(own[name].shape)
    return state


def tokenizer_asset(spec: BackboneSpec) -> Asset | None:
    """The tokenizer file of a row (SigLIP: its pieces are not in open_clip), or None where none is needed."""
    repository = spec.repository or model_config(spec)["text_cfg"].get("hf_tokenizer_name")
    if not repository:
        return None
    name, file = f"tokenizer of {spec.name}", "tokenizer.json"
    return Asset(name, repository, (file,), CLIP_VARIABLE, "--clip_checkpoint", companion=True)


def tokenizer_of(spec: BackboneSpec, path: Path | None = None) -> Tokenizer:
    """The row's own tokenizer: list of N strings -> (N, context) int64. path: its file, if it has one."""
    if spec.repository and path is not None:
        return FileTokenizer(path, OWN_CONTEXT, "whitespace")
    if path is None:
        return open_clip.get_tokenizer(spec.open_clip[0])
    config = model_config(spec)["text_cfg"]
    return FileTokenizer(path, config["context_length"], config["tokenizer_kwargs"]["clean"])


def stand_in_tokenizer(model: nn.Module) -> Tokenizer:
    """CLIP's word pieces folded into a model's vocabulary, for random weights: no file is needed."""
    text = getattr(model, "text", model)
    simple, size = _word_pieces(context_length=text.context_length), text.vocab_size
    return simple if size >= simple.vocab_size else lambda texts: simple(texts) % size


_word_pieces = cache(open_clip.SimpleTokenizer)  # its making takes a moment


class FileTokenizer:
    """A `tokenizer.json` as SigLIP uses it: cleaned text, pieces, end-of-text, padded to the context length.

    Needs the small `tokenizers` package; open_clip itself would need all of `transformers` for the same.
    """

    def __init__(self, path: Path, context_length: int, clean: str) -> None:
        try:
            from tokenizers import Tokenizer as PieceTokenizer
        except ModuleNotFoundError as error:
            raise InputError("SigLIP's tokenizer needs the package tokenizers; pip install tokenizers") from error
        text, content = _read_json(path)
        if "vocab" not in content.get("model", ()):
            raise InputError(f"{path} describes no pieces, expected the tokenizer.json of a SigLIP; download it again")
        try:
            self.pieces = PieceTokenizer.from_str(text)
            self.pieces.encode_batch(["a photo of \U0010ffff."])  # some faults show only now: no piece for the unknown
        except Exception as error:  # the package, made from Rust, has no type of its own
            why = first_line(error)
            raise InputError(f"{path} is not a readable tokenizer file ({why}); download it again") from error
        self.clean = get_clean_fn(clean)
        self.context_length = context_length
        self.pieces.no_padding()
        self.pieces.enable_truncation(context_length)
        config = path.with_name("tokenizer_config.json")  # names the padding where it lies beside
        named = _read_json(config)[1].get("pad_token") if config.is_file() else "<pad>"
        token = named["content"] if isinstance(named, dict) else named
        found = self.pieces.token_to_id(token) if token else None
        self.pad = found if found is not None else self.pieces.token_to_id("</s>") or 0

    def __call__(self, texts: Sequence[str]) -> Int[Tensor, "N context"]:
        """Token ids, (N, context) int64."""
        encoded = self.pieces.encode_batch([self.clean(text) for text in texts])
        ids = torch.full((len(encoded), self.context_length), self.pad, dtype=torch.int64)
        for row, encoding in zip(ids, encoded, strict=True):
            row[: len(encoding.ids)] = torch.tensor(encoding.ids)
        return ids


def _read_json(path: Path) -> tuple[str, dict[str, Any]]:
    """A tokenizer's file: its text and its named entries; InputError when it cannot be read or is something else."""
    try:
        with reading(path):
            text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text)
        if isinstance(content, dict) and isinstance(content.get("model", {}), dict):
            return text, content
        raise TypeError(f"it holds {type(content).__name__}")
    except (ValueError, RecursionError, TypeError) as error:
        why = f" but {what}" if (what := stand_in(path)) else ""
        raise InputError(f"{path} is not a readable tokenizer file{why}; download it again") from error
