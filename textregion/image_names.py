"""Which image of an annotation file is meant: rows {"id": 7, "file_name": "cam1/0001.jpg"} as COCO has them.

A wrong answer gives one image the boxes or masks of another, so whatever is ambiguous is refused.
"""

import math
import os.path
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from textregion.errors import InputError

WHOLE_NUMBER = re.compile(r"(-?)([0-9]+)(?:\.0+)?")
Parts = tuple[str, ...]  # folders and base name


def id_key(value: object) -> str:
    """An id as text, the same for 7, 7.0, "7", "7.0" and "007"; InputError for what is neither text nor number."""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    if not isinstance(value, (int, str)) and not (isinstance(value, float) and math.isfinite(value)):
        raise InputError(f"got the image id {str(value)[:60]!r}, expected a number or text")
    text = str(value).strip()
    number = WHOLE_NUMBER.fullmatch(text)
    if number is None:
        return text
    digits = number[2].lstrip("0")
    return number[1] + digits if digits else "0"


def whole_id(value: object) -> int | None:
    """An id as a whole number, however a file writes it (7, 7.0, "7"); None for what is none: null, true, 7.5, "a"."""
    try:
        return int(id_key(value))
    except ValueError:  # of which InputError is a kind
        return None


def name_parts(name: str | Path) -> Parts:
    """Folders and base name, on any system's separator, without leading `..`; é is the same in both of its codings."""
    path = posixpath.normpath(unicodedata.normalize("NFC", str(name)).replace("\\", "/"))
    return tuple(part for part in path.split("/") if part not in ("", ".", ".."))


class ListedImages:
    """The images an annotation file lists, and `find`, which tells the id of one of them.

    source: the file, for messages. rows: {"id", "file_name"} of each image, as read from JSON; "file_name" may be
    missing, and is no name when it is no text; then no other is guessed by its base name. InputError for a row without
    an id. An image is looked for, in this order,

    1. by its path, exactly;
    2. by the end of its path: photos/cam1/0001.jpg is the listed cam1/0001.jpg, and cam1/0001.jpg the listed
       set/cam1/0001.jpg. The longest agreement counts; folders that all listed images share may differ;
    3. by its base name alone, if no two listed images share a base name and the asked folder is none of those listed:
       then folders tell nothing. Of two images asked for that differ in their folders only, the second is then refused:
       x/1.jpg and y/1.jpg for the listed 1.jpg;
    4. in the same ways where only one of the two names has an ending: photo.jpg and photo;
    5. by its id as name (0007.jpg is 7), only if the file has no file name at all.
    """

    def __init__(self, source: str | Path, rows: Iterable[object]) -> None:
        self.source = source
        self.ids: dict[str, set[Parts]] = defaultdict(set)  # the names of each id; more than one is a fault of the file
        for row in rows:
            if not isinstance(row, Mapping) or row.get("id") is None:
                raise InputError(f"{source}: got an image without an id; expected images of an id and a file_name each")
            name = row.get("file_name")
            self.ids[id_key(row["id"])] |= {name_parts(name)} - {()} if isinstance(name, (str, Path)) else set()
        by_path: dict[Parts, set[str]] = defaultdict(set)
        for key, names in self.ids.items():
            for parts in names:
                by_path[parts].add(key)
        self._by_path = dict(by_path)
        folders = [parts[:-1] for parts in by_path]
        self._shared = len(os.path.commonprefix(folders))  # noqa: RUF071 (of tuples), the folders above all images
        self._by_base: dict[str, list[Parts]] = defaultdict(list)
        self._by_stem: dict[str, list[Parts]] = defaultdict(list)
        for parts in by_path:
            self._by_base[parts[-1]].append(parts)
            self._by_stem[Path(parts[-1]).stem].append(parts)
        self._had: dict[Parts, Parts] = {}  # listed path -> the image that had it by its base name alone
        self._bases_differ = all(len(paths) == 1 for paths in self._by_base.values())
        if not all(self.ids.values()):  # an image without a name may be any that is asked for
            self._shared, self._bases_differ = 0, False

    def find(self, asked: str | Path) -> str:
        """The `id_key` of the image at a path; InputError when the file does not list it, or several that it may be."""
        parts = name_parts(asked)
        if not parts:
            raise InputError(f"got the image name {str(asked)!r}, expected a file name")
        base = parts[-1]
        stem = Path(base).stem
        if not self._by_path:
            return self._only({key for key in (id_key(base), id_key(stem)) if key in self.ids}, asked)
        paths = [parts] if parts in self._by_path else []
        for listed in (self._by_base.get(base), self._by_base.get(stem), self._by_stem.get(base)):
            paths = paths or self._closest(parts, listed or [])
        return self._only({key for path in paths for key in self._by_path[path]}, asked)

    def _closest(self, asked: Parts, listed: list[Parts]) -> list[Parts]:
        """Of listed paths with the right base name those whose folders agree best with those of the path asked for."""
        agreeing = {path: _agreement(asked[:-1], path[self._shared : -1]) for path in listed}
        best = max(agreeing.values(), default=-1)
        if best == -1:
            known = any(_agreement(asked[:-1], path[self._shared : -1]) > 0 for path in self._by_path)
            if known or not self._bases_differ:
                return []
        closest = [path for path, length in agreeing.items() if length == best]
        for path in closest if best < 1 else ():
            before = self._had.setdefault(path, asked)
            if _agreement(before[:-1], asked[:-1]) == -1:
                both = f"{'/'.join(before)} and {'/'.join(asked)} may be"
                raise InputError(f"{self.source} lists one image {'/'.join(path)} that {both}; give it their folders")
        return closest

    def _only(self, found: set[str], asked: str | Path) -> str:
        if len(found) == 1:
            (key,) = found
            if len(names := self.ids[key]) > 1:
                raise InputError(f"{self.source}: the id {key} stands for several images ({_told(names)})")
            return key
        if found:
            names = {name for key in found for name in self.ids[key]} or {(key,) for key in found}
            ids = ", ".join(sorted(found)[:3])
            raise InputError(
                f"{self.source} lists {len(found)} images that {asked} may be ({_told(names)}; ids {ids}); "
                "give the image's path with the folders that the file names, and each image one id"
            )
        alike = self._by_base.get(name_parts(asked)[-1]) or self._by_path or [(key,) for key in self.ids]
        raise InputError(
            f"{self.source} lists no image {asked}; it lists {len(self.ids)} images: {_told(alike) or 'none'}"
        )


def _agreement(asked: Parts, listed: Parts) -> int:
    """How many folders two paths share at their ends if one's are all at the end of the other's, else -1."""
    length = min(len(asked), len(listed))
    return length if asked[len(asked) - length :] == listed[len(listed) - length :] else -1


def _told(names: Iterable[Parts]) -> str:
    told = sorted("/".join(parts) for parts in names)
    return ", ".join(told[:3]) + (", …" if len(told) > 3 else "")
