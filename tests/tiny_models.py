"""Small models of the real libraries' own classes, with seeded random weights. No download."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from open_clip import SimpleTokenizer, factory
from open_clip.model import CLIP, CustomTextCLIP
from timm.layers import LayerNorm
from timm.models import register_model
from timm.models.eva import _create_eva
from timm.models.vision_transformer import _create_vision_transformer

from textregion.backbones import ClipBackbone, PerceptionBackbone, SiglipBackbone

SAM2_CONFIG = Path(__file__).parent / "golden" / "sam2_cfg" / "sam2_tiny_random.yaml"
CLIP_VISION = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
CLIP_TEXT = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
TIMM_TEXT = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 2}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's random numbers of this seed within the block; afterwards they go on as if there had been none."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def known_to_open_clip(configs: Mapping[str, dict], folder: Path) -> Iterator[None]:
    """Models of these names and configurations, written into an empty folder, are open_clip's within the block."""
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:  # open_clip keeps what it knows in lists of its module
        for known in ("_MODEL_CONFIG_PATHS", "_MODEL_CONFIGS"):
            patch.setattr(factory, known, copy(getattr(factory, known)))
        factory.add_model_config(folder)
        yield


@register_model
def golden_pe_tiny_patch8_64(pretrained=False, **kwargs):
    """PE-like tower of the golden data: class token, rotary positions, attention pool."""
    options = {
        **{"img_size": 64, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 2, "mlp_ratio": 4.0},
        **{"global_pool": "map", "attn_type": "rope", "use_pre_transformer_norm": True, "use_rot_pos_emb": True},
        **{"ref_feat_shape": (8, 8), "rope_grid_offset": 1.0, "rope_grid_indexing": "xy"},
        **{"attn_pool_num_heads": 8, "attn_pool_mlp_ratio": 4.0, "norm_layer": partial(LayerNorm, eps=1e-5)},
    }
    return _create_eva("golden_pe_tiny_patch8_64", pretrained=False, **(options | kwargs))


@register_model
def golden_siglip_tiny_patch8_64(pretrained=False, **kwargs):
    """SigLIP-like tower of the golden data: no class token, attention pool."""
    options = {
        **{"img_size": 64, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 2},
        **{"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh"},
    }
    return _create_vision_transformer("golden_siglip_tiny_patch8_64", pretrained=False, **(options | kwargs))


def clip_model(seed: int = 1, image_size: int = 32, **vision) -> CLIP:
    """An open_clip CLIP with lively random weights: residual branches matter, unlike right after its own init."""
    with seeded(seed):
        model = CLIP(24, CLIP_VISION | {"image_size": image_size} | vision, CLIP_TEXT, quick_gelu=True)
        for name, parameter in model.visual.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
            elif parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=1.5 / parameter.shape[1] ** 0.5)
    return model.eval()


def clip(seed: int = 1, **options) -> ClipBackbone:
    """The model above as a backbone."""
    return ClipBackbone.from_model(clip_model(seed, **options), SimpleTokenizer(context_length=24), name="tiny")


def timm_model(tower: str, embed_dim: int, pool: str = "map", proj: str | None = "none", **options) -> CustomTextCLIP:
    """An open_clip model with one of the two small timm towers."""
    vision = {"image_size": 64, "timm_model_name": tower, "timm_pool": pool, "timm_proj": proj}
    with seeded(2):
        return CustomTextCLIP(embed_dim, vision, TIMM_TEXT, **options).eval()


def siglip() -> SiglipBackbone:
    """A SigLIP with a bias of -10."""
    model = timm_model("golden_siglip_tiny_patch8_64", 64, init_logit_bias=-10.0)
    return SiglipBackbone.from_model(model, SimpleTokenizer(context_length=32), name="tiny-siglip")


def perception() -> PerceptionBackbone:
    """A PE-Core."""
    model = timm_model("golden_pe_tiny_patch8_64", 48, proj=None)
    return PerceptionBackbone.from_model(model, SimpleTokenizer(context_length=32), name="tiny-pe")


@cache
def sam2(seed: int = 5):
    """A SAM 2.1-like model of 256 px with 64 x 64 low-res masks."""
    with seeded(seed):
        return instantiate(OmegaConf.load(SAM2_CONFIG).model, _recursive_=True).eval()


@cache
def sam1(seed: int = 4, side: int = 128, width: int = 64):
    """A SAM v1 of the segment-anything package: 128 px, 32 x 32 low-res masks, tokens 64 wide, lively weights."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    with seeded(seed):
        encoder = ImageEncoderViT(side, depth=2, embed_dim=32, num_heads=2, out_chans=width, window_size=3)
        transformer = TwoWayTransformer(depth=2, embedding_dim=width, num_heads=2, mlp_dim=64)
        prompts = PromptEncoder(width, (side // 16, side // 16), (side, side), mask_in_chans=4)
        sam = Sam(encoder, prompts, MaskDecoder(transformer_dim=width, transformer=transformer))
        for name, parameter in sam.named_parameters():
            if parameter.ndim == 2 and "norm" not in name:
                torch.nn.init.normal_(parameter, std=1.5 / parameter.shape[1] ** 0.5)
    return sam.eval()
