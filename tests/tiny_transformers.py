"""Small models of transformers' own classes, with seeded, lively random weights. No download."""

from functools import cache

import torch
from tiny_models import seeded
from torch import nn

SAM2_SIDE = 256


def enliven(model: nn.Module, seed: int = 3, scale: float = 1.0) -> nn.Module:
    """Every number random, so that each of them matters: matrices as wide as they are deep, norms near 1."""
    with seeded(seed), torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                one = "norm" in name and name.endswith("weight")
                parameter.copy_(float(one) + 0.1 * torch.randn(parameter.shape))
            else:
                parameter.copy_(scale * torch.randn(parameter.shape) / parameter[0].numel() ** 0.5)
    return model.eval().requires_grad_(False)


def clip(hidden_act: str = "quick_gelu"):
    """The form of `tiny_models.CLIP_VISION`, `SMALL_TEXT` below and D = 24."""
    from transformers import CLIPConfig, CLIPModel

    shared = {"hidden_act": hidden_act, "num_attention_heads": 2}
    vision = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3, "image_size": 40, "patch_size": 8}
    text = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 503}
    text |= {"max_position_embeddings": 13, "bos_token_id": 1, "eos_token_id": 502}
    config = CLIPConfig(text_config=text | shared, vision_config=vision | shared, projection_dim=24)
    return enliven(CLIPModel(config))


def siglip(naflex: bool = False):
    """The form of `golden_siglip_tiny_patch8_64` with a text tower as `tiny_models.TIMM_TEXT`, of 503 words."""
    from transformers import Siglip2Config, Siglip2Model, SiglipConfig, SiglipModel

    vision = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision |= {"patch_size": 8, **({"num_patches": 64} if naflex else {"image_size": 64})}
    text = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"vocab_size": 503, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}
    model_class, config_class = (Siglip2Model, Siglip2Config) if naflex else (SiglipModel, SiglipConfig)
    return enliven(model_class(config_class(text_config=text, vision_config=vision)))


def sam2_config(video: bool = False):
    """The form of `tiny_models.SAM2_CONFIG`; with video, its memory is 64 wide, as transformers' code has it."""
    from transformers import Sam2Config, Sam2HieraDetConfig, Sam2VideoConfig, Sam2VisionConfig

    trunk = Sam2HieraDetConfig(
        hidden_size=16,
        image_size=[SAM2_SIDE, SAM2_SIDE],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 8, 4],
        global_attention_blocks=[3],
    )
    vision = Sam2VisionConfig(
        backbone_config=trunk,
        backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[64, 64], [32, 32], [16, 16]],
        fpn_hidden_size=64,
    )
    prompts = {"hidden_size": 64, "image_size": SAM2_SIDE}
    decoder = {"hidden_size": 64, "mlp_dim": 2048, "dynamic_multimask_via_stability": False}
    parts = {"vision_config": vision, "prompt_encoder_config": prompts, "mask_decoder_config": decoder}
    if not video:
        return Sam2Config(**parts)
    memory = {"memory_attention_hidden_size": 64, "memory_attention_num_layers": 1}
    memory |= {"memory_attention_feed_forward_hidden_size": 64, "memory_attention_rope_feat_sizes": [16, 16]}
    memory |= {"memory_encoder_hidden_size": 64, "memory_encoder_output_channels": 64, "mask_downsampler_embed_dim": 64}
    memory |= {"memory_fuser_num_layers": 1, "memory_fuser_embed_dim": 64, "memory_fuser_intermediate_dim": 256}
    memory |= {"image_size": SAM2_SIDE, "enable_occlusion_spatial_embedding": True}
    memory |= {"enable_temporal_pos_encoding_for_object_pointers": True}
    return Sam2VideoConfig(**parts, **memory)


@cache
def sam3_concepts():
    """A Sam3Model of 112 px with 7 instances, masks of 32 x 32, and CLIP's words."""
    from transformers import Sam3Config, Sam3Model

    sizes = {"image_size": 112, "pretrain_image_size": 56, "patch_size": 14, "window_size": 4}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "global_attn_indexes": [1]}
    backbone = {"model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64, **sizes, **layers}
    vision = {
        "backbone_config": backbone,
        "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
    }
    text = {"vocab_size": 49408, "hidden_size": 24, "intermediate_size": 48, "projection_dim": 16}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}
    part = {"hidden_size": 32, "num_attention_heads": 2}
    deep = part | {"num_layers": 2, "intermediate_size": 64}
    config = Sam3Config(
        vision_config=vision,
        text_config=text,
        geometry_encoder_config=deep,
        detr_encoder_config=deep,
        detr_decoder_config=deep | {"num_queries": 7},
        mask_decoder_config=part,
    )
    return enliven(Sam3Model(config), seed=5, scale=1.5)


@cache
def sam2(video: bool = False):
    """A Sam2Model or Sam2VideoModel that is as `tiny_models.sam2`; the two position matrices are the same."""
    from transformers import Sam2Model, Sam2VideoModel

    with seeded(6):
        model = enliven((Sam2VideoModel if video else Sam2Model)(sam2_config(video)), scale=1.5)
    if video:
        model.memory_encoder.projection = nn.Identity()  # from 64 to 64 the sam2 package has none
    shared = model.prompt_encoder.shared_embedding.positional_embedding
    model.shared_image_embedding.positional_embedding.copy_(shared)
    return model
