"""The method's steps in their slow, obvious formulations: what the fast ones are tested and timed against.

Every function takes and gives plain tensors or arrays in the axes of textregion/types.py and follows the sentence of
the method description it names. Loops and large intermediate arrays are the point: nothing here is clever.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, h, w) float to (N, *size): torch's bilinear, align_corners=False, no antialias."""
    return F.interpolate(maps[None].float(), size, mode="bilinear", align_corners=False, antialias=False)[0]


def full_masks(parts: Tensor, group: list[int], mask_size: tuple[int, int]) -> Tensor:
    """Every part (M, h, w) at full size, then the maximum over a region's parts: (R, *mask_size) (method 9.6, 9.8)."""
    resized = resize(parts, mask_size)
    regions = [[i for i, g in enumerate(group) if g == r] for r in range(max(group) + 1)]
    return torch.stack([torch.stack([resized[i] for i in members]).amax(0) for members in regions])


def fused_views(maps: Tensor, shape: tuple[int, int], splits: tuple[int, int], global_weight: float) -> Tensor:
    """Views (T, C, g, g) to (C, Ph, Pw), cell by cell (method 2.4, 4). shape: (nh, nw) tiles."""
    side, n_global = maps.shape[-1], splits[0] * splits[1]
    height, width = shape[0] * side, shape[1] * side
    fused = torch.zeros(maps.shape[1], height, width)
    for i in range(splits[0]):
        for j in range(splits[1]):
            y1, y2 = height * i // splits[0], height * (i + 1) // splits[0]
            x1, x2 = width * j // splits[1], width * (j + 1) // splits[1]
            fused[:, y1:y2, x1:x2] = global_weight * resize(maps[i * splits[1] + j], (y2 - y1, x2 - x1))
    for i in range(shape[0]):
        for j in range(shape[1]):
            tile = maps[n_global + i * shape[1] + j]
            fused[:, i * side : (i + 1) * side, j * side : (j + 1) * side] += tile
    return fused


def difference_scores(features: Tensor, weights: Tensor) -> Tensor:
    """d_p through the whole P x P similarity matrix, patch by patch (method 6.1, 6.3). (P, C), (R, P) -> (P,)."""
    unit = features / features.norm(dim=1, keepdim=True)
    similarity = unit @ unit.T
    inside = weights > 0
    scores = []
    for p in range(len(features)):
        means = [similarity[p, member].mean() for member in inside]
        belong = [float(mean) for mean, member in zip(means, inside, strict=True) if member[p]]
        apart = [float(mean) for mean, member in zip(means, inside, strict=True) if not member[p]]
        scores.append(sum(belong) / (len(belong) + 1e-9) - sum(apart) / (len(apart) + 1e-9))
    return torch.tensor(scores)


def weighted_sum(features: Tensor, weights: Tensor) -> Tensor:
    """Sum over patches, one by one (method 7.1). (P, C), (R, P) -> (R, C)."""
    out = torch.zeros(len(weights), features.shape[1])
    for r in range(len(weights)):
        for p in range(len(features)):
            out[r] += weights[r, p] * features[p]
    return out


def masked_mean(features: Tensor, weights: Tensor) -> Tensor:
    """Mean over the patches of positive weight (method 7.3); zeros where there is none. (P, C), (R, P) -> (R, C)."""
    empty = torch.zeros(features.shape[1])
    return torch.stack([features[row > 0].mean(0) if bool((row > 0).any()) else empty for row in weights])


def pixel_probabilities(
    region_logits: Tensor,
    full: Tensor,
    query_label: tuple[int, ...],
    output_size: tuple[int, int],
    uncovered: Tensor | None = None,
) -> Tensor:
    """Label probabilities (L, *output_size), all pixels at once (method 8.3, 8.4a, 8.4b).

    region_logits: (R, Q). full: (R, h', w') soft masks 0..3. uncovered: (Q,), (Q, Ph, Pw) or None.
    """
    soft = full.clamp(0, 1)
    size = tuple(full.shape[1:])
    logits = torch.zeros(region_logits.shape[1], *size)
    for r in range(len(soft)):
        logits += region_logits[r][:, None, None] * soft[r]
    if uncovered is not None:
        filling = uncovered[:, None, None].expand(-1, *size) if uncovered.ndim == 1 else resize(uncovered, size)
        logits = torch.where((soft > 0).any(0), logits, filling)
    probability = (50 * resize(logits, output_size)).softmax(0)
    labels = torch.tensor(query_label)
    return torch.stack([probability[labels == k].amax(0) for k in range(max(query_label) + 1)])


def label_pixels(probability: Tensor, threshold: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Label map and confidence of (L, H, W) probabilities; an unsure pixel is label 0 (method 8.4c)."""
    confidence, label = probability.max(0)
    return torch.where(confidence < threshold, 0, label).numpy(), confidence.numpy()


def region_behind(
    region_logits: Tensor, full: Tensor, query_label: tuple[int, ...], label_map: np.ndarray
) -> np.ndarray:
    """Pixel by pixel: of the regions at least half as present as the strongest, the best for the pixel's label.

    full: (R, h', w'), read at the nearest position from above; -1 where no region lies.
    """
    height, width = label_map.shape
    labels = torch.tensor(query_label)
    out = np.full((height, width), -1)
    for y in range(height):
        for x in range(width):
            soft = full[:, y * full.shape[1] // height, x * full.shape[2] // width].clamp(0, 1)
            if len(soft) == 0 or soft.max() <= 0:
                continue
            present = [r for r in range(len(soft)) if soft[r] * 2 >= soft.max()]
            best = [float(region_logits[r, labels == int(label_map[y, x])].max()) for r in present]
            out[y, x] = present[int(np.argmax(best))]
    return out


def self_attention(first: Tensor, value: Tensor) -> Tensor:
    """softmax(first first' / sqrt d) value of one head. (N, d), (N, d) -> (N, d)."""
    out = torch.zeros_like(value)
    for i in range(len(first)):
        weights = torch.softmax(torch.stack([first[i] @ other for other in first]) / first.shape[1] ** 0.5, 0)
        out[i] = sum(weights[j] * value[j] for j in range(len(value)))
    return out


def box_iou(first: list[int], second: list[int]) -> float:
    """IoU of two inclusive xyxy boxes, lengths taken as x2 - x1, union + 1e-8 (method 9.8)."""
    width = max(min(first[2], second[2]) - max(first[0], second[0]), 0)
    height = max(min(first[3], second[3]) - max(first[1], second[1]), 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height + 1e-8)


def fusion_groups(full: np.ndarray, boxes: list[list[int]], threshold: float) -> list[list[int]]:
    """Groups of masks that are one region, pair by pair (method 9.8). full: (M, h', w') soft masks."""
    sums = full.reshape(len(full), -1).sum(1)
    consumed = sums == 0
    groups = []
    for seed in range(len(full)):
        if consumed[seed]:
            continue
        group = [seed]
        for other in range(seed + 1, len(full)):
            if consumed[other] or box_iou(boxes[seed], boxes[other]) <= 0.2:
                continue
            if np.minimum(full[seed], full[other]).sum() / min(sums[seed], sums[other]) > threshold:
                group.append(other)
        consumed[group] = True
        groups.append(group)
    return groups


def non_maximum_suppression(boxes: list[list[int]], scores: list[float], threshold: float) -> list[int]:
    """Indices that survive, best first; IoU with plain lengths x2 - x1 above the threshold suppresses (method 9.4)."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(box_iou(boxes[i], boxes[k]) <= threshold for k in kept):
            kept.append(i)
    return kept


# ---------------------------------------------------------------- the forms that python -m eval.bench times
#
# Written as one would first write the method's sentences with tensors: everything repeated, nothing shared.


def full_size(soft: Tensor, mask_size: tuple[int, int]) -> Tensor:
    """(M, h, w) stored masks to (M, *mask_size), in the precision they are stored in (method 9.6)."""
    resized = resize(soft, mask_size)
    return resized.half().float() if soft.dtype == torch.float16 else resized


def fusion_groups_pair_by_pair(
    soft: Tensor, mask_size: tuple[int, int], boxes: Tensor, threshold: float
) -> list[list[int]]:
    """Spec 9.8 with full-size float32 masks and a Python loop that asks the device about every pair."""
    full = full_size(soft, mask_size)
    waiting = [i for i in range(len(full)) if full[i].sum().item() > 0]
    groups = []
    while waiting:
        seed, *others = waiting
        joined = [i for i in others if _near(boxes[seed], boxes[i]) and _joined(full[seed], full[i], threshold)]
        groups.append([seed, *joined])
        waiting = [i for i in others if i not in joined]
    return groups


def _near(first: Tensor, second: Tensor) -> bool:
    low, high = torch.maximum(first[:2], second[:2]), torch.minimum(first[2:], second[2:])
    shared = (high - low).clamp(min=0).prod()
    areas = (first[2:] - first[:2]).prod() + (second[2:] - second[:2]).prod()
    return bool(shared / (areas - shared + 1e-8) > 0.2)


def _joined(first: Tensor, second: Tensor, threshold: float) -> bool:
    return bool(torch.minimum(first, second).sum() / torch.minimum(first.sum(), second.sum()) > threshold)


def attention_pool(trunk: torch.nn.Module, features: Tensor, weights: Tensor) -> Tensor:
    """Spec 7.3, 7.4 as attention: every patch repeated for every region, one constant key, patches outside masked.

    trunk: a timm tower. (P, C), (R, P) -> (R, D) unit vectors; needs R * P * C numbers several times.
    """
    pool, regions = trunk.attn_pool, len(weights)
    repeated = features[None].repeat(regions, 1, 1)
    keys, values = pool.kv(repeated).unflatten(-1, (2, pool.num_heads, pool.head_dim)).permute(2, 0, 3, 1, 4)
    query = pool.q(pool.latent.expand(regions, -1, -1)).unflatten(-1, (pool.num_heads, pool.head_dim)).transpose(1, 2)
    outside = torch.where(weights > 0, 0.0, -torch.inf)[:, None, None]
    attention = (query @ torch.ones_like(keys).mT * pool.scale + outside).softmax(-1)
    pooled = pool.proj((attention @ values).transpose(1, 2).flatten(2))[:, 0]
    return F.normalize(trunk.head(trunk.fc_norm(pooled)), dim=-1)


def repeated_sum(features: Tensor, weights: Tensor) -> Tensor:
    """Spec 7.1: the values of every patch repeated and weighted for every region, then summed."""
    return (features[None].repeat(len(weights), 1, 1) * weights[:, :, None]).sum(1)


def similarity_scores(features: Tensor, weights: Tensor) -> Tensor:
    """Spec 6.1 through the P x P matrix of all similarities, region by region."""
    unit = F.normalize(features, dim=-1)
    similarity, inside = unit @ unit.T, (weights > 0).T.float()
    affinity = torch.stack([similarity[:, member].mean(1) for member in weights > 0], 1)
    belong = (affinity * inside).sum(1) / (inside.sum(1) + 1e-9)
    return belong - (affinity * (1 - inside)).sum(1) / ((1 - inside).sum(1) + 1e-9)


def pixel_labels(region_logits: Tensor, full: Tensor) -> tuple[Tensor, Tensor]:
    """Spec 8.3 by the product of classes, regions and pixels: (R, L), (R, h, w) -> label map and confidence."""
    product = region_logits.T[:, :, None, None] * full.clamp(0, 1)
    confidence, label = (50 * product.sum(1)).softmax(0).max(0)
    return label, confidence


def label_embedding(model: torch.nn.Module, tokenizer, prompts: list[str]) -> Tensor:
    """Spec 8.1 for one label: its prompts at the full context, one batch. -> (D,)"""
    unit = F.normalize(model.encode_text(tokenizer(prompts)).float(), dim=-1)
    return F.normalize(unit.mean(0), dim=-1)
