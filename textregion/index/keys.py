"""Keys of regions by a vision tower of timm: what a model without words says of how a region looks.

A tower's key of a region is the unit mean, over its pixels at the masks' stored resolution, of the tower's unit patch
features, resized bilinearly to that resolution and made unit again.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from jaxtyping import Float32
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from textregion.checkpoints import load_strictly, read_state
from textregion.crops import cut_crops
from textregion.devices import constants, to_device, upload
from textregion.errors import InputError, first_line
from textregion.images import ImageInput, load_image
from textregion.index.encoding import stored_masks
from textregion.index.schema import KeyRecord
from textregion.resampling import bilinear_taps, lerp_columns, lerp_rows
from textregion.types import RegionMasks

NUMBERS_AT_ONCE = 2**24  # of features at the masks' resolution


@dataclass
class KeyTower:
    """A timm model that gives a map of features. name: timm's; weights: hash of its parameters and buffers."""

    name: str
    model: nn.Module
    weights: str = ""

    def __post_init__(self) -> None:
        self.model = self.model.eval().requires_grad_(False)
        self.weights = self.weights or _state_hash(self.model)
        self.data = resolve_model_data_config(self.model)

    @property
    def record(self) -> KeyRecord:
        """What a table keeps of it."""
        return KeyRecord(self.name, self.weights, self.model.num_features)

    @torch.inference_mode()
    def features(self, image: ImageInput) -> Float32[Tensor, "C g h"]:
        """Unit features of all patches of an image, squashed to the tower's input size."""
        device = next(self.model.parameters()).device
        pixels = to_device(load_image(image), device).permute(2, 0, 1).float() / 255
        side = self.data["input_size"][1]
        how = "bilinear" if self.data["interpolation"] == "bilinear" else "bicubic"
        crop = cut_crops(pixels, [(0, 0, *pixels.shape[1:])], side, how)
        mean, std = constants(device, tuple(self.data["mean"]), tuple(self.data["std"]))[..., None, None]
        maps = self.model.forward_intermediates((crop - mean) / std, indices=1, norm=True, intermediates_only=True)
        return F.normalize(maps[-1][0].float(), dim=0)


def load_tower(name: str, checkpoint: str | Path | None, device: torch.device) -> KeyTower:
    """A tower of timm by name. checkpoint: its weights on disk; None fetches them as timm does.

    InputError for a name that timm does not know, a model without patches, weights that are not there or do not fit.
    """
    if not timm.is_model(name):
        told = "vit_large_patch16_radio_v3.c_radio, vit_base_patch16_dinov3.lvd1689m, vit_pe_spatial_base_patch16_512"
        raise InputError(f"timm has no model {name!r}; expected a vision transformer such as {told}")
    try:
        model = timm.create_model(name, pretrained=checkpoint is None)
    except (RuntimeError, ValueError, OSError) as error:
        told = f"cannot load {name} ({first_line(error)}); give its weights, model.safetensors of its page on the hub"
        raise InputError(f"{told}, as the key's checkpoint") from error
    if checkpoint is not None:
        load_strictly(model, read_state(checkpoint), name, checkpoint)
    if not hasattr(model, "forward_intermediates"):
        raise InputError(f"{name} gives no map of features; expected a vision transformer of timm")
    tower = KeyTower(name, model)
    model.to(device)
    return tower


def encode_keys(tower: KeyTower, image: ImageInput, masks: RegionMasks) -> Float32[Tensor, "R C"]:
    """Unit keys of an image's regions; zeros for one that is empty at the stored resolution.

    Memory: about NUMBERS_AT_ONCE numbers, or those of one row of features if they are more.
    """
    unit = tower.features(image)
    inside = stored_masks(masks).to(unit)
    (height, width), sizes = inside.shape[1:], zip(unit.shape[1:], inside.shape[1:], strict=True)
    y_taps, x_taps = upload(unit.device, *(bilinear_taps(*pair) for pair in sizes))
    wide, sums = lerp_columns(unit, x_taps), unit.new_zeros(len(inside), len(unit))
    step = max(1, NUMBERS_AT_ONCE // (len(unit) * width))
    for start in range(0, height, step):
        rows = F.normalize(lerp_rows(wide, [tap[start : start + step] for tap in y_taps]), dim=0)
        sums += inside[:, start : start + step].flatten(1) @ rows.flatten(1).T
    return F.normalize(sums, dim=1)


def _state_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
