"""Devices, arithmetic, memory, compilation, stage timings, versions of packages."""

import gc
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from textregion.errors import InputError, first_line, out_of_memory

Part = TypeVar("Part")
BLOCK_LISTS = ("resblocks", "blocks")  # how open_clip and timm name a tower's list of equal blocks
MEMORY_REMEDY = "use a smaller --scale, fewer --points_per_side, a smaller --preset or --device cpu"
PACKAGES = (  # whose versions decide the numbers
    *("torchvision", "open_clip_torch", "timm", "sam2", "numpy", "opencv-python-headless", "opencv-python", "pillow"),
    *("pycocotools", "segment-anything", "lvis", "mmsegmentation", "mmengine", "mmcv-lite", "mmcv"),
    *("onedl-mmsegmentation", "onedl-mmengine", "onedl-mmcv"),
)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Resolve a name; "auto" is the first of CUDA, MPS, CPU that exists. InputError for an unknown or absent device."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(device) if isinstance(device, (str, torch.device)) else torch.device("")
    except RuntimeError as error:
        raise InputError(f"got device {device!r}, expected auto, cpu, cuda, cuda:N or mps") from error
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(device.type, False):
        raise InputError(f"device {device} is not available here; use --device auto or cpu")
    return device


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Resolve a name; "auto" is float16 on CUDA (as published), float32 elsewhere. InputError for an unknown name."""
    if dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    names = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "half": "float16"}
    name = str(dtype).removeprefix("torch.")
    name = names.get(name, name)
    if name not in DTYPES:
        raise InputError(f"got dtype {dtype!r}, expected auto, {', '.join(DTYPES)}, fp32, fp16 or bf16")
    if name == "float16" and device.type == "cpu":
        raise InputError("float16 is too slow and inexact on a CPU; use --dtype float32 or bfloat16")
    return DTYPES[name]


def autocast(device: torch.device, dtype: torch.dtype):
    """Mixed precision where it was published (CUDA, half types), plain float32 elsewhere."""
    if device.type == "cuda" and dtype != torch.float32:
        return torch.autocast("cuda", dtype)
    return nullcontext()


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """An array as tensor on a device; for CUDA through pinned memory, so that the copy does not hold up the host."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a CUDA device, torch's own unused reserve included; None elsewhere."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


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


def free_cache(device: torch.device) -> None:
    """Give back what torch keeps in reserve on a device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


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
        self._synchronise()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._synchronise()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self.calls[name] = self.calls.get(name, 0) + 1

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


def package_versions() -> dict[str, str]:
    """{"python": "3.11.7", "torch": "2.14.0+cu130", …}; packages that are not there are left out."""
    found = {"python": platform.python_version(), "torch": torch.__version__}  # with its CUDA version
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
