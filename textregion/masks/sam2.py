"""SAM 2.1 automatic masks: a grid of clicks, three masks each, filtered, sorted, fused (method 9)."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn
from torch.nn import functional as F

from textregion.config import option
from textregion.errors import InputError, at_least
from textregion.masks import filters
from textregion.masks.base import Pixels, Size, register_mask_source, speed_option
from textregion.runtime import autocast, compile_backend, free_memory, in_parts, to_device
from textregion.types import MAX_SOFT_VALUE, RegionMasks

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
LOGIT_LIMIT = 32.0
BYTES_PER_LOW_RES_PIXEL = 448  # of the decoder's working set per prompt, measured in float32 (28 MiB at 256 x 256)
MEMORY_SHARE = 0.7  # of the free memory of a CUDA device that the decoder may take
CPU_PROMPTS = 32  # on a CPU more at once only take more memory


@dataclass(frozen=True)
class ImageFeatures:
    """SAM 2's embedding of one image: (1, C, s/16, s/16) and its two high-resolution maps."""

    embedding: Float[Tensor, "1 C e e"]
    high_resolution: list[Tensor]


@register_mask_source("sam2", needs="a SAM 2 model of the sam2 package")
@dataclass(eq=False)
class Sam2MaskGenerator:
    """Proposes regions with a SAM 2 model of the `sam2` package; the help of every option is its documentation."""

    model: nn.Module = field(repr=False)
    points_per_side: int = option(
        16, "s * s clicks, at least 1; more finds smaller things, time grows with s^2 (Cityscapes 36)"
    )
    points_per_batch: int = speed_option(
        2048,
        "most clicks decoded at once, at least 1; fewer are taken where the free memory of a CUDA device asks for it "
        "(about 28 MiB a click) or does not suffice, and on a CPU, where more than 32 are not faster. Same result",
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
    compile: bool | str = speed_option(
        False,
        "torch.compile of image encoder and mask decoder, for the shapes they meet; the first image then takes "
        "minutes. Rounding changes with it, so in some images other masks survive: leave it off to reproduce "
        "benchmarks. True, False, or a torch.compile backend by name",
    )

    def __post_init__(self) -> None:
        for name, least in (("points_per_side", 1), ("points_per_batch", 1), ("min_size", 0)):
            at_least(name, getattr(self, name), least)
        for name in ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh", "fuse_mask_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"got {name} {getattr(self, name)!r}, expected a number in 0..1")
        self.model = self.model.eval().requires_grad_(False)
        wanted, self.compile = self.compile, ""
        self.compile_model(wanted)

    @classmethod
    def example(cls, sam2: nn.Module, image_size: Size) -> "Sam2MaskGenerator":
        """Four clicks, nothing filtered."""
        return cls(sam2, 2, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0, min_size=0)

    def compile_model(self, compile: bool | str) -> None:
        """Compile image encoder and mask decoder in place, unless False; see the option of that name."""
        backend = compile_backend(compile)
        if backend is not None:
            self.compile = backend
            for module in (self.model.image_encoder, self.model.sam_mask_decoder):
                module.compile(backend=backend, dynamic=False)

    @property
    def prompts_at_once(self) -> int:
        """How many prompts the decoder takes in one batch: `points_per_batch`, or what the device allows."""
        side = 4 * self.model.image_size // self.model.backbone_stride
        free = free_memory(self.device)
        if free is None:
            limit = CPU_PROMPTS if self.device.type == "cpu" else self.points_per_batch
        else:
            limit = int(free * MEMORY_SHARE) // (BYTES_PER_LOW_RES_PIXEL * side**2)
        return max(1, min(self.points_per_batch, limit))

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> "Sam2MaskGenerator":
        """Move the model; returns self."""
        self.model.to(device)
        return self

    @torch.inference_mode()
    def generate(self, image: Pixels, image_size: Size | None = None, mask_size: Size | None = None) -> RegionMasks:
        """Regions of an image, sorted whole, part, subpart, each by predicted IoU; R = 0 is a normal result.

        image: RGB bytes as resized for the method. image_size: (H, W) of the original, for boxes and output.
        mask_size: full size of the masks. Both default to the given image's own.
        """
        size = tuple(image.shape[:2])
        features = self.encode(image)
        logits, predicted_iou = self.decode_points(features, filters.point_grid(self.points_per_side))
        return self.select(logits, predicted_iou, tuple(image_size or size), tuple(mask_size or size))

    def encode(self, image: Pixels) -> ImageFeatures:
        """The image squashed to SAM 2's input (bilinear, no antialias), normalised, encoded (method 9.1)."""
        model, device = self.model, self.device
        pixels = to_device(image, device).permute(2, 0, 1)[None].float() / 255
        side = model.image_size
        pixels = F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False, antialias=False)
        mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (MEAN, STD))
        with autocast(device, self.dtype):
            *high_resolution, embedding = model.forward_image((pixels - mean) / std)["backbone_fpn"]
            if model.directly_add_no_mem_embed:
                embedding = embedding + model.no_mem_embed.reshape(1, -1, 1, 1)
        return ImageFeatures(embedding, high_resolution)

    def decode_points(
        self, features: ImageFeatures, points: Float32[Tensor, "N 2"]
    ) -> tuple[Float[Tensor, "N 3 h w"], Float32[Tensor, "N 3"]]:
        """Low-res logits (half precision, clamped to +-32) and predicted IoU of single clicks (method 9.2, 9.3).

        points: (x, y) in [0, 1] of the image.
        """
        labels = torch.ones(len(points), 1, dtype=torch.int)
        return self.decode_with_tokens(features, points[:, None], labels)[:2]

    def decode_with_tokens(
        self,
        features: ImageFeatures,
        points: Float32[Tensor, "N K 2"],
        labels: Int[Tensor, "N K"],
        multimask_output: bool = True,
    ) -> tuple[Float[Tensor, "N M h w"], Float32[Tensor, "N M"], Float32[Tensor, "N Z T"]]:
        """Low-res logits (half precision, clamped to +-32), predicted IoU and tokens of N prompts of K points each.

        points: (x, y) in [0, 1] of the image. labels: 1 part of the region, 0 not, 2 and 3 the top left and
        bottom right corners of a box. multimask_output: M = 3 masks (whole, part, subpart), else M = 1.
        The tokens are the decoder's third return value; Z is 1, the token of the single mask, wherever
        `multimask_output` is off (RegionSpot 5).
        """
        points, labels = points.to(self.device) * self.model.image_size, labels.to(self.device)

        def decode(start: int, stop: int) -> tuple[Tensor, ...]:
            return self._decode(features, points[start:stop], labels[start:stop], multimask_output)

        outputs = in_parts(decode, len(points), self.prompts_at_once, self.device)
        logits, predicted_iou, tokens = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        return logits, predicted_iou, tokens

    def _decode(
        self, features: ImageFeatures, points: Tensor, labels: Tensor, multimask_output: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        model = self.model
        with autocast(self.device, self.dtype):
            sparse, dense = model.sam_prompt_encoder(points=(points, labels), boxes=None, masks=None)
            masks, predicted_iou, tokens, _ = model.sam_mask_decoder(
                image_embeddings=features.embedding,
                image_pe=model.sam_prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask_output,
                repeat_image=True,
                high_res_features=features.high_resolution,
            )
        return masks.clamp(-LOGIT_LIMIT, LOGIT_LIMIT).half(), predicted_iou.float(), tokens.float()

    def select(
        self,
        logits: Float[Tensor, "N 3 h w"],
        predicted_iou: Float32[Tensor, "N 3"],
        image_size: Size,
        mask_size: Size,
    ) -> RegionMasks:
        """Filter, sort and fuse the candidates of N clicks (method 9.3 to 9.9)."""
        candidates, scores = filters.order_candidates(logits), filters.order_candidates(predicted_iou)
        index, stability, boxes = self.filter(candidates, scores)
        if self.fuse_mask or self.return_non_overlapping:  # otherwise best predicted IoU first, as NMS left them
            order = filters.sort_by_level(index, scores[index], len(logits))
            index, stability, boxes = index[order], stability[order], boxes[order]
        if len(index) == 0:
            return RegionMasks.empty(image_size, logits.device)
        soft = candidates[index].clamp(0, MAX_SOFT_VALUE)
        masks = RegionMasks(soft, image_size, mask_size, None, None, scores[index], stability)
        if self.fuse_mask:
            masks = filters.merge(masks, filters.fusion_groups(masks, boxes, self.fuse_mask_threshold))
        return filters.without_overlap(masks, self.min_size) if self.return_non_overlapping else masks

    def filter(
        self, candidates: Float[Tensor, "M h w"], scores: Float32[Tensor, " M"]
    ) -> tuple[Int[Tensor, " K"], Float32[Tensor, " K"], Int[Tensor, "K 4"]]:
        """Candidates that pass predicted IoU, stability, box NMS and size, in NMS order (method 9.4, 9.5).

        Returns (index into candidates, stability, inclusive low-res box) of each survivor.
        """
        index = (scores > self.pred_iou_thresh).nonzero()[:, 0]
        stability = filters.stability_scores(candidates[index])
        stable = stability >= self.stability_score_thresh  # NaN compares false: 0/0 is dropped
        index, stability = index[stable], stability[stable]
        on = candidates[index] > 0
        boxes = filters.inclusive_boxes(on)
        keep = filters.suppress(boxes, scores[index], self.box_nms_thresh)
        keep = keep[on[keep].sum((1, 2)) > self.min_size]
        return index[keep], stability[keep], boxes[keep]
