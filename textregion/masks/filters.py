"""The steps between SAM 2's raw candidates and the regions, each a pure function (method 9.2 to 9.9)."""

from itertools import compress

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor
from torchvision.ops import nms

from textregion.masks.shared_mass import share_most
from textregion.types import RegionMasks

STABILITY_OFFSET = 1.0
BOX_OVERLAP = 0.2  # least box IoU for two masks to be compared for fusion


def point_grid(points_per_side: int) -> Float32[Tensor, "N 2"]:
    """s * s points (x, y) in [0, 1] at (k + 0.5) / s, x fastest (method 9.2)."""
    ticks = (torch.arange(points_per_side) + 0.5) / points_per_side
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def order_candidates(outputs: Float[Tensor, "N 3 ..."]) -> Float[Tensor, "M ..."]:
    """All "whole" (output 2) of every point, then all "part" (1), then all "subpart" (0) (method 9.3)."""
    return outputs.flip(1).transpose(0, 1).flatten(0, 1)


def stability_scores(logits: Float[Tensor, "M h w"]) -> Float32[Tensor, " M"]:
    """#(logit > 1) / #(logit > -1); NaN where both are 0 (method 9.4)."""
    inner = (logits > STABILITY_OFFSET).sum((1, 2), dtype=torch.int32)
    outer = (logits > -STABILITY_OFFSET).sum((1, 2), dtype=torch.int32)
    return inner / outer


def inclusive_boxes(on: Bool[Tensor, "M h w"]) -> Int[Tensor, "M 4"]:
    """xyxy of the first and last pixel set in each mask; zeros for an empty one (method 9.4)."""
    height, width = on.shape[1:]
    rows, columns = on.any(2).to(torch.uint8), on.any(1).to(torch.uint8)
    y1, x1 = rows.argmax(1), columns.argmax(1)
    y2, x2 = height - 1 - rows.flip(1).argmax(1), width - 1 - columns.flip(1).argmax(1)
    return torch.stack([x1, y1, x2, y2], 1) * rows.any(1, keepdim=True)


def suppress(boxes: Int[Tensor, "M 4"], scores: Float[Tensor, " M"], threshold: float) -> Int[Tensor, " K"]:
    """Indices that survive box NMS (IoU > threshold suppressed), best score first (method 9.4)."""
    return nms(boxes.float(), scores.float(), threshold)


def sort_by_level(index: Int[Tensor, " K"], predicted_iou: Float[Tensor, " K"], points: int) -> Int[Tensor, " K"]:
    """Order whole, part, subpart, each by predicted IoU descending, stable (method 9.7).

    index: candidate numbers in the order of `order_candidates` for `points` prompts; returns positions.
    """
    by_score = torch.argsort(predicted_iou, descending=True, stable=True)
    return by_score[torch.argsort(index[by_score] // points, stable=True)]


def box_overlaps(boxes: Int[Tensor, "M 4"]) -> Float32[Tensor, "M M"]:
    """IoU of every two inclusive low-res boxes, lengths taken as x2 - x1, union + 1e-8 (method 9.8)."""
    low, high = torch.maximum(boxes[:, None, :2], boxes[:, :2]), torch.minimum(boxes[:, None, 2:], boxes[:, 2:])
    intersection = (high - low).clamp(min=0).prod(2).float()
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1).float()
    return intersection / (areas[:, None] + areas - intersection + 1e-8)


def overlapping_pairs(boxes: Int[Tensor, "M 4"]) -> list[tuple[int, int]]:
    """Pairs i < j, sorted, whose boxes overlap enough to be compared (method 9.8); one read from the device."""
    return [tuple(pair) for pair in (box_overlaps(boxes) > BOX_OVERLAP).triu(1).nonzero().tolist()]


def fusion_groups(masks: RegionMasks, boxes: Int[Tensor, "M 4"], threshold: float = 0.8) -> list[list[int]]:
    """Which masks are one region (method 9.8): [seed, joined, …] per group, in the order of the seeds.

    masks: M single-part masks in their order; compared at their `mask_size`, soft, float32. boxes: low-res inclusive
    xyxy. All-zero masks belong to no group. The pairs are decided together on the device (masks/shared_mass.py), the
    walk over the decisions is on the host.
    """
    support = inclusive_boxes(masks.soft > 0)
    filled, joined = share_most(masks, support, overlapping_pairs(boxes), threshold)
    followers: dict[int, list[int]] = {}
    for i, j in joined:
        followers.setdefault(i, []).append(j)
    waiting, groups = set(compress(range(len(filled)), filled)), []
    for seed in range(len(filled)):
        if seed in waiting:
            groups.append([seed, *(j for j in followers.get(seed, []) if j in waiting)])
            waiting.difference_update(groups[-1])
    return groups


def merge(masks: RegionMasks, groups: list[list[int]]) -> RegionMasks:
    """Every group as one region, the element-wise maximum of its members at full size (method 9.8).

    Scores are the seed's; the parts stay at low resolution.
    """
    if not groups:
        return masks.select(torch.zeros(0, dtype=torch.long))
    device = masks.soft.device
    members = torch.tensor([i for group in groups for i in group], device=device)
    region = torch.tensor([r for r, group in enumerate(groups) for _ in group], device=device)
    seeds = torch.tensor([group[0] for group in groups], device=device)
    sizes, scores = (masks.image_size, masks.mask_size), (masks.predicted_iou[seeds], masks.stability[seeds])
    return RegionMasks(masks.soft[members], *sizes, region, None, *scores)


def without_overlap(masks: RegionMasks, min_size: int) -> RegionMasks:
    """Walk in order, keep each mask's free part if it has at least min_size pixels (method 9.9).

    Stops when fewer than min_size pixels of the full-size image are free.
    """
    free = torch.ones(masks.mask_size, dtype=torch.bool, device=masks.soft.device)
    kept, index = [], []
    for i in range(len(masks)):
        if int(free.sum()) < min_size:
            break
        full = masks.select(torch.tensor([i])).full()[0]
        part = full * free
        if int((part > 0).sum()) >= min_size:
            kept.append(part)
            index.append(i)
            free &= full <= 0
    if not kept:
        return RegionMasks.empty(masks.image_size, masks.soft.device)
    sizes, scores = (masks.image_size, masks.mask_size), (masks.predicted_iou[index], masks.stability[index])
    return RegionMasks(torch.stack(kept), *sizes, None, None, *scores)
