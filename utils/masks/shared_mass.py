"""Which pairs of masks share most of the smaller one's mass at full size, decided at low resolution (spec 9.8).

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

import torch
from jaxtyping import Float32, Int
from torch import Tensor

from utils.interpolation import bilinear_taps, lerp_columns, lerp_rows
from utils.types import RegionMasks

SLACK = 1e-4  # relative distance from the threshold within which float32 sums over a map are not trusted
PAIRS_AT_ONCE = 64
FULL_SIZE_AT_ONCE = 16

Rectangle = list[int]  # x1, y1, x2, y2, inclusive


@dataclass(frozen=True)
class _Axis:
    """One direction of the resize: taps per output position, and what each input position gives in sum.

    total: column sums of the resize. first, second: what a cell's outputs take from its lower and upper position.
    """

    taps: list[Tensor]
    total: Float32[Tensor, " n"]
    first: Float32[Tensor, " n"]
    second: Float32[Tensor, " n"]

    @classmethod
    def of(cls, size_in: int, size_out: int) -> "_Axis":
        lower, upper, weight = taps = bilinear_taps(size_in, size_out)
        zeros = torch.zeros(size_in)
        first, second = zeros.index_add(0, lower, 1 - weight), zeros.index_add(0, lower, weight)
        return cls(taps, first.index_add(0, upper, weight), first, second)

    def cells(self, x: Float32[Tensor, "M a b"], dim: int) -> Float32[Tensor, "M a b"]:
        """Sums of the resized values in the cell that starts at each position of a dimension."""
        after = torch.arange(1, x.shape[dim] + 1).clamp(max=x.shape[dim] - 1).to(x.device)
        shape = (-1, 1) if dim == 1 else (-1,)
        first, second = (weight.to(x.device).view(shape) for weight in (self.first, self.second))
        return x * first + x.index_select(dim, after) * second

    def span(self, first: int, last: int) -> slice:
        """The output positions that input positions first..last reach."""
        lower, upper, _ = self.taps
        inside = ((upper >= first) & (lower <= last)).nonzero()[:, 0]
        return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)

    def cut(self, span: slice, device: torch.device) -> list[Tensor]:
        """The taps of some output positions."""
        return [tap[span].to(device) for tap in self.taps]


def share_most(
    masks: RegionMasks,
    boxes: Int[Tensor, "M 4"],
    pairs: Sequence[tuple[int, int]],
    threshold: float,
) -> tuple[list[bool], list[tuple[int, int]]]:
    """Which masks have any mass, and which of the pairs share more than `threshold` of the smaller one's mass.

    masks: single-part, soft, compared at their `mask_size`. boxes: low-res inclusive xyxy around each mask > 0.
    pairs: (i, j) sorted by i. Three reads from the device, whatever the number of pairs. Memory: 8 bytes per
    stored mask pixel, plus a few full-size rectangles. Cost: the pairs' overlapping low-res rectangles.
    """
    soft = masks.soft.float()
    y, x = (_Axis.of(*sizes) for sizes in zip(soft.shape[1:], masks.mask_size, strict=True))
    corners = soft * (y.total[:, None] * x.total).to(soft.device)
    masses = corners.sum((1, 2))
    rectangles = boxes.tolist()
    below = _shared(corners, pairs, rectangles, before=0)
    above = _shared(x.cells(y.cells(soft, 1), 2), pairs, rectangles, before=1)
    mass = masses.tolist()
    smaller = torch.tensor([min(mass[i], mass[j]) for i, j in pairs], device=soft.device)
    certain = below > (threshold + SLACK) * smaller
    unsure = ~certain & (above >= (threshold - SLACK) * smaller) & (smaller > 0)
    verdict, open_pairs = certain.tolist(), unsure.tolist()
    order = [pair if mass[pair[0]] <= mass[pair[1]] else pair[::-1] for pair in pairs]
    doubtful = [(k, order[k]) for k, is_open in enumerate(open_pairs) if is_open]
    shares = _full_size_shares(soft, [pair for _, pair in doubtful], rectangles, y, x)
    for (k, _), share in zip(doubtful, shares, strict=True):
        verdict[k] = share > threshold
    return [m > 0 for m in mass], [pair for pair, joined in zip(pairs, verdict, strict=True) if joined]


def _runs(pairs: Sequence[tuple[int, int]], length: int) -> Iterator[tuple[int, list[int]]]:
    """(i, several j) for pairs sorted by i, at most `length` j at once."""
    start = 0
    while start < len(pairs):
        first = pairs[start][0]
        stop = start
        while stop < min(start + length, len(pairs)) and pairs[stop][0] == first:
            stop += 1
        yield first, [j for _, j in pairs[start:stop]]
        start = stop


def _shared(
    maps: Float32[Tensor, "M h w"], pairs: Sequence[tuple[int, int]], boxes: Sequence[Rectangle], before: int
) -> Float32[Tensor, " N"]:
    """Sum of the element-wise minimum of each pair, inside the first one's rectangle; stays on the device.

    before: by how many positions the maps reach out of the boxes towards the top left (cells: 1).
    """
    sums = []
    for first, others in _runs(pairs, PAIRS_AT_ONCE):
        x1, y1, x2, y2 = boxes[first]
        inside = maps[:, max(y1 - before, 0) : y2 + 1, max(x1 - before, 0) : x2 + 1]
        sums.append(torch.minimum(inside[first], inside[others]).sum((1, 2)))
    return torch.cat(sums) if sums else maps.new_zeros(0)


def _full_size_shares(
    soft: Float32[Tensor, "M h w"],
    pairs: Sequence[tuple[int, int]],
    boxes: Sequence[Rectangle],
    y: _Axis,
    x: _Axis,
) -> list[float]:
    """Sum(min(A, B)) / sum(A) at full size for pairs (smaller A, larger B), on A's rectangle; one read at the end."""
    by_first = sorted(range(len(pairs)), key=lambda k: pairs[k])
    shares = []
    for small, others in _runs([pairs[k] for k in by_first], FULL_SIZE_AT_ONCE):
        x1, y1, x2, y2 = boxes[small]
        rows = y.cut(y.span(y1, y2), soft.device)
        columns = x.cut(x.span(x1, x2), soft.device)
        full = lerp_rows(lerp_columns(soft[[small, *others]], columns), rows)
        both = torch.cat([full[:1], torch.minimum(full[:1], full[1:])]).sum((1, 2))  # alike summed, so 1 is exact
        shares.append(both[1:] / both[0])
    values = torch.cat(shares).tolist() if shares else []
    return [value for _, value in sorted(zip(by_first, values, strict=True))]
