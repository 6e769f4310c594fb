"""CLIP and SigLIP as transformers names their tensors, brought into open_clip's names; the package is not needed.

What changes is names, the joining of query, key and value, and the side from which a projection is multiplied; no
number does. A file does not say which GELU its MLPs take: that is the row's (`-quickgelu` in open_clip's name),
and `config.json`, where it lies beside the file, is compared with it.
"""

from math import isqrt
from pathlib import Path

import torch
from torch import Tensor

from textregion.checkpoints import Names, join_qkv, rename
from textregion.errors import InputError
from textregion.storage import read_json

CLIP_MARK = "vision_model.embeddings.class_embedding"
SIGLIP_MARK = "vision_model.head.probe"
QUICK_GELU = "quick_gelu"
TEXT: Names = (
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.encoder.layers.{}.layer_norm1", "transformer.resblocks.{}.ln_1"),
    ("text_model.encoder.layers.{}.layer_norm2", "transformer.resblocks.{}.ln_2"),
    ("text_model.encoder.layers.{}.self_attn.qkv.weight", "transformer.resblocks.{}.attn.in_proj_weight"),
    ("text_model.encoder.layers.{}.self_attn.qkv.bias", "transformer.resblocks.{}.attn.in_proj_bias"),
    ("text_model.encoder.layers.{}.self_attn.out_proj", "transformer.resblocks.{}.attn.out_proj"),
    ("text_model.encoder.layers.{}.mlp.fc1", "transformer.resblocks.{}.mlp.c_fc"),
    ("text_model.encoder.layers.{}.mlp.fc2", "transformer.resblocks.{}.mlp.c_proj"),
    ("text_model.final_layer_norm", "ln_final"),
)
CLIP: Names = (
    *TEXT,
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding", "visual.conv1"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm", "visual.ln_pre"),
    ("vision_model.encoder.layers.{}.layer_norm1", "visual.transformer.resblocks.{}.ln_1"),
    ("vision_model.encoder.layers.{}.layer_norm2", "visual.transformer.resblocks.{}.ln_2"),
    ("vision_model.encoder.layers.{}.self_attn.qkv.weight", "visual.transformer.resblocks.{}.attn.in_proj_weight"),
    ("vision_model.encoder.layers.{}.self_attn.qkv.bias", "visual.transformer.resblocks.{}.attn.in_proj_bias"),
    ("vision_model.encoder.layers.{}.self_attn.out_proj", "visual.transformer.resblocks.{}.attn.out_proj"),
    ("vision_model.encoder.layers.{}.mlp.fc1", "visual.transformer.resblocks.{}.mlp.c_fc"),
    ("vision_model.encoder.layers.{}.mlp.fc2", "visual.transformer.resblocks.{}.mlp.c_proj"),
    ("vision_model.post_layernorm", "visual.ln_post"),
    ("visual_projection.weight", "visual.proj"),
    ("text_projection.weight", "text_projection"),
)
SIGLIP: Names = (
    *((theirs, f"text.{ours}") for theirs, ours in TEXT),
    ("text_model.head", "text.text_projection"),
    ("vision_model.embeddings.patch_embedding", "visual.trunk.patch_embed.proj"),
    ("vision_model.embeddings.position_embedding.weight", "visual.trunk.pos_embed"),
    ("vision_model.encoder.layers.{}.layer_norm1", "visual.trunk.blocks.{}.norm1"),
    ("vision_model.encoder.layers.{}.layer_norm2", "visual.trunk.blocks.{}.norm2"),
    ("vision_model.encoder.layers.{}.self_attn.qkv", "visual.trunk.blocks.{}.attn.qkv"),
    ("vision_model.encoder.layers.{}.self_attn.out_proj", "visual.trunk.blocks.{}.attn.proj"),
    ("vision_model.encoder.layers.{}.mlp", "visual.trunk.blocks.{}.mlp"),
    ("vision_model.post_layernorm", "visual.trunk.norm"),
    ("vision_model.head.probe", "visual.trunk.attn_pool.latent"),
    ("vision_model.head.attention.out_proj", "visual.trunk.attn_pool.proj"),
    ("vision_model.head.layernorm", "visual.trunk.attn_pool.norm"),
    ("vision_model.head.mlp", "visual.trunk.attn_pool.mlp"),
)


def clip_to_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A CLIPModel's state dict as that of an open_clip CLIP; any other state dict as it is."""
    if CLIP_MARK not in state:
        return state
    state = rename(join_qkv(_without_buffers(state)), CLIP)
    turned = {name: state[name].T for name in ("visual.proj", "text_projection") if state.get(name, _NONE).ndim == 2}
    return state | turned


def siglip_to_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A SiglipModel's or Siglip2Model's state dict as that of an open_clip SigLIP; any other state dict as it is.

    Siglip2Model (NaFlex) keeps the patch embedding as a matrix (C, p * p * 3), which becomes timm's convolution. Its
    256 positions are those of a square of 16 x 16 patches.
    """
    if SIGLIP_MARK not in state:
        return state
    state = rename(join_qkv(_without_buffers(state)), SIGLIP)
    for kind in ("weight", "bias"):
        packed = state.pop(f"vision_model.head.attention.in_proj_{kind}", _NONE)
        if packed.ndim == 0 or len(packed) % 3:
            raise InputError(f"the attention pool of this SigLIP has no query, key and value {kind}; get the file anew")
        query, key, value = packed.chunk(3)
        state[f"visual.trunk.attn_pool.q.{kind}"] = query
        state[f"visual.trunk.attn_pool.kv.{kind}"] = torch.cat([key, value])
    positions, patches = "visual.trunk.pos_embed", "visual.trunk.patch_embed.proj.weight"
    if state.get(positions, _NONE).ndim == 2:
        state[positions] = state[positions][None]
    if state.get(patches, _NONE).ndim == 2:
        side = isqrt(state[patches].shape[1] // 3)
        if 3 * side**2 == state[patches].shape[1]:
            state[patches] = state[patches].unflatten(1, (side, side, 3)).permute(0, 3, 1, 2)
    return state


_NONE = torch.zeros(())  # in place of a tensor that is missing, so that strict loading names it


def _without_buffers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Older files also hold 0, 1, 2, … as positions."""
    return {name: value for name, value in state.items() if not name.endswith(".position_ids")}


def check_activation(path: str | Path, quick_gelu: bool, what: str) -> None:
    """InputError where the `config.json` beside a CLIP's file names another GELU than the model `what` takes."""
    config = Path(path).with_name("config.json")
    content = read_json(config, "the configuration of a CLIP") if config.is_file() else None
    if not isinstance(content, dict) or content.get("model_type") != "clip":
        return
    towers = [tower if isinstance(tower := content.get(f"{part}_config"), dict) else {} for part in ("vision", "text")]
    for tower in towers:
        stated = tower.get("hidden_act", QUICK_GELU)
        if (stated == QUICK_GELU) != quick_gelu:
            own = QUICK_GELU if quick_gelu else "gelu"
            raise InputError(f"{config} says hidden_act {stated!r}, but {what} takes {own}; take the preset of its own")
