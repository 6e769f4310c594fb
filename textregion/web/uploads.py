"""The files of the page: what users sent and what is made for them, in one folder that never grows above its quota."""

import os
import re
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from textregion.errors import InputError
from textregion.images import Readable
from textregion.storage import safe_name
from textregion.web.cached_segmenter import Limits

MOST_FILES = 2000  # in the folder, so that looking through it stays quick


class Uploads:
    """Files in `folder`, of which those used longest ago are deleted when there is no room for more.

    What lies in the folder itself (the example scenes) stays; everything else lies in folders of its own in there.
    limits: `disk_bytes` of all files together, `session_bytes` of one session's uploads, `made_bytes` that stay free
    for what the page makes. paths: of all uploads that were kept so far, as gradio's deletion by age wants them.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder, self.limits = Path(folder).resolve(), limits
        self.paths: set[str] = set()
        self._sessions: dict[Path, str] = {}
        self._underway = 0
        self._lock = threading.Lock()

    @contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Room for an upload of `size` bytes while the body runs, twice: where it arrives and where it is kept.

        InputError when so many others are under way that there is none.
        """
        with self._lock:
            if not self._delete_oldest(2 * size):
                raise InputError("too many images are being sent at once; try again in a minute")
            self._underway += 2 * size
        try:
            yield
        finally:
            with self._lock:
                self._underway -= 2 * size

    def make_room(self) -> None:
        """Delete what was used longest ago until the page may make one answer's files, of `made_bytes` at most."""
        with self._lock:
            self._delete_oldest(0)

    def keep(self, name: str, content: Readable, session: str) -> Path:
        """Keep an upload under its own name in a folder that nobody can guess; the session's oldest make room for it.

        To be called within `reserved`. OSError passes through.
        """
        path = self.folder / secrets.token_hex(16) / safe_name(re.split(r"[/\\]", name)[-1])
        path.parent.mkdir()
        with path.open("xb") as file:
            shutil.copyfileobj(content, file)
        with self._lock:
            self._sessions = {known: of for known, of in self._sessions.items() if known.exists()} | {path: session}
            mine = {known: known.stat() for known, of in self._sessions.items() if of == session}
            used = sum(stat.st_size for stat in mine.values())
            for known in sorted(mine, key=lambda known: (known == path, mine[known].st_mtime_ns)):
                if used <= self.limits.session_bytes:
                    break
                used -= mine[known].st_size
                _delete(known)
        self.paths.add(str(path))
        return path

    def used(self, path: str | Path) -> None:
        """Note that a file was used just now; it may be gone."""
        try:
            os.utime(path)
        except OSError:
            return

    def _delete_oldest(self, needed: int) -> bool:
        """Delete until `needed` bytes fit besides what is under way and what may be made; whether they do."""
        files = {path: path.stat() for path in self.folder.glob("*/*") if path.is_file()}
        used = sum(stat.st_size for stat in files.values())
        most, left = self.limits.disk_bytes - self.limits.made_bytes - self._underway - needed, len(files)
        for path in sorted(files, key=lambda path: files[path].st_mtime_ns):
            if used <= most and left < MOST_FILES:
                break
            used, left = used - files[path].st_size, left - 1
            _delete(path)
        return used <= most


def _delete(path: Path) -> None:
    """Delete a file and its folder, if nothing else lies there."""
    path.unlink(missing_ok=True)
    if not any(path.parent.iterdir()):
        path.parent.rmdir()
