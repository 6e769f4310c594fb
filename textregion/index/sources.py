"""Images of an index: found by folders, globs, lists and URIs; opened again only inside what was indexed.

In a table an image of this machine is named by its absolute path, so that it is one image from whatever folder the
program is started; a URI is named as given. A path in a table is data: nobody knows who wrote it. It is opened only
below the table's roots (the folders that were indexed), or below `--image-root`, where the user says they are now.
"""

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os.path import commonpath, isdir, isfile
from pathlib import Path, PurePosixPath
from typing import Any

from textregion.errors import InputError, first_line, needs
from textregion.images import MAX_PIXELS
from textregion.storage import read_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif")
RUN_FILE = "run.json"  # in a folder of results, whose pictures are no photos
LARGEST_FILE = 16 * MAX_PIXELS + 2**26  # bytes, as `load_image` takes them


def is_uri(source: str) -> bool:
    """Whether a text names something that fsspec opens (s3://…) and not a file of this machine."""
    scheme, mark, _ = source.partition("://")
    return bool(mark) and scheme.isalnum() and scheme != "file"


@dataclass(frozen=True)
class Found:
    """Images that some sources name: their names in a table, sorted, and the roots below which they lie.

    folders: those of the roots that were searched as folders or globs. passed_over: how many other files lie there.
    """

    images: list[str]
    roots: list[str]
    folders: list[str]
    passed_over: int = 0


def find(sources: Sequence[str | Path], lists: Sequence[str | Path] = ()) -> Found:
    """Images of files, folders with all their subfolders, globs, URIs, and of text files that name one a line.

    A file named in full is taken whatever it is called, even when it is missing: the journal then says so. Of folders
    and globs the files with an ending of SUFFIXES are taken; hidden ones and pictures that this program wrote do not
    count. InputError when there are none.
    """
    lines = [line.strip() for path in lists for line in read_text(path, "a text file of image paths").splitlines()]
    images: dict[str, None] = {}
    roots: dict[str, bool] = {}  # whether it was searched
    passed_over = 0
    for source in [*map(str, sources), *(line for line in lines if line and not line.startswith("#"))]:
        found, root = _find_uri(source) if is_uri(source) else _find_local(source.removeprefix("file://"))
        wanted = [name for name in found if _is_image(name)] if found is not None else [root]
        if found is None and not (is_uri(root) or os.path.lexists(root) or _is_image(root)):
            raise InputError(f"no file or folder {source}; give images, folders of images or globs in quotes")
        if not wanted:
            raise InputError(f"no image in {source}; expected files ending in {', '.join(SUFFIXES)}")
        passed_over += len(found or wanted) - len(wanted)
        images.update(dict.fromkeys(wanted))
        root, searched = (_parent(root), False) if found is None else (root, True)
        roots[root] = roots.get(root, False) or searched
    if not images:
        raise InputError("got no images; give folders, globs in quotes, files or URIs")
    return Found(sorted(images), sorted(roots), sorted(root for root in roots if roots[root]), passed_over)


def _find_local(source: str) -> tuple[list[str] | None, str]:
    """(files below a folder or of a glob, its root), or (None, the path) of a single file."""
    if "\0" in source:
        raise InputError(f"got the path {source!r}, expected one without NUL")
    path = os.path.abspath(source)
    if isdir(path):
        return list(_walk(path)), path
    if glob.has_magic(source) and not os.path.exists(path):
        matches = [os.path.abspath(match) for match in glob.glob(source, recursive=True)]
        files = [match for match in matches if isfile(match)]
        files += [file for match in matches if isdir(match) for file in _walk(match)]
        return [f for f in files if not _is_hidden(f)], commonpath([os.path.dirname(f) for f in files] or [path])
    return None, path


def _walk(folder: str) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if RUN_FILE not in files:
            yield from (os.path.join(place, name) for name in sorted(files) if not name.startswith("."))


def _is_hidden(path: str) -> bool:
    return os.path.basename(path).startswith(".") or isfile(os.path.join(os.path.dirname(path), RUN_FILE))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _parent(name: str) -> str:
    return name.rpartition("/")[0] if is_uri(name) else os.path.dirname(name)


def _find_uri(source: str) -> tuple[list[str] | None, str]:
    with _remote(source) as (system, path):
        if glob.has_magic(path):
            return [system.unstrip_protocol(name) for name in system.glob(path)], source.partition("*")[0].rstrip("/")
        if system.isdir(path):
            return [system.unstrip_protocol(name) for name in system.find(path)], source.rstrip("/")
    return None, source


@contextmanager
def _remote(uri: str) -> Iterator[tuple[Any, str]]:
    """(file system, path in it) of a URI; InputError in one line for whatever it says when it is used."""
    with needs(f"opening {uri.partition('://')[0]}://", extra="search"):
        import fsspec
    try:
        yield fsspec.core.url_to_fs(uri)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"cannot read {uri} ({first_line(error)}); check the URI and the access to it") from error


def stamp(image: str) -> str:
    """Size and time of change, or what a remote system says instead; '' for a file that is not there."""
    if is_uri(image):
        with _remote(image) as (system, path):
            info = system.info(path)
        return ":".join(str(info[key]) for key in ("size", "ETag", "LastModified", "mtime", "created") if key in info)
    try:
        status = os.stat(image)
    except (OSError, ValueError):
        return ""
    return f"{status.st_size}:{status.st_mtime_ns}"


def read_bytes(image: str) -> bytes:
    """An image file. InputError when it cannot be read or is larger than any image."""
    if is_uri(image):
        with _remote(image) as (system, path), system.open(path, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
    else:
        if not isfile(image):  # a folder, a device, a pipe
            raise InputError(f"no file {image}")
        try:
            with open(image, "rb") as file:
                data = file.read(LARGEST_FILE + 1)
        except OSError as error:
            raise InputError(f"cannot read {image} ({error.strerror})") from error
    if len(data) > LARGEST_FILE:
        raise InputError(f"{image} is larger than an image of {MAX_PIXELS // 10**6} million pixels can be")
    return data


def content_hash(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


class Opener:
    """Opens images that a table names, only below its roots.

    roots: folders and URIs that were indexed. image_root: where they are now: the rest of the path below its root is
    looked for there, and nowhere else.
    """

    def __init__(self, roots: Iterable[str], image_root: str | Path | None = None) -> None:
        self.roots, self.image_root = list(roots), None if image_root is None else str(image_root)

    def place(self, image: str) -> str:
        """Where an image is now. InputError for a path outside the roots, also through `..` and symbolic links."""
        root = next((root for root in self.roots if is_below(image, root)), None)
        if root is None:
            raise InputError(f"{image} lies outside the folders that were indexed; it is not opened")
        if self.image_root is None:
            return image
        rest = image[len(root) :].lstrip("/\\")
        if is_uri(self.image_root):
            return f"{self.image_root.rstrip('/')}/{rest}"
        place = os.path.join(os.path.abspath(self.image_root), *PurePosixPath(rest.replace("\\", "/")).parts)
        if not is_below(place, os.path.abspath(self.image_root)):
            raise InputError(f"{image} lies outside {self.image_root}; it is not opened")
        return place

    def read(self, image: str, image_hash: str = "") -> bytes:
        """The file's content. InputError when it is gone, outside, or no longer what was indexed."""
        data = read_bytes(self.place(image))
        if image_hash and content_hash(data) != image_hash:
            raise InputError(f"{image} has changed since it was indexed; run `textregion index` again")
        return data


def is_below(name: str, root: str) -> bool:
    """Whether a path or URI lies below another, whatever `..` and symbolic links are in it."""
    if is_uri(name) or is_uri(root):
        return name.startswith(root.rstrip("/") + "/") and ".." not in name.split("/")
    try:
        place, folder = os.path.realpath(name), os.path.realpath(root)
    except (OSError, ValueError):
        return False
    return place.startswith(folder.rstrip(os.sep) + os.sep)
