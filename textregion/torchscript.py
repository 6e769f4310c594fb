"""Tensors of a TorchScript archive (the form in which OpenAI published CLIP), read without running its code.

The archive's data.pkl names its module classes `__torch__.…`; here they become plain records, tensors are taken
from their raw files, and any other name is refused.
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from textregion.errors import InputError

STORAGE_TYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


class _Record:
    """What a scripted module becomes: its attributes, nothing else."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = state


def _rebuild(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}/data.pkl"))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Record
        if module == "torch" and name in STORAGE_TYPES:
            return STORAGE_TYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle":  # typed lists, as TorchScript writes them
            return lambda value, *_: value
        raise pickle.UnpicklingError(f"the name {module}.{name}")

    def persistent_load(self, reference: tuple) -> Tensor:
        _, dtype, key, _, _ = reference
        return torch.frombuffer(bytearray(self.archive.read(f"{self.root}/data/{key}")), dtype=dtype)


def is_torchscript(path: str | Path) -> bool:
    """Whether a zip file is a TorchScript archive (torch.save files have no constants.pkl)."""
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: str | Path) -> dict[str, Tensor]:
    """Parameters and buffers of the archive's root module by dotted name; numbers of the model's shape left out.

    Raises InputError when the archive is damaged or holds anything but modules, tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = archive.namelist()[0].split("/")[0]
            return dict(_tensors(_Unpickler(archive, root).load()))
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} holds more than tensors ({error}), which is refused") from error
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, RuntimeError) as error:
        raise InputError(f"{path} is a damaged TorchScript archive; download it again") from error


def _tensors(record: _Record, prefix: str = ""):
    for name, value in record.attributes.items():
        if isinstance(value, _Record):
            yield from _tensors(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor):
            yield f"{prefix}{name}", value
