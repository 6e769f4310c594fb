"""Trains the tiny SAM 2 on single foreground points.

From scratch it goes through three phases of the run (see Phase): first the features alone learn which pixels
belong together, then all masks of a point learn the same region, then the best of three is trained.
Continued training starts in the last phase.
"""

from enum import Enum, auto
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn
from torchvision.transforms.functional import normalize

from textregion.masks.clicks import MEAN, STD
from textregion.tiny.models import build_sam2, load_sam2, save_weights
from utils.tiny.data import IS_OBJECT, SceneSet, region_shares

ANYWHERE = 0.2  # share of points drawn from all pixels; the others pick a region first
ON_OBJECT = 0.7  # share of the region picks that ask for an object
AFFINITY_PHASE, MEAN_PHASE = 0.15, 0.35  # ends of the first two phases, as progress
ENERGY_LIMIT = 0.5  # mean square of the coarse features above which they are held back
FROM_SCRATCH_RATE, CONTINUED_RATE = 6e-4, 4e-4
COARSE_STD = 0.5  # of the coarse image features at the start, beside position encodings of about one


class Pyramid(NamedTuple):
    """Feature maps (B, 12, S/4, S/4), (B, 24, S/8, S/8) and (B, 96, S/16, S/16)."""

    fine: Tensor
    middle: Tensor
    coarse: Tensor


def encode(model: SAM2Base, images: Tensor) -> Pyramid:
    """Image features (B, 3, S, S) as the mask decoder takes them."""
    fine, middle, coarse = model.forward_image(images)["backbone_fpn"]
    return Pyramid(fine, middle, coarse + model.no_mem_embed.view(1, -1, 1, 1))


def pixel_features(model: SAM2Base, pyramid: Pyramid) -> Tensor:
    """Features upscaled by the decoder's own layers, without any prompt: (B, K, S/4, S/4)."""
    channels = pyramid.coarse.permute(0, 2, 3, 1)
    source = F.layer_norm(channels, channels.shape[-1:]).permute(0, 3, 1, 2)
    first, norm, activation, second, final = model.sam_mask_decoder.output_upscaling
    return final(second(activation(norm(first(source) + pyramid.middle))) + pyramid.fine)


def decode(model: SAM2Base, pyramid: Pyramid, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Masks for one foreground point each: pyramid of N images, points (N, 1, 2) as (x, y) in pixels.

    Returns logits (N, 4, S/4, S/4), predicted IoU (N, 4), and the weights (N, 4, K) that made the masks.
    """
    decoder, prompts = model.sam_mask_decoder, model.sam_prompt_encoder
    labels = torch.ones(points.shape[:2], dtype=torch.int)
    sparse, dense = prompts(points=(points, labels), boxes=None, masks=None)
    masks, iou, tokens, _ = decoder.predict_masks(  # pyright: ignore[reportAssignmentType]
        pyramid.coarse, prompts.get_dense_pe(), sparse, dense, repeat_image=False, high_res_features=[*pyramid[:2]]
    )
    networks = zip(decoder.output_hypernetworks_mlps, tokens.unbind(1), strict=True)
    return masks, iou, torch.stack([network(token) for network, token in networks], dim=1)


@torch.no_grad()
def initialise(model: SAM2Base, images: Tensor) -> None:
    """Sets the starting values of decoder, prompts and neck; the trunk keeps the library's.

    The neck is scaled so that the coarse features of `images` (B, 3, S, S) get a std of COARSE_STD.
    """
    decoder, prompts = model.sam_mask_decoder, model.sam_prompt_encoder
    blocks, layers = [*decoder.transformer.layers.children()], []
    to_image = [block.cross_attn_token_to_image for block in blocks] + [decoder.transformer.final_attn_token_to_image]
    from_image = [block.cross_attn_image_to_token for block in blocks]
    for attention in [
        *to_image,
        *from_image,
    ]:  # queries equal keys: with position encodings a point finds its own place
        nn.init.orthogonal_(attention.q_proj.weight, gain=2.0)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        layers += [attention.q_proj, attention.k_proj]
    for attention in to_image:  # values and output undo each other: a token receives what it attends to
        nn.init.orthogonal_(attention.v_proj.weight)
        attention.out_proj.weight.copy_(2 * attention.v_proj.weight.T)
        layers += [attention.v_proj, attention.out_proj]
    for layer in (blocks[0].self_attn.v_proj, blocks[0].self_attn.out_proj):
        nn.init.eye_(layer.weight)
        layers.append(layer)
    decoder.iou_token.weight.mul_(0.1)
    decoder.mask_tokens.weight.mul_(0.3)
    for layer in (layer for network in decoder.output_hypernetworks_mlps for layer in network.layers.children()):
        nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5)
        layers.append(layer)
    upscaling = [decoder.output_upscaling[0], decoder.output_upscaling[3]]
    for layer, gain in zip([*upscaling, decoder.conv_s0, decoder.conv_s1], (2, 2, 1, 1), strict=True):
        nn.init.normal_(layer.weight, std=(gain / layer.in_channels) ** 0.5)
        layers.append(layer)
    for embedding in (prompts.not_a_point_embed, prompts.no_mask_embed, *prompts.point_embeddings.children()):
        embedding.weight.mul_(0.1)
    neck = [level.conv for level in model.image_encoder.neck.convs]
    for layer in [*layers, *neck]:
        nn.init.zeros_(layer.bias)
    factor = COARSE_STD / encode(model, images).coarse.std()
    for layer in neck[:2]:
        layer.weight.mul_(factor)


class Phase(Enum):
    """What is trained: pixel affinity only, all masks alike, or the best of three masks."""

    AFFINITY = auto()
    MEAN = auto()
    BEST = auto()


class Affinity(nn.Module):
    """Training-only head: does a pixel belong with the point's pixel? A bilinear form on pixel features."""

    def __init__(self, channels: int = 12) -> None:
        super().__init__()
        self.form = nn.Linear(channels, channels)
        self.form.weight.data = 2 * torch.eye(channels)
        nn.init.constant_(self.form.bias, -0.5)

    def forward(self, features: Tensor, points: Tensor, image_size: int) -> tuple[Tensor, Tensor]:
        """Features (B, K, h, w), points (B, P, 2) to logits (B*P, 1, h, w) and query vectors (B*P, K)."""
        places = (points[:, :, None] + 0.5) / image_size * 2 - 1
        queries = self.form(F.grid_sample(features, places, align_corners=False)[..., 0].transpose(1, 2))
        logits = torch.einsum("bpk,bkhw->bphw", queries, features).flatten(0, 1)
        return logits[:, None], queries.flatten(0, 1)


def draw_batch(scenes: SceneSet, images: int, points: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, 3, S, S) normalised, points (B, P, 2) as (x, y), targets (B*P, 1, S/4, S/4) in [0, 1].

    Some points are drawn from all pixels, most from a region picked first.
    """
    pictures, places, targets = [], [], []
    for index in rng.integers(len(scenes), size=images):
        turns, step = rng.integers(4), -1 if rng.random() < 0.5 else 1
        image, region_ids = (np.rot90(array[index], turns)[:, ::step] for array in (scenes.images, scenes.region_ids))
        flat, present = region_ids.ravel(), np.unique(region_ids)
        objects = [region for region in present if IS_OBJECT[scenes.things[index][region]]]
        chosen = list(rng.integers(flat.size, size=round(points * ANYWHERE)))
        while len(chosen) < points:
            choices = objects if objects and rng.random() < ON_OBJECT else present
            chosen.append(rng.choice(np.flatnonzero(flat == rng.choice(choices))))
        rows, columns = np.divmod(chosen, region_ids.shape[1])
        pictures.append(image * np.float32(rng.uniform(0.9, 1.1) / 255))
        places.append(np.stack([columns, rows], axis=1))
        ids = torch.from_numpy(region_ids.astype(np.int64))
        targets.append(region_shares(ids[None], 4)[0, ids[rows, columns]])
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    target = torch.cat(targets).unflatten(1, (1, scenes.images.shape[1] // 4, -1))
    return normalize(pixels, MEAN, STD), torch.from_numpy(np.stack(places)).float(), target


def balanced_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with inside and outside counted equally: (N, M, h, w) to (N, M)."""
    error = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    inside = (error * target).sum((2, 3)) / target.sum((2, 3)).clamp(min=1)
    outside = (error * (1 - target)).sum((2, 3)) / (1 - target).sum((2, 3)).clamp(min=1)
    return (inside + outside) / 2


def pixel_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels: (N, M, h, w) to (N, M)."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((2, 3))


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """One minus the soft Dice overlap: (N, M, h, w) to (N, M)."""
    soft = logits.sigmoid()
    shared = (soft * target).sum((2, 3))
    return 1 - (2 * shared + 1) / (soft.sum((2, 3)) + target.sum((2, 3)) + 1)


def mask_iou(logits: Tensor, target: Tensor) -> Tensor:
    """Intersection over union of the hard masks: (N, M, h, w) to (N, M)."""
    predicted, true = logits > 0, target > 0.5
    shared, either = (predicted & true).sum((2, 3)), (predicted | true).sum((2, 3))
    return (shared + 1e-6) / (either + 1e-6)


def best_mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Trains the single mask, the best of the three others, and a little all three: (N, 4, h, w) to ()."""
    loss = 2 * pixel_loss(logits, target) + 1.5 * dice_loss(logits, target) + 0.25 * balanced_loss(logits, target)
    single, three = loss[:, 0], loss[:, 1:]
    return single.mean() + three.min(1).values.mean() + 0.1 * three.mean()


def all_masks_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Trains all masks alike: (N, M, h, w) to ()."""
    return (balanced_loss(logits, target) + 2 * pixel_loss(logits, target) + dice_loss(logits, target)).mean()


def _scale(name: str) -> float:
    """Learning-rate factor: small for the decoder, tiny for its MLPs, which are huge beside its width."""
    if name.startswith("sam_mask") and ".mlp.layers.1." in name:
        return 0.04 if name.endswith("weight") else 0.1
    in_decoder = name.startswith("sam_") and "upscaling" not in name and "conv_s" not in name
    return 0.5 if in_decoder else 1.0


class Sam2Training:
    """The Training of the tiny SAM 2 (see train.py).

    scenes: training scenes. weights: safetensors to continue from; None starts from scratch.
    images, points: images per step, and points on each.
    """

    warm_up = 60
    clip_norm = 2.0

    def __init__(self, scenes: SceneSet, weights: Path | None = None, images: int = 8, points: int = 12) -> None:
        self.scenes, self.images, self.points = scenes, images, points
        self.from_scratch = weights is None
        self.learning_rate = FROM_SCRATCH_RATE if weights is None else CONTINUED_RATE
        self.model = build_sam2() if weights is None else load_sam2(weights)
        if weights is None:
            initialise(self.model, draw_batch(scenes, images, 1, np.random.default_rng(0))[0])
        self.affinity = Affinity()
        self.modules = nn.ModuleDict({"model": self.model, "affinity": self.affinity})
        groups: dict[tuple[float, float], list[nn.Parameter]] = {(1.0, 0.0): [*self.affinity.parameters()]}
        for name, parameter in self.model.named_parameters():
            decay = 0.0 if parameter.ndim < 2 or "embed" in name or "token" in name else 0.05
            groups.setdefault((_scale(name), decay), []).append(parameter)
        self.groups = [{"params": group, "scale": key[0], "weight_decay": key[1]} for key, group in groups.items()]

    def phase(self, progress: float) -> Phase:
        """The phase at this share of the run."""
        if not self.from_scratch or progress >= MEAN_PHASE:
            return Phase.BEST
        return Phase.AFFINITY if progress < AFFINITY_PHASE else Phase.MEAN

    def loss(self, progress: float, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch in the current phase."""
        images, points, target = draw_batch(self.scenes, self.images, self.points, rng)
        phase, pyramid = self.phase(progress), encode(self.model, images)
        loss, queries = target.new_zeros(()), torch.zeros(())
        if self.from_scratch:
            logits, queries = self.affinity(pixel_features(self.model, pyramid), points, self.model.image_size)
            loss = (1.0 if phase is Phase.AFFINITY else 0.25) * all_masks_loss(logits, target)
            if phase is Phase.AFFINITY:
                return loss, {"iou": mask_iou(logits, target).mean().item()}
        target = target.expand(-1, 4, -1, -1)
        repeated = Pyramid(*(level.repeat_interleave(self.points, 0) for level in pyramid))
        masks, iou, mask_weights = decode(self.model, repeated, points.flatten(0, 1)[:, None])
        overlap = mask_iou(masks, target).detach()
        mask_loss = F.mse_loss(iou, overlap)
        if phase is Phase.BEST:
            mask_loss = mask_loss + best_mask_loss(masks, target)
        else:
            towards = F.mse_loss(mask_weights, queries.detach()[:, None].expand_as(mask_weights))
            mask_loss = mask_loss + all_masks_loss(masks, target) + 0.5 * towards
        loss = loss + mask_loss + 0.1 * F.relu(pyramid.coarse.square().mean() - ENERGY_LIMIT)
        return loss, {"iou": overlap[:, 1:].amax(1).mean().item()}

    def after_step(self) -> None:
        """Nothing to do."""

    def save(self, path: Path) -> None:
        """Writes the model as safetensors."""
        save_weights(self.model.state_dict(), path)
