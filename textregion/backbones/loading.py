"""From a registry row to a working backbone: architecture, tokenizer, weights in any published layout."""

from pathlib import Path

import open_clip
import torch
from open_clip.model import CustomTextCLIP, convert_to_custom_text_state_dict
from open_clip.pretrained import get_pretrained_cfg
from timm.models import eva
from torch import Tensor, nn

from textregion.backbones.base import FAMILIES, Backbone, BackboneSpec, Tokenizer, model_config
from textregion.backbones.tokenizers import stand_in_tokenizer
from textregion.checkpoints import load_strictly, read_state
from textregion.errors import InputError
from textregion.weights import CLIP_VARIABLE, Asset

RANDOM_SEED = 0
KINDS = {"clip": "a CLIP", "siglip": "a SigLIP", "pe": "a Perception Encoder", "sam2": "a SAM 2"}
SIZE_ENTRIES = ("input_resolution", "context_length", "vocab_size")


def weight_asset(spec: BackboneSpec) -> Asset:
    """The weight file of a row, as open_clip's table says: safetensors first, then the older name."""
    model, tag = spec.open_clip
    entry = get_pretrained_cfg(model, tag)
    repository, _, file = entry["hf_hub"].rpartition("/")
    files = (file,) if file else ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    if file.endswith((".bin", ".pth")):
        files = (f"{file[:-4]}.safetensors", file)
    original = spec.original or (entry["url"].split("/")[-1] if tag == "openai" else "")
    return Asset(spec.name, repository, files, CLIP_VARIABLE, "--clip_checkpoint", original)


def build_model(spec: BackboneSpec) -> nn.Module:
    """The row's architecture from open_clip's configuration, random weights, float32, no file read.

    InputError when its text tower is not open_clip's own (those need another library and its files).
    """
    config = model_config(spec)
    if "hf_model_name" in config["text_cfg"] or "multimodal_cfg" in config:
        raise InputError(f"{spec.name} has a text tower outside open_clip or a caption decoder, which is not supported")
    model_class = CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    return model_class(**config).eval()


def random_backbone(spec: BackboneSpec, seed: int = RANDOM_SEED) -> Backbone:
    """The real architecture with random weights: for trying a program, never for its results.

    The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = build_model(spec)
    return wrap(spec, model, stand_in_tokenizer(model))


def load_backbone(spec: BackboneSpec, path: str | Path, tokenizer: Tokenizer) -> Backbone:
    """The row's model with the weights of a file; the row decides preprocessing, crop size and pooling.

    Raises InputError in one line: missing, truncated, unsafe, wrong architecture or wrong family.
    """
    state = read_state(path)
    kind = kind_of(state)
    if kind not in (None, spec.family):
        raise InputError(
            f"{path} is {KINDS[kind]}, but {spec.name} is {KINDS.get(spec.family, spec.family)}; give its own weights"
        )
    model = build_model(spec)
    load_strictly(model, to_open_clip(state, model), spec.name, path)
    return wrap(spec, model, tokenizer)


def wrap(spec: BackboneSpec, model: nn.Module, tokenizer: Tokenizer) -> Backbone:
    """The family's class around a model of the row."""
    return FAMILIES[spec.family].from_spec(spec, model, tokenizer)


def kind_of(state: dict[str, Tensor]) -> str | None:
    """The family whose weights these are, "sam2", or None where the names do not tell."""
    if any(name.startswith("image_encoder.trunk.") for name in state):
        return "sam2"
    if "visual.trunk.attn_pool.latent" in state:
        return "pe" if any(name.startswith("visual.trunk.norm_pre.") for name in state) else "siglip"
    if "visual.attn_pool.probe" in state:
        return "pe"
    return "clip" if "visual.class_embedding" in state and "visual.proj" in state else None


def to_open_clip(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Published layouts as open_clip's own: OpenAI's CLIP, Meta's PE, text tower at the top level."""
    state = {k: v for k, v in state.items() if k not in SIZE_ENTRIES and not k.endswith("attn_mask")}
    if not isinstance(model, CustomTextCLIP):
        return _fit_scalars(state, model)
    if "visual.attn_pool.attn.in_proj_weight" in state and "visual.conv1.weight" in state:
        state = _from_meta(state, model)
    if "positional_embedding" in state:
        state = convert_to_custom_text_state_dict(state)
    return _fit_scalars(state, model)


def _from_meta(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Meta's Perception Encoder: its image tower through timm's own converter."""
    try:
        trunk = eva.checkpoint_filter_fn(dict(state), model.visual.trunk)
    except (KeyError, AttributeError, RuntimeError) as error:
        raise InputError(f"the file is a Perception Encoder, but not of this form ({error})") from error
    text = {k: v for k, v in state.items() if not k.startswith("visual.")}
    return {**text, **{f"visual.trunk.{k}": v for k, v in trunk.items()}}


def _fit_scalars(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """logit_scale and logit_bias are sometimes saved with one dimension more or less."""
    own = dict(model.named_parameters())
    for name in ("logit_scale", "logit_bias"):
        if name in state and own.get(name) is not None and state[name].numel() == own[name].numel():
            state[name] = state[name].reshape(own[name].shape)
    return state
