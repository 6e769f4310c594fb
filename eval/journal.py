"""What an evaluation has finished, kept as it goes, so that an interrupted run can be resumed.

A journal is a folder of JSON-lines files. Every process of every run appends to a file of its own; a line is
on disk (flushed, fsynced) before the next item begins. After kill -9 at most the item in flight is lost: a
torn last line is ignored. Any number of processes may resume what any other number began.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Self

from eval.sharding import Processes
from textregion.errors import InputError
from textregion.storage import set_aside


def fingerprint(settings: Mapping) -> str:
    """Short hash of JSON-able settings, independent of the order of their keys."""
    return hashlib.sha256(_canonical(settings).encode()).hexdigest()[:16]


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


class Journal:
    """Records of finished items by id; `with Journal.start(...) as journal:` in every process.

    folder: where the files lie. settings: everything that decides the numbers (not: where, how fast).
    done: {item id: record} of earlier runs; `add` extends it with this process's own.
    """

    def __init__(self, folder: str | Path, settings: Mapping) -> None:
        self.folder = Path(folder)
        self.settings = json.loads(_canonical(settings))
        self.done: dict[str, dict] = {}
        self.own: dict[str, dict] = {}
        self._file = None

    @classmethod
    def start(cls, folder: str | Path, settings: Mapping, resume: bool = False, group: Processes | None = None) -> Self:
        """Read what is there (resume) or set it aside, then open a file of one's own.

        Called by all processes of the group together. InputError: made with other settings, or damaged.
        """
        group = group or Processes()
        journal = cls(folder, settings)
        if resume:
            journal.done = journal.read()
        elif group.is_first and journal.folder.exists():
            set_aside(journal.folder)
        group.wait()  # nobody opens a file while others still read or move
        journal.folder.mkdir(parents=True, exist_ok=True)
        runs = count()
        while journal._file is None:
            with contextlib.suppress(FileExistsError):
                name = f"run{next(runs):03d}-process{group.number:03d}.jsonl"
                journal._file = (journal.folder / name).open("xb")
        journal._write({"fingerprint": fingerprint(journal.settings), "settings": journal.settings})
        return journal

    def read(self) -> dict[str, dict]:
        """All records on disk. InputError for other settings or a damaged line that is not the last."""
        files = sorted(self.folder.glob("*.jsonl"))
        return {record.pop("id"): record for path in files for record in self._read_file(path)}

    def _read_file(self, path: Path) -> Iterator[dict]:
        whole = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is a torn line, or nothing
        for number, line in enumerate(whole, start=1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise InputError(f"line {number} of {path} is damaged; delete that file") from error
            if number > 1:
                yield record
            elif record.get("fingerprint") != fingerprint(self.settings):
                changed = differences(record.get("settings", {}), self.settings)
                raise InputError(
                    f"{path.parent} was made with other settings ({'; '.join(changed[:3]) or 'unknown'}); "
                    "resume with the same ones or give another --work-dir"
                )

    def add(self, item: str, record: Mapping) -> None:
        """Keep one finished item; it is on disk when this returns."""
        record = json.loads(_canonical(record))
        self._write({"id": item, **record})
        self.own[item] = record

    def _write(self, line: Mapping) -> None:
        if self._file is None:
            raise RuntimeError("this journal is not open; use Journal.start")
        self._file.write(_canonical(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def collect(self, group: Processes | None = None) -> dict[str, dict]:
        """Earlier records and those of all processes of this run; call it in all of them together."""
        records = dict(self.done)
        for own in (group or Processes()).gather(self.own):
            records.update(own)
        return records

    def close(self) -> None:
        """Close the file; `add` is an error afterwards."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def differences(old: object, new: object, name: str = "") -> list[str]:
    """Where two JSON-able settings differ: ["model.scale: was [3, 2], now [6, 4]", …]."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{name}.{k}" if name else k)]
    if old == new:
        return []
    was, now = (text if len(text) <= 60 else text[:57] + "..." for text in map(_canonical, (old, new)))
    return [f"{name}: was {was}, now {now}"]
