"""Losses of CLIP training: contrastive with known false negatives, dense on values, and two side losses.

Region shares of patches, (B, 9, P): how much of each patch belongs to each region of the view.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textregion.tiny.captions import LABEL_SETS, Mention
from utils.tiny.scene_cache import MAX_REGIONS
from utils.tiny.views import IS_OBJECT

CLEAR_PATCH = 0.6  # a patch is labelled when one region covers at least this share of it
MIN_PATCHES = 0.8  # a region is pooled when it covers at least this many patches
MASKED_OUT = -1e4
OFFSET_UNIT, EXTENT_UNIT = 24.0, 32.0  # pixels; they bring the side targets to about one


def truth_matrix(facts: np.ndarray, mentions: list[list[Mention]]) -> Tensor:
    """Whether caption j is true of view i: facts (B, things) bool, mentions per caption -> (B, B) bool."""
    true = np.ones((len(facts), len(mentions)), bool)
    for column, said in enumerate(mentions):
        for mention in said:
            true[:, column] &= facts[:, mention.matches].any(1)
    return torch.from_numpy(true)


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, true: Tensor) -> Tensor:
    """Symmetric cross-entropy of (B, D) against (B, D); other pairs that are true as well do not count."""
    own = torch.eye(len(images), dtype=torch.bool)
    logits = (scale * images @ texts.T).masked_fill(true & ~own, MASKED_OUT)
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def region_shares(region_ids: Tensor, patch: int) -> Tensor:
    """(B, S, S) int64 region ids to shares of patches (B, 9, P) float32."""
    one_hot = F.one_hot(region_ids, MAX_REGIONS).permute(0, 3, 1, 2).float()
    return F.avg_pool2d(one_hot, patch).flatten(2)


def label_loss(features: Tensor, things: Tensor, bank: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of unit vectors (N, D) whose things (N,) are known, summed over all label sets."""
    loss = features.new_zeros(())
    for labels in LABEL_SETS:
        target = torch.from_numpy(labels.of_thing)[things]
        chosen = target >= 0
        logits = scale * features[chosen] @ bank[torch.from_numpy(labels.rows)].T
        loss = loss + F.cross_entropy(logits, target[chosen], reduction="sum") / chosen.sum().clamp(min=1)
    return loss


def clear_patches(shares: Tensor, things: Tensor) -> tuple[Tensor, Tensor]:
    """Patches that show one thing: indices (N,) into the flattened (B * P) patches, their things (N,)."""
    share, region = shares.max(1)
    thing = torch.gather(things, 1, region).flatten()
    chosen = torch.nonzero((share.flatten() >= CLEAR_PATCH) & (thing >= 0))[:, 0]
    return chosen, thing[chosen]


def pooling_weights(shares: Tensor, things: Tensor, visible: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Regions worth pooling: view index (N,), weights (N, P) that sum to one, things (N,)."""
    is_object = torch.from_numpy(IS_OBJECT)[things]
    chosen = (shares.sum(2) >= MIN_PATCHES) & (things >= 0) & (~is_object | (visible > 0.2))
    view, region = torch.nonzero(chosen, as_tuple=True)
    weights = shares[view, region]
    return view, weights / weights.sum(1, keepdim=True), things[view, region]


def patch_grid(count: int, patch: int) -> Tensor:
    """Pixel coordinates (y, x) of patch centres: (P, 2) float32."""
    side = round(count**0.5)
    axis = (torch.arange(side) + 0.5) * patch
    return torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).flatten(0, 1)


def geometry_targets(shares: Tensor, things: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """For patches on objects: the way to the object's centre and its size.

    Returns:
        targets (B, P, 3): offset y, offset x, log of the size; in units of about one.
        chosen (B, P) bool: patches that lie on an object for the larger part.
    """
    centres, total = patch_grid(shares.shape[2], patch), shares.sum(2, keepdim=True).clamp(min=1e-6)
    object_centre = shares @ centres / total  # (B, 9, 2)
    share, region = shares.max(1)
    index = region[..., None]
    offset = torch.gather(object_centre, 1, index.expand(-1, -1, 2)) - centres
    extent = torch.gather(total, 1, index).sqrt() * patch
    targets = torch.cat([offset / OFFSET_UNIT, torch.log(extent / EXTENT_UNIT)], dim=2)
    return targets, (share > 0.5) & torch.from_numpy(IS_OBJECT)[torch.gather(things, 1, region)]


class SideHeads(nn.Module):
    """Training-only heads that make the patches know objects: per-pixel objectness, centre and size."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.objectness = nn.Linear(width, patch * patch)
        self.geometry = nn.Linear(width, 3)

    def forward(self, middle: Tensor, last: Tensor, region_ids: Tensor, things: Tensor, shares: Tensor) -> Tensor:
        """Sum of both side losses; tokens (B, 1+P, C), region ids (B, S, S), things (B, 9)."""
        is_object = torch.from_numpy(IS_OBJECT)[torch.gather(things, 1, region_ids.flatten(1))]
        pixels = is_object.view(region_ids.shape)[:, None].float()
        pixels = F.unfold(pixels, self.patch, stride=self.patch).transpose(1, 2)  # (B, P, patch * patch)
        logits = self.objectness(middle[:, 1:].float())
        targets, chosen = geometry_targets(shares, things, self.patch)
        error = F.smooth_l1_loss(self.geometry(last[:, 1:].float()), targets, reduction="none").mean(-1)
        geometry = (error * chosen).sum() / chosen.sum().clamp(min=1)
        return F.binary_cross_entropy_with_logits(logits, pixels) + geometry
