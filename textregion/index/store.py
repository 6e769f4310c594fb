"""The three Lance tables of an index and how they change together: a commit is one write of the one row of `state`.

Lance commits each table alone. So `state` holds the versions of `regions` and `images` that belong together; readers
look at these and at nothing newer. A process that dies between two writes leaves newer versions that nobody sees; the
next writer goes back to those of `state` before it writes.

One process writes at a time. On this machine the kernel's lock of a file says so, which ends with the process however
it ends; and everywhere, object stores too, `state` names its writer: one that is no longer named there stops.
"""

import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textregion.errors import InputError, needs
from textregion.index.checksums import check_files, update_checksums
from textregion.index.schema import TOKEN, Meta, Regions, arrow, image_schema, region_schema, token_array
from textregion.index.sources import is_uri
from textregion.storage import delete_unfinished

if TYPE_CHECKING:
    import pyarrow as pa

try:
    import fcntl
except ImportError:  # Windows, where `state` alone tells writers apart
    fcntl = None

STORAGE = {"new_table_data_storage_version": "2.1"}  # rows of 2.2 are read eight times slower one by one
NAMES = ("regions", "images", "state")
LOCK = ".writer.lock"
PLACE_IN_RUST = re.compile(r",? /\S+\.rs:\d+:\d+")  # of an error of Lance, in its own source
NAMES_AT_ONCE = 500  # of images in one filter
KEPT = timedelta(hours=1)  # old versions, so that a reader that looks at one just now can end
FEW_FILES = 8  # of a table: more are compacted at the end of a run


def lancedb() -> Any:
    """The package, once it is needed. InputError with the command that installs it."""
    with needs("the region index", layer="search", extra="search"):
        import lance  # noqa: F401 (pylance, which lancedb's to_lance wants)
        import lancedb
    return lancedb


@contextmanager
def lance_errors(what: str) -> Iterator[None]:
    """InputError in one line for what Lance and pyarrow raise in the body. what: begins the line."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, RuntimeError, OSError, KeyError, NotImplementedError, TypeError) as error:
        text = " ".join(str(error).split()).removeprefix("lance error: ")
        raise InputError(f"{what} ({PLACE_IN_RUST.sub('', text)[:300]})") from error


def short_files(table: Any, whole: set[str] | None = None) -> list[str]:
    """Names of a table's data files that are shorter on this disk than the table says.

    whole: files that need not be looked at; those that are as they should be are added. No object store is asked: it
    has a file whole or not at all.
    """
    data = table.to_lance()
    if is_uri(data.uri):
        return []
    whole = set() if whole is None else whole
    files = {f.path: f.file_size_bytes for part in data.get_fragments() for f in part.metadata.files}
    short = []
    for name in files.keys() - whole:
        path = os.path.join(data.uri, "data", name)
        (short.append if os.path.getsize(path) < (files[name] or 0) else whole.add)(name)
    return short


def quoted(text: str) -> str:
    """A text as a literal of a filter."""
    return "'" + text.replace("'", "''") + "'"


@dataclass(frozen=True)
class State:
    """The one row of `state`. regions, images: versions of the two tables. writer: who wrote last.

    roots: folders and URIs that were indexed.
    """

    regions: int
    images: int
    writer: str = ""
    roots: tuple[str, ...] = ()

    def row(self) -> "pa.Table":
        """As a table of one row."""
        columns = {**vars(self), "roots": json.dumps(self.roots)}
        return arrow().table({name: [value] for name, value in columns.items()})

    @classmethod
    def of(cls, table: Any) -> "State":
        """The row as it is now."""
        (row,) = table.to_arrow().to_pylist()
        return cls(int(row["regions"]), int(row["images"]), row["writer"], tuple(json.loads(row["roots"])))


class Tables:
    """An index on disk or in an object store, as it was last committed."""

    def __init__(self, path: str, tables: dict[str, Any]) -> None:
        self.path = path
        self.regions, self.images, self._state = (tables[name] for name in NAMES)
        self._data: tuple[int, Any, Any] = (0, None, None)
        self._seen, self.state, self.meta = 0, State(0, 0), Meta({})
        self.refresh()

    @classmethod
    def exist(cls, path: str | Path) -> bool:
        """Whether there is an index at a path. InputError where something else is."""
        path = str(path)
        if is_uri(path):
            with lance_errors(f"cannot open {path}"):
                return set(NAMES) <= set(lancedb().connect(path).list_tables().tables)
        if "\0" in path or (os.path.lexists(path) and not os.path.isdir(path)):
            raise InputError(f"{path} is no folder; give the folder of a region index, such as photos.lance")
        there = os.path.isdir(path) and bool(os.listdir(path))
        if there and not any(os.path.isdir(os.path.join(path, f"{name}.lance")) for name in NAMES):
            raise InputError(f"{path} holds something else than a region index; choose another --to")
        return there and all(os.path.isdir(os.path.join(path, f"{name}.lance")) for name in NAMES)

    @classmethod
    def check(cls, path: str | Path) -> None:
        """InputError when there is no index at a path."""
        if not cls.exist(path):
            raise InputError(f"no region index at {path}; make one: textregion index PHOTOS --to {path}")

    @classmethod
    def open(cls, path: str | Path) -> "Tables":
        """The index at a path. InputError in one line: none there, damaged, of another format."""
        path = str(path)
        cls.check(path)
        with lance_errors(f"cannot read the region index {path}, it is damaged"):
            if not is_uri(path):
                check_files(path)
            database = lancedb().connect(path)
            return cls(path, {name: database.open_table(name) for name in NAMES})

    @classmethod
    def create(cls, path: str | Path, meta: Meta) -> "Tables":
        """A new, empty index. InputError when it cannot be written, or when one is there."""
        path = str(path)
        if cls.exist(path):
            raise InputError(f"{path} is a region index already; open it")
        with lance_errors(f"cannot make the region index {path}"):
            database = lancedb().connect(path)
            for name in database.list_tables().tables:  # of one that was killed while it was made
                database.drop_table(name)
            regions = database.create_table("regions", schema=region_schema(meta), storage_options=STORAGE)
            images = database.create_table("images", schema=image_schema(), storage_options=STORAGE)
            state = State(regions.version, images.version)
            database.create_table("state", state.row(), storage_options=STORAGE)
        return cls.open(path)

    def refresh(self) -> None:
        """Look at what was committed last."""
        with lance_errors(f"cannot read the region index {self.path}, it is damaged"):
            self._state.checkout_latest()
            if self._state.version == self._seen:
                return
            while self._state.version > 1 and short_files(self._state):  # of a writer whose disk was full
                self._state.checkout(self._state.version - 1)
            self.state = State.of(self._state)
            self.regions.checkout(self.state.regions)
            self.images.checkout(self.state.images)
            self.meta = Meta.unpack(self.regions.schema.metadata, self.path)
            self._seen = self._state.version

    def data(self) -> tuple[Any, Any]:
        """`regions` and `images` as Lance data sets, for searches: each call of lancedb's own tables costs more."""
        if self._data[0] != self._seen:
            self._data = (self._seen, self.regions.to_lance(), self.images.to_lance())
        return self._data[1:]

    def journal(self) -> "pa.Table":
        """All rows of `images`."""
        with lance_errors(f"cannot read the region index {self.path}, it is damaged"):
            return self.images.to_arrow()

    @contextmanager
    def writing(self) -> Iterator["Writer"]:
        """The only writer, from the last commit on. InputError while another process of this machine writes."""
        with self._lock():
            if not is_uri(self.path):
                delete_unfinished(Path(self.path))
            self.refresh()
            with lance_errors(f"cannot write to {self.path}"):
                for table, version in ((self.regions, self.state.regions), (self.images, self.state.images)):
                    table.checkout_latest()
                    if table.version != version:  # left by a writer that died
                        table.checkout(version)
                        table.restore()
                self._state.checkout_latest()
                if short_files(self._state):  # then `refresh` found an older one
                    self._state.checkout(self._seen)
                    self._state.restore()
                writer = Writer(self, secrets.token_hex(8))
                writer.claim()
            try:
                yield writer
            finally:
                self._seen = 0
                self.refresh()

    @contextmanager
    def _lock(self) -> Iterator[None]:
        if fcntl is None or is_uri(self.path):
            yield
            return
        with lance_errors(f"cannot write to {self.path}"):
            handle = os.open(os.path.join(self.path, LOCK), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                told = f"another process is writing to {self.path}"
                raise InputError(f"{told}; wait for its end, what it has committed can be searched") from error
            yield
        finally:
            os.close(handle)


class Writer:
    """Adds and removes images; nothing is seen before `commit`."""

    def __init__(self, tables: Tables, name: str) -> None:
        self.tables, self.name = tables, name
        self._whole: set[str] = set()  # files that were seen to be as long as they should be

    def claim(self) -> None:
        """Say in `state` that this process writes."""
        self._write(replace(self.tables.state, writer=self.name))

    def remove(self, images: Sequence[str]) -> None:
        """Forget images and their regions."""
        self._delete(images, self.tables.regions)
        self._delete(images, self.tables.images)

    def add(self, results: Sequence[Regions]) -> None:
        """Add images that are not there, each with its regions and its row of the journal."""
        with lance_errors(self._full()):
            rows = region_rows(results, self.tables.regions.schema)
            if len(rows):
                self.tables.regions.add(rows)
            self.tables.images.add(journal_rows(results))

    def replace_journal(self, rows: Sequence[dict]) -> None:
        """New rows of `images` for images that are there; their regions stay."""
        self._delete([row["image"] for row in rows], self.tables.images)
        with lance_errors(self._full()):
            self.tables.images.add(arrow().Table.from_pylist(rows, schema=image_schema()))

    def _delete(self, images: Sequence[str], table: Any) -> None:
        with lance_errors(self._full()):
            for start in range(0, len(images), NAMES_AT_ONCE):
                table.delete(f"image IN ({', '.join(map(quoted, images[start : start + NAMES_AT_ONCE]))})")

    def commit(self, roots: Sequence[str] = ()) -> None:
        """Make all of it seen, at once. InputError when another process has taken over."""
        with lance_errors(self._full()):
            self.tables._state.checkout_latest()
            state = State.of(self.tables._state)
            for table in (self.tables.regions, self.tables.images):
                self._check(table)
            if state.writer != self.name:
                raise InputError(f"another process has begun to write to {self.tables.path}; this one stops")
            known = tuple(dict.fromkeys([*state.roots, *roots]))
            versions = {"regions": self.tables.regions.version, "images": self.tables.images.version}
            self._write(replace(state, **versions, roots=known))

    def tidy(self, always: bool = False) -> None:
        """Compact small files and bring the index up to the rows of now, if there are any; then drop old versions."""
        with lance_errors(self._full()):
            for table in (self.tables.regions, self.tables.images):
                if always or len(table.to_lance().get_fragments()) > FEW_FILES or table.list_indices():
                    table.optimize(cleanup_older_than=timedelta(days=36500))
                    table.checkout_latest()
            self.commit()
            for table in (self.tables.regions, self.tables.images, self.tables._state):
                table.to_lance().cleanup_old_versions(older_than=KEPT)

    def _write(self, state: State) -> None:
        self.tables._state.add(state.row(), mode="overwrite")
        self._check(self.tables._state)
        self.tables.state = state
        if not is_uri(self.tables.path):
            with suppress(OSError):  # a full disk: the commit holds, and the next one writes them
                update_checksums(self.tables.path)

    def _check(self, table: Any) -> None:
        """OSError for files that are shorter than they should be: Lance takes no notice of a disk that gets full."""
        short = short_files(table, self._whole)
        if short:
            raise OSError(f"{short[0]} is cut off")

    def _full(self) -> str:
        return f"cannot write to {self.tables.path}; what was committed is kept, free space and run this again"


def region_rows(results: Sequence[Regions], schema: "pa.Schema") -> "pa.Table":
    """The regions of some images as rows; columns that they do not have (a user's, another backbone's) are empty."""
    pa = arrow()
    results = [result for result in results if len(result)]
    columns: dict[str, Any] = {}
    for name in ("image", "image_hash"):
        columns[name] = pa.array([getattr(result, name) for result in results for _ in range(len(result))], pa.string())
    for name in results[0].rows if results else ():
        columns[name] = _column([result.rows[name] for result in results], name, schema.field(name).type)
    rows = sum(map(len, results))
    arrays = [columns.get(field.name, pa.nulls(rows, field.type)) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _column(parts: Sequence[Any], name: str, kind: "pa.DataType") -> "pa.Array":
    import numpy as np

    pa = arrow()
    if name.startswith(TOKEN):
        return token_array(np.concatenate(parts))
    if name == "box":
        return pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(parts).astype(np.float32).ravel()), 4)
    if name == "mask":
        return pa.array([mask for part in parts for mask in part], kind)
    return pa.array(np.concatenate(parts)).cast(kind)


def journal_rows(results: Sequence[Regions]) -> "pa.Table":
    """A row of `images` each."""
    rows = [
        {
            **{name: getattr(result, name) for name in ("image", "image_hash", "stamp", "width", "height")},
            **{"regions": len(result), "status": result.status, "reason": result.reason},
        }
        for result in results
    ]
    return arrow().Table.from_pylist(rows, schema=image_schema())
