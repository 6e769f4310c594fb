"""SAM 2.1: models, on the `sam2` package's own classes and YAML files, and their automatic masks (method 9)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.resources import files
from itertools import accumulate
from os.path import isfile
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from jaxtyping import Float, Float32, Int
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from textregion.checkpoints import load_strictly, read_state
from textregion.config import option
from textregion.devices import autocast, constants, free_memory, move, to_device
from textregion.errors import InputError, at_least, one_of
from textregion.masks import filters
from textregion.masks.base import Pixels, Size, register_mask_source, speed_option
from textregion.masks.click_decoder import SharedImageDecoder
from textregion.masks.sam2_names import MEMORY, MEMORY_MODULES, images_only, is_transformers, to_sam2
from textregion.runtime import compile_backend, in_parts
from textregion.types import LOGIT_CUT, RegionMasks
from textregion.weights import SAM2_VARIABLE, TRANSFORMERS_FILES, Asset
from textregion.yaml_files import read_yaml

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
LOGIT_LIMIT = 32.0
BYTES_PER_LOW_RES_PIXEL = 448  # of the decoder's working set per prompt, measured in float32 (28 MiB at 256 x 256)
MEMORY_SHARE = 0.7  # of the free memory of a CUDA device that the decoder may take
ALLOWED_TARGETS = ("torch.nn.Identity",)  # besides those of sam2: what a model for images puts in place of its memory
MOST_NUMBERS = 500_000_000  # of a model of an own YAML: parameters and what else is computed; SAM 2.1 large has 224 M
SPARE_NUMBERS = 20_000_000  # besides those of the weights that are to be loaded; SAM 2.1 needs 7 M
MOST_VALUES = 2_000  # of such a YAML, aliases written out; SAM 2.1 has at most 234, OmegaConf takes up to 2 ms for each
MOST_STEPS = 20_000  # of torch, while such a model is made; SAM 2.1 large needs 2,069
CPU_PROMPTS = 4  # on a CPU more at once are slower and take more memory
DECODERS = ("shared", "sam2")
UPSCALED_AT_ONCE = 1  # prompts, on a CPU: their maps stay near its caches
Part = TypeVar("Part")


@dataclass(frozen=True)
class Sam2Size:
    """One published SAM 2.1 model: its configuration in the sam2 package and its file on the hub.

    trunk: (width of the first stage, number of blocks), by which a file's size is recognised.
    """

    name: str
    config: str
    repository: str
    megabytes: int
    trunk: tuple[int, int]


SIZES = {
    size.name: size
    for size in (
        Sam2Size("tiny", "sam2.1_hiera_t.yaml", "facebook/sam2.1-hiera-tiny", 156, (96, 12)),
        Sam2Size("small", "sam2.1_hiera_s.yaml", "facebook/sam2.1-hiera-small", 184, (96, 16)),
        Sam2Size("base+", "sam2.1_hiera_b+.yaml", "facebook/sam2.1-hiera-base-plus", 324, (112, 24)),
        Sam2Size("large", "sam2.1_hiera_l.yaml", "facebook/sam2.1-hiera-large", 898, (144, 48)),
    )
}


def find_size(name: str) -> Sam2Size:
    """A published size by name; InputError listing the valid ones."""
    if name not in SIZES:
        raise InputError(f"unknown SAM 2.1 size {name!r}; expected one of {', '.join(SIZES)}")
    return SIZES[name]


def sam2_asset(size: str) -> Asset:
    """The weight file of a size, e.g. sam2.1_hiera_tiny.pt, or transformers' beside it."""
    repository = find_size(size).repository
    own = f"{repository.split('/')[-1].replace('-', '_')}.pt"
    return Asset(f"SAM 2.1 {size}", repository, (own, *TRANSFORMERS_FILES[:1]), SAM2_VARIABLE, "--sam2_checkpoint")


def size_of(model_cfg: str | Path | None) -> str | None:
    """The published size that a size name or a name inside the sam2 package means; None for anything else."""
    name = str(model_cfg)
    return next((s.name for s in SIZES.values() if name in (s.name, s.config, f"configs/sam2.1/{s.config}")), None)


def require_sam2() -> None:
    """InputError that names the other way to SAM 2 where the package sam2 is not installed."""
    try:
        import_module("sam2")
    except ModuleNotFoundError as error:
        way = "install it as setup_env.sh does, or take the mask source sam2-hf, which needs transformers instead"
        raise InputError(f"SAM 2 needs the package sam2, which is not installed; {way}") from error


def config_path(model_cfg: str | Path) -> Path:
    """The YAML of a size name, of a name inside the sam2 package, or of an own file; InputError otherwise.

    model_cfg: "large", "sam2.1_hiera_l.yaml", "configs/sam2.1/sam2.1_hiera_l.yaml" or a path.
    """
    require_sam2()
    package = Path(str(files("sam2")))
    name = SIZES[model_cfg].config if model_cfg in SIZES else str(model_cfg)
    for candidate in (Path(name), package / name, package / "configs" / "sam2.1" / name):
        if isfile(candidate):
            return candidate
    raise InputError(
        f"no SAM 2 configuration {name!r}; expected {', '.join(SIZES)}, a name such as "
        "configs/sam2.1/sam2.1_hiera_l.yaml, or the path of a YAML file"
    )


def build_sam2(model_cfg: str | Path = "large", most_numbers: int = MOST_NUMBERS) -> nn.Module:
    """A SAM 2 with random weights from a configuration; single clicks are never re-decided by stability (method 9.2).

    most_numbers: how large the model of an own YAML may be (`_Bounded`).
    Raises InputError when the YAML cannot be read, does not describe a sam2 model (`_check_targets`), or a larger one.
    """
    path = config_path(model_cfg)
    is_own = Path(str(files("sam2"))) not in path.parents
    try:
        content = read_yaml(path, "sam2's YAML form", MOST_VALUES)
        if not isinstance(content, dict) or "model" not in content:
            raise InputError("it has no key model")
        container: Any = OmegaConf.to_container(OmegaConf.load(path))  # which reads more spellings of numbers
        described = container["model"]
        _check_targets(described)
        with _Bounded(most_numbers) if is_own else nullcontext():
            return instantiate(described, _recursive_=True).eval()
    except (OmegaConfBaseException, InstantiationException, ImportError, AttributeError, ValueError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, (ImportError, OSError)) and not isinstance(cause, ModuleNotFoundError):
            raise cause from None  # a library that cannot be loaded tells its own story
        reason = " ".join(str(error).split()).replace(f"{path} ", "")[:160]
        if isinstance(cause, _TooLargeError):
            reason = str(cause)
        raise InputError(f"{path} is not a SAM 2 configuration ({reason}); expected sam2's YAML form") from error


class _TooLargeError(ValueError):
    """A configuration describes a model beyond its bounds."""


class _Bounded(TorchDispatchMode):
    """While it is on, at most `left` numbers are made, in MOST_STEPS steps at most; _TooLargeError otherwise.

    Each step is tried on shapes alone first, so that what is too large is never asked for.
    """

    def __init__(self, left: int) -> None:
        super().__init__()
        self.most, self.left, self.steps = left, left, MOST_STEPS

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Called by torch for every step."""
        kwargs = kwargs or {}
        self.steps -= len(args[0]) if func is torch.ops.aten.unbind.int else 1
        returns = func._schema.returns
        if any(str(made.type) == "Tensor" and made.alias_info is None for made in returns):  # no view, nor in place
            shapes, named = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
            try:
                made = func(*shapes, **named | ({"device": torch.device("meta")} if "device" in named else {}))
            except NotImplementedError:  # its shape depends on values, which are few then
                made = None
            self.left -= made.numel() if isinstance(made, Tensor) else 0
        if self.left < 0 or self.steps < 0:
            raise _TooLargeError(f"its model has more than {self.most} numbers, or takes too long to make")
        return func(*args, **kwargs)


def _check_targets(described: Any) -> None:
    """InputError unless everything that a configuration would make is a torch module that the package sam2 defines.

    A `_target_` could be any name that Python can import, `os.system` as well. OmegaConf's references (`${…}`) are
    refused: twenty short lines that name each other twice stand for a million values.
    """
    if isinstance(described, str) and "${" in described:
        raise InputError(f"it has the reference {described[:60]!r}; write out what it stands for")
    if isinstance(described, dict):
        if "_target_" in described and not _is_part_of_sam2(described["_target_"]):
            raise InputError(f"it names {described['_target_']!r}, but only sam2's own torch modules are made")
        if described.get("weights_path") is not None:
            raise InputError("it names weights_path, a file that sam2 would load without checks; leave it out")
    parts = described.values() if isinstance(described, dict) else described if isinstance(described, list) else ()
    for part in parts:
        _check_targets(part)


def _is_part_of_sam2(target: Any) -> bool:
    """Whether a name is that of a torch module defined in sam2, and not of what sam2's files import in turn."""
    if target in ALLOWED_TARGETS:
        return True
    if not isinstance(target, str) or not target.startswith("sam2."):
        return False
    module, _, name = target.rpartition(".")
    found = getattr(import_module(module), name)
    return isinstance(found, type) and issubclass(found, nn.Module) and found.__module__.startswith("sam2.")


def load_sam2(path: str | Path, model_cfg: str | Path | None = None) -> nn.Module:
    """A SAM 2 with the weights of a file (the original `.pt` with its `model` key, or safetensors), strictly.

    The names may be those of transformers' Sam2VideoModel, or of its Sam2Model, which has no memory: then the model has
    none either, and is for images alone. model_cfg: as for `config_path`; None finds the published size the file
    belongs to. Raises InputError: missing, truncated, unsafe, or of another architecture.
    """
    found = read_state(path)
    state = to_sam2(found)
    numbers = sum(value.numel() for value in state.values())
    most = min(MOST_NUMBERS, numbers + SPARE_NUMBERS)
    model = build_sam2(model_cfg if model_cfg is not None else matching_size(state, path), most)
    if is_transformers(found) and images_only(state):
        for name in MEMORY_MODULES:
            setattr(model, name, nn.Identity())
        own = {name: value for name, value in model.state_dict().items() if name.startswith(MEMORY)}
        state = {name: torch.zeros_like(value) for name, value in own.items()} | state
    load_strictly(model, state, f"SAM 2 ({model_cfg})" if model_cfg is not None else "SAM 2.1", path)
    return model


def matching_size(state: dict[str, Tensor], path: str | Path) -> str:
    """Which published size a state dict belongs to, by the width and depth of its image trunk; InputError if none."""
    patches = state.get("image_encoder.trunk.patch_embed.proj.weight")
    blocks = {name.split(".")[3] for name in state if name.startswith("image_encoder.trunk.blocks.")}
    for size in SIZES.values():
        if patches is not None and (len(patches), len(blocks)) == size.trunk:
            return size.name
    valid = ", ".join(SIZES)
    raise InputError(f"{path} is none of the SAM 2.1 sizes {valid}; give its YAML as model_cfg if it is another SAM 2")


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
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"got {name} {getattr(self, name)!r}, expected a number in 0..1")
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


@register_mask_source("sam2", needs="a SAM 2 model of the sam2 package")
@dataclass(eq=False)
class Sam2MaskGenerator(ClickMaskGenerator):
    """Proposes regions with a SAM 2 model of the `sam2` package."""

    decoder: str = option(
        "shared",
        "shared: the mask decoder's function with what all clicks share computed once, about twice as fast; sam2: the "
        "package's own, for models that are built otherwise. Equal up to rounding",
        choices=DECODERS,
    )
    compile: bool | str = option(
        False,
        "torch.compile of image encoder and, with decoder sam2, mask decoder, for the shapes they meet; the first "
        "image then takes minutes. Rounding changes with it, so in some images other masks survive: leave it off to "
        "reproduce benchmarks. True, False, or a torch.compile backend by name",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("decoder", self.decoder, DECODERS)
        self._shared = SharedImageDecoder(self.model) if self.decoder == "shared" else None
        wanted, self.compile = self.compile, ""
        self.compile_model(wanted)

    @classmethod
    def example(cls, sam2: nn.Module, image_size: Size) -> "Sam2MaskGenerator":
        """Four clicks, nothing filtered."""
        return cls(sam2, 2, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0, min_size=0)

    def compile_model(self, compile: bool | str) -> None:
        """Compile image encoder and sam2's mask decoder in place, unless False; see the option of that name."""
        backend = compile_backend(compile)
        if backend is not None:
            self.compile = backend
            for module in (self.model.image_encoder, self.model.sam_mask_decoder):
                module.compile(backend=backend, dynamic=False)

    @property
    def input_side(self) -> int:
        """Side in pixels of the square that the model sees."""
        return self.model.image_size

    @property
    def low_res_side(self) -> int:
        """Side of the masks that the decoder gives."""
        return 4 * self.model.image_size // self.model.backbone_stride

    def encode(self, image: Pixels) -> ImageFeatures:
        """The image squashed to SAM 2's input (bilinear, no antialias), normalised, encoded (method 9.1)."""
        with autocast(self.device, self.dtype):
            *high_resolution, embedding = self.model.forward_image(self.pixels(image))["backbone_fpn"]
            if self.model.directly_add_no_mem_embed:
                embedding = embedding + self.model.no_mem_embed.reshape(1, -1, 1, 1)
        return ImageFeatures(embedding, high_resolution)

    def answering(self, features: ImageFeatures) -> Callable[[Tensor, Tensor, bool], Decoded]:
        """The prompt encoder and one of the two decoders."""
        ask = self._ask_package if self._shared is None else self._ask_shared(features, self._shared)

        def answer(points: Tensor, labels: Tensor, multimask_output: bool) -> Decoded:
            prompts = self.model.sam_prompt_encoder((points, labels), None, None)
            return ask(features, prompts, multimask_output)

        return answer

    def _ask_shared(self, features: ImageFeatures, decoder: SharedImageDecoder) -> Callable[..., Decoded]:
        """`SharedImageDecoder` for all prompts on one image."""
        with autocast(self.device, self.dtype):
            image = decoder.image(features.embedding, features.high_resolution)
        at_once = UPSCALED_AT_ONCE if self.device.type == "cpu" else self.points_per_batch

        def ask(_features: ImageFeatures, prompts: tuple[Tensor, Tensor], multimask_output: bool) -> Decoded:
            attended = decoder.attend(image, prompts[0])

            def logits(chosen: Int[Tensor, " k"]) -> Float[Tensor, "k M h w"]:
                parts = chosen.split(at_once)
                masks = (decoder.masks(image, attended.take(part), multimask_output) for part in parts)
                return torch.cat([limited(part) for part in masks])

            tokens = decoder.mask_tokens(attended, multimask_output)
            return Decoded(decoder.predicted_iou(attended, multimask_output).float(), tokens.float(), logits)

        return ask

    def _ask_package(self, features: ImageFeatures, prompts: tuple[Tensor, Tensor], multimask_output: bool) -> Decoded:
        """The package's own decoder."""
        masks, predicted_iou, tokens, _ = self.model.sam_mask_decoder(
            image_embeddings=features.embedding,
            image_pe=self.model.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=prompts[0],
            dense_prompt_embeddings=prompts[1],
            multimask_output=multimask_output,
            repeat_image=True,
            high_res_features=features.high_resolution,
        )
        return Decoded(predicted_iou.float(), tokens.float(), limited(masks).__getitem__)


def limited(logits: Tensor) -> Tensor:
    """Logits as candidates keep them: clamped, half precision (method 9.2, 9.3)."""
    return logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT).half()
