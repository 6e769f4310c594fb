"""Reading weight files safely: safetensors, PyTorch files without any code in them, TorchScript; strict loading.

The content of a file decides how it is read, not its name. A TorchScript archive (the form in which OpenAI published
CLIP) is read without running it: its data.pkl names its module classes `__torch__.…`; here they become plain records,
tensors are taken from their raw files, and any other name is refused.
"""

import io
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from os.path import isfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from textregion.errors import InputError, first_line, out_of_memory
from textregion.storage import read_json, reading, stand_in

SHOWN_KEYS = 3
# Under which words weights are kept: keys of a saved dict, or beginnings of all tensors' names ("model.visual.proj").
PLAIN = ("state_dict", "model", "model_state_dict", "model_state", "weights", "module", "net", "network", "params")
PLAIN += ("online_model",)  # beside ema_model
AVERAGED = ("state_dict_ema", "model_state_dict_ema", "model_ema", "ema", "ema_state_dict", "ema_model", "params_ema")
ROLES = ("teacher", "student")
WRAPPERS = (*PLAIN, *AVERAGED, *ROLES)
DEEPEST_WRAPPER = 4  # wrappers within each other, of either kind
COUNTERS = ("n_averaged", "num_updates", "decay", "initted", "step")  # what averages keep beside their weights
# What torch puts into the middle of names: torch.compile, checkpointed activations, FSDP.
TORCH_SEGMENTS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
MOST_UNPACKED = 10  # how many times larger than the file a scripted archive's content may be, from 1 GB on
MOST_CLAIMED = 10, 1e9  # how many times larger than the file its tensors may be, from how many bytes on
LARGEST_HEADER = 100_000_000  # bytes of a safetensors header, as the format says
# How torch's weights-only reader says that a file names classes or functions.
CODE_PHRASES = ("GLOBAL", "Can only create new object", "Can only build", "reduce for unrecognized function")
# What readers raise for a file that is cut off or in which bytes have changed.
DAMAGE = (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, OverflowError)
DAMAGE += (struct.error, zlib.error, zipfile.BadZipFile)
INDEX_ENDING = ".index.json"  # of the file that says which of several files ("shards") holds which tensor
SHARD = re.compile(r"-\d+-of-\d+(?=\.\w+$)")
Names = Sequence[tuple[str, str]]
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
    """All tensors of a weight file by the model's own names, on the CPU, in the file's own types.

    path: safetensors, a PyTorch file holding tensors only, or a TorchScript archive as OpenAI published CLIP (read, not
    run), whatever its ending. The weights may be wrapped as `unwrap` says. Or an index (`model.safetensors.index.json`)
    of several such files in its own folder, or one of them with its index beside it.
    Raises InputError in one line: missing, unreadable, empty, truncated, not a weight file (a web page, a Git LFS
    pointer), a pickle with code in it, tensors that claim more than is there, or weights of which it is not clear which
    are meant.
    """
    path = Path(path)
    if not isfile(path):
        raise InputError(f"no weight file at {path}; check the path")
    index = path if path.name.endswith(INDEX_ENDING) else path.with_name(f"{SHARD.sub('', path.name)}{INDEX_ENDING}")
    if isfile(index) and (path == index or SHARD.search(path.name)):
        path, (content, size) = index, _read_shards(index)
    else:
        content, size = _read_file(path), path.stat().st_size
    state = unwrap(content, path)
    _check_claims(path, state, size)
    return state


def _read_file(path: Path) -> object:
    with reading(path):
        return _read_safetensors(path) if _is_safetensors(path) else _read_pytorch(path)


def _check_claims(path: Path, state: dict[str, Tensor], size: int) -> None:
    """InputError for tensors that are no plain ones, or that repeat numbers: a copy would be larger than the file.

    size: bytes of the file, or of all files.
    """
    for name, value in state.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_nested:
            kind = "quantized" if value.is_quantized else "nested" if value.is_nested else value.layout
            raise InputError(f"{path} holds {name} as {kind} on {value.device}, expected a plain tensor of the CPU")
    claimed, (times, least) = sum(value.nbytes for value in state.values()), MOST_CLAIMED
    if claimed > max(least, times * size):
        raise InputError(f"{path} claims tensors of {claimed / 1e9:.1f} GB, far more than it holds; get it anew")


def _read_shards(index: Path) -> tuple[dict[str, Any], int]:
    """The tensors that an index names, each from its file, and the files' bytes.

    InputError where one is not where it should be.
    """
    content = read_json(index, "the index of a weight file in parts")
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()) or not places:
        raise InputError(f"{index} has no weight_map from tensors to files, expected the index of weights in parts")
    state, size = {}, 0
    for file in sorted(set(places.values())):
        path = index.with_name(file) if file not in ("", ".", "..") and "/" not in file and "\\" not in file else None
        if path is None or not isfile(path):
            raise InputError(f"{index} names {file!r}, which does not lie beside it; copy all parts into one folder")
        held = _read_file(path)
        wanted = [name for name, where in places.items() if where == file]
        missing = [name for name in wanted if not isinstance(held, dict) or name not in held]
        if missing:
            raise InputError(f"{path} lacks {missing[0]}, which {index.name} puts there; download both again")
        state |= {name: held[name] for name in wanted}
        size += path.stat().st_size
    return state, size


def rename(state: dict[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Tensors with the beginnings of their names exchanged.

    names: (old, new) beginnings, up to a dot or the end, in which "{}" stands for a number. The first that fits is
    taken; a name that none fits stays.
    """
    patterns = [(re.compile(re.escape(old).replace(r"\{\}", r"(\d+)") + r"(?=\.|$)"), new) for old, new in names]

    def renamed(name: str) -> str:
        found = ((pattern.match(name), new) for pattern, new in patterns)
        return next((new.format(*m.groups()) + name[m.end() :] for m, new in found if m), name)

    return {renamed(name): value for name, value in state.items()}


def join_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`….q_proj.weight`, `….k_proj.weight`, `….v_proj.weight` as one `….qkv.weight`, in this order; biases alike.

    Where one of the three is missing or has another form they stay as they are.
    """
    state = dict(state)
    for name in [name for name in state if ".q_proj." in name]:
        parts = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        values = [state[part] for part in parts if part in state]
        if len(values) == 3 and values[0].ndim > 0 and len({(value.shape, value.dtype) for value in values}) == 1:
            for part in parts:
                del state[part]
            state[name.replace(".q_proj.", ".qkv.")] = torch.cat(values)
    return state


def unwrap(content: object, path: str | Path) -> dict[str, Tensor]:
    """The tensors of a model by its own names, out of what people save around them.

    Taken off, each kind up to DEEPEST_WRAPPER within each other: a dict's key of WRAPPERS, and such a word at the
    beginning of all tensors' names (Lightning's "model.", "module." of DataParallel and of AveragedModel with its
    counter). TORCH_SEGMENTS go wherever they are. Averaged weights (EMA) are taken where there are no others; where
    there are both, a warning says which are taken. What else a training program keeps (an optimizer, an epoch) is no
    weight and left out. InputError: no tensors by name, or several models of which none is plainly the one.
    """
    for _ in range(DEEPEST_WRAPPER):
        if not isinstance(content, dict) or not (wrapped := [w for w in WRAPPERS if _has_tensors(content.get(w))]):
            break
        if beside := [name for name, value in content.items() if isinstance(value, Tensor) and "." in str(name)]:
            both = f"tensors ({beside[0]}, …) and under {wrapped[0]!r} others"
            raise InputError(f"{path} holds {both}; save the state dict of the one you mean")
        content = content[_chosen(wrapped, path)]
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not state:
        raise InputError(f"{path} holds {_described(content)}, expected tensors by name (a state dict)")
    plain = {_without_torch_segments(name): value for name, value in state.items()}
    if len(plain) < len(state):
        raise InputError(f"{path} holds tensors twice, with and without {', '.join(TORCH_SEGMENTS)}; save one of them")
    for _ in range(DEEPEST_WRAPPER):
        named = {name: value for name, value in plain.items() if name not in COUNTERS}
        first_words = {name.partition(".")[0] if "." in name else "" for name in named}
        if not named or not first_words <= set(WRAPPERS):
            break
        prefix = _chosen([word for word in WRAPPERS if word in first_words], path) + "."
        plain = {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
    return plain


def _chosen(names: Sequence[str], path: str | Path) -> str:
    """Which of the WRAPPERS that a file has is taken: the only one, or the only one that is not averaged."""
    plain = [name for name in names if name in PLAIN]
    candidates = plain or [name for name in names if name in AVERAGED] or names
    if len(candidates) > 1:
        both = " and ".join(repr(name) for name in candidates)
        raise InputError(f"{path} holds several models, {both}, expected one; save the state dict of the one you mean")
    if others := [name for name in names if name not in candidates]:
        warnings.warn(f"{path}: weights are taken from {candidates[0]!r}, not from {', '.join(others)}", stacklevel=4)
    return candidates[0]


def _has_tensors(content: object, depth: int = DEEPEST_WRAPPER) -> bool:
    """Whether a dict holds tensors by name, itself or within WRAPPERS."""
    if not isinstance(content, dict) or depth == 0:
        return False
    inner = (content.get(name) for name in WRAPPERS)
    return any(isinstance(v, Tensor) for v in content.values()) or any(_has_tensors(v, depth - 1) for v in inner)


def _without_torch_segments(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in TORCH_SEGMENTS)


def _described(content: object) -> str:
    """What was read instead of weights: its type; of a dict also its first keys, or those with tensors below them."""
    if not isinstance(content, dict) or not content:
        return type(content).__name__
    with_tensors = [key for key, value in content.items() if _has_tensors(value)]
    keys = [repr(key)[:40] for key in with_tensors or content]
    shown = f"{', '.join(keys[:SHOWN_KEYS])}{', …' * (len(keys) > SHOWN_KEYS)}"
    return f"dict with {'tensors under ' * bool(with_tensors)}{shown}"


def _is_safetensors(path: Path) -> bool:
    """By its beginning (the length of a header, then JSON), where that is of neither form by its ending."""
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= LARGEST_HEADER:
        return True
    return path.suffix == ".safetensors" and not head.startswith((b"PK\x03\x04", b"\x80"))  # of a zip, of a pickle


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, *DAMAGE) as error:
        raise _damaged(path, error) from error


def _read_pytorch(path: Path) -> object:
    """What a PyTorch file holds; InputError as of `read_state`."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _check_unpacked(path, archive)
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):  # torch.save writes none
                    return _read_torchscript(path, archive)
        with path.open("rb") as file:  # given a path, torch would decide by its ending
            # In memory, nothing beyond the file can be asked for: torch's older format has lengths of strings in it.
            source = file if zipfile.is_zipfile(path) else io.BytesIO(file.read())
            return torch.load(source, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        if any(phrase in str(error) for phrase in CODE_PHRASES):
            found = ": ".join([*re.findall(r"GLOBAL (\S+)", str(error))[:1], "a pickle with code"])
            why = f"holds more than tensors ({found}), which is refused"
            raise InputError(f"{path} {why}; save its state dict with torch.save or as safetensors") from error
        raise _damaged(path) from error
    except DAMAGE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception | None = None) -> InputError:
    """What to say of a file that could not be read: what else it is, or that it is damaged, and the reader's reason.

    Running out of memory is raised on, it says nothing about the file; unless it holds less than was asked for.
    """
    if error is not None and out_of_memory(error):
        asked = re.search(r"tried to allocate (\d+) bytes", str(error))
        if asked is None or int(asked[1]) <= path.stat().st_size:
            raise error
    if what := stand_in(path):
        return InputError(f"{path} is {what}; download it again")
    with path.open("rb") as file:
        head = file.read(60)
    text = head.decode("utf-8", "ignore").strip()
    if head.isascii() and text.replace("\n", "").isprintable():
        return InputError(f"{path} is damaged or truncated (it is text that begins with {text!r}); download it again")
    if error is None:
        return InputError(f"{path} is not a weight file or is truncated; download it again")
    return InputError(f"{path} is damaged or truncated ({first_line(error)}); download it again")


class _Record:
    """What a scripted module becomes: its attributes, nothing else."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        if not isinstance(state, dict):
            raise TypeError(f"a module's state is {type(state).__name__}")
        self.attributes = state


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(data))
        self.archive, self.root = archive, root
        self.storages: dict[tuple, Tensor] = {}

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
        raise RefusedNameError(f"the name {module}.{name}")

    def persistent_load(self, reference: tuple) -> Tensor:
        _, dtype, key, _, _ = reference
        if (key, dtype) not in self.storages:  # each is read once, however many tensors share it
            data = bytearray(self.archive.read(f"{self.root}/data/{key}"))
            self.storages[key, dtype] = torch.frombuffer(data, dtype=dtype)
        return self.storages[key, dtype]


class RefusedNameError(Exception):
    """A scripted archive names something else than modules and tensors."""


def _check_unpacked(path: Path, archive: zipfile.ZipFile) -> None:
    """InputError for an archive that claims to hold far more than weights can be packed into its bytes."""
    unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > max(1e9, MOST_UNPACKED * path.stat().st_size):
        raise InputError(f"{path} unpacks to {unpacked / 1e9:.1f} GB, which no archive of weights does; get it anew")


def _read_torchscript(path: Path, archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """Parameters and buffers of the archive's root module by dotted name; numbers of the model's shape left out."""
    try:
        root = archive.namelist()[0].split("/")[0]
        data = archive.read(f"{root}/data.pkl")
        _check_memo(data)
        return _tensors(_Unpickler(data, archive, root).load())
    except RefusedNameError as error:
        raise InputError(f"{path} holds more than tensors ({error}), which is refused") from error
    except (pickle.UnpicklingError, *DAMAGE) as error:
        if out_of_memory(error):
            raise
        raise InputError(f"{path} is a damaged TorchScript archive; download it again") from error


def _check_memo(data: bytes) -> None:
    """ValueError where a pickle numbers what it memorises beyond its own length: a few bytes would take all memory."""
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise ValueError(f"memo {argument}")


def _tensors(root: _Record) -> dict[str, Tensor]:
    """All tensors below a record by dotted name. Each record is visited once, under the first name it is met with."""
    found, seen, todo = {}, set(), [("", root)]
    while todo:
        prefix, record = todo.pop()
        if id(record) in seen:
            continue
        seen.add(id(record))
        for name, value in record.attributes.items():
            if isinstance(value, Tensor):
                found[f"{prefix}{name}"] = value
        inner = [(f"{prefix}{name}.", value) for name, value in record.attributes.items() if isinstance(value, _Record)]
        todo += reversed(inner)
    return found


def load_strictly(model: nn.Module, state: dict[str, Tensor], what: str, source: str | Path) -> None:
    """Put the tensors into the model if they fit it (`check_fit`)."""
    check_fit(model, state, what, source)
    model.load_state_dict(state, strict=True)


def check_fit(model: nn.Module, state: dict[str, Tensor], what: str, source: str | Path) -> None:
    """InputError unless the tensors have every name and shape of the model's and no others, naming what differs.

    model: may be on the device "meta". what: the model as the user knows it, e.g. "clip-vit-l14-336". source: where the
    tensors come from.
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
        advice = _prefix_advice(missing, unexpected) or "give this model's own weights"
        raise InputError(f"{source} does not fit {what} ({found}); {advice}")


def _prefix_advice(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """What to do where all that is missing is there with something before its name ("clip.visual.proj"), else ''."""
    there = set(unexpected)
    prefixes = [n.removesuffix(missing[0]) for n in unexpected if n.endswith(f".{missing[0]}")] if missing else []
    for prefix in prefixes:
        if all(prefix + name in there for name in missing):
            others = sum(not name.startswith(prefix) for name in unexpected)
            beside = f", and {others} others do not" * bool(others)
            return f"its names begin with {prefix!r}{beside}: save this model's state dict alone, without that prefix"
    return ""
