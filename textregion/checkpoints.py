"""Reading weight files safely: safetensors, PyTorch files without any code in them, TorchScript; strict loading.

A TorchScript archive (the form in which OpenAI published CLIP) is read without running it: its data.pkl names its
module classes `__torch__.…`; here they become plain records, tensors are taken from their raw files, and any other
name is refused.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from os.path import isfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from textregion.errors import InputError, first_line
from textregion.storage import reading

SHOWN_KEYS = 3
# How torch's weights-only reader says that a file names classes or functions.
CODE_PHRASES = ("GLOBAL", "Can only create new object", "Can only build", "reduce for unrecognized function")
STORAGE_TYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


def read_state(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a weight file by name, on the CPU, in the file's own types.

    path: `.safetensors`, a PyTorch file holding tensors only (also under `state_dict`, `model` or
    `weights`, also with `module.` before every name), or a TorchScript archive as OpenAI published CLIP
    (read, not run).
    Raises InputError in one line: missing, unreadable, truncated, not a weight file, or a pickle with code in it.
    """
    path = Path(path)
    if not isfile(path):
        raise InputError(f"no weight file at {path}; check the path")
    with reading(path):
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pytorch(path)
    for wrapper in ("state_dict", "model", "weights"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path} holds {type(content).__name__}, expected tensors by name (a state dict)")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is damaged or truncated ({first_line(error)}); download it again") from error


def _read_pytorch(path: Path) -> object:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):  # torch.save writes none
                return _read_torchscript(path, archive)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if any(phrase in str(error) for phrase in CODE_PHRASES):
            why = "holds more than tensors (a pickle with code), which is refused"
            raise InputError(f"{path} {why}; save its state dict with torch.save or as safetensors") from error
        raise InputError(f"{path} is not a weight file or is truncated; download it again") from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"{path} is damaged or truncated ({first_line(error)}); download it again") from error


class _Record:
    """What a scripted module becomes: its attributes, nothing else."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = state


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
            return lambda storage, offset, size, stride, *_: torch.as_strided(storage, size, stride, offset)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle":  # typed lists, as TorchScript writes them
            return lambda value, *_: value
        raise pickle.UnpicklingError(f"the name {module}.{name}")

    def persistent_load(self, reference: tuple) -> Tensor:
        _, dtype, key, _, _ = reference
        return torch.frombuffer(bytearray(self.archive.read(f"{self.root}/data/{key}")), dtype=dtype)


def _read_torchscript(path: Path, archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """Parameters and buffers of the archive's root module by dotted name; numbers of the model's shape left out."""
    try:
        root = archive.namelist()[0].split("/")[0]
        return dict(_tensors(_Unpickler(archive, root).load()))
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} holds more than tensors ({error}), which is refused") from error
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, RuntimeError) as error:
        raise InputError(f"{path} is a damaged TorchScript archive; download it again") from error


def _tensors(record: _Record, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in record.attributes.items():
        if isinstance(value, _Record):
            yield from _tensors(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor):
            yield f"{prefix}{name}", value


def load_strictly(model: nn.Module, state: dict[str, Tensor], what: str, source: str | Path) -> None:
    """Put the tensors into the model: every name and shape must match, or InputError names what does not.

    what: the model as the user knows it, e.g. "clip-vit-l14-336". source: where the tensors come from.
    """
    own = {name: value.shape for name, value in model.state_dict().items()}
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    reshaped = [name for name in own if name in state and own[name] != state[name].shape]
    if missing or unexpected or reshaped:
        shapes = [f"{n} {tuple(state[n].shape)} instead of {tuple(own[n])}" for n in reshaped]
        differences = (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes))
        found = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:SHOWN_KEYS])}{', …' * (len(names) > SHOWN_KEYS)}"
            for kind, names in differences
            if names
        )
        raise InputError(f"{source} does not fit {what} ({found}); give this model's own weights")
    model.load_state_dict(state, strict=True)
