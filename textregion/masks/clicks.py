"""Automatic masks by clicks, for every model that answers them as SAM 2 does (method 9)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn
from torch.nn import functional as F

from textregion.config import option
from textregion.devices import autocast, constants, free_memory, move, to_device
from textregion.errors import at_least, fraction
from textregion.masks import filters
from textregion.masks.base import Pixels, Size, speed_option
from textregion.runtime import in_parts
from textregion.types import LOGIT_CUT, RegionMasks

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
LOGIT_LIMIT = 32.0
BYTES_PER_LOW_RES_PIXEL = 448  # of the decoder's working set per prompt, measured in float32 (28 MiB at 256 x 256)
MEMORY_SHARE = 0.7  # of the free memory of a CUDA device that the decoder may take
CPU_PROMPTS = 4  # on a CPU more at once are slower and take more memory
NOTHING_FILTERED = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0, "min_size": 0}
Part = TypeVar("Part")


@dataclass(frozen=True)
class ImageFeatures:
    """SAM 2's embedding of one image: (1, C, s/16, s/16) and its two high-resolution maps."""

    embedding: Float[Tensor, "1 C e e"]
    high_resolution: list[Tensor]


@dataclass(frozen=True)
class Decoded:
    """What the decoder says of n prompts. tokens: its third return value, Z of them.

    logits: gives the low-res logits (k, M, h, w) of chosen prompts (k,), in half precision, clamped to +-32.
    """

    predicted_iou: Float32[Tensor, "n M"]
    tokens: Float32[Tensor, "n Z T"]
    logits: Callable[[Int[Tensor, " k"]], Float[Tensor, "k M h w"]]


@dataclass(frozen=True)
class Candidates:
    """K of the masks of N clicks. index: their place among all 3 N in the order of `filters.order_candidates`.

    stability and boxes (inclusive, low-res): of method 9.4. area: low-res pixels. place: in the concatenated batches.
    batches: low-res logits in half precision, as the decoder gave them, so that none is copied before it is chosen.
    """

    clicks: int
    index: Int[Tensor, " K"]
    predicted_iou: Float32[Tensor, " K"]
    stability: Float32[Tensor, " K"]
    boxes: Int[Tensor, "K 4"]
    area: Int[Tensor, " K"]
    place: Int[Tensor, " K"]
    batches: tuple[Float[Tensor, "_ h w"], ...]

    @classmethod
    def join(cls, parts: "Sequence[Candidates]") -> "Candidates":
        """All candidates of several batches of the same clicks, by index."""
        names = ("index", "predicted_iou", "stability", "boxes", "area", "place")
        batches = tuple(batch for part in parts for batch in part.batches)
        starts = [0, *accumulate(sum(map(len, part.batches)) for part in parts)]
        moved = [replace(part, place=part.place + start) for part, start in zip(parts, starts, strict=False)]
        joined = {name: torch.cat([getattr(part, name) for part in moved]) for name in names}
        return cls(parts[0].clicks, **joined, batches=batches).take(joined["index"].argsort())

    def take(self, which: Int[Tensor, " k"]) -> "Candidates":
        """Those at some places, in that order."""
        small = (self.index, self.predicted_iou, self.stability, self.boxes, self.area, self.place)
        return Candidates(self.clicks, *(tensor[which] for tensor in small), self.batches)

    def logits(self) -> Float[Tensor, "K h w"]:
        """Low-res logits of all candidates, in their order."""
        if len(self.batches) == 1:
            return self.batches[0][self.place]
        place = self.place.cpu()
        ends = torch.tensor(list(accumulate(map(len, self.batches))))
        batch_of = torch.searchsorted(ends, place, right=True)
        of_batch = [(batch_of == n).nonzero()[:, 0] for n in range(len(ends))]
        starts = [0, *ends.tolist()]
        inside = [place[which] - start for which, start in zip(of_batch, starts, strict=False)]
        *inside, order = move([*inside, torch.cat(of_batch).argsort()], self.place.device)
        return torch.cat([batch[which] for batch, which in zip(self.batches, inside, strict=True)])[order]


@dataclass(eq=False)
class ClickMaskGenerator(ABC):
    """Proposes regions with a model that answers clicks as SAM 2 does; the help of every option is its documentation.

    A family of models says how it encodes an image and how it answers (`encode`, `answering`), and the mean and
    standard deviation of its input.
    """

    mean: ClassVar = MEAN
    std: ClassVar = STD

    model: nn.Module = field(repr=False)
    points_per_side: int = option(
        16, "s * s clicks, at least 1; more finds smaller things, time grows with s^2 (Cityscapes 36)"
    )
    points_per_batch: int = speed_option(
        2048,
        "most clicks decoded at once, at least 1; fewer are taken where the free memory of a CUDA device asks for it "
        "(about 28 MiB a click) or does not suffice, and on a CPU, where more than 4 are not faster. Same result",
    )
    pred_iou_thresh: float = option(
        0.6, "0..1, masks whose predicted IoU is not above it are dropped; higher is fewer and cleaner"
    )
    stability_score_thresh: float = option(
        0.6, "0..1, masks less stable under a shift of the logit threshold are dropped"
    )
    box_nms_thresh: float = option(
        0.9, "0..1, of two masks whose boxes overlap more, the worse is dropped; 1 keeps all"
    )
    min_size: int = option(100, "masks of at most this many low-res pixels are dropped (0 keeps all)")
    fuse_mask: bool = option(True, "join masks that contain each other")
    fuse_mask_threshold: float = option(0.8, "0..1, share of the smaller mask's mass from which two are joined")
    return_non_overlapping: bool = option(False, "give every pixel to the first mask in order")
    dtype: torch.dtype = option(
        torch.bfloat16, "autocast type on CUDA (float32 switches autocast off); a CPU always computes in float32"
    )

    def __post_init__(self) -> None:
        for name, least in (("points_per_side", 1), ("points_per_batch", 1), ("min_size", 0)):
            at_least(name, getattr(self, name), least)
        for name in ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh", "fuse_mask_threshold"):
            fraction(name, getattr(self, name))
        self.model = self.model.eval().requires_grad_(False)

    @property
    @abstractmethod
    def input_side(self) -> int:
        """Side in pixels of the square that the model sees."""

    @property
    @abstractmethod
    def low_res_side(self) -> int:
        """Side of the masks that the decoder gives."""

    @abstractmethod
    def encode(self, image: Pixels) -> ImageFeatures:
        """The image squashed to the model's input, normalised, encoded (method 9.1)."""

    @abstractmethod
    def answering(self, features: ImageFeatures) -> Callable[[Tensor, Tensor, bool], Decoded]:
        """What says the answers to n prompts: points (n, K, 2) in pixels of the input, labels (n, K), whether three."""

    @property
    def prompts_at_once(self) -> int:
        """How many prompts the decoder takes in one batch: `points_per_batch`, or what the device allows."""
        free = free_memory(self.device)
        if free is None:
            limit = CPU_PROMPTS if self.device.type == "cpu" else self.points_per_batch
        else:
            limit = int(free * MEMORY_SHARE) // (BYTES_PER_LOW_RES_PIXEL * self.low_res_side**2)
        return max(1, min(self.points_per_batch, limit))

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> "ClickMaskGenerator":
        """Move the model; returns self."""
        self.model.to(device)
        constants(self.device, self.mean, self.std)  # uploaded with the model, not with the first image
        return self

    @torch.inference_mode()
    def generate(self, image: Pixels, image_size: Size | None = None, mask_size: Size | None = None) -> RegionMasks:
        """Regions of an image, sorted whole, part, subpart, each by predicted IoU; R = 0 is a normal result."""
        size = tuple(image.shape[:2])
        found = self.candidates_of(self.encode(image), filters.point_grid(self.points_per_side)[:, None])
        return self.select(found, tuple(image_size or size), tuple(mask_size or size))

    def candidates_of(self, features: ImageFeatures, points: Float32[Tensor, "N 1 2"]) -> Candidates:
        """What passes predicted IoU and stability of the masks of N clicks, (x, y) in [0, 1] of the image."""

        def candidates(start: int, found: Decoded) -> Candidates:
            return self.candidates(found.predicted_iou, found.logits, start, len(points))

        return Candidates.join(self._decode(features, points, None, True, candidates))

    def pixels(self, image: Pixels) -> Float32[Tensor, "1 3 s s"]:
        """The image squashed to the model's input (bilinear, no antialias) and normalised (method 9.1)."""
        device, side = self.device, self.input_side
        pixels = to_device(image, device).permute(2, 0, 1)[None].float() / 255
        pixels = F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False, antialias=False)
        mean, std = constants(device, self.mean, self.std)[..., None, None]
        return (pixels - mean) / std

    def decode_with_tokens(
        self,
        features: ImageFeatures,
        points: Float32[Tensor, "N K 2"],
        labels: Int[Tensor, "N K"] | None = None,
        multimask_output: bool = True,
    ) -> tuple[Float[Tensor, "N M h w"], Float32[Tensor, "N M"], Float32[Tensor, "N Z T"]]:
        """Low-res logits (half precision, clamped to +-32), predicted IoU and tokens of N prompts of K points each.

        points: (x, y) in [0, 1] of the image. labels: 1 part of the region (the default), 0 not, 2 and 3 the top left
        and bottom right corners of a box. multimask_output: M = 3 masks (whole, part, subpart), else M = 1.
        The tokens are the decoder's third return value; Z is 1, the token of the single mask, wherever
        `multimask_output` is off (RegionSpot 5).
        """

        def whole(_start: int, found: Decoded) -> tuple[Tensor, Tensor, Tensor]:
            every = torch.arange(len(found.tokens), device=found.tokens.device)
            return found.logits(every), found.predicted_iou, found.tokens

        outputs = self._decode(features, points, labels, multimask_output, whole)
        logits, predicted_iou, tokens = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        return logits, predicted_iou, tokens

    def _decode(
        self,
        features: ImageFeatures,
        points: Float32[Tensor, "N K 2"],
        labels: Int[Tensor, "N K"] | None,
        multimask_output: bool,
        work: Callable[[int, Decoded], Part],
    ) -> list[Part]:
        """[work(start, decoded), …] over batches of prompts, as many at once as fit; else as decode_with_tokens."""
        labels = torch.ones(points.shape[:2], dtype=torch.int) if labels is None else labels
        points, labels = move([points, labels], self.device)
        points = points * self.input_side
        answer = self.answering(features)

        def batch(start: int, stop: int) -> Part:
            with autocast(self.device, self.dtype):
                return work(start, answer(points[start:stop], labels[start:stop], multimask_output))

        return in_parts(batch, len(points), self.prompts_at_once, self.device)

    def candidates(
        self,
        predicted_iou: Float32[Tensor, "n 3"],
        logits: Callable[[Int[Tensor, " k"]], Float[Tensor, "k 3 h w"]],
        start: int,
        clicks: int,
    ) -> Candidates:
        """The masks of n clicks that pass predicted IoU and stability (method 9.4).

        logits: gives those of chosen clicks; not asked about clicks that have no mask left. start: the place of the
        first one among all `clicks`.
        """
        good = predicted_iou > self.pred_iou_thresh
        chosen = good.any(1).nonzero()[:, 0]
        click, output = good[chosen].nonzero(as_tuple=True)
        index = (2 - output) * clicks + start + chosen[click]
        found = logits(chosen)[click, output]
        stability = filters.stability_scores(found)
        stable = (stability >= self.stability_score_thresh).nonzero()[:, 0]  # NaN compares false: 0/0 is dropped
        found, scores = found[stable], predicted_iou[chosen[click], output][stable]
        on = found > LOGIT_CUT
        boxes, area = filters.inclusive_boxes(on), on.sum((1, 2))
        place = torch.arange(len(found), device=found.device)
        return Candidates(clicks, index[stable], scores, stability[stable], boxes, area, place, (found,))

    def select(self, candidates: Candidates, image_size: Size, mask_size: Size) -> RegionMasks:
        """Filter, sort and fuse the candidates of all clicks (method 9.4 to 9.9). candidates: by index."""
        found = candidates.take(self.kept(candidates))
        if len(found.index) == 0:
            return RegionMasks.empty(image_size, found.index.device)
        scores = {"predicted_iou": found.predicted_iou, "stability": found.stability}
        masks = RegionMasks(found.logits(), image_size, mask_size, **scores, cut=LOGIT_CUT)
        if self.fuse_mask:
            masks = filters.merge(masks, filters.fusion_groups(masks, found.boxes, self.fuse_mask_threshold))
        return filters.without_overlap(masks, self.min_size) if self.return_non_overlapping else masks

    def kept(self, candidates: Candidates) -> Int[Tensor, " k"]:
        """Places of the candidates that pass box NMS and size (method 9.4, 9.5), in the order of method 9.7.

        Where nothing is fused or taken from one another, best predicted IoU first, as NMS leaves them.
        """
        keep = filters.suppress(candidates.boxes, candidates.predicted_iou, self.box_nms_thresh)
        keep = keep[candidates.area[keep] > self.min_size]
        if self.fuse_mask or self.return_non_overlapping:
            scores = candidates.predicted_iou[keep]
            keep = keep[filters.sort_by_level(candidates.index[keep], scores, candidates.clicks)]
        return keep


def limited(logits: Tensor) -> Tensor:
    """Logits as candidates keep them: clamped, half precision (method 9.2, 9.3)."""
    return logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT).half()
