"""The two shipped models: an open_clip CLIP and a sam2 SAM 2 with tiny configurations.

Both are the libraries' own classes. The CLIP file holds token rows only for the words that training used
(its `token_ids` tensor names them); loading spreads them over the usual table of 49408 rows, zeros
elsewhere, so that the ordinary open_clip tokenizer works. `unknown_words` finds words that meet zeros.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import open_clip
from hydra.utils import instantiate
from omegaconf import OmegaConf
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor

from textregion.masks.sam2_model import require_sam2

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

PACKAGE = Path(__file__).parent
SAM2_CONFIG = PACKAGE / "sam2.yaml"
CLIP_WEIGHTS = PACKAGE / "weights" / "tiny_clip.safetensors"
SAM2_WEIGHTS = PACKAGE / "weights" / "tiny_sam2.safetensors"

TOKEN_IDS = "token_ids"
TOKEN_TABLE = "token_embedding.weight"


def clip_config() -> dict:
    """The content of clip.json: `embed_dim`, `vision_cfg`, `text_cfg`."""
    return json.loads((PACKAGE / "clip.json").read_text())


def build_clip(vocabulary_size: int | None = None) -> open_clip.CLIP:
    """Makes the tiny CLIP with random weights.

    vocabulary_size: rows of the token table, one per known token in training; None is the ordinary 49408.
    """
    config = clip_config()
    if vocabulary_size is not None:
        config["text_cfg"]["vocab_size"] = vocabulary_size
    return open_clip.CLIP(**config)


@functools.cache
def tokenizer() -> SimpleTokenizer:
    """The ordinary open_clip tokenizer at context length 32: list of N texts -> (N, 32) int64."""
    return SimpleTokenizer(context_length=clip_config()["text_cfg"]["context_length"])


def read_clip(path: Path) -> tuple[dict[str, Tensor], Tensor]:
    """Reads the tiny CLIP's file: a float16 state with compact token rows, and their token ids (V,) int32."""
    state = load_file(path)
    return state, state.pop(TOKEN_IDS)


def save_weights(state: dict[str, Tensor], path: Path) -> None:
    """Writes a state as safetensors, floats as float16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    halved = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    save_file({name: value.contiguous() for name, value in halved.items()}, path)


def load_clip(path: Path = CLIP_WEIGHTS) -> tuple[open_clip.CLIP, SimpleTokenizer]:
    """The trained tiny CLIP, float32, in eval mode, and its tokenizer."""
    model = build_clip()
    state, token_ids = read_clip(path)
    compact = state[TOKEN_TABLE]
    state[TOKEN_TABLE] = compact.new_zeros(model.vocab_size, compact.shape[1])
    state[TOKEN_TABLE][token_ids.long()] = compact
    model.load_state_dict(state)
    return model.eval(), tokenizer()


def build_sam2() -> "SAM2Base":
    """Makes the tiny SAM 2 with random weights, for images of 256 by 256 pixels."""
    require_sam2()
    return instantiate(OmegaConf.load(SAM2_CONFIG).model, _recursive_=True)


def load_sam2(path: Path = SAM2_WEIGHTS) -> "SAM2Base":
    """The trained tiny SAM 2, float32, in eval mode."""
    model = build_sam2()
    model.load_state_dict(load_file(path))
    return model.eval()


@functools.cache
def known_token_ids() -> frozenset[int]:
    """Ids of the tokens whose embeddings the shipped CLIP holds."""
    return frozenset(read_clip(CLIP_WEIGHTS)[1].tolist())


def unknown_words(texts: Sequence[str]) -> list[str]:
    """The different words, in order of appearance, with a token that the shipped CLIP never learned.

    Words are split as the tokenizer splits them; punctuation is passed over.
    """
    tokenize, known = tokenizer(), known_token_ids()
    pieces = [piece for text in texts for piece in tokenize.pat.findall(tokenize.clean_fn(text))]
    words = dict.fromkeys(piece for piece in pieces if any(character.isalnum() for character in piece))
    return [word for word in words if not known.issuperset(tokenize.encode(word))]
