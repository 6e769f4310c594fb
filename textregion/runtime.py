"""Memory, compilation, stage timings, versions of packages."""

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

import cv2
import torch
from torch import nn

from textregion.devices import free_cache, synchronise
from textregion.errors import InputError, first_line, out_of_memory

Part = TypeVar("Part")
BLOCK_LISTS = ("resblocks", "blocks")  # how open_clip and timm name a tower's list of equal blocks
MEMORY_REMEDY = "use a smaller --scale, fewer --points_per_side, a smaller --preset or --device cpu"
PACKAGES = (  # whose versions decide the numbers
    *("torchvision", "open_clip_torch", "timm", "sam2", "numpy", "opencv-python-headless", "opencv-python", "pillow"),
    *("pycocotools", "segment-anything", "transformers", "lvis", "mmsegmentation", "mmengine", "mmcv-lite", "mmcv"),
    *("onedl-mmsegmentation", "onedl-mmengine", "onedl-mmcv"),
)


def in_parts(work: Callable[[int, int], Part], total: int, at_once: int, device: torch.device) -> list[Part]:
    """[work(start, stop), …] over 0..total, at most `at_once` together; where memory runs out, half as many from there.

    Parts that are done stay; the device's cache is freed before the next try. Where not even one fits, InputError with
    what to do. work: must not change anything before it succeeds.
    """
    parts: list[Part] = []
    start = 0
    while start < total:
        stop = min(start + at_once, total)
        done, why = _unless_out_of_memory(work, start, stop)
        if why is None:
            parts += done
            start = stop
        elif stop - start == 1:
            raise InputError(f"out of memory on {device} ({why}); {MEMORY_REMEDY}")
        else:
            at_once = (stop - start) // 2
            free_cache(device)
    return parts


def _unless_out_of_memory(work: Callable[[int, int], Part], start: int, stop: int) -> tuple[list[Part], str | None]:
    """([result], None), or ([], why). On return the error is gone, and with it all that its frames held in memory."""
    try:
        return [work(start, stop)], None
    except (RuntimeError, MemoryError, cv2.error) as error:
        if not out_of_memory(error):
            raise
        return [], first_line(error)


@contextmanager
def enough_memory(device: torch.device) -> Iterator[None]:
    """InputError with what to do when the body runs out of memory."""
    try:
        yield
    except (RuntimeError, MemoryError, cv2.error) as error:
        if not out_of_memory(error):
            raise
        free_cache(device)
        raise InputError(f"out of memory on {device} ({first_line(error)}); {MEMORY_REMEDY}") from error


def compile_backend(value: bool | str) -> str | None:
    """True is torch.compile's default, a string one of its backends by name, False none; InputError otherwise."""
    if isinstance(value, bool):
        return "inductor" if value else None
    if value not in torch.compiler.list_backends(exclude_tags=None):
        raise InputError(f"got compile {value!r}, expected True, False or a backend such as inductor or aot_eager")
    return value


def compile_blocks(tower: nn.Module, backend: str) -> int:
    """Compile every block of a tower in place, for the shapes it meets (each new shape compiles again).

    Returns how many blocks; equal blocks share one compilation per shape. Weights and state dict stay as they are.
    """
    lists = [module for name, module in tower.named_modules() if name.rpartition(".")[2] in BLOCK_LISTS]
    blocks = [block for module in lists for block in module.children()]
    for block in blocks:
        block.compile(backend=backend, dynamic=False)
    return len(blocks)


@dataclass
class Timer:
    """Wall-clock seconds and calls per named stage, summed; waits for the device at the borders of a stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time the body under `name`."""
        synchronise(self.device)
        start = time.perf_counter()
        try:
            yield
        finally:
            synchronise(self.device)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self.calls[name] = self.calls.get(name, 0) + 1


def package_versions() -> dict[str, str]:
    """{"python": "3.11.7", "torch": "2.14.0+cu130", …}; packages that are not there are left out."""
    found = {"python": platform.python_version(), "torch": torch.__version__}  # with its CUDA version
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
