"""An accelerator made of CPU memory: real values on a device type of its own, "acc", and no GPU.

What it is for. (1) The whole library runs on a second device in every test run: an operation that mixes devices, or a
`.numpy()` without `.cpu()`, raises as it would on CUDA. (2) Reads (the host waits for the device: `item`, `nonzero`,
boolean indexing, copies to the host) and uploads (copies to the device) are counted and placed: each costs a GPU some
tens of microseconds, whatever its size. (3) `float64=False`: a device that has none, as MPS.

How. torch's own support for backends written in Python (torch.utils.backend_registration). A tensor on the device is a
wrapper that claims it and holds a CPU tensor; a dispatch mode unwraps, runs on the CPU and wraps again. Autograd is
above it and works as ever. Not covered: what is CUDA's own (textregion/devices.py), and the kernels' rounding.

    with fake_accelerator() as traffic:
        segmenter = TextRegionSegmenter(backbone, generator, device="acc")
        tokens = segmenter.encode_image(image)
    assert len(traffic.reads) <= 12
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from textregion import devices

NAME = "acc"
# Once a process and before its first backward pass, for which torch counts the devices: when this file is imported.
_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)
ROOT = Path(__file__).resolve().parents[1]
MOVERS = (devices.__file__,)  # its callers are more telling
OURS = tuple(str(ROOT / folder) for folder in ("textregion", "eval", "utils"))

# The size of their result depends on the values, so the host waits for it.
READING = {
    *("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::bincount"),
    *("aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::unique_dim_consecutive"),
    *("aten::repeat_interleave", "torchvision::nms"),
}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
JOINING = {"aten::cat", "aten::stack"}
COPYING = {"aten::_to_copy", "aten::copy_"}
FROM_HOST = ("tensor", "as_tensor", "asarray", "scalar_tensor")  # functions that copy numbers of the host


class OnDevice(Tensor):
    """A tensor on the device. held: what it holds, on the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor) -> "OnDevice":
        made = Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=DEVICE,
            requires_grad=values.requires_grad,
        )
        made.held = values
        return made

    def __repr__(self) -> str:
        return f"OnDevice({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


@dataclass
class Traffic:
    """What went between host and device, in order: the places in our code, "textregion/types.py:301 aten::nonzero"."""

    reads: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    float64: bool = True

    @property
    def counts(self) -> tuple[int, int]:
        """(reads, uploads)."""
        return len(self.reads), len(self.uploads)

    def clear(self) -> None:
        """Count from here on."""
        self.reads.clear()
        self.uploads.clear()

    def __str__(self) -> str:
        lines = []
        for name, places in (("reads", self.reads), ("uploads", self.uploads)):
            lines += [f"{len(places)} {name}", *(f"  {n} x {place}" for place, n in Counter(places).items())]
        return "\n".join(lines)


TRAFFIC: list[Traffic] = []  # of the block that is being counted, the innermost last


def run(func: Any, args: tuple, kwargs: dict) -> Any:
    """One operation, on the CPU tensors within; its results are where CUDA's would be."""
    name, tensors = func._schema.name, list(_tensors((args, kwargs)))
    here = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    scalars = name not in JOINING  # those of the host may be operands
    elsewhere = [t for t in tensors if not isinstance(t, OnDevice) and not (scalars and t.ndim == 0)]
    wanted = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    if here and elsewhere and name not in COPYING | INDEXING:
        raise RuntimeError(f"Expected all tensors to be on the same device, {name} got {DEVICE} and cpu")
    if name in INDEXING and here and not isinstance(args[0], OnDevice):
        raise RuntimeError(f"indices should be either on cpu or on the same device as the indexed tensor ({name})")
    _count(name, args, here, elsewhere, wanted)

    plain, options = _mapped(lambda tensor: tensor.held if isinstance(tensor, OnDevice) else tensor, (args, kwargs))
    if wanted is not None and wanted.type == NAME:
        options = {**options, "device": torch.device("cpu")}
    result = func(*plain, **options)
    first = func._schema.arguments[0] if func._schema.arguments else None
    if first is not None and first.alias_info is not None and first.alias_info.is_write:
        if args[0].shape != plain[0].shape:
            raise NotImplementedError(f"{name} changes the shape of a tensor in place")
        return args[0]
    if not (wanted.type == NAME if wanted is not None else here):
        return result
    is_view = first is not None and first.alias_info is not None and isinstance(args[0], Tensor)
    with torch.inference_mode(args[0].is_inference() if is_view else torch.is_inference_mode_enabled()):
        return _mapped(_wrap, result)


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors among an operation's arguments (torch's own pytrees take most of the time here)."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Arguments or results with a function applied to all tensors."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: _mapped(function, part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(function, part) for part in value])
    return value


def _wrap(value: Tensor) -> Tensor:
    if isinstance(value, OnDevice):
        return value
    if value.dtype == torch.float64 and TRAFFIC and not TRAFFIC[-1].float64:
        raise TypeError("this device has no float64, as MPS has none; use float32 instead")
    return OnDevice(value)


def _count(name: str, args: tuple, here: list[Tensor], elsewhere: list[Tensor], wanted: torch.device | None) -> None:
    """Note what an operation reads or uploads."""
    if not TRAFFIC:
        return
    reads = uploads = 0
    if name == "aten::_to_copy" and wanted is not None:
        reads, uploads = bool(here) and wanted.type != NAME, not here and wanted.type == NAME
    elif name == "aten::copy_":
        into, source = (isinstance(tensor, OnDevice) for tensor in args[:2])
        reads, uploads = source and not into, into and not source
    elif name in INDEXING and here:
        indices = [index for index in args[1] if isinstance(index, Tensor)]
        reads = sum(index.dtype in (torch.bool, torch.uint8) for index in indices)
        uploads = sum(not isinstance(tensor, OnDevice) for tensor in elsewhere)
    elif name in READING and here:
        reads = name != "aten::repeat_interleave" or len(args) < 2
    if reads or uploads:
        place = f"{_place()} {name}"
        TRAFFIC[-1].reads += [place] * int(reads)
        TRAFFIC[-1].uploads += [place] * int(uploads)


def _place() -> str:
    """The line of our code that is at work."""
    frame = sys._getframe(1)
    while frame is not None and (frame.f_code.co_filename in MOVERS or not frame.f_code.co_filename.startswith(OURS)):
        frame = frame.f_back
    return "elsewhere" if frame is None else f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}"


class _Operations(TorchDispatchMode):
    """Hands every operation that meets the device to `run`; in inference mode these may be composed ones."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        composed = torch._C.DispatchKey.CompositeImplicitAutograd
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), composed):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        asked = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == NAME
        if asked or any(isinstance(value, OnDevice) for value in _tensors((args, kwargs))):
            return run(func, args, kwargs)
        return func(*args, **kwargs)


class _Functions(TorchFunctionMode):
    """What torch does in C++ below the dispatch mode: lists to tensors and back."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name == "tolist" and isinstance(args[0], OnDevice):
            return args[0].cpu().tolist()
        device = kwargs.get("device")
        if name == "new_tensor" and isinstance(args[0], OnDevice):
            name, func, args, device = "tensor", torch.tensor, args[1:], args[0].device
            kwargs.setdefault("dtype", args[0].dtype if args and isinstance(args[0], Tensor) else None)
        if name in FROM_HOST and device is not None and torch.device(device).type == NAME:
            kwargs.pop("device", None)
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


@contextmanager
def fake_accelerator(float64: bool = True) -> Iterator[Traffic]:
    """The device exists within the block, which counts its traffic. float64: whether it has that type."""
    with pytest.MonkeyPatch.context() as patch, _Operations(), _Functions():
        patch.setitem(devices.AVAILABLE, NAME, lambda: True)
        TRAFFIC.append(Traffic(float64=float64))
        try:
            yield TRAFFIC[-1]
        finally:
            TRAFFIC.pop()


_kernels = torch.library.Library("aten", "IMPL")


def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None) -> Tensor:
    return OnDevice(torch.empty_strided(size, stride, dtype=dtype or torch.get_default_dtype(), device="cpu"))


def _empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None) -> Tensor:
    return OnDevice(torch.empty(size, dtype=dtype or torch.get_default_dtype(), device="cpu"))


def _copy_from(self, dst, non_blocking=False) -> Tensor:
    _count("aten::copy_", (dst, self), [], [], None)
    source, target = (tensor.held if isinstance(tensor, OnDevice) else tensor for tensor in (self, dst))
    target.copy_(source)
    return dst


# What torch calls outside of any dispatch mode.
_kernels.impl("empty_strided", _empty_strided, "PrivateUse1")
_kernels.impl("empty.memory_format", _empty, "PrivateUse1")
_kernels.impl("_copy_from", _copy_from, "PrivateUse1")
