"""The data that flows through the method, validated on construction.

Glossary of axes
    R  regions (tokens)         M  mask parts (a fused region has several)
    P  patches of the stitched grid, Ph * Pw
    T  crops (the whole image first, then tiles, row-major)
    g  patches per side of a crop
    C  width of the pooled patch features   D  width of the joint image-text embedding
    L  labels   Q  queries (a label with synonyms has several)
    H, W  the image's own size in pixels    h, w  the stored size of a mask
"""

import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Shaped, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from textregion import render
from textregion.devices import dtype_name, move, read, upload
from textregion.errors import InputError, first_line, sides
from textregion.image_files import MAX_PIXELS, MAX_SIDE
from textregion.labels import LabelPrompts, region_scores
from textregion.mask_arrays import mask_stack
from textregion.resampling import bilinear_taps, crop_regions, lerp_columns, lerp_rows, taps_at
from textregion.storage import complete, load_tensors, save_tensors, write_atomically

MAX_SOFT_VALUE = 3.0
LOGIT_CUT = 0.0  # SAM's logits are positive inside a mask
LONGEST_TOKEN = 1.01  # unit vectors, rounded
LARGEST_SCALE = 10_000  # of logits, and of where they are cut; the largest published are about 120
NOT_FINITE = "got masks with NaN or infinite values, expected numbers in [0, 3]"
UNLABELLED = -1  # in a label map; 255 in an 8-bit picture of it
PIXELS_AT_ONCE = 2**24  # of masks enlarged in one step

if TYPE_CHECKING:
    from supervision import Detections

    Unset = Any
else:
    Detections = Any  # of an optional package, never imported here
    Unset = None  # stands for a default that construction fills in, so the fields never read as None


@dataclass(frozen=True)
class RegionMasks:
    """R masks, kept small: the stored parts are brought to full size only where and when asked for.

    They are read in two ways. The method (tokens, label maps, published verdicts) takes soft values: the stored ones
    clamped to [0, 3], each part then resized bilinearly to `mask_size`, the maximum over a region's parts (method 9.6,
    9.8). What leaves the program (files, areas, outlines, `binary`) is as sharp as what was stored: resized without
    clamping, straight to the image's size, and cut at `cut` (method 9.11).

    soft: (M, h, w) float or bool: SAM's logits (with cut 0), or soft values 0..3, or 0/1.
    image_size: (H, W) of the image the masks belong to, pixels.
    mask_size: (h', w') at which the masks are meant: the resized or the original image; default (h, w).
    group: (M,) int64 region of each part, every region 0..R-1 at least once; default one part per region.
    boxes: (R, 4) xyxy in pixels of the image, end-exclusive; around `soft > cut` when not given, so exact to a stored
        pixel.
    predicted_iou, stability: (R,) of the region's first part; ones when not given.
    hard: full-size soft values are 1 where they would be > 0 (ablation, method 5.1).
    cut: the stored value above which a pixel is in the region: 0 for logits, 0.5 for soft values 0..1.
    """

    soft: Shaped[Tensor, "M h w"]
    image_size: tuple[int, int]
    mask_size: tuple[int, int] = (0, 0)
    group: Int[Tensor, " M"] | Unset = None
    boxes: Float[Tensor, "R 4"] | Unset = None
    predicted_iou: Float[Tensor, " R"] | Unset = None
    stability: Float[Tensor, " R"] | Unset = None
    hard: bool = False
    cut: float = 0.5

    def __post_init__(self) -> None:
        if self.soft.ndim != 3 or 0 in self.soft.shape[1:]:
            raise InputError(f"got masks of shape {tuple(self.soft.shape)}, expected (R, h, w) with h, w >= 1")
        if not (self.soft.is_floating_point() or self.soft.dtype == torch.bool):
            raise InputError(f"got masks of dtype {dtype_name(self.soft.dtype)}, expected bool or float")
        _image_sides(self.image_size, "image_size")
        set_ = object.__setattr__  # the only writes to a frozen instance: its own defaults
        if self.mask_size == (0, 0):
            set_(self, "mask_size", tuple(self.soft.shape[1:]))
        _image_sides(self.mask_size, "mask_size")
        own_groups = self.group is None
        if own_groups:
            set_(self, "group", torch.arange(len(self.soft), device=self.soft.device))
            if self.boxes is not None and len(self.boxes) != len(self.soft):
                raise InputError(f"got {len(self.boxes)} boxes for {len(self.soft)} regions")
        elif self.group.shape != (len(self.soft),) or self.group.dtype not in (torch.int64, torch.int32):
            found, parts = f"{dtype_name(self.group.dtype)} of shape {tuple(self.group.shape)}", len(self.soft)
            raise InputError(f"got groups {found} for {parts} mask parts, expected whole numbers ({parts},)")
        if not isinstance(self.hard, bool):
            raise InputError(f"got hard {self.hard!r}, expected True or False")
        if not isinstance(self.cut, Real) or not abs(self.cut) <= LARGEST_SCALE:
            raise InputError(f"got cut {self.cut!r}, expected a number: 0 for logits, 0.5 for soft values")
        if self.boxes is None:
            count = len(self.soft) if own_groups else self._number_of_groups()
            is_mask = self.soft.dtype == torch.bool and 0 <= self.cut < 1
            on = self.soft if is_mask else self.soft > self.cut  # which takes 4 bytes a pixel in between
            set_(self, "boxes", boxes_around(on, self.group, count, self.image_size))
        for name in ("predicted_iou", "stability"):
            if getattr(self, name) is None:
                set_(self, name, torch.ones(len(self), device=self.soft.device))
            if len(getattr(self, name)) != len(self):
                raise InputError(f"got {len(getattr(self, name))} {name} for {len(self)} regions")
        if (shape := tuple(getattr(self.boxes, "shape", ()))) != (len(self), 4):
            raise InputError(f"got boxes of shape {shape}, expected ({len(self)}, 4)")

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        (height, width), shape = self.image_size, "x".join(map(str, self.soft.shape))
        stored = f"{shape} {dtype_name(self.soft.dtype)}"
        return f"RegionMasks({len(self)} regions in {width} x {height} pixels, stored {stored})"

    def checked(self) -> "RegionMasks":
        """Itself, once its values are known to be finite and its groups to be R; InputError otherwise. Waits for the
        device, so it is called once, where masks come from outside.
        """
        groups = self.group.max() + 1 if len(self.group) else self.group.sum()
        groups, finite = (value.item() for value in read(groups, self.soft.isfinite().all()))
        if groups != len(self):
            raise InputError(f"got {len(self)} boxes for {groups} regions")
        if not finite:
            raise InputError(NOT_FINITE)
        return self

    @classmethod
    def empty(cls, image_size: tuple[int, int], device: torch.device | str = "cpu") -> "RegionMasks":
        """No region at all: a normal result (method 9.10)."""
        return cls(torch.zeros(0, 1, 1, device=device), image_size, mask_size=image_size)

    @classmethod
    def from_array(
        cls, masks: "np.ndarray | Tensor | RegionMasks", image_size: tuple[int, int], device: torch.device | str = "cpu"
    ) -> "RegionMasks":
        """Masks somebody else made of an image of size (H, W): (R, H, W), (H, W, R) or one (H, W), bool, integer or
        float; (R, h, w) and (h, w) of the same aspect too. A plane of integers may be a label map, a region per label:
        `mask_arrays.mask_stack` has the whole rule.

        Negative values count as 0 and values above 3 as 3. InputError for NaN, infinities or other shapes.
        """
        if isinstance(masks, RegionMasks):
            return masks.checked().to(device)
        image_size = _image_sides(image_size, "image_size")
        masks = masks if isinstance(masks, Tensor) else _as_tensor(masks)
        if masks.is_complex() or masks.layout != torch.strided:
            raise InputError(
                f"got masks of {dtype_name(masks.dtype)}, {masks.layout}, expected a dense tensor of real numbers"
            )
        masks = mask_stack(masks, image_size)
        if len(masks) == 0:
            return cls.empty(image_size, device)
        if masks.dtype != torch.bool:
            _check_finite(masks)
            masks = (masks if masks.is_floating_point() else masks.float()).clamp(0, MAX_SOFT_VALUE).float()
        return cls(masks.to(device), image_size)

    def _number_of_groups(self) -> int:
        return int(self.group.max()) + 1 if len(self.group) else 0

    def to(self, device: torch.device | str) -> "RegionMasks":
        """The same masks on another device."""
        names, small = zip(*list(self._tensors().items())[1:], strict=True)
        moved = dict(zip(names, move(small, device), strict=True))
        return replace(self, soft=self.soft.to(device), **moved)

    def select(self, index: Int[Tensor, " K"]) -> "RegionMasks":
        """The regions named by `index`, in that order."""
        index = index.to(self.group.device)
        if len(index) == 0:
            return replace(RegionMasks.empty(self.image_size, self.soft.device), mask_size=self.mask_size)
        part, group = torch.nonzero(self.group[None] == index[:, None], as_tuple=True)[::-1]
        per_region = {name: getattr(self, name)[index] for name in ("boxes", "predicted_iou", "stability")}
        return replace(self, soft=self.soft[part], group=group, **per_region)

    def pixels(
        self, rows: Int[Tensor, " y"], columns: Int[Tensor, " x"], regions: Int[Tensor, " K"] | None = None
    ) -> Float32[Tensor, "R y x"]:
        """Full-size soft values 0..3 at the crossings of some rows and columns of `mask_size`.

        regions: the only regions wanted, ascending; default all R. Equal to clamping every part to [0, 3], resizing it
        bilinearly (align_corners=False, no antialias, float32, rounded to the parts' own precision), taking the maximum
        over a region's parts and indexing; only the crossings are computed.
        """
        taps, some = self.crossings(rows.cpu(), columns.cpu()), []
        if regions is not None:
            some = parts_of(regions.cpu(), self.group.cpu())
        taps, some = upload(self.soft.device, taps, some)
        return self.pixels_at(taps, *some, count=None if regions is None else len(regions))

    def crossings(self, rows: Int[Tensor, " y"], columns: Int[Tensor, " x"]) -> list[Tensor]:
        """What `pixels_at` needs of some rows and columns of `mask_size`; all on the host."""
        x_taps = [tap[columns] for tap in bilinear_taps(self.soft.shape[2], self.mask_size[1])]
        needed, y_taps = taps_at(bilinear_taps(self.soft.shape[1], self.mask_size[0]), rows)
        return [needed, *y_taps, *x_taps]

    def pixels_at(
        self,
        crossings: Sequence[Tensor],
        part: Int[Tensor, " m"] | None = None,
        group: Int[Tensor, " m"] | None = None,
        count: int | None = None,
    ) -> Float32[Tensor, "R y x"]:
        """`pixels` without a word between host and device. crossings: of the method of that name, on the masks' device.

        part, group, count: the only parts wanted, of which of `count` regions each is (`parts_of`); default all.
        """
        soft = self.soft if part is None else self.soft[part]
        owner = self.group if group is None else group
        count = len(self) if count is None else count
        needed, y_lower, y_upper, y_weight, *x_taps = crossings
        if count == 0:
            return torch.zeros(0, len(y_lower), len(x_taps[0]), device=soft.device)
        clamped = soft[:, needed].float().clamp_(0, MAX_SOFT_VALUE)  # indexing copies
        parts = lerp_rows(lerp_columns(clamped, x_taps), (y_lower, y_upper, y_weight))
        if soft.dtype == torch.float16:  # what vanishes in half is outside the mask (method 9.6)
            parts = parts.half().float()
        owner = owner[:, None, None].expand_as(parts)
        full = parts.new_zeros(count, *parts.shape[1:]).scatter_reduce(0, owner, parts, "amax")
        return (full > 0).float() if self.hard else full

    def full(self) -> Float32[Tensor, "R h1 w1"]:
        """All soft masks at full size, values 0..3; R * h' * w' * 4 bytes."""
        return self.pixels(*map(torch.arange, self.mask_size))

    def each_full(self) -> Iterator[Float32[Tensor, "h1 w1"]]:
        """Every region's soft mask at full size, one after another, so that memory holds one. The groups are read."""
        group = self.group.cpu()
        parts = [[(group == r).nonzero()[:, 0]] for r in range(len(self))]
        taps, *parts = upload(self.soft.device, self.crossings(*map(torch.arange, self.mask_size)), *parts)
        for (part,) in parts:
            yield self.pixels_at(taps, part, torch.zeros_like(part), count=1)[0]

    def patch_grid(self, grid: tuple[int, int]) -> Float32[Tensor, "R Ph Pw"]:
        """Full-size masks resized once more, bilinearly without antialias, to the patch grid (method 5.1)."""
        (y0, y1, y), (x0, x1, x) = (bilinear_taps(*sides) for sides in zip(self.mask_size, grid, strict=True))
        y_index, x_index = torch.arange(grid[0]), torch.arange(grid[1])
        taps, x_taps, y_taps = upload(
            self.soft.device,
            self.crossings(torch.cat([y0, y1]), torch.cat([x0, x1])),
            [x_index, x_index + grid[1], x],
            [y_index, y_index + grid[0], y],
        )
        return lerp_rows(lerp_columns(self.pixels_at(taps), x_taps), y_taps)

    def in_crops(
        self, crops: Sequence[tuple[int, int, int, int]], size: tuple[int, int], side: int
    ) -> Bool[Tensor, "T R P"]:
        """Which of the side * side patches of crops lie in each region, by the pixel nearest to their middle.

        crops: (y1, x1, y2, x2) in an image of `size` (H, W), which may be another than `mask_size`.
        """
        middles, found = torch.arange(side) + 0.5, []
        for y1, x1, y2, x2 in crops:
            ends = (y1, y2, size[0], self.mask_size[0]), (x1, x2, size[1], self.mask_size[1])
            rows, columns = (
                ((first + middles * (last - first) / side) * full / whole).long() for first, last, whole, full in ends
            )
            found.append((self.pixels(rows, columns) > 0).flatten(1))
        return torch.stack(found)

    def binary(self, size: tuple[int, int] | None = None) -> Bool[Tensor, "R H W"]:
        """The regions at `size` (default: the image's own): stored parts resized bilinearly, > `cut`, their union.

        Memory: the result, and `PIXELS_AT_ONCE` float32 values, or one part's if they are more.
        """
        height, width = size or self.image_size
        out = torch.zeros(len(self), height, width, dtype=torch.uint8, device=self.soft.device)
        sizes = zip(self.soft.shape[1:], (height, width), strict=True)
        y_taps, x_taps = upload(out.device, *(bilinear_taps(*sides) for sides in sizes))
        step = max(1, PIXELS_AT_ONCE // (height * width))
        for soft, group in zip(self.soft.split(step), self.group.split(step), strict=True):
            on = lerp_rows(lerp_columns(soft.float(), x_taps), y_taps) > self.cut
            out.scatter_reduce_(0, group.long()[:, None, None].expand(on.shape), on.byte(), "amax")
        return out.bool()

    def published(self) -> Bool[Tensor, "R H W"]:
        """The regions at the image's size as the paper's verdicts have them: full-size soft values > 0 (method 10).

        Wider than `binary`, by up to a stored pixel all around. Where `mask_size` is another, soft values are resized
        once more. One region at a time, to bound memory.
        """
        out = torch.zeros(len(self), *self.image_size, dtype=torch.bool, device=self.soft.device)
        for r, full in enumerate(self.each_full()):
            if self.mask_size != self.image_size:
                full = F.interpolate(full[None, None], self.image_size, mode="bilinear")[0, 0]
            out[r] = full > 0
        return out

    def save(self, path: str | Path) -> None:
        """Write everything as one safetensors file (no pickle)."""
        save_tensors(path, self._tensors(), {"kind": "RegionMasks", **self._sizes()})

    @classmethod
    def load(cls, path: str | Path) -> "RegionMasks":
        """Read what `save` wrote; InputError when the file is missing, damaged or something else."""
        tensors, meta = load_tensors(path, kind="RegionMasks")
        with complete(path, "RegionMasks"):
            return cls._restore(tensors, meta)

    def _tensors(self) -> dict[str, Tensor]:
        names = ("soft", "group", "boxes", "predicted_iou", "stability")
        return {name: getattr(self, name) for name in names}

    def _sizes(self) -> dict:
        sizes = {"image_size": list(self.image_size), "mask_size": list(self.mask_size)}
        return {**sizes, "hard": self.hard, "cut": self.cut}

    @classmethod
    def _restore(cls, tensors: dict[str, Tensor], meta: dict) -> "RegionMasks":
        sizes = {name: tuple(meta[name]) for name in ("image_size", "mask_size")}
        cut = meta.get("cut", 0.0)  # files of before it was written hold soft values that were cut at 0
        return cls(**tensors, **sizes, hard=meta["hard"], cut=cut).checked()


def boxes_around(
    on: Bool[Tensor, "M h w"], group: Int[Tensor, " M"], count: int, image_size: tuple[int, int]
) -> Float32[Tensor, "R 4"]:
    """Tight boxes around stored parts, in pixels of the image, the union over each of `count` regions' parts.

    on: where the parts lie. group: the region of each, below `count`. Zeros for a region without a pixel.
    """
    (height, width), (h, w) = image_size, on.shape[1:]
    rows, columns = on.any(2), on.any(1)
    low = torch.stack([_first(columns) * (width / w), _first(rows) * (height / h)], 1)
    high = [(w - _first(columns.flip(1))) * (width / w), (h - _first(rows.flip(1))) * (height / h)]
    high, empty = torch.stack(high, 1), ~rows.any(1, keepdim=True)
    group = group.long()[:, None].expand(-1, 2)
    least = low.new_full((count, 2), torch.inf)
    least = least.scatter_reduce(0, group, low.masked_fill(empty, torch.inf), "amin")
    most = high.new_zeros(count, 2).scatter_reduce(0, group, high.masked_fill(empty, 0), "amax")
    return torch.cat([least.masked_fill(least == torch.inf, 0), most], 1)


def parts_of(regions: Int[Tensor, " K"], group: Int[Tensor, " M"]) -> list[Tensor]:
    """The parts of some regions, ascending, and of which of the K each is: two (m,) int64. All on the host."""
    part = torch.isin(group, regions).nonzero()[:, 0]
    return [part, torch.searchsorted(regions, group[part])]


def _image_sides(size: Sequence[int], name: str) -> tuple[int, int]:
    """The size (H, W) if an image may have it, as whatever is computed of masks has so many pixels; else InputError."""
    height, width = sides(size, name)
    if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
        found = f"got {name} {reprlib.repr(height)} x {reprlib.repr(width)}"
        raise InputError(f"{found}, expected at most {MAX_PIXELS // 10**6} million pixels, {MAX_SIDE} on a side")
    return height, width


def _check_finite(soft: Tensor) -> None:
    if soft.is_floating_point() and not bool(soft.isfinite().all()):
        raise InputError(NOT_FINITE)


def _as_tensor(masks: Any) -> Tensor:
    """An array, or nested lists, as tensor; InputError when it does not hold numbers in equal rows."""
    try:
        array = np.asarray(masks)
    except ValueError as error:
        raise InputError(f"got masks that are no array ({first_line(error)}), expected (R, h, w) numbers") from error
    if array.dtype.kind not in "bifu" or array.dtype.itemsize > 8:  # torch has no longer numbers
        raise InputError(f"got masks of dtype {array.dtype}, expected booleans or numbers of at most 64 bits")
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


def _first(on: Bool[Tensor, "M n"]) -> Float32[Tensor, " M"]:
    """Index of the first True of each row (0 if none)."""
    return on.to(torch.uint8).argmax(1).float()


@dataclass(frozen=True)
class RegionTokens:
    """One unit vector per region, directly comparable with text embeddings.

    tokens: (R, D) float32, unit length.
    masks: the R RegionMasks they belong to.
    source_index: (R,) int64, which given or generated mask each token came from.
    grid: (Ph, Pw), the patch grid the masks were brought to.
    backbone, recipe: names of what made them.
    logit_scale, logit_bias: region logit = cosine * logit_scale + logit_bias (1 and 0 except SigLIP; method 8.2).
    patch_scores: (Ph, Pw) difference score d of global-patch removal, or None when removal was off (method 6).
    dense: (D, Ph, Pw) fused dense features for pixels no region covers, or None (method 8.4a).
    """

    tokens: Float32[Tensor, "R D"]
    masks: RegionMasks
    source_index: Int[Tensor, " R"]
    grid: tuple[int, int]
    backbone: str = ""
    recipe: str = ""
    logit_scale: float = 1.0
    logit_bias: float = 0.0
    patch_scores: Float32[Tensor, "Ph Pw"] | None = None
    dense: Float32[Tensor, "D Ph Pw"] | None = None

    def __post_init__(self) -> None:
        for name, axes in (("tokens", "R D"), ("source_index", "R"), ("patch_scores", "Ph Pw"), ("dense", "D Ph Pw")):
            tensor = getattr(self, name)
            if tensor is not None and tensor.ndim != len(axes.split()):
                raise InputError(f"got {name} of shape {tuple(tensor.shape)}, expected ({axes.replace(' ', ', ')})")
        for name in ("masks", "source_index"):
            if len(getattr(self, name)) != len(self.tokens):
                raise InputError(f"got {len(getattr(self, name))} {name} for {len(self.tokens)} tokens")
        sides(self.grid, "grid")
        if not all(isinstance(value, Real) for value in (self.logit_scale, self.logit_bias)):
            raise InputError(f"got logit_scale {self.logit_scale!r}, logit_bias {self.logit_bias!r}, expected numbers")
        if not self.tokens.is_floating_point():
            raise InputError(f"got tokens of {dtype_name(self.tokens.dtype)}, expected unit vectors")

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        (height, width), made = self.masks.image_size, ", ".join(filter(None, [self.backbone, self.recipe]))
        sizes = f"{len(self)} regions in {width} x {height} pixels, D = {self.tokens.shape[1]}, grid {self.grid}"
        return f"RegionTokens({sizes}{made and f', {made}'})"

    def checked(self) -> "RegionTokens":
        """Itself, once its numbers are known to be finite and as they should be; InputError otherwise. It waits for the
        device.
        """
        given = [name for name in ("tokens", "patch_scores", "dense") if getattr(self, name) is not None]
        finite = [getattr(self, name).float().norm(dim=0).isfinite().all() for name in given]
        lengths = self.tokens.float().norm(dim=1)
        *finite, longest = read(*finite, lengths.amax() if len(self) else lengths.sum())
        for name, is_finite in zip(given, finite, strict=True):
            if not is_finite:
                dtype = dtype_name(getattr(self, name).dtype)
                raise InputError(f"got {name} of {dtype} with NaN, infinite or huge values, expected finite numbers")
        longest = float(longest)
        if not longest <= LONGEST_TOKEN:
            raise InputError(f"got a token of length {longest:.3g}, expected unit vectors")
        if not max(abs(self.logit_scale), abs(self.logit_bias)) <= LARGEST_SCALE:  # NaN as well
            found = f"logit_scale {self.logit_scale!r}"[:60] + f", logit_bias {self.logit_bias!r}"[:60]
            raise InputError(f"got {found}, expected numbers of at most {LARGEST_SCALE}")
        return self

    def similarity(self, text: Float[Tensor, "L D"]) -> Float32[Tensor, "R L"]:
        """Cosine similarity of every region with every text embedding (unit rows), in [-1, 1].

        InputError when the text comes from a model of another width.
        """
        if text.ndim != 2 or text.shape[1] != self.tokens.shape[1]:
            raise InputError(
                f"got text embeddings of shape {tuple(text.shape)}, expected (L, {self.tokens.shape[1]}); "
                f"encode the labels with the backbone that made the tokens ({self.backbone or 'unknown'})"
            )
        return self.tokens @ text.to(self.tokens).T

    def logits(self, text: Float[Tensor, "L D"]) -> Float32[Tensor, "R L"]:
        """Region logits of method 8.2."""
        return self.similarity(text) * self.logit_scale + self.logit_bias

    def to_supervision(self, text: Float[Tensor, "Q D"], labels: Sequence[str]) -> Detections:
        """`supervision.Detections`, one per region: box, mask, its best label's probability, index and name.

        text, labels: the labels and the embeddings of their queries, as `labels.region_scores` takes them.
        `data` also has "cosine", "predicted_iou" and "region" (index into the tokens). InputError with the command
        that installs supervision when it is missing. Memory: R bytes per pixel of the image.
        """
        prompts, each = LabelPrompts.parse(labels), np.arange(len(self))
        cosine, probability = region_scores(self, text, prompts)
        best, masks = cosine.argmax(1), np.zeros((len(self), *self.masks.image_size), bool)
        for mask, crop in zip(masks, crop_regions(self.masks), strict=True):
            crop.paint(mask, True)
        data = {"cosine": cosine[each, best], "predicted_iou": self.masks.predicted_iou.cpu().numpy(), "region": each}
        return render.detections(masks, probability[each, best], best, prompts.names, data)

    def to(self, device: torch.device | str) -> "RegionTokens":
        """The same tokens on another device."""
        names = [n for n in ("tokens", "source_index", "patch_scores") if getattr(self, n) is not None]
        moved = dict(zip(names, move([getattr(self, n) for n in names], device), strict=True))
        dense = None if self.dense is None else self.dense.to(device)
        return replace(self, masks=self.masks.to(device), dense=dense, **moved)

    def save(self, path: str | Path) -> None:
        """Write tokens, masks and origin as one safetensors file (no pickle)."""
        optional = {n: t for n in ("patch_scores", "dense") if (t := getattr(self, n)) is not None}
        masks = {f"masks.{n}": t for n, t in self.masks._tensors().items()}
        plain = ("grid", "backbone", "recipe", "logit_scale", "logit_bias")
        meta = {"kind": "RegionTokens", **{n: getattr(self, n) for n in plain}, **self.masks._sizes()}
        save_tensors(path, {"tokens": self.tokens, "source_index": self.source_index, **optional, **masks}, meta)

    @classmethod
    def load(cls, path: str | Path) -> "RegionTokens":
        """Read what `save` wrote; InputError when the file is missing, damaged or something else."""
        tensors, meta = load_tensors(path, kind="RegionTokens")
        parts = {n.removeprefix("masks."): tensors.pop(n) for n in list(tensors) if n.startswith("masks.")}
        with complete(path, "RegionTokens"):
            sizes = {n: meta.pop(n) for n in ("image_size", "mask_size", "hard", "cut") if n in meta}
            meta["grid"] = tuple(meta["grid"])
            return cls(**tensors, masks=RegionMasks._restore(parts, sizes), **meta).checked()


@dataclass(frozen=True)
class Segmentation:
    """What every pixel is called.

    label_map: (H, W) int64, index into `labels`; UNLABELLED (-1) where a pixel has none, which happens only when asked
        for (`TextRegionSegmenter.segment(unlabelled=True)`, `absent=True`).
    confidence: (H, W) float32 in [0, 1], probability of the best label.
    region_map: (H, W) int64, the region (index into the tokens) behind the pixel, -1 where no region lies.
    labels: L names. palette: (L, 3) uint8 colours of the pictures.
    """

    label_map: Int[np.ndarray, "H W"]
    confidence: Float32[np.ndarray, "H W"]
    region_map: Int[np.ndarray, "H W"]
    labels: tuple[str, ...]
    probabilities: Float32[np.ndarray, "L H W"] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        shapes = {self.label_map.shape, self.confidence.shape, self.region_map.shape}
        if len(shapes) != 1 or self.label_map.ndim != 2:
            raise InputError(f"got maps of shapes {sorted(shapes)}, expected one (H, W) for all three")
        least, largest = (int(end(initial=UNLABELLED)) for end in (self.label_map.min, self.label_map.max))
        if least < UNLABELLED or largest >= len(self.labels):
            raise InputError(f"got label indices outside 0..{len(self.labels) - 1}")

    def __repr__(self) -> str:
        height, width = self.label_map.shape
        return f"Segmentation({width} x {height} pixels, {len(self.labels)} labels: {reprlib.repr(self.labels)})"

    @property
    def palette(self) -> UInt8[np.ndarray, "L 3"]:
        """One colour per label, as `render.label_colours` gives it."""
        return render.label_colours(self.labels)

    @cached_property
    def shares(self) -> dict[str, float]:
        """Share of the pixels each label has, in [0, 1], in the order of the labels."""
        counts = np.bincount(self.label_map[self.label_map >= 0], minlength=len(self.labels))
        return {name: float(n) / self.label_map.size for name, n in zip(self.labels, counts, strict=True)}

    def mask(self, label: str | int) -> Bool[np.ndarray, "H W"]:
        """Where a label is, by name or index; InputError for a name that was not asked for."""
        if isinstance(label, str):
            if label not in self.labels:
                raise InputError(f"no label {label!r}; this segmentation has {', '.join(self.labels)}")
            label = self.labels.index(label)
        return self.label_map == label

    def _present(self) -> list[int]:
        """Indices of the labels that have any pixel, ascending."""
        return np.unique(self.label_map[self.label_map >= 0]).tolist()

    def save_png(self, path: str | Path) -> None:
        """Write the label map as an 8-bit palette PNG (16-bit grey above 256 labels); pixel value = label index.

        Pixels without a label are 255 (65535).
        """
        write_atomically(path, render.png_bytes(render.label_map_image(self.label_map, self.palette)))

    def overlay(self, image: UInt8[np.ndarray, "h w 3"], opacity: float = 0.6) -> UInt8[np.ndarray, "H W 3"]:
        """The image in grey with every label's colour laid over it, fainter where no region lies."""
        return render.overlay(image, self.label_map, self.palette, self.region_map < 0, opacity)

    def picture(self, image: UInt8[np.ndarray, "h w 3"] | None = None) -> UInt8[np.ndarray, "H W 3"]:
        """Every label in its colour, over the image if there is one; pixels without a label are white or grey."""
        blank = np.full((*self.label_map.shape, 3), 255, np.uint8)
        return self.overlay(blank if image is None else image)

    def plot(self, image: UInt8[np.ndarray, "h w 3"] | None = None, axes: Any = None) -> Any:
        """Draw `picture` with a legend of the labels present into matplotlib axes (new ones without any); returns them.

        InputError with the command that installs matplotlib when it is missing.
        """
        names = {f"{self.labels[i]} {self.shares[self.labels[i]]:.0%}": self.palette[i] for i in self._present()}
        if bare := float((self.label_map < 0).mean()):
            names[f"no label {bare:.0%}"] = np.array(render.NO_LABEL if image is not None else (255, 255, 255))
        return render.plot(self.picture(image), names, axes)

    def show(self, image: UInt8[np.ndarray, "h w 3"] | None = None) -> None:
        """`plot`, shown as matplotlib's backend does it: in a notebook below the cell, elsewhere in a window."""
        self.plot(image)
        render.show()

    def _repr_png_(self) -> bytes:
        """What a notebook shows of a cell's result."""
        return render.png_bytes(Image.fromarray(self.picture()))

    def to_coco_rle(self) -> list[dict]:
        """COCO-style annotations, one per label present: {"category", "segmentation": RLE, "area", "bbox", "score"}.

        "category_id" is the label map's pixel value; "score" the mean probability. Whole files: outputs/annotations.py.
        """
        annotations = []
        for index in self._present():
            mask, name = self.mask(index), self.labels[index]
            score = float(self.confidence[mask].mean())
            annotations.append({"category_id": index, "category": name, **render.encode_mask(mask), "score": score})
        return annotations

    def to_supervision(self) -> Detections:
        """`supervision.Detections`, one per label present: box, mask, mean probability, label index and name.

        InputError with the command that installs supervision when it is missing. Memory: a byte per pixel and
        label present.
        """
        present = np.array(self._present(), int)
        masks = self.label_map == present[:, None, None]
        confidence = np.array([self.confidence[mask].mean() for mask in masks], np.float32)
        return render.detections(masks, confidence, present, self.labels)
