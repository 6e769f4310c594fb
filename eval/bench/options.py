"""What a benchmark is asked for, and inputs made from it: the same in every process."""

from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import torch
from jaxtyping import Float16, Float32
from torch import Tensor, nn

from textregion.backbones import Backbone, BackboneSpec, find_spec
from textregion.backbones.loading import build_model, random_backbone, stand_in_tokenizer, wrap
from textregion.crops import CropGrid
from textregion.masks.filters import inclusive_boxes
from textregion.presets import build, find_preset
from textregion.runtime import resolve_dtype
from textregion.segmenter import TextRegionSegmenter
from textregion.types import RegionMasks

ORACLES = Path(__file__).parents[2] / "tests" / "oracles.py"
LOW_RES = 256  # side of SAM 2's masks
SEED = 0


@dataclass(frozen=True)
class Options:
    """One benchmark's sizes.

    preset: whose architecture. size: (H, W) of the resized image. regions, labels: R and L. device: torch's name.
    random_weights: real architecture, no file. threads: of the CPU, 0 for all. limit: bytes the obvious form may
    take; a larger one is measured on the part that fits and scaled.
    """

    preset: str
    size: tuple[int, int] = (672, 1008)
    regions: int = 100
    labels: int = 150
    device: str = "cpu"
    random_weights: bool = True
    threads: int = 0
    limit: int = 2 * 2**30

    @property
    def spec(self) -> BackboneSpec:
        """The preset's row in the registry of backbones."""
        return find_spec(find_preset(self.preset).backbone)


def oracles() -> ModuleType:
    """The obvious formulations: they live with the tests, which is no package."""
    loader = SourceFileLoader("oracles", str(ORACLES))
    module = ModuleType(loader.name)
    loader.exec_module(module)
    return module


def backbone_of(options: Options) -> Backbone:
    """The complete model: random weights, or those that textregion/weights.py finds."""
    if options.random_weights:
        device = torch.device(options.device)
        return random_backbone(options.spec).to(device, resolve_dtype("auto", device))
    return segmenter_of(options, mask_generator=None).backbone


def segmenter_of(options: Options, **parts) -> TextRegionSegmenter:
    """The preset as everybody gets it."""
    weights = {"random_weights": options.random_weights}
    return build(TextRegionSegmenter, options.preset, device=options.device, **weights, **parts)


def pooling_part(options: Options) -> Backbone:
    """A backbone with real widths but one block per tower: all that pooling needs, built in a second."""
    with torch.device("meta"):
        model = build_model(options.spec)
    tower = getattr(model.visual, "trunk", None) or model.visual.transformer
    name = "blocks" if hasattr(tower, "blocks") else "resblocks"
    setattr(tower, name, nn.Sequential(getattr(tower, name)[-1]))
    text = getattr(model, "text", model)
    text.transformer.resblocks = nn.ModuleList()
    model.to_empty(device=options.device)
    generator = torch.Generator().manual_seed(SEED)
    for parameter in model.parameters():
        fan_in = parameter.shape[-1] if parameter.ndim else 1
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
    return wrap(options.spec, model, stand_in_tokenizer(model))


def patch_grid(options: Options) -> tuple[int, int]:
    """(Ph, Pw) of the stitched grid of an image of that size."""
    spec, patch = options.spec, patch_size(options.spec)
    return CropGrid(*options.size, spec.crop_size).patch_shape(spec.crop_size // patch)


def patch_size(spec: BackboneSpec) -> int:
    """Side of a patch in pixels."""
    with torch.device("meta"):
        return wrap(spec, build_model(spec), lambda texts: torch.zeros(len(texts), 1)).patch_size


def soft_masks(count: int, side: int = LOW_RES, seed: int = SEED) -> Float16[Tensor, "M side side"]:
    """Ellipses with soft wavy borders, values 0..3, many of them near copies or parts of an earlier one.

    Made like what is left of SAM 2's candidates: families of one to five, from 0.2 % to about half of the image.
    """
    random = torch.Generator().manual_seed(seed)
    number = lambda low, high: low + (high - low) * float(torch.rand((), generator=random))  # noqa: E731
    y, x = torch.meshgrid(*[(torch.arange(side) + 0.5) / side] * 2, indexing="ij")
    masks: list[Tensor] = []
    while len(masks) < count:
        centre, axes = (number(0, 1), number(0, 1)), (number(0.03, 0.4), number(0.03, 0.4))
        for _ in range(1 + int(number(0, 5))):
            grow, shift = number(0.5, 1.15), number(-0.03, 0.03)
            distance = ((y - centre[0] - shift) / axes[0]) ** 2 + ((x - centre[1] + shift) / axes[1]) ** 2
            waves = 0.1 * torch.sin(number(5, 60) * x + number(0, 6)) * torch.sin(number(5, 60) * y)
            masks.append(((grow - distance.sqrt() + waves) * 20).clamp(0, 3))
    masks = [mask for mask in masks if bool((mask > 0).sum() > side * side / 500)] or masks
    while len(masks) < count:
        masks.extend(masks[: count - len(masks)])
    return torch.stack(masks[:count]).half()


def region_masks(options: Options) -> RegionMasks:
    """R masks stored at SAM 2's low resolution, meant at the image's size."""
    return RegionMasks(soft_masks(options.regions), options.size, options.size).to(options.device)


def low_res_boxes(masks: RegionMasks) -> Tensor:
    """Inclusive boxes of stored masks, as the mask generator has them at hand."""
    return inclusive_boxes(masks.soft > 0)


def random_features(options: Options, width: int) -> Float32[Tensor, "P C"]:
    """Patch features of an image: normal numbers with a common part, as real ones have."""
    generator = torch.Generator().manual_seed(SEED)
    height, length = patch_grid(options)
    features = torch.randn(height * length, width, generator=generator) + torch.randn(width, generator=generator)
    return features.to(options.device)
