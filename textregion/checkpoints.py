"""Reading weight files safely: safetensors, or PyTorch files without any code in them; strict loading."""

import pickle
import zipfile
from os.path import isfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from textregion.errors import InputError, first_line

WRAPPERS = ("state_dict", "model", "weights")
SHOWN_KEYS = 3
# How torch's weights-only reader says that a file names classes or functions.
CODE_PHRASES = ("GLOBAL", "Can only create new object", "Can only build", "reduce for unrecognized function")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a weight file by name, on the CPU, in the file's own types.

    path: `.safetensors`, a PyTorch file holding tensors only (also under `state_dict`, `model` or
    `weights`, also with `module.` before every name), or a TorchScript archive as OpenAI published CLIP
    (read, not run).
    Raises InputError in one line: missing, truncated, not a weight file, or a pickle with code in it.
    """
    path = Path(path)
    if not isfile(path):
        raise InputError(f"no weight file at {path}; check the path")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pytorch(path)
    for wrapper in WRAPPERS:
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
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or truncated ({first_line(error)}); download it again") from error


def _read_pytorch(path: Path) -> object:
    if zipfile.is_zipfile(path):
        from textregion.torchscript import is_torchscript, read_torchscript

        if is_torchscript(path):
            return read_torchscript(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if any(phrase in str(error) for phrase in CODE_PHRASES):
            raise InputError(
                f"{path} holds more than tensors (a pickle with code), which is refused; "
                "save its state dict with torch.save or as safetensors"
            ) from error
        raise InputError(f"{path} is not a weight file or is truncated; download it again") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"{path} is damaged or truncated ({first_line(error)}); download it again") from error


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
        found = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in differences if names)
        raise InputError(f"{source} does not fit {what} ({found}); give this model's own weights")
    model.load_state_dict(state, strict=True)


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN_KEYS]) + (", …" if len(names) > SHOWN_KEYS else "")
