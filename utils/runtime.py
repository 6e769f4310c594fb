"""Devices, arithmetic, stage timings."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from utils.errors import InputError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Resolve a name; "auto" is the first of CUDA, MPS, CPU that exists. InputError for an unknown or absent device."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(device)
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


@dataclass
class Stages:
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
