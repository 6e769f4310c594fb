"""What regions answer: a label for every pixel (method 8.3 to 8.5), the region of a sentence (10), one thing (11).

Pixels are labelled in bands of rows, so that memory stays bounded. Boxes here are (x, y, width, height) in pixels,
sides without +1, as published; everywhere else they are xyxy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Shaped
from torch import Tensor

from textregion.devices import read, upload
from textregion.errors import InputError
from textregion.labels import LabelPrompts, as_labels, as_sentence, label_probabilities
from textregion.resampling import bilinear_taps, lerp_columns, lerp_rows, taps_at
from textregion.runtime import in_parts
from textregion.types import UNLABELLED, RegionMasks, RegionTokens, Segmentation, parts_of

MEMORY_BUDGET = 256 * 2**20  # bytes of one band's working set on an accelerator, where few large bands are best
CPU_BUDGET = 64 * 2**20  # on a CPU smaller bands are faster: they stay nearer to its caches
Box = tuple[float, float, float, float]
ANYTHING_BUT = "background, anything but {target}"
ANY_OTHER_THING = "background, any other thing"
TARGET = 1  # its label in the result; 0 is everything else


def label_pixels(
    region_logits: Float32[Tensor, "R Q"],
    masks: RegionMasks,
    prompts: LabelPrompts,
    output_size: tuple[int, int] | None = None,
    uncovered: Float32[Tensor, "Q ..."] | None = None,
    probability_threshold: float = 0.0,
    return_probabilities: bool = False,
    memory_budget: int | None = None,
) -> Segmentation:
    """Label every pixel from its regions' logits.

    Pixel logits are sum_r logit[r, q] * clamp(mask_r, 0, 1) at the masks' full size (a sum where regions
    overlap), resized bilinearly to the output, softmax of 50 * logits over the queries, maximum over a label's
    queries, argmax over labels; a best probability below `probability_threshold` becomes label 0.

    output_size: (H, W), default the image's own. uncovered: logits for pixels no region covers, either (Q,) or
    (Q, Ph, Pw) on the patch grid (resized bilinearly to mask size); None leaves them 0, so the first label wins.
    probability_threshold: 0..1, 0 is off. return_probabilities: also keep (L, H, W) float32.
    Cost: pixels * queries multiply-adds per region whose rows meet the pixel's band. Memory: about `memory_budget`
    bytes per band (default 256 MiB, on a CPU 64 MiB), plus the output; bands are halved where memory does not suffice.
    """
    if not 0 <= probability_threshold <= 1:
        raise InputError(f"got probability_threshold {probability_threshold}, expected a number in 0..1")
    if region_logits.shape != (len(masks), len(prompts.queries)):
        shape, expected = tuple(region_logits.shape), (len(masks), len(prompts.queries))
        raise InputError(f"got region logits of shape {shape}, expected {expected}")
    size = output_size or masks.image_size
    (height, width), (mask_height, mask_width) = size, masks.mask_size
    device = region_logits.device
    masks = masks.to(device)
    label_map, region_map = np.empty(size, np.int64), np.empty(size, np.int64)
    confidence = np.empty(size, np.float32)
    probabilities = np.empty((len(prompts.names), *size), np.float32) if return_probabilities else None
    budget = memory_budget or (CPU_BUDGET if device.type == "cpu" else MEMORY_BUDGET)
    step = _rows_per_band(len(masks), len(prompts.queries), masks.mask_size, size, budget)
    (extents, group), per_label = _row_extents(masks), prompts.best_query(region_logits).T
    ys, xs = (torch.arange(side) for side in size)
    y_taps, x_taps = (bilinear_taps(*sides) for sides in zip(masks.mask_size, size, strict=True))
    resized = (mask_height, mask_width) != (height, width)

    def label_band(start: int, stop: int) -> None:
        rows = slice(start, stop)
        mask_rows, row_taps = taps_at(y_taps, rows) if resized else (ys[rows], [])
        top, bottom = start / height - 1 / mask_height, stop / height + 1 / mask_height
        reaching = [r for r, (first, last) in enumerate(extents) if first <= bottom and last >= top]
        regions = torch.tensor(reaching, dtype=torch.long)
        (regions, *parts), crossings, output_crossings, row_taps, columns, elsewhere_taps = upload(
            device,
            [regions, *parts_of(regions, group)],
            masks.crossings(mask_rows, torch.arange(mask_width)),
            masks.crossings(ys[rows] * mask_height // height, xs * mask_width // width) if resized else [],
            row_taps,
            x_taps,
            _uncovered_taps(uncovered, masks.mask_size, mask_rows),
        )
        soft = masks.pixels_at(crossings, *parts, len(regions)).clamp_(max=1)
        logits = (region_logits[regions].T @ soft.flatten(1)).unflatten(1, soft.shape[1:])
        if uncovered is not None:
            elsewhere = uncovered[:, None, None] if uncovered.ndim == 1 else _resized(uncovered, elsewhere_taps)
            logits = torch.where((soft > 0).any(0), logits, elsewhere)
        if resized:
            logits = lerp_rows(lerp_columns(logits, columns), row_taps)
            soft = masks.pixels_at(output_crossings, *parts, len(regions)).clamp_(max=1)
        probability = label_probabilities(logits, prompts)
        best, label = probability.max(0)
        if probability_threshold > 0:
            label = label.masked_fill(best < probability_threshold, 0)
        region = _region_behind(per_label[:, regions], soft, label, regions)
        for target, value in zip((label_map, confidence, region_map), read(label, best, region), strict=True):
            target[rows] = value.numpy()
        if probabilities is not None:
            probabilities[:, rows] = probability.cpu().numpy()

    in_parts(label_band, height, step, device)
    return Segmentation(label_map, confidence, region_map, prompts.names, probabilities)


def mode_per_mask(result: Segmentation, masks: RegionMasks) -> Segmentation:
    """Every mask takes the most frequent label of its pixels (method 8.7), the first of equals.

    masks: of the regions that were labelled, cut at the result's size (`RegionMasks.binary`). Where masks overlap, the
    smallest decides, the first of equals; pixels in none stay as they are. Confidence and probabilities stay those that
    every pixel had on its own. Cost: pixels * regions; memory: about MEMORY_BUDGET bytes, or one region's if more.
    """
    size = result.label_map.shape
    label_map, region_map = result.label_map.copy(), result.region_map.copy()
    smallest = np.full(size, np.iinfo(np.int64).max)  # pixels of the mask that has decided
    step = max(MEMORY_BUDGET // max(math.prod(size), 1), 1)
    for start in range(0, len(masks), step):
        regions = range(start, min(start + step, len(masks)))
        for region, inside in zip(regions, masks.select(torch.tensor(regions)).binary(size).cpu().numpy(), strict=True):
            if area := int(inside.sum()):
                mode = np.bincount(result.label_map[inside]).argmax()
                inside &= area < smallest
                label_map[inside], region_map[inside], smallest[inside] = mode, region, area
    return replace(result, label_map=label_map, region_map=region_map)


def among_all(result: Segmentation, places: Sequence[int], names: tuple[str, ...]) -> Segmentation:
    """A segmentation by some labels as one by all `names`. places: of the result's labels among them.

    Labels that were not asked for have no pixel and probability 0.
    """
    probabilities = None
    if result.probabilities is not None:
        probabilities = np.zeros((len(names), *result.label_map.shape), np.float32)
        probabilities[list(places)] = result.probabilities
    label_map = np.asarray(places)[result.label_map]
    return replace(result, label_map=label_map, labels=names, probabilities=probabilities)


def unlabel(result: Segmentation, where: Bool[np.ndarray, "H W"]) -> Segmentation:
    """The same, with no label at some pixels (`types.UNLABELLED`)."""
    return replace(result, label_map=np.where(where, UNLABELLED, result.label_map)) if where.any() else result


def _rows_per_band(regions: int, queries: int, mask_size: tuple[int, int], size: tuple[int, int], budget: int) -> int:
    """Rows of output so that about three copies of masks and four of query maps stay within the budget."""
    enlarged = max(mask_size[0] / size[0], 1.0)
    bytes_per_row = 4 * max(mask_size[1], size[1]) * (3 * regions + 4 * queries) * enlarged
    return max(int(budget / max(bytes_per_row, 1)), 1)


def _row_extents(masks: RegionMasks) -> tuple[list[tuple[float, float]], Int[Tensor, " M"]]:
    """Between which shares of the height (0 top, 1 bottom) each region lies after resizing, and the region of each
    part; one device read.
    """
    height = masks.soft.shape[1]
    on = (masks.soft > 0).any(2).to(torch.uint8)
    ends = torch.stack([on.argmax(1).float() - 0.5, on.flip(1).argmax(1) - height - 0.5], 1) / height
    extents = ends.new_full((len(masks), 2), torch.inf)
    extents = extents.scatter_reduce(0, masks.group[:, None].expand(-1, 2), ends, "amin")
    extents, group = read(extents, masks.group)
    return [(first, -last) for first, last in extents.tolist()], group


def _uncovered_taps(
    uncovered: Float32[Tensor, "Q ..."] | None, mask_size: tuple[int, int], rows: Int[Tensor, " y"]
) -> list[Tensor]:
    """Three taps of rows and three of columns that bring a map of logits to some rows at mask size; [] for no map."""
    if uncovered is None or uncovered.ndim == 1:
        return []
    y_taps = [tap[rows] for tap in bilinear_taps(uncovered.shape[1], mask_size[0])]
    return [*y_taps, *bilinear_taps(uncovered.shape[2], mask_size[1])]


def _resized(values: Float32[Tensor, "Q Ph Pw"], taps: Sequence[Tensor]) -> Float32[Tensor, "Q y w"]:
    """A map at the crossings of taps of rows (three) and columns (three)."""
    return lerp_rows(lerp_columns(values, taps[3:]), taps[:3])


def _region_behind(
    per_label: Float32[Tensor, "L K"],
    soft: Float32[Tensor, "K y x"],
    label: Int[Tensor, "y x"],
    regions: Int[Tensor, " K"],
) -> Int[Tensor, "y x"]:
    """Among the regions at least half as present as the strongest one, the best for the pixel's label; -1: none."""
    if len(regions) == 0:
        return torch.full_like(label, -1)
    strongest = soft.amax(0)
    absent: Bool[Tensor, "K y x"] = soft < strongest / 2
    best = per_label.T[:, label].masked_fill_(absent, -torch.inf).argmax(0)
    return torch.where(strongest > 0, regions[best], -1)


def mean_iou(prediction: Int[np.ndarray, "H W"], ground_truth: Int[np.ndarray, "H W"], labels: int) -> float:
    """Mean over the labels present in the ground truth of intersection / union.

    Both maps hold 0..labels-1; a prediction of UNLABELLED is wrong.
    """
    pairs = ground_truth.ravel() * (labels + 1) + prediction.ravel() % (labels + 1)
    counts = np.bincount(pairs, minlength=labels * (labels + 1)).reshape(labels, labels + 1)[:, :labels]
    size = np.bincount(ground_truth.ravel(), minlength=labels)
    shared = counts.diagonal()
    union = counts.sum(0) + size - shared
    present = size > 0
    return float((shared[present] / union[present]).mean())


# ---------------------------------------------------------------------- one region, one thing


@dataclass(frozen=True)
class GroundingResult:
    """The region a sentence refers to.

    region: index into the tokens, or None when the image has no region. mask: (H, W) bool.
    box: (x, y, width, height) of the mask's largest component in pixels, or None. score: cosine in [-1, 1].
    """

    region: int | None
    mask: Bool[np.ndarray, "H W"]
    box: Box | None
    score: float | None

    def __repr__(self) -> str:
        height, width = self.mask.shape
        return f"GroundingResult(region {self.region}, box {self.box}, score {self.score}, {width} x {height} pixels)"


def largest_component_box(mask: Bool[np.ndarray, "H W"]) -> Box | None:
    """(xmin, ymin, xmax - xmin, ymax - ymin), without +1, of the largest 8-connected component; None if empty."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count < 2:
        return None
    x, y, width, height, _ = stats[1 + stats[1:, cv2.CC_STAT_AREA].argmax()]
    return float(x), float(y), float(width - 1), float(height - 1)


def box_ious(box: Box, others: Sequence[Box]) -> Float64[np.ndarray, " K"]:
    """IoU in [0, 1] of a box with each of K others, all (x, y, width, height), sides without +1; 0 where 0/0."""
    x, y, width, height = box
    if len(others) == 0:
        return np.zeros(0)
    other = np.asarray(others, np.float64)
    left, top = np.maximum(other[:, 0], x), np.maximum(other[:, 1], y)
    right = np.minimum(other[:, 0] + other[:, 2], x + width)
    bottom = np.minimum(other[:, 1] + other[:, 3], y + height)
    shared = np.clip(right - left, 0, None) * np.clip(bottom - top, 0, None)
    union = width * height + other[:, 2] * other[:, 3] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def snap(box: Box, candidates: Sequence[Box]) -> tuple[Box, int | None]:
    """The candidate that overlaps the box most (the first of equals) and its index; (box, None) if none overlaps."""
    ious = box_ious(box, candidates)
    if len(ious) == 0 or ious.max() <= 0:
        return box, None
    best = int(ious.argmax())
    return tuple(float(v) for v in candidates[best]), best


def is_hit(iou: float) -> bool:
    """Whether a box of this IoU with a ground-truth box counts as right: strictly more than one half."""
    return bool(iou > 0.5)


def target_prompts(target: str, others: str | Sequence[str] | None = None) -> LabelPrompts:
    """Two labels: everything else, then the target, in lower case as published.

    others: the words for everything else, in which {target} stands for the target; several are synonyms.
    Default: "background, anything but {target}". InputError for blank words.
    """
    as_sentence(target)
    others = [others] if isinstance(others, str) else as_labels(others or [ANYTHING_BUT])
    words = target.lower()
    other_words = [other.replace("{target}", words) for other in others]
    return LabelPrompts((other_words[0], target), (*other_words, words), (*(0 for _ in other_words), TARGET))


def label_target(regions: RegionTokens, text: Float[Tensor, "Q D"], prompts: LabelPrompts) -> Segmentation:
    """Label 1 where the target is, 0 elsewhere, at the image's own size.

    text: embeddings of prompts.queries. Pixels outside all regions get logit 1 for the first query and 0 for the
    others. Labels are decided at the masks' full size and brought to the image's by nearest neighbour.
    """
    masks, uncovered = regions.masks, torch.zeros(len(prompts.queries), device=regions.tokens.device)
    uncovered[0] = 1
    result = label_pixels(regions.logits(text), masks, prompts, masks.mask_size, uncovered)
    maps = (nearest(m, masks.image_size) for m in (result.label_map, result.confidence, result.region_map))
    return Segmentation(*maps, result.labels)


def nearest(values: Shaped[np.ndarray, "h w"], size: tuple[int, int]) -> Shaped[np.ndarray, "H W"]:
    """(h, w) of any type to (H, W): pixel i takes the value at floor(i * h / H), as cv2 and torch do."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, values.shape, strict=True))
    return values[rows[:, None], columns]
