"""Which pairs of masks share most of the smaller one's mass at full size, decided at low resolution (method 9.8).

The question is whether sum(min(A, B)) > threshold * min(sum(A), sum(B)) for full-size masks A = U a, B = U b, where U
resizes bilinearly. Its weights are not negative, which gives two bounds that need the small masks a and b only:

    below   min(U a, U b) >= U min(a, b), so the sum is at least the sum of min(w a, w b), w the column sums of U
    above   inside a cell (the output pixels between the same four low-res pixels) sum(min(A, B)) <=
            min(sum(A), sum(B)), so the sum is at most the sum over cells of min(F a, F b), F a the cells' sums of A

Where the threshold does not lie between them the pair is decided; the few others are computed at full size, on the
rectangle that holds the smaller mask. The answer is that of the full-size comparison, up to the order of its sums.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from textregion.resampling import bilinear_taps
from textregion.types import RegionMasks

SLACK = 1e-3  # relative distance from the threshold within which rounding (half-precision masks) might decide
FAINT = 1e-2  # mass below which rounding might leave nothing
AT_ONCE = 32  # masks beside the first in one step

Rectangle = list[int]  # x1, y1, x2, y2, inclusive


@dataclass(frozen=True)
class Axis:
    """One direction of the resize: taps per output position (on the host), and what each input position gives in sum.

    total: column sums of the resize. first, second: what a cell's outputs take from its lower and upper position.
    """

    taps: list[Tensor]
    total: Float32[Tensor, " n"]
    first: Float32[Tensor, " n"]
    second: Float32[Tensor, " n"]

    @classmethod
    def of(cls, size_in: int, size_out: int, device: torch.device) -> "Axis":
        """From size_in to size_out positions."""
        lower, upper, weight = taps = bilinear_taps(size_in, size_out)
        weight = torch.where(upper > lower, weight, 0)  # at the border both are the same position
        zeros = torch.zeros(size_in)
        first, second = zeros.index_add(0, lower, 1 - weight), zeros.index_add(0, lower, weight)
        total = first.index_add(0, upper, weight)
        return cls(taps, total.to(device), first.to(device), second.to(device))

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
    masks: RegionMasks, boxes: Int[Tensor, "M 4"], pairs: Sequence[tuple[int, int]], threshold: float
) -> tuple[list[bool], list[tuple[int, int]]]:
    """Which masks have any mass, and which of the pairs share more than `threshold` of the smaller one's mass.

    masks: single-part, soft, compared at their `mask_size`. boxes: low-res inclusive xyxy around each mask > 0.
    pairs: (i, j) sorted by i. A handful of reads from the device, whatever the number of pairs. Memory: some tens of
    low-res masks or full-size rectangles. Cost: per pair the low-res rectangle of its first mask.
    """
    soft, rectangles = masks.soft, boxes.tolist()
    y, x = (Axis.of(*sizes, soft.device) for sizes in zip(soft.shape[1:], masks.mask_size, strict=True))
    mass = torch.cat([masses(part.float(), y, x) for part in soft.split(AT_ONCE)] or [torch.zeros(0)]).tolist()
    below, above = bounds(soft, pairs, rectangles, y, x)
    smaller = torch.tensor([min(mass[i], mass[j]) for i, j in pairs], device=soft.device)
    certain = below > (threshold + SLACK) * smaller
    unsure = ~certain & (above >= (threshold - SLACK) * smaller) & (smaller > 0)
    verdict, open_pairs = certain.tolist(), unsure.tolist()
    order = [pair if mass[pair[0]] <= mass[pair[1]] else pair[::-1] for pair in pairs]
    doubtful = [(k, order[k]) for k, is_open in enumerate(open_pairs) if is_open]
    opened = at_full_size(masks, [pair for _, pair in doubtful], rectangles, y, x, threshold)
    for (k, _), joined in zip(doubtful, opened, strict=True):
        verdict[k] = joined
    filled = [m > FAINT or (m > 0 and bool(masks.select(torch.tensor([i])).full().any())) for i, m in enumerate(mass)]
    return filled, [pair for pair, joined in zip(pairs, verdict, strict=True) if joined]


def _runs(pairs: Sequence[tuple[int, int]], length: int) -> Iterator[tuple[int, list[int]]]:
    """(i, several j) for pairs sorted by i, at most `length` j at once."""
    for first, group in groupby(pairs, itemgetter(0)):
        others = [j for _, j in group]
        for start in range(0, len(others), length):
            yield first, others[start : start + length]


def masses(maps: Float32[Tensor, "M h w"], y: Axis, x: Axis) -> Float32[Tensor, " M"]:
    """Sums of the resized maps."""
    return maps @ x.total @ y.total


def bounds(
    soft: Float[Tensor, "M h w"], pairs: Sequence[tuple[int, int]], boxes: Sequence[Rectangle], y: Axis, x: Axis
) -> tuple[Float32[Tensor, " N"], Float32[Tensor, " N"]]:
    """What the full-size sum of each pair's minimum lies between; computed around the first one's rectangle."""
    found = [torch.zeros(2, 0, device=soft.device)]
    for first, others in _runs(pairs, AT_ONCE):
        x1, y1, x2, y2 = boxes[first]
        y1, x1 = max(y1 - 1, 0), max(x1 - 1, 0)  # cells start one position before what they hold
        part = soft[[first, *others], y1 : y2 + 2, x1 : x2 + 2].float()
        least = torch.minimum(part[:1], part[1:]) @ x.total[x1 : x2 + 2]
        cells = x.cells(y.cells(part, y1, 1), x1, 2)
        most = torch.minimum(cells[:1], cells[1:]).sum((1, 2))
        found.append(torch.stack([least @ y.total[y1 : y2 + 2], most]))
    return torch.cat(found, 1).unbind(0)


def at_full_size(
    masks: RegionMasks,
    pairs: Sequence[tuple[int, int]],
    boxes: Sequence[Rectangle],
    y: Axis,
    x: Axis,
    threshold: float,
) -> list[bool]:
    """sum(min(A, B)) / sum(A) > threshold at full size for pairs (smaller A, larger B), on A's rectangle; one read."""
    by_first = sorted(range(len(pairs)), key=lambda k: pairs[k])
    shares = []
    for small, others in _runs([pairs[k] for k in by_first], AT_ONCE):
        x1, y1, x2, y2 = boxes[small]
        index = sorted({small, *others})
        full = masks.pixels(y.span(y1, y2), x.span(x1, x2), torch.tensor(index, device=masks.soft.device))
        full = full[[index.index(k) for k in (small, *others)]]
        both = torch.cat([full[:1], torch.minimum(full[:1], full[1:])]).sum((1, 2))  # alike summed, so 1 is exact
        shares.append(both[1:] / both[0] > threshold)
    values = torch.cat(shares).tolist() if shares else []
    return [value for _, value in sorted(zip(by_first, values, strict=True))]
