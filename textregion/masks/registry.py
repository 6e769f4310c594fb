"""The mask sources known by name."""

from collections.abc import Callable
from dataclasses import dataclass

from textregion.errors import InputError
from textregion.masks.base import MaskGenerator


@dataclass(frozen=True)
class MaskSource:
    """A kind of mask generator. needs: what its constructor must be given; '' if nothing."""

    name: str
    generator: type[MaskGenerator]
    needs: str = ""


SOURCES: dict[str, MaskSource] = {}


def register(name: str, needs: str = "") -> Callable[[type], type]:
    """Class decorator: make a mask generator known by name."""

    def add(generator: type) -> type:
        SOURCES[name] = MaskSource(name, generator, needs)
        return generator

    return add


def find_source(name: str) -> MaskSource:
    """A registered source; InputError listing the valid names."""
    if name not in SOURCES:
        raise InputError(f"unknown mask source {name!r}; expected one of {', '.join(SOURCES)}")
    return SOURCES[name]


def automatic_sources() -> tuple[str, ...]:
    """Names of the sources that need the image alone: the preset's SAM 2, and those made by their defaults."""
    return ("sam2", *(name for name, source in SOURCES.items() if not source.needs))
