"""Checksums of an index's files: bytes that changed within one are told before Lance reads them.

Lance would take them for lengths, ask for as much memory and end the process. It writes every file once, under a name
of its own; so a commit adds the hashes of the new files, and a file is read again only when its size or its time of
change is another than it was then, as an image is.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from textregion.errors import InputError
from textregion.storage import read_json, write_atomically

CHECKSUMS = "checksums.json"  # in the folder of the index
WRITTEN_ANEW = "latest_version_hint.json"  # the one file of a table that Lance changes


class Checksum(NamedTuple):
    """Of one file: bytes, time of change in nanoseconds when it was read, SHA-256 as hexadecimal digits."""

    size: int
    changed: int
    sha256: str


def update_checksums(folder: str) -> None:
    """Write the checksums of all files of the tables in a folder; files that are known are not read. OSError passes."""
    try:
        known = _known(folder)
    except InputError:  # damaged since the tables were opened
        known = {}
    sums = {}
    for name, status in _files(folder):
        entry = known.get(name)
        if entry is None or (entry.size, entry.changed) != (status.st_size, status.st_mtime_ns):
            entry = Checksum(status.st_size, status.st_mtime_ns, _sha256(folder, name))
        sums[name] = entry._asdict()
    write_atomically(Path(folder, CHECKSUMS), json.dumps(sums, indent=0).encode())


def check_files(folder: str) -> None:
    """InputError in one line for a file that is not what it was when it was committed.

    Files without a checksum pass: all of an index of an earlier version, the newest after a writer was killed. Files
    that are gone are told by Lance where they are needed.
    """
    known = _known(folder)
    for name, status in _files(folder):
        entry = known.get(name)
        if entry is None or (entry.size, entry.changed) == (status.st_size, status.st_mtime_ns):
            continue
        try:
            same = entry.size == status.st_size and entry.sha256 == _sha256(folder, name)
        except FileNotFoundError:  # compacted by another process just now
            continue
        if not same:
            remedy = "put back a copy, or delete the folder and index the images again"
            raise InputError(f"{folder} is damaged: {name} has changed since it was written; {remedy}")


def _known(folder: str) -> dict[str, Checksum]:
    """What the file of checksums says; nothing where there is none."""
    path = os.path.join(folder, CHECKSUMS)
    if not os.path.lexists(path):
        return {}
    content = read_json(path, "checksums of a region index")
    try:
        return {name: Checksum(**entry) for name, entry in content.items()}
    except (AttributeError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it, and the table is opened unchecked") from error


def _files(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """Name below the folder, with "/", and status of each file of the tables that Lance never changes."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            if place == folder or name == WRITTEN_ANEW:
                continue
            try:
                status = os.lstat(path)
            except FileNotFoundError:  # compacted by another process just now
                continue
            if stat.S_ISREG(status.st_mode):
                yield os.path.relpath(path, folder).replace(os.sep, "/"), status


def _sha256(folder: str, name: str) -> str:
    with open(os.path.join(folder, name), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
