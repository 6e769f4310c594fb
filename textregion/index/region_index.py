"""RegionIndex, the class that programs, page and users take: every region of every image, found by words."""

import json
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from textregion.engines import Engine, Lost
from textregion.errors import InputError, at_least
from textregion.images import ImageInput
from textregion.index.absent import floor
from textregion.index.crops import rerank as score_crops
from textregion.index.encoding import SAME, RegionWorker, Wanted, segmenter_of, worker_builder
from textregion.index.schema import DONE, TOKEN, Encoder, Meta, Regions
from textregion.index.search import MOST_HITS, RERANKED, Effort, Hit, best_rows, make_query, split_words
from textregion.index.sources import Found, Opener, find, is_uri, stamp
from textregion.index.store import Tables, Writer, lance_errors
from textregion.segmenter import TextRegionSegmenter

DEFAULT_PRESET = "clip-vit-l14-336"
FLUSH_ROWS = 100_000  # a file of the table for each flush, so these are large
FLUSH_SECONDS = 60.0  # what a killed run loses at most
STAMP_THREADS = 16
NOT_STORED = ("clip_checkpoint", "clip_download_root", "sam2_checkpoint", "model_cfg", "device", "dtype")


@dataclass
class Added:
    """What became of the images of one run. seconds: of all of it. regions: of the images encoded."""

    encoded: int = 0
    regions: int = 0
    unchanged: int = 0
    pruned: int = 0
    passed_over: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    lost: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        """`300 images, 2431 regions in 91.2 s (3.3 images/s); 2 unreadable`."""
        rate = f" ({self.encoded / self.seconds:.1f} images/s)" if self.encoded and self.seconds else ""
        told = [f"{self.encoded} images encoded, {self.regions} regions in {self.seconds:.1f} s{rate}"]
        counts = {"unchanged": self.unchanged, "pruned": self.pruned, "other files passed over": self.passed_over}
        counts |= {"unreadable": len(self.unreadable), "lost with a worker": len(self.lost)}
        return "; ".join([*told, *(f"{count} {what}" for what, count in counts.items() if count)])


class RegionIndex:
    """A table of regions that is open.

    index = RegionIndex.open("photos.lance"); index.add("photos/"); hits = index.search("a red mug", top=24)
    """

    def __init__(self, tables: Tables, column: str = TOKEN, **machine: Any) -> None:
        self.tables, self.column, self.machine = tables, column, machine
        self._segmenters: dict[bool, TextRegionSegmenter] = {}

    @classmethod
    def create(cls, path: str | Path, preset: str = DEFAULT_PRESET, **options: Any) -> "RegionIndex":
        """A new, empty table for a preset.

        options: as of `TextRegionSegmenter.from_preset`. Those that decide results are kept in the table; where the
        weights are and which device is used are not. InputError when something is there, or cannot be written.
        """
        machine = {name: options.pop(name) for name in NOT_STORED if name in options}
        kept = {**options, "dense_fallback": False}  # for pixels outside regions, which no table has
        if not isinstance(kept.get("mask_generator", ""), str):
            raise InputError("got a mask generator of your own; a table names one: leave it out, or give 'slic'")
        if Tables.exist(path):
            raise InputError(f"{path} is a region index already; open it")
        segmenter = TextRegionSegmenter.from_preset(preset, **kept, **machine)
        encoder = Encoder.of(segmenter, preset, kept)
        index = cls(Tables.create(path, Meta({TOKEN: encoder})), **machine)
        index._segmenters[False] = segmenter
        return index

    @classmethod
    def open(cls, path: str | Path, preset: str | None = None, **options: Any) -> "RegionIndex":
        """A table that is there, with the preset that made it.

        preset: which of its columns, where a second backbone has one. options: device, dtype, where weights are; others
        only as they were when it was made.
        InputError in one line: no table, a damaged one, or one that this preset has not made.
        """
        tables = Tables.open(path)
        encoders = tables.meta.encoders
        columns = [name for name, encoder in encoders.items() if preset in (None, encoder.preset)]
        if not columns:
            made = ", ".join(encoder.preset for encoder in encoders.values())
            raise InputError(f"{path} was made with preset {made}, not {preset}; leave --preset out")
        kept = encoders[columns[0]].options
        given = {name: options.pop(name) for name in list(options) if name not in NOT_STORED}
        if differ := [name for name, value in given.items() if json.loads(json.dumps(value)) != kept.get(name)]:
            told = ", ".join(
                f"{name} {given[name]} (there: {kept.get(name, 'as the preset has it')})" for name in differ
            )
            raise InputError(f"{path} was made with other settings than {told}; leave them out, or make a new table")
        return cls(tables, columns[0], **options)

    @property
    def encoder(self) -> Encoder:
        """What made the column of tokens that is looked at."""
        return self.tables.meta.encoders[self.column]

    def __len__(self) -> int:
        return self.tables.regions.count_rows()

    def is_indexed(self) -> bool:
        """Whether the column has an index, so that a search looks at a part of the rows only."""
        with lance_errors(f"cannot read {self.tables.path}"):
            return any(self.column in entry.columns for entry in self.tables.regions.list_indices())

    def __repr__(self) -> str:
        images = self.tables.images.count_rows()
        return f"RegionIndex({self.tables.path!r}, {images} images, {len(self)} regions, preset {self.encoder.preset})"

    def segmenter(self, words_only: bool = False) -> TextRegionSegmenter:
        """The models, loaded once. words_only: without the mask source, which words do not need.

        InputError when the weights found here are not those that made the table.
        """
        if False in self._segmenters:
            return self._segmenters[False]
        if words_only not in self._segmenters:
            segmenter = segmenter_of(self.encoder, words_only, **self.machine)
            self.encoder.check_words(segmenter, self.tables.path)
            if not words_only:
                here = Encoder.of(segmenter, self.encoder.preset, self.encoder.options)
                self.encoder.check_same(here, self.tables.path)
            self._segmenters[words_only] = segmenter
        return self._segmenters[words_only]

    def share_words(self, segmenter: TextRegionSegmenter) -> None:
        """Take the words from a segmenter that is loaded already, if it has the table's model; else load that now."""
        try:
            self.encoder.check_words(segmenter, self.tables.path)
            self._segmenters[True] = segmenter
        except InputError:
            self.segmenter(words_only=True)

    # ------------------------------------------------------------------ images -> rows

    def add(
        self,
        images: str | Path | Sequence[str | Path],
        lists: Sequence[str | Path] = (),
        engine: Engine | None = None,
        prune: bool = False,
        bar: bool = False,
        flush_rows: int = FLUSH_ROWS,
        flush_seconds: float = FLUSH_SECONDS,
    ) -> Added:
        """Index images: those that are missing, or whose content has changed. An unreadable one is in the journal.

        images: files, folders with their subfolders, globs, URIs. lists: text files that name such, one a line.
        prune: also forget images whose file is gone. Rows of an image and its journal row are seen together, after
        `flush_rows` regions or `flush_seconds`; a run that is stopped or killed keeps what was seen.
        InputError: no images, another process writes, the disk is full.
        """
        start, engine = time.perf_counter(), engine or Engine()
        found = find([images] if isinstance(images, (str, Path)) else images, lists)
        added = Added(passed_over=found.passed_over)
        with self.tables.writing() as writer:
            journal = {row["image"]: row for row in self.tables.journal().to_pylist()}
            flusher = _Flusher(writer, journal, found.roots, flush_rows, flush_seconds)
            gone = _gone(journal, found) if prune else []
            if gone:
                writer.remove(gone)
                writer.commit(found.roots)
                added.pruned = len(gone)
            images = [image for image in found.images if image not in set(gone)]
            wanted = _wanted(images, journal)
            added.unchanged = len(images) - len(wanted)
            try:
                self._encode(engine, wanted, flusher, added, bar)
            finally:
                flusher.flush()
            writer.tidy()
        added.seconds = time.perf_counter() - start
        return added

    def _encode(self, engine: Engine, wanted: Sequence[Wanted], flusher: "_Flusher", added: Added, bar: bool) -> None:
        if not wanted:
            return
        build = worker_builder(self.encoder, **self.machine)
        if engine.name == "local":
            segmenter = self.segmenter()
            build = lambda: RegionWorker(segmenter)  # noqa: E731 (it is loaded already)
        with tqdm(total=len(wanted), unit="image", desc="index", disable=not bar) as progress:
            for place, result in engine.run(build, wanted):
                if isinstance(result, Lost):
                    added.lost.append((wanted[place].image, result.reason))
                elif result.status == SAME:
                    added.unchanged += 1
                    flusher.touch(result)
                else:
                    if result.status == DONE:
                        added.encoded, added.regions = added.encoded + 1, added.regions + len(result)
                    else:
                        added.unreadable.append((result.image, result.reason))
                    flusher.put(result)
                progress.set_postfix(regions=added.regions, refresh=False)
                progress.update()

    # ------------------------------------------------------------------ words -> rows

    def search(
        self,
        query: str | Sequence[str] = (),
        top: int = 24,
        *,
        like: ImageInput | None = None,
        box: Sequence[float] | None = None,
        without: str | Sequence[str] = (),
        where: str | None = None,
        per_image: int | None = None,
        absent: bool = False,
        rerank: bool = False,
        image_root: str | Path | None = None,
        effort: Effort | None = None,
    ) -> list[Hit]:
        """The regions that words describe best, or that are most like a region of an image; best first.

        query: words; synonyms separated by ";", the best of them counts. like, box: instead of or besides words, an
        image and x1 y1 x2 y2 in its pixels, default all of it. without: words whose score is taken off. where: a
        filter over the columns, as `area > 0.002 and image like '%beach%'`. per_image: most hits of one image. absent:
        mark hits below what unrelated control words reach here. rerank: score the best hits again by their crops,
        opened below `image_root` or where they were indexed. effort: how hard an index is searched.
        InputError in one line for bad words, an unreadable filter, images that are gone.
        """
        if at_least("top", top) > MOST_HITS:
            raise InputError(f"got top {top}, expected at most {MOST_HITS}; use where to ask for parts")
        if per_image is not None:
            at_least("per_image", per_image)
        self.tables.refresh()
        asked = make_query(self, query, like, box, without)
        wanted = max(top, RERANKED) if rerank else top
        hits = best_rows(self, asked, wanted, where, per_image, effort or Effort())
        if rerank:
            hits = score_crops(self, hits, asked, image_root)
        hits = hits[:top]
        if absent:
            least = floor(self, split_words(query), asked)
            hits = [replace(hit, absent=hit.score < least) for hit in hits]
        return hits

    def opener(self, image_root: str | Path | None = None) -> Opener:
        """What opens the images of this table, and nothing else."""
        return Opener(self.tables.state.roots, image_root)


class _Flusher:
    """Collects results and commits them by number of regions or by time."""

    def __init__(
        self, writer: Writer, journal: dict[str, dict], roots: Sequence[str], rows: int, seconds: float
    ) -> None:
        self.writer, self.journal, self.roots = writer, journal, roots
        self.rows, self.seconds, self.since = rows, seconds, time.monotonic()
        self.results: list[Regions] = []
        self.touched: list[dict] = []

    def put(self, result: Regions) -> None:
        """A new row of the journal, with its regions."""
        self.results.append(result)
        self._flush_when_due()

    def touch(self, result: Regions) -> None:
        """An image whose file is new but whose content is not."""
        self.touched.append({**self.journal[result.image], "stamp": result.stamp})
        self._flush_when_due()

    def _flush_when_due(self) -> None:
        if sum(map(len, self.results)) >= self.rows or time.monotonic() - self.since >= self.seconds:
            self.flush()

    def flush(self) -> None:
        """Commit what there is."""
        results, touched = self.results, self.touched
        self.results, self.touched, self.since = [], [], time.monotonic()
        if not results and not touched:
            return
        if known := [result.image for result in results if result.image in self.journal]:
            self.writer.remove(known)
        if results:
            self.writer.add(results)
        if touched:
            self.writer.replace_journal(touched)
        self.writer.commit(self.roots)


def _gone(journal: Iterable[str], found: Found) -> list[str]:
    """Images of the journal that were looked for and whose file is not there."""
    listed, below = set(found.images), tuple(f"{folder.rstrip('/')}/" for folder in found.folders)
    looked_for = [image for image in journal if image in listed or image.startswith(below)]
    return [image for image in looked_for if (image not in listed if is_uri(image) else not stamp(image))]


def _wanted(images: Sequence[str], journal: dict[str, dict]) -> list[Wanted]:
    """Those that the journal lacks, or whose file is not the one it knows, or could not be read."""

    def stamp_of(image: str) -> str:
        try:
            return stamp(image)
        except InputError:  # told by the worker, which reads it
            return ""

    wanted = []
    with ThreadPoolExecutor(STAMP_THREADS) as pool:
        for image, now in zip(images, pool.map(stamp_of, images), strict=True):
            row = journal.get(image)
            if row is None or row["status"] != DONE:
                wanted.append(Wanted(image))
            elif not now or now != row["stamp"]:
                wanted.append(Wanted(image, row["image_hash"]))
    return wanted
