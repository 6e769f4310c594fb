"""Files: written so that a crash never leaves half of one, hashed, set aside; tensors with a little JSON in one."""

import errno
import hashlib
import json
import os
import re
import secrets
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from os.path import isfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from textregion.errors import InputError, first_line

BYTE_ORDER_MARK = "\ufeff"  # Windows' programs begin text files with it
LARGE = 1e8  # bytes from which hashing a file shows a progress bar
LONGEST_META = 1 << 24  # characters of JSON beside tensors
# How a file system says that it does not flush (SMB, NFS, FUSE, folders on some systems). A full or broken disk says
# something else, which is an error.
NO_FLUSH = {
    getattr(errno, name)
    for name in ("EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "ENOTTY", "EISDIR", "EACCES", "EPERM", "EBADF", "EROFS")
}
UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}")  # how `write_atomically` names what it has not renamed yet
LONGEST_NAME = 120  # bytes of a name that we make: some encrypted disks take 143, and a number may be put behind it
FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\ud800-\udc7f\udd00-\udfff]')  # in names, on some system
DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE)  # on Windows
_notes = count()  # 0 is taken by the one note of this process about NO_FLUSH


def safe_name(name: str, longest: int = LONGEST_NAME) -> str:
    """A name that means one new file or folder on every system, as like the given one as can be; `image` for nothing.

    No separator, no character that Windows refuses, not hidden, none of Windows' devices, at most `longest` bytes;
    a short ending (.png) survives the cut.
    """
    name = FORBIDDEN.sub("_", name).lstrip(".").rstrip(". ")
    stem, ending = os.path.splitext(name)
    if len(ending) > 12:
        stem, ending = name, ""
    stem = stem[:longest]
    while len(f"{stem}{ending}".encode("utf-8", "surrogatepass")) > longest:
        stem = stem[:-1]
    name = f"{stem}{ending}".rstrip(". ")
    return f"_{name}" if DEVICES.fullmatch(name) else name or "image"


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """InputError that names the file when the body cannot read it (no permission, a broken disk)."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror or error})") from error


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write beside the target, flush to disk where that can be had, rename; every `save` of the library does it so.

    Folders that are missing are made. OSError passes through (full disk, no permission).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}")  # made by open: the user's permissions
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            flush_to_disk(file.fileno(), path)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def delete_unfinished(folder: Path) -> None:
    """Delete what a killed `write_atomically` has left in a folder and below; to be called by its only writer."""
    for path in folder.rglob(".*"):
        if UNFINISHED.fullmatch(path.name) and path.is_file():
            path.unlink()


def flush_to_disk(handle: int, path: str | Path) -> None:
    """fsync of an open file or folder; path: its name.

    Network drives may refuse: that is noted once a process, and all goes on. OSError passes through otherwise.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FLUSH:
            raise
        _note_no_flush(path, error)


def flush_folder(folder: Path) -> None:
    """Everything in a folder and the folder itself, onto the disk (`flush_to_disk`)."""
    for path in [*folder.rglob("*"), folder]:
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            if error.errno not in NO_FLUSH or not path.is_dir():
                raise
            _note_no_flush(path, error)  # a system that opens no folders
            continue
        try:
            flush_to_disk(handle, path)
        finally:
            os.close(handle)


def _note_no_flush(path: str | Path, error: OSError) -> None:
    if next(_notes) == 0:
        what = f"{path} cannot be flushed to the disk ({error.strerror}), as on some network drives"
        warnings.warn(f"{what}; results are written all the same, but a power cut may lose the last", stacklevel=3)


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's content, hexadecimal; a progress bar for large ones. InputError when it cannot be read."""
    path, digest = Path(path), hashlib.sha256()
    with reading(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        with tqdm(total=size, unit="B", unit_scale=True, desc=path.name, disable=size < LARGE) as bar:
            while block := file.read(1 << 22):
                digest.update(block)
                bar.update(len(block))
    return digest.hexdigest()


def set_aside(path: Path) -> Path:
    """Rename to the first free of `<name>.old-1`, `<name>.old-2`, …; returns the new path."""
    candidates = (path.with_name(f"{path.name}.old-{n}") for n in count(1))
    return path.rename(next(candidate for candidate in candidates if not candidate.exists()))


def read_text(path: str | Path, expected: str) -> str:
    """A UTF-8 text file, its lines ended as in Unix. InputError in one line: missing, not text, unreadable.

    Byte order marks are left out, also those that joined files have within: they would begin a label or a file name.
    """
    if not isfile(path):
        raise InputError(f"no file {path}; expected {expected}")
    try:
        return Path(path).read_text(encoding="utf-8").replace(BYTE_ORDER_MARK, "")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}); expected {expected}") from error
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); expected {expected}") from error


def read_json(path: str | Path, expected: str) -> Any:
    """The content of a JSON file. InputError as of `read_text` and `parse_json`."""
    return parse_json(path, read_text(path, expected), expected)


def parse_json(path: str | Path, text: str, expected: str) -> Any:
    """The content of a JSON file's text. InputError for what is no JSON, and for a key given twice."""
    try:
        return json.loads(text, object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as error:  # too deep, or a number of too many digits
        raise InputError(f"{path} is not valid JSON ({error}); expected {expected}") from error


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict, of which json.loads would keep the last of equal keys."""
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(key for key, number in Counter(key for key, _ in pairs).items() if number > 1)
        raise ValueError(f"the key {twice[:60]!r} is there twice")
    return content


def stand_in(path: str | Path) -> str:
    """What a file is that only stands in for the wanted one: empty, a Git LFS pointer, a web page; '' for any other."""
    with reading(path), Path(path).open("rb") as file:
        start = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
        size = os.fstat(file.fileno()).st_size
    if size == 0:
        return "an empty file (a download that was truncated at once)"
    if start.startswith(b"version https://") and b"\noid sha256:" in start.replace(b"\r", b""):
        return "a Git LFS pointer, not the file it stands for (git lfs pull fetches that)"
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        return "a web page (HTML) that was saved under this name"
    return ""


def save_tensors(path: str | Path, tensors: dict[str, Tensor], meta: dict) -> None:
    """Write `tensors` and the JSON-able `meta` (which names its `kind`) to one safetensors file."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(ready, metadata={"textregion": json.dumps(meta)}))


def load_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict]:
    """Read back (tensors, meta without its `kind`). InputError: missing, damaged or of another kind."""
    path = Path(path)
    if not isfile(path):
        raise InputError(f"no file {path}; expected a {kind} file written by its save()")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("textregion", "{}")
            if len(text) > LONGEST_META:
                raise ValueError(f"{len(text)} characters of metadata, expected at most {LONGEST_META}")
            meta = json.loads(text)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, ValueError, RecursionError, OSError) as error:
        why = "nested too deep" if isinstance(error, RecursionError) else first_line(error)
        why = f"it is {what}" if (what := stand_in(path)) else why
        raise InputError(f"{path} is not a readable {kind} file ({why}); save it again") from error
    found = meta.pop("kind", "something else") if isinstance(meta, dict) else "something else"
    if found != kind:
        raise InputError(f"{path} holds {found}, expected a {kind} file written by its save()")
    return tensors, meta


def load_meta(path: str | Path, kind: str) -> dict:
    """What `save_tensors` wrote beside the tensors, without reading these. InputError as of `load_tensors`."""
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("textregion", "{}"))
    except (SafetensorError, ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path} is not a readable {kind} file ({first_line(error)}); save it again") from error
    if not isinstance(meta, dict) or meta.pop("kind", None) != kind:
        raise InputError(f"{path} holds something else than a {kind} file written by its save()")
    return meta


@contextmanager
def complete(path: str | Path, kind: str) -> Iterator[None]:
    """InputError when something is missing from, or too much in, what `load_tensors` read."""
    try:
        yield
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not a complete {kind} file ({error}); save it again") from error
