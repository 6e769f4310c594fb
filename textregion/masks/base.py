"""What a source of regions must offer, the registry of sources, and what decides the masks of one."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from textregion.devices import dtype_name
from textregion.errors import InputError
from textregion.types import RegionMasks

Pixels = UInt8[np.ndarray, "h w 3"]
Size = tuple[int, int]  # (height, width)
Source = TypeVar("Source", bound=type)


@runtime_checkable
class MaskGenerator(Protocol):
    """Anything that proposes regions for an image."""

    def to(self, device: torch.device | str) -> "MaskGenerator":
        """Move to a device; returns self."""

    def generate(self, image: Pixels, image_size: Size | None = None, mask_size: Size | None = None) -> RegionMasks:
        """Masks of the image. image_size: the original's (H, W); mask_size: at which masks are meant; both default
        to the given image's own.
        """


class SourceWithoutModel:
    """The half of a mask generator that sources without a model share: they only remember where masks shall be put."""

    device = torch.device("cpu")

    def to(self, device: torch.device | str) -> "SourceWithoutModel":
        """Where the masks shall be put; returns self."""
        self.device = torch.device(device)
        return self


@dataclass(frozen=True)
class MaskSource:
    """A kind of mask generator. needs: what its constructor must be given; '' if nothing. repository: the hub's
    "owner/name" whose weights it takes where none are given; its class then has `from_weights(where, root, **options)`.
    gated: whether the hub gives them to those alone who have asked for them.

    The generator's class has `example(sam2, image_size)`, a small instance on which tests ask the contract; sam2 is a
    SAM 2 model.
    """

    name: str
    generator: type[MaskGenerator]
    needs: str = ""
    repository: str = ""
    gated: bool = False

    def make(self, weights: str | Path | None = None, root: str | Path | None = None, **options: Any) -> MaskGenerator:
        """One that needs the image alone. weights, root: of a source with a repository; options: its fields.

        InputError where it must be given more.
        """
        if self.repository:
            return self.generator.from_weights(weights or self.repository, root, **options)
        if self.needs:
            must = f"the mask source {self.name} must be given {self.needs}"
            raise InputError(f"{must}; make it and pass the object itself")
        return self.generator(**options)


SOURCES: dict[str, MaskSource] = {}


def register_mask_source(
    name: str, needs: str = "", repository: str = "", gated: bool = False
) -> Callable[[Source], Source]:
    """Class decorator: make a mask generator known by name."""

    def add(generator: Source) -> Source:
        SOURCES[name] = MaskSource(name, generator, needs, repository, gated)
        return generator

    return add


def find_source(name: str) -> MaskSource:
    """A registered source; InputError listing the valid names."""
    if name not in SOURCES:
        raise InputError(f"unknown mask source {name!r}; expected one of {', '.join(SOURCES)}")
    return SOURCES[name]


def automatic_sources() -> tuple[str, ...]:
    """Names of the sources that need the image alone: the preset's SAM 2, those made by their defaults, those whose
    weights are on the hub.
    """
    return ("sam2", *(name for name, source in SOURCES.items() if source.repository or not source.needs))


def speed_option(default: Any, help: str, **flag: Any) -> Any:
    """A dataclass field like `option`, of how a source works and not of what it finds: no part of its description."""
    return field(default=default, metadata={"help": help, "flag": flag, "decides": False})


def describe_source(source: MaskGenerator | None) -> dict[str, Any]:
    """What decides a source's masks, JSON-able: {"source": its registered name or its class's, **its options}.

    Options are a dataclass's fields without `speed_option`s, else the public attributes; arrays count by a hash of
    their content, models and the like do not count. A wrapper with a `generator` inside (a cache) is looked through;
    None stands for masks that are given.
    """
    if source is None:
        return {"source": "given"}
    if isinstance(inner := getattr(source, "generator", None), MaskGenerator):
        return describe_source(inner)
    if is_dataclass(source):
        options = {f.name: getattr(source, f.name) for f in fields(source) if f.metadata.get("decides", True)}
    else:
        options = {name: value for name, value in vars(source).items() if not name.startswith("_")}
    told = {name: _told(value) for name, value in options.items()}
    known = {entry.generator: name for name, entry in SOURCES.items()}
    name = known.get(type(source), type(source).__name__)
    return {"source": name, **{option: value for option, value in told.items() if value is not NotImplemented}}


def _told(value: Any) -> Any:
    """An option's value as JSON has it; NotImplemented for a model, a function, a device."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_told(part) for part in value]
    if isinstance(value, torch.dtype):
        return dtype_name(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, MaskGenerator):
        return describe_source(value)
    if isinstance(value, RegionMasks):
        return [_told(value.soft), _told(value.group), value.image_size, value.mask_size]
    if isinstance(value, (np.ndarray, Tensor)):
        tensor = torch.as_tensor(value).detach().cpu().contiguous()
        digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]
    return NotImplemented
