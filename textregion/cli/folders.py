"""One folder per image that is either whole or not there: made aside, moved into place, never over another run.

While results are written they lie in a hidden folder beside their place; `run.json` goes in last and the folder is
renamed. A process that dies leaves at most such a hidden folder, which the next run clears away.
"""

import json
import os
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from textregion.errors import InputError

RUN_FILE = "run.json"
RESERVED = ("summary.csv", "summary.md")  # files of the output folder itself
_numbers = count()


class OutputError(InputError):
    """Results cannot be written: full disk, no permission. There is no point in going on with further images."""


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Failures to write become one line; what was written before stays."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write to {place} ({reason}); free space or choose another --output") from error


def output_names(paths: Sequence[Path]) -> list[str]:
    """One stable folder name per image: its stem, numbered where it is taken (also where only case differs)."""
    taken, names = {name.casefold() for name in RESERVED}, []
    for path in paths:
        candidates = (path.stem if n == 1 else f"{path.stem}_{n}" for n in count(1))
        names.append(next(name for name in candidates if name.casefold() not in taken))
        taken.add(names[-1].casefold())
    return names


def read_run(folder: Path) -> dict | None:
    """The run.json of a finished folder whose files are all there; None otherwise."""
    try:
        run = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(run, dict) or not isinstance(run.get("files"), list):
        return None
    return run if all((folder / str(name)).is_file() for name in run["files"]) else None


@contextmanager
def finished_folder(folder: Path, run: dict) -> Iterator[Path]:
    """A hidden folder to write into, which becomes `folder` when the body ends without an error.

    run: what run.json is to hold, with at least "fingerprint"; the body may add to it. "folder" and "files" are
    added here. An earlier `folder` with the same fingerprint is replaced; anything else at that place is moved
    aside to `<name>.old-1` (or -2, …), and after the body run["kept"] says where. OutputError when it cannot be
    written.
    """
    with writing(folder):
        hidden = _hidden(folder.parent)
        try:
            hidden.mkdir(parents=True)
            yield hidden
            files = sorted(str(p.relative_to(hidden)) for p in hidden.rglob("*") if p.is_file())
            run.update(folder=folder.name, files=files)
            (hidden / RUN_FILE).write_bytes(json_bytes(run))
            _flush(hidden)
            if (aside := _move_into_place(hidden, folder, run["fingerprint"])) is not None:
                run["kept"] = str(aside)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def json_bytes(content: object) -> bytes:
    """JSON to be read by people too; what UTF-8 cannot hold (parts of undecodable file names) stays escaped."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def clear_remains(output: Path) -> None:
    """Deal with the hidden folders of processes of this machine that died: whole ones whose place is free get it."""
    for hidden in sorted(output.glob(".partial-*")):
        match = re.fullmatch(r"\.partial-(.*)-(\d+)-\d+", hidden.name)
        if match is None or match[1] != platform.node() or _alive(int(match[2])):
            continue
        run = read_run(hidden)
        with writing(output):
            if run is not None and not (output / Path(str(run["folder"])).name).exists():
                hidden.rename(output / Path(str(run["folder"])).name)
            else:
                shutil.rmtree(hidden)


def _hidden(parent: Path) -> Path:
    return parent / f".partial-{platform.node()}-{os.getpid()}-{next(_numbers)}"


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(folder: Path) -> None:
    """Everything onto the disk before the folder gets its name: a power cut leaves no empty file in it either."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _move_into_place(hidden: Path, folder: Path, fingerprint: str) -> Path | None:
    """Rename; returns where something else that was there is kept now.

    Between two renames `folder` is missing for a moment; clear_remains puts it right after a crash just then.
    """
    if not folder.exists():
        hidden.rename(folder)
        return None
    if _is_same_run(folder, fingerprint):
        earlier = folder.rename(_hidden(folder.parent))
        hidden.rename(folder)
        shutil.rmtree(earlier, ignore_errors=True)
        return None
    aside = set_aside(folder)
    hidden.rename(folder)
    return aside


def set_aside(path: Path) -> Path:
    """Rename to the first free of `<name>.old-1`, `<name>.old-2`, …"""
    candidates = (path.with_name(f"{path.name}.old-{n}") for n in count(1))
    return path.rename(next(candidate for candidate in candidates if not candidate.exists()))


def _is_same_run(folder: Path, fingerprint: str) -> bool:
    """Whether a folder holds a finished run of this fingerprint and nothing besides."""
    run = read_run(folder)
    if run is None or run.get("fingerprint") != fingerprint:
        return False
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    return there == {*run["files"], RUN_FILE}
