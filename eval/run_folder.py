"""The folder of a run: held by one process at a time, what an earlier run left in it is kept.

The lock is the kernel's own (flock), which is gone when the process is, however it ended. On a network drive it holds
between machines where the drive supports that (NFS does, unless it is mounted with nolock); where a drive knows no
locks at all, a warning says so and the run goes on.
"""

import errno
import fcntl
import json
import os
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from textregion.errors import InputError

LOCK = "run.lock"
TOLD, KEPT = 60, 20  # characters of a value that a difference shows, and of those before it that are the same
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
# What a run leaves in its folder: set aside together when another begins there.
RUN_FILES = ("results.json", "results.md", "images.csv", "image_classes.csv", "predictions", "predictions.jsonl")
RUN_FILES += ("coco_results.json", "confusion.csv", "confusion_counts.csv", "confusion.png", "right.png", "wrong.png")

_LOCKS: set[int] = set()  # handles that this process holds


def _close_in_child() -> None:
    """A worker that loads images must not go on holding the lock of a run that was killed."""
    while _LOCKS:
        os.close(_LOCKS.pop())


os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def held(folder: str | Path, flag: str = "--work-dir") -> Iterator[None]:
    """Hold a run's folder, which is made if need be, for as long as the body runs.

    InputError when another process holds it, or it cannot be written. flag: what names another folder.
    """
    handle = _lock(Path(folder), flag)
    try:
        yield
    finally:
        _LOCKS.discard(handle)
        os.close(handle)


def _lock(folder: Path, flag: str) -> int:
    """The handle of the locked file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write to {folder} ({error}); choose another {flag}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(OSError):  # only to tell others; a full disk must not stop a run that has room to resume
            os.truncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
    except BlockingIOError as error:
        owner = os.read(handle, 200).decode(errors="replace") or "another process"
        os.close(handle)
        raise InputError(f"{folder} is at work: {owner} holds it; wait for it, or give another {flag}") from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            os.close(handle)
            raise InputError(f"cannot lock {folder / LOCK} ({error}); choose another {flag}") from error
        warnings.warn(f"{folder} cannot be locked ({error.strerror}): let no second run write there", stacklevel=4)
    _LOCKS.add(handle)
    return handle


def set_run_aside(folder: Path, names: Sequence[str] = ("journal", *RUN_FILES)) -> str | None:
    """Rename what an earlier run left, all to one free `<name>.old-N`; that ending, None where nothing was."""
    there = [name for name in names if (folder / name).exists()]
    if not there:
        return None
    endings = (f".old-{number}" for number in count(1))
    ending = next(one for one in endings if not any((folder / f"{name}{one}").exists() for name in names))
    for name in there:
        (folder / name).rename(folder / f"{name}{ending}")
    return ending


def keep_other_results(folder: Path, identity_hash: str, selection: Mapping[str, Any]) -> None:
    """Set aside the results that are there when they are of another identity or of other images.

    Not the label maps: they are an image's own.
    """
    path = folder / "results.json"
    if not path.is_file():
        return
    try:
        there = json.loads(path.read_text())
        same = there["identity_hash"] == identity_hash and there["selection"] == json.loads(json.dumps(selection))
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        set_run_aside(folder, [name for name in RUN_FILES if name != "predictions"])


def differences(old: object, new: object, name: str = "") -> list[str]:
    """Where two JSON-able settings differ: ["model.scale: was [3, 2], now [6, 4]", …]."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{name}.{k}" if name else k)]
    if old == new:
        return []
    was, now = (json.dumps(value, sort_keys=True, default=str) for value in (old, new))
    same = len(os.path.commonprefix([was, now]))  # noqa: RUF071 (characters are meant)
    return [f"{name}: was {_shortened(was, same)}, now {_shortened(now, same)}"]


def _shortened(text: str, same: int) -> str:
    """At most TOLD characters and the ellipses; `same` at the beginning, which another text has too, go first."""
    start = max(min(same - KEPT, len(text) - TOLD), 0)
    return "..." * (start > 0) + text[start : start + TOLD] + "..." * (start + TOLD < len(text))
