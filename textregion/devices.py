"""Devices: which there are, and everything that is keyed to one kind of them, CUDA above all. Nothing else names them.

A device of any other kind takes the plain path: float32, ordinary copies, no bound on memory that could be asked for.

Host and device talk seldom: each read of the device waits for all it was given to do, each upload costs tens of
microseconds, whatever its size. So what is small is moved together (`upload`, `read`).
"""

import gc
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from textregion.errors import InputError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
AVAILABLE: dict[str, Callable[[], bool]] = {
    "cpu": lambda: True,
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
}
ALIGNMENT = 8  # bytes: of the largest elements that are packed


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Resolve a name; "auto" is the first of CUDA, MPS, CPU that exists. InputError for an unknown or absent device."""
    if device == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if AVAILABLE[name]()))
    try:
        device = torch.device(device) if isinstance(device, (str, torch.device)) else torch.device("")
    except RuntimeError as error:
        raise InputError(f"got device {device!r}, expected auto, cpu, cuda, cuda:N or mps") from error
    if device.type not in AVAILABLE or not AVAILABLE[device.type]():
        raise InputError(f"device {device} is not available here; use --device auto or cpu")
    return device


def dtype_name(dtype: torch.dtype) -> str:
    """How a dtype is spelled everywhere: "float32"."""
    return str(dtype).removeprefix("torch.")


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


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Mixed precision where it was published (CUDA, half types), plain float32 elsewhere."""
    if device.type == "cuda" and dtype != torch.float32:
        return torch.autocast("cuda", dtype)
    return nullcontext()


# ---------------------------------------------------------------------- between host and device


def to_device(array: np.ndarray | Tensor, device: torch.device | str) -> Tensor:
    """An array of the host on a device; for CUDA through pinned memory, so that the copy does not hold up the host."""
    tensor, device = torch.as_tensor(array), torch.device(device)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def move(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """Small tensors of any shapes and types on a device: by one copy from one other, as given where they are there.

    What is moved shares memory. From several devices each is copied on its own.
    """
    device = torch.device(device)
    here = {tensor.device for tensor in tensors}
    if all(one.type == device.type and device.index in (None, one.index) for one in here):
        return list(tensors)
    if len(here) > 1:
        return [tensor.to(device) for tensor in tensors]
    packed = _packed(tensors)
    return _unpack(to_device(packed, device) if packed.device.type == "cpu" else packed.to(device), tensors)


def upload(device: torch.device | str, *groups: Sequence[Tensor]) -> list[list[Tensor]]:
    """Several groups of small tensors of the host, moved together; each group as a list."""
    moved = iter(move([tensor for group in groups for tensor in group], device))
    return [list(islice(moved, len(group))) for group in groups]


def read(*tensors: Tensor) -> list[Tensor]:
    """Small tensors of a device on the host by one copy, for which the host waits."""
    return move(tensors, "cpu")


def _packed(tensors: Sequence[Tensor]) -> Tensor:
    """The bytes of all tensors one after another, each padded to a multiple of ALIGNMENT."""
    parts = []
    for tensor in tensors:
        flat = tensor.contiguous().flatten().view(torch.uint8)
        parts += [flat, flat.new_zeros(-len(flat) % ALIGNMENT)]
    return torch.cat(parts)


def _unpack(data: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `_packed`, for tensors of these types and shapes."""
    found, start = [], 0
    for tensor in like:
        stop = start + tensor.nbytes
        found.append(data[start:stop].view(tensor.dtype).view(tensor.shape))
        start = stop + -tensor.nbytes % ALIGNMENT
    return found


@lru_cache(maxsize=256)
def constants(device: torch.device, *rows: tuple[float, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of rows of fixed numbers, such as a model's mean and deviation, uploaded once per device."""
    with torch.inference_mode(False):
        return torch.tensor(rows, dtype=dtype).to(device)


# ---------------------------------------------------------------------- memory and time


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a CUDA device, torch's own unused reserve included; None elsewhere."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def free_cache(device: torch.device) -> None:
    """Give back what torch keeps in reserve on a device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def synchronise(device: torch.device) -> None:
    """Wait until a device has done all it was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def reset_peak_memory(device: torch.device) -> int | None:
    """Forget the peak of a CUDA device; the bytes in use on it now, None elsewhere."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak_memory(device: torch.device) -> int | None:
    """The largest number of bytes in use on a CUDA device since `reset_peak_memory`; None elsewhere."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


# ---------------------------------------------------------------------- names, processes


def device_facts(device: torch.device) -> dict[str, str | int | None]:
    """{"type", "name", …} of a device; of a CUDA device also torch's "cuda", elsewhere "threads"."""
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return {"type": device.type, "name": platform.machine(), "threads": torch.get_num_threads()}


def visible_gpus() -> list[str]:
    """The GPUs to spread processes over, as CUDA_VISIBLE_DEVICES names them."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in chosen.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def any_gpu(device: str) -> bool:
    """Whether a name means whichever GPU a process sees."""
    return device in ("auto", "cuda")


def process_device(device: str, local: int, neighbours: int) -> tuple[str, str]:
    """The device of one of several processes on a machine, and torch.distributed's backend for it.

    device: "auto" and "cuda" are the GPU of the process's number on this machine, `local`, "auto" without one the CPU;
    others are taken as they are. neighbours: how many processes there are on this machine; nccl wants a GPU for each.
    """
    if device in ("auto", "cuda"):
        there = torch.cuda.is_available()
        device = f"cuda:{local % torch.cuda.device_count()}" if there else device.replace("auto", "cpu")
    if not device.startswith("cuda"):
        return device, "gloo"
    torch.cuda.set_device(device)
    return device, "nccl" if neighbours <= torch.cuda.device_count() else "gloo"
