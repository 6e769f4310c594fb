"""The steps between SAM 2's raw candidates and the regions, each a pure function (method 9.2 to 9.9)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, groupby
from operator import itemgetter

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor
from torchvision.ops import nms

from textregion.devices import move, read, upload
from textregion.resampling import bilinear_taps
from textregion.types import MAX_SOFT_VALUE, RegionMasks, boxes_around

STABILITY_OFFSET = 1.0
BOX_OVERLAP = 0.2  # least box IoU for two masks to be compared for fusion
SLACK = 1e-3  # relative distance from the threshold within which rounding (half-precision masks) might decide
FAINT = 1e-2  # mass below which rounding might leave nothing
AT_ONCE = 32  # masks beside the first in one step

Rectangles = list[list[int]]  # x1, y1, x2, y2, inclusive
Pairs = Sequence[tuple[int, int]]


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
    return _pairs(*read(box_overlaps(boxes) > BOX_OVERLAP))


def _pairs(overlap: Bool[Tensor, "M M"]) -> list[tuple[int, int]]:
    return [tuple(pair) for pair in overlap.triu(1).nonzero().tolist()]


def fusion_groups(masks: RegionMasks, boxes: Int[Tensor, "M 4"], threshold: float = 0.8) -> list[list[int]]:
    """Which masks are one region (method 9.8): [seed, joined, …] per group, in the order of the seeds.

    masks: M single-part masks in their order; compared at their `mask_size`, as soft values, float32. boxes: low-res
    inclusive xyxy. All-zero masks belong to no group. The pairs are decided together on the device (`share_most`),
    the walk over the decisions is on the host.
    """
    filled, joined = share_most(masks, boxes, threshold)
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
    """Every group as one region, its members' maximum at full size, with the scores of its seed (method 9.8)."""
    if not groups:
        return masks.select(torch.zeros(0, dtype=torch.long))
    members = torch.tensor([i for group in groups for i in group])
    region = torch.tensor([r for r, group in enumerate(groups) for _ in group])
    seeds = torch.tensor([group[0] for group in groups])
    members, region, seeds = move([members, region, seeds], masks.soft.device)
    sizes, scores = (masks.image_size, masks.mask_size), (masks.predicted_iou[seeds], masks.stability[seeds])
    soft = masks.soft[members]
    boxes = boxes_around(soft > masks.cut, region, len(groups), masks.image_size)  # unasked, it would read the device
    return RegionMasks(soft, *sizes, region, boxes, *scores, cut=masks.cut)


def without_overlap(masks: RegionMasks, min_size: int) -> RegionMasks:
    """Walk in order, keep each mask's free part if it has at least min_size pixels (method 9.9).

    Stops when fewer than min_size pixels of the full-size image are free. Free is decided on soft values, so these
    masks are as wide as the method has them (cut 0).
    """
    free = torch.ones(masks.mask_size, dtype=torch.bool, device=masks.soft.device)
    kept, index = [], []
    for i, full in enumerate(masks.each_full()):
        part = full * free
        left, own = (int(area) for area in read(free.sum(), (part > 0).sum()))
        if left < min_size:
            break
        if own >= min_size:
            kept.append(part)
            index.append(i)
            free &= full <= 0
    if not kept:
        return RegionMasks.empty(masks.image_size, masks.soft.device)
    sizes, scores = (masks.image_size, masks.mask_size), (masks.predicted_iou[index], masks.stability[index])
    return RegionMasks(torch.stack(kept), *sizes, None, None, *scores, cut=0.0)


# ---------------------------------------------------------------------- shared mass (method 9.8)
#
# The question is whether sum(min(A, B)) > threshold * min(sum(A), sum(B)) for full-size masks A = U a, B = U b, where U
# resizes bilinearly. Its weights are not negative, which gives two bounds that need the small masks a and b only:
#
#     below   min(U a, U b) >= U min(a, b), so the sum is at least the sum of min(w a, w b), w the column sums of U
#     above   inside a cell (the output pixels between the same four low-res pixels) sum(min(A, B)) <=
#             min(sum(A), sum(B)), so the sum is at most the sum over cells of min(F a, F b), F a the cells' sums of A
#
# Where the threshold does not lie between them the pair is decided; the few others are computed at full size, on the
# rectangle that holds the smaller mask. The answer is that of the full-size comparison, up to the order of its sums.


@dataclass(frozen=True)
class Axis:
    """One direction of the resize: taps per output position (on the host), and what each input position gives in sum.

    total: column sums of the resize. first, second: what a cell's outputs take from its lower and upper position; made
    on the host.
    """

    taps: list[Tensor]
    total: Float32[Tensor, " n"]
    first: Float32[Tensor, " n"]
    second: Float32[Tensor, " n"]

    @classmethod
    def of(cls, size_in: int, size_out: int) -> "Axis":
        """From size_in to size_out positions."""
        lower, upper, weight = taps = bilinear_taps(size_in, size_out)
        weight = torch.where(upper > lower, weight, 0)  # at the border both are the same position
        zeros = torch.zeros(size_in)
        first, second = zeros.index_add(0, lower, 1 - weight), zeros.index_add(0, lower, weight)
        total = first.index_add(0, upper, weight)
        return cls(taps, total, first, second)

    def sums(self) -> list[Tensor]:
        """What is computed with."""
        return [self.total, self.first, self.second]

    def cells(self, x: Float32[Tensor, "M a b"], start: int, dim: int) -> Float32[Tensor, "M a b"]:
        """Sums of the resized values in the cells that start at positions start, start + 1, … of a dimension.

        The last position's successor is taken as 0: it is where no mask lies, or the border, which has none.
        """
        shape = (-1, 1) if dim == 1 else (-1,)
        length = x.shape[dim]
        first, second = (w[start : start + length].view(shape) for w in (self.first, self.second))
        sums = x * first
        later = x.narrow(dim, 1, length - 1) * second[: length - 1]
        sums.narrow(dim, 0, length - 1).add_(later)
        return sums

    def span(self, first: int, last: int) -> Int[Tensor, " n"]:
        """The output positions that input positions first..last reach."""
        lower, upper, _ = self.taps
        return ((upper >= first) & (lower <= last)).nonzero()[:, 0]


def share_most(
    masks: RegionMasks, boxes: Int[Tensor, "M 4"], threshold: float
) -> tuple[list[bool], list[tuple[int, int]]]:
    """Which masks have any mass, and which pairs (i, j), sorted, share more than `threshold` of the smaller one's mass.

    masks: single-part, compared as soft values at their `mask_size`. boxes: low-res inclusive xyxy; only pairs whose
    boxes overlap enough are compared. Three reads of the device and three uploads, whatever the number of pairs, and a
    few more for masks fainter than `FAINT`. Memory: some tens of low-res masks or full-size rectangles. Cost: per pair
    the low-res rectangle of its first mask.
    """
    soft, device = masks.soft.clamp(0, MAX_SOFT_VALUE), masks.soft.device
    y, x = (Axis.of(*sizes) for sizes in zip(soft.shape[1:], masks.mask_size, strict=True))
    y, x = (Axis(axis.taps, *sums) for axis, sums in zip((y, x), upload(device, y.sums(), x.sums()), strict=True))
    mass = torch.cat([part.float() @ x.total @ y.total for part in soft.split(AT_ONCE)])
    overlap, support, mass = read(box_overlaps(boxes) > BOX_OVERLAP, inclusive_boxes(masks.soft > 0), mass)
    pairs, rectangles, mass = _pairs(overlap), support.tolist(), mass.tolist()
    below, above = read(*bounds(soft, pairs, rectangles, y, x))
    smaller = torch.tensor([min(mass[i], mass[j]) for i, j in pairs])
    certain = below > (threshold + SLACK) * smaller
    unsure = ~certain & (above >= (threshold - SLACK) * smaller) & (smaller > 0)
    verdict, doubtful = certain.tolist(), unsure.nonzero()[:, 0].tolist()
    smaller_first = [tuple(sorted(pairs[k], key=mass.__getitem__)) for k in doubtful]
    for k, joined in zip(doubtful, at_full_size(masks, smaller_first, rectangles, y, x, threshold), strict=True):
        verdict[k] = joined
    filled, faint = [m > FAINT for m in mass], [i for i, m in enumerate(mass) if 0 < m <= FAINT]
    if faint:
        for i, full in zip(faint, masks.select(torch.tensor(faint)).each_full(), strict=True):
            filled[i] = bool(full.any())
    return filled, [pair for pair, joined in zip(pairs, verdict, strict=True) if joined]


def _runs(pairs: Pairs) -> Iterator[tuple[int, list[int]]]:
    """(i, several j) for pairs sorted by i, at most `AT_ONCE` j at once."""
    for first, group in groupby(pairs, itemgetter(0)):
        others = [j for _, j in group]
        for start in range(0, len(others), AT_ONCE):
            yield first, others[start : start + AT_ONCE]


def bounds(
    soft: Float[Tensor, "M h w"], pairs: Pairs, boxes: Rectangles, y: Axis, x: Axis
) -> tuple[Float32[Tensor, " N"], Float32[Tensor, " N"]]:
    """What the full-size sum of each pair's minimum lies between; computed around the first one's rectangle."""
    found, runs = [torch.zeros(2, 0, device=soft.device)], list(_runs(pairs))
    indices = move([torch.tensor([first, *others]) for first, others in runs], soft.device)
    for (first, _), index in zip(runs, indices, strict=True):
        x1, y1, x2, y2 = boxes[first]
        y1, x1 = max(y1 - 1, 0), max(x1 - 1, 0)  # cells start one position before what they hold
        part = soft[index, y1 : y2 + 2, x1 : x2 + 2].float()
        least = torch.minimum(part[:1], part[1:]) @ x.total[x1 : x2 + 2]
        cells = x.cells(y.cells(part, y1, 1), x1, 2)
        most = torch.minimum(cells[:1], cells[1:]).sum((1, 2))
        found.append(torch.stack([least @ y.total[y1 : y2 + 2], most]))
    return torch.cat(found, 1).unbind(0)


def at_full_size(masks: RegionMasks, pairs: Pairs, boxes: Rectangles, y: Axis, x: Axis, threshold: float) -> list[bool]:
    """sum(min(A, B)) / sum(A) > threshold at full size for pairs (smaller A, larger B), on A's rectangle; one read."""
    by_first = sorted(range(len(pairs)), key=lambda k: pairs[k])
    rectangles, shares = [], []
    for small, others in _runs([pairs[k] for k in by_first]):
        x1, y1, x2, y2 = boxes[small]
        parts = [torch.tensor([small, *others]), torch.arange(1 + len(others))]
        rectangles.append([*parts, *masks.crossings(y.span(y1, y2), x.span(x1, x2))])
    for index, each, *crossings in upload(masks.soft.device, *rectangles):
        full = masks.pixels_at(crossings, index, each, len(each))
        both = torch.cat([full[:1], torch.minimum(full[:1], full[1:])]).sum((1, 2))  # alike summed, so 1 is exact
        shares.append(both[1:] / both[0] > threshold)
    values = torch.cat(read(*shares)).tolist() if shares else []
    return [value for _, value in sorted(zip(by_first, values, strict=True))]
