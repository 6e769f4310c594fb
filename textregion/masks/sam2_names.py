"""SAM 2 as the package transformers names its tensors, and as the package sam2 does; nothing is imported.

Both ways: a file of one form serves the other package's model. Names change, and the embeddings of the point labels are
one tensor there and one each here; no number does.
"""

import torch
from torch import Tensor

from textregion.checkpoints import Names, rename

MARK = "vision_encoder.backbone.blocks."
POINTS, POINT_LABELS = "prompt_encoder.point_embed.weight", 4
MATRIX = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
SHARED_MATRIX = "shared_image_embedding.positional_embedding"  # a second copy of the prompt encoder's
# What only video needs: Sam2VideoModel has it, Sam2Model has not.
MEMORY_MODULES = ("memory_attention", "memory_encoder")
MEMORY = (*MEMORY_MODULES, "maskmem_tpos_enc", "no_mem_pos_enc", "no_obj_ptr", "no_obj_embed_spatial")
MEMORY += ("mask_downsample", "obj_ptr_proj", "obj_ptr_tpos_proj")
_LAYERS, _THEIR_LAYERS = "sam_mask_decoder.transformer.layers.{}", "mask_decoder.transformer.layers.{}"
_HEADS = ("output_hypernetworks_mlps.{}", "iou_prediction_head", "pred_obj_score_head")
_SHRINK, _THEIR_SHRINK = "memory_encoder.mask_downsampler.encoder", "memory_encoder.mask_downsampler"
_FUSER, _THEIR_FUSER = "memory_encoder.fuser.layers.{}", "memory_encoder.memory_fuser.layers.{}"


def _mlp(ours: str, theirs: str, layers: int) -> Names:
    """The linear layers of an MLP: numbered here; first, last, and numbered between them there."""
    between = [(f"{ours}.layers.{i}", f"{theirs}.layers.{i - 1}") for i in range(1, layers - 1)]
    ends = [(f"{ours}.layers.0", f"{theirs}.proj_in"), (f"{ours}.layers.{layers - 1}", f"{theirs}.proj_out")]
    return (*ends, *between)


NAMES: Names = (  # (sam2, transformers)
    ("image_encoder.trunk.patch_embed.proj", "vision_encoder.backbone.patch_embed.projection"),
    ("image_encoder.trunk.blocks.{}.norm1", "vision_encoder.backbone.blocks.{}.layer_norm1"),
    ("image_encoder.trunk.blocks.{}.norm2", "vision_encoder.backbone.blocks.{}.layer_norm2"),
    *_mlp("image_encoder.trunk.blocks.{}.mlp", "vision_encoder.backbone.blocks.{}.mlp", 2),
    ("image_encoder.trunk", "vision_encoder.backbone"),
    ("image_encoder.neck.convs.{}.conv", "vision_encoder.neck.convs.{}"),
    (MATRIX, "prompt_encoder.shared_embedding.positional_embedding"),
    ("sam_prompt_encoder.mask_downscaling.0", "prompt_encoder.mask_embed.conv1"),
    ("sam_prompt_encoder.mask_downscaling.1", "prompt_encoder.mask_embed.layer_norm1"),
    ("sam_prompt_encoder.mask_downscaling.3", "prompt_encoder.mask_embed.conv2"),
    ("sam_prompt_encoder.mask_downscaling.4", "prompt_encoder.mask_embed.layer_norm2"),
    ("sam_prompt_encoder.mask_downscaling.6", "prompt_encoder.mask_embed.conv3"),
    ("sam_prompt_encoder", "prompt_encoder"),
    *((f"{_LAYERS}.norm{n}", f"{_THEIR_LAYERS}.layer_norm{n}") for n in range(1, 5)),
    (f"{_LAYERS}.self_attn.out_proj", f"{_THEIR_LAYERS}.self_attn.o_proj"),
    (f"{_LAYERS}.cross_attn_token_to_image.out_proj", f"{_THEIR_LAYERS}.cross_attn_token_to_image.o_proj"),
    (f"{_LAYERS}.cross_attn_image_to_token.out_proj", f"{_THEIR_LAYERS}.cross_attn_image_to_token.o_proj"),
    *_mlp(f"{_LAYERS}.mlp", f"{_THEIR_LAYERS}.mlp", 2),
    (
        "sam_mask_decoder.transformer.final_attn_token_to_image.out_proj",
        "mask_decoder.transformer.final_attn_token_to_image.o_proj",
    ),
    ("sam_mask_decoder.transformer.norm_final_attn", "mask_decoder.transformer.layer_norm_final_attn"),
    ("sam_mask_decoder.output_upscaling.0", "mask_decoder.upscale_conv1"),
    ("sam_mask_decoder.output_upscaling.1", "mask_decoder.upscale_layer_norm"),
    ("sam_mask_decoder.output_upscaling.3", "mask_decoder.upscale_conv2"),
    *(pair for head in _HEADS for pair in _mlp(f"sam_mask_decoder.{head}", f"mask_decoder.{head}", 3)),
    ("sam_mask_decoder", "mask_decoder"),
    ("memory_attention.layers.{}.self_attn.out_proj", "memory_attention.layers.{}.self_attn.o_proj"),
    ("memory_attention.layers.{}.cross_attn_image.out_proj", "memory_attention.layers.{}.cross_attn_image.o_proj"),
    *((f"memory_attention.layers.{{}}.norm{n}", f"memory_attention.layers.{{}}.layer_norm{n}") for n in range(1, 4)),
    ("memory_attention.norm", "memory_attention.layer_norm"),
    *((f"{_SHRINK}.{3 * n}", f"{_THEIR_SHRINK}.layers.{n}.conv") for n in range(4)),
    *((f"{_SHRINK}.{3 * n + 1}", f"{_THEIR_SHRINK}.layers.{n}.layer_norm") for n in range(4)),
    (f"{_SHRINK}.12", f"{_THEIR_SHRINK}.final_conv"),
    ("memory_encoder.pix_feat_proj", "memory_encoder.feature_projection"),
    (f"{_FUSER}.gamma", f"{_THEIR_FUSER}.scale"),
    (f"{_FUSER}.dwconv", f"{_THEIR_FUSER}.depthwise_conv"),
    (f"{_FUSER}.norm", f"{_THEIR_FUSER}.layer_norm"),
    (f"{_FUSER}.pwconv1", f"{_THEIR_FUSER}.pointwise_conv1"),
    (f"{_FUSER}.pwconv2", f"{_THEIR_FUSER}.pointwise_conv2"),
    ("memory_encoder.out_proj", "memory_encoder.projection"),
    ("maskmem_tpos_enc", "memory_temporal_positional_encoding"),
    ("no_mem_embed", "no_memory_embedding"),
    ("no_mem_pos_enc", "no_memory_positional_encoding"),
    ("no_obj_ptr", "no_object_pointer"),
    ("no_obj_embed_spatial", "occlusion_spatial_embedding_parameter"),
    *_mlp("obj_ptr_proj", "object_pointer_proj", 3),
    ("obj_ptr_tpos_proj", "temporal_positional_encoding_projection_layer"),
)


def is_transformers(state: dict[str, Tensor]) -> bool:
    """Whether the names are those of transformers' Sam2Model or Sam2VideoModel."""
    return any(name.startswith(MARK) for name in state)


def to_sam2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names as the sam2 package's; any other state dict as it is."""
    if not is_transformers(state):
        return state
    state = dict(state)
    matrix, points = state.pop(SHARED_MATRIX, None), state.pop(POINTS, None)
    state = rename(state, [(theirs, ours) for ours, theirs in NAMES])
    if matrix is not None:
        state.setdefault(MATRIX, matrix)
    for n, row in enumerate(() if points is None or points.ndim < 2 else points.split(1)):
        state[f"sam_prompt_encoder.point_embeddings.{n}.weight"] = row
    return state


def to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sam2 package's names as those of transformers' Sam2Model, without what only video needs."""
    state = {name: value for name, value in state.items() if not name.startswith(MEMORY)}
    labels = [f"sam_prompt_encoder.point_embeddings.{n}.weight" for n in range(POINT_LABELS)]
    points = [state.pop(name) for name in labels if name in state]
    renamed = rename(state, NAMES)
    if MATRIX in state:
        renamed[SHARED_MATRIX] = state[MATRIX]
    if len({point.shape for point in points}) == 1:
        renamed[POINTS] = torch.cat(points)
    return renamed


def images_only(state: dict[str, Tensor]) -> bool:
    """Whether a state dict with the sam2 package's names lacks the memory, as a Sam2Model's does."""
    return not any(name.startswith(MEMORY_MODULES) for name in state)
