"""What is done to a table besides adding and searching: its index, compaction, further columns, ways in and out.

Each function returns what it did, in a line or a table, for the programs to print.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from os.path import abspath, isdir, isfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float16, UInt8
from torch import Tensor

from textregion.errors import InputError, needs, one_of
from textregion.images import load_image
from textregion.index.encoding import decode_masks, region_columns
from textregion.index.keys import KeyTower, encode_keys
from textregion.index.region_index import NOT_STORED
from textregion.index.schema import DONE, KEY, TOKEN, Encoder, Meta, Regions, arrow
from textregion.index.sources import content_hash, is_uri, read_bytes, stamp
from textregion.index.store import KEPT, lance_errors, lancedb, quoted
from textregion.render import text_table
from textregion.segmenter import TextRegionSegmenter
from textregion.storage import read_json
from textregion.types import RegionMasks, RegionTokens

if TYPE_CHECKING:
    import pyarrow as pa

    from textregion.index.region_index import RegionIndex

EXACT_ROWS = 100_000  # below so many a search of all rows takes milliseconds too
INDEX_KINDS = {"rq": "IVF_RQ", "pq": "IVF_PQ"}
ROWS_A_PARTITION = 2000  # the time of building grows with the square of their number
ROWS_AT_ONCE = 8192
RUN_FILE = "run.json"
TOKENS_FILE = "tokens.safetensors"


def stats(index: "RegionIndex") -> str:
    """Images, regions, bytes, columns, index and what could not be read, as a table."""
    tables, journal = index.tables, index.tables.journal()
    status = journal["status"].to_pylist()
    bad = [row for row in journal.to_pylist() if row["status"] != DONE]
    with lance_errors(f"cannot read {tables.path}"):
        regions = len(index)
        files = tables.regions.to_lance().get_fragments()
        indices = [f"{entry.index_type} on {', '.join(entry.columns)}" for entry in tables.regions.list_indices()]
    size = 0 if is_uri(tables.path) else sum(f.stat().st_size for f in Path(tables.path).rglob("*") if f.is_file())
    rows = [("images", f"{status.count(DONE)}"), ("regions", f"{regions} in {len(files)} files")]
    if size:
        a_region = f", {size / regions:.0f} a region" if regions else ""
        rows.append(("bytes", f"{size / 1e6:.1f} MB{a_region}, old versions included"))
    for column, encoder in tables.meta.encoders.items():
        rows.append((column, f"preset {encoder.preset}, {encoder.backbone}, D {encoder.width}, {encoder.fingerprint}"))
    rows.append(
        ("index", "; ".join(indices) or f"none: searches are exact (worth it from about {EXACT_ROWS:,} regions)")
    )
    rows.append(("folders", ", ".join(tables.state.roots) or "none"))
    rows += [("unreadable", f"{row['image']}: {row['reason']}") for row in bad[:10]]
    if len(bad) > 10:
        rows.append(("unreadable", f"{len(bad) - 10} more: the table `images` has all"))
    return text_table((tables.path, ""), rows)


def build_index(index: "RegionIndex", kind: str = "rq", **options: Any) -> str:
    """An index over the column of tokens: IVF with RaBitQ (rq) or product quantisation (pq).

    options: of lancedb's create_index. InputError for a table below EXACT_ROWS, where searching all rows is as quick.
    """
    one_of("build_index", kind, tuple(INDEX_KINDS))
    rows = len(index)
    if rows < EXACT_ROWS:
        return f"no index: {rows} regions are searched exactly, which is quick below {EXACT_ROWS:,}"
    partitions = max(1, rows // ROWS_A_PARTITION)
    with index.tables.writing() as writer, lance_errors(f"cannot index {index.tables.path}"):
        index.tables.regions.create_index(
            metric="cosine",
            vector_column_name=index.column,
            index_type=INDEX_KINDS[kind],
            **{"num_partitions": partitions, "max_iterations": 20, "replace": True, **options},
        )
        # Hits look their images up.
        index.tables.images.create_index("image", config=lancedb().index.BTree(), replace=True)
        writer.commit()
    return f"index {INDEX_KINDS[kind]} over {rows} regions, {partitions} partitions"


def compact(index: "RegionIndex") -> str:
    """Small files joined, deleted rows dropped, old versions removed that nobody looks at any more."""
    before = len(index.tables.regions.to_lance().get_fragments())
    with index.tables.writing() as writer:
        writer.tidy(always=True)
    after = len(index.tables.regions.to_lance().get_fragments())
    return f"compacted {before} files to {after}; versions older than {KEPT} are gone"


# ---------------------------------------------------------------------- further columns


def add_column(index: "RegionIndex", preset: str, **options: Any) -> str:
    """Tokens of a second backbone for the regions that are there: a column named after its preset.

    The images are read again; regions of one that is gone or has changed, and those without a patch there, have none.
    options: as of `RegionIndex.create`. What was done is kept beside the table, so a run that was stopped goes on from
    there. InputError when the column is there.
    """
    column = f"{TOKEN}_{re.sub(r'[^0-9A-Za-z]+', '_', preset).strip('_')}"
    if column in index.tables.meta.encoders or preset in (e.preset for e in index.tables.meta.encoders.values()):
        raise InputError(f"{index.tables.path} has a column of preset {preset} already")
    machine = {name: options.pop(name) for name in NOT_STORED if name in options}
    kept_options = {**options, "mask_generator": None, "dense_fallback": False}
    segmenter = TextRegionSegmenter.from_preset(preset, **kept_options, **machine)
    encoder = Encoder.of(segmenter, preset, kept_options)

    def encode(pixels: UInt8[np.ndarray, "H W 3"], masks: RegionMasks) -> tuple[Tensor, Tensor]:
        tokens = segmenter.encode_image(pixels, masks)
        return tokens.tokens, tokens.source_index

    meta = replace(index.tables.meta, encoders={**index.tables.meta.encoders, column: encoder})
    done = _write_vectors(index, _Encodings(index, encode, encoder.width, column), meta)
    return f"column {column} (D {encoder.width}): {done}; search it with --preset {preset}"


def add_keys(index: "RegionIndex", tower: KeyTower) -> str:
    """Keys of a vision tower for the regions that are there, for `RegionMemory.open(key=…)`.

    The images are read again; regions of one that is gone or has changed, and empty ones, have none. What was done is
    kept as for `add_column`. InputError when the column is there.
    """
    column = KEY + re.sub(r"[^0-9A-Za-z]+", "_", tower.name).strip("_")
    if column in index.tables.meta.keys:
        raise InputError(f"{index.tables.path} has keys of {tower.name} already")

    def encode(pixels: UInt8[np.ndarray, "H W 3"], masks: RegionMasks) -> tuple[Tensor, Tensor]:
        keys = encode_keys(tower, pixels, masks)
        there = (keys.norm(dim=1) > 0).nonzero()[:, 0]
        return keys[there], there

    width = tower.record.width
    meta = replace(index.tables.meta, keys={**index.tables.meta.keys, column: tower.record})
    done = _write_vectors(index, _Encodings(index, encode, width, column), meta)
    return f"keys of {tower.name} ({width} numbers): {done}"


def _write_vectors(index: "RegionIndex", encodings: "_Encodings", meta: Meta) -> str:
    """A column of vectors for the regions that are there, and what the table says then; how many images it took."""
    pa, column = arrow(), encodings.column
    schema = pa.schema([pa.field(column, pa.list_(pa.float16(), encodings.width))])
    with index.tables.writing() as writer:
        kept = None if is_uri(index.tables.path) else Path(index.tables.path) / f".{column}.sqlite"
        _add_columns(index, encodings.of_batch, schema, ["image", "image_hash", "region", "mask"], kept)
        _write_meta(index, meta)
        writer.commit()
        if kept is not None:
            kept.unlink(missing_ok=True)
    left = f"; {len(encodings.bad)} images could not be read" * bool(encodings.bad)
    return f"{encodings.encoded} images{left}"


class _Encodings:
    """Vectors for rows of the table, an image at a time.

    encode: pixels and masks to vectors (K, width) and which of the masks each is of.
    """

    def __init__(
        self,
        index: "RegionIndex",
        encode: Callable[[UInt8[np.ndarray, "H W 3"], RegionMasks], tuple[Tensor, Tensor]],
        width: int,
        column: str,
    ) -> None:
        self.index, self.encode, self.width, self.column = index, encode, width, column
        self.opener = index.opener()
        self.journal = {row["image"]: row for row in index.tables.journal().to_pylist()}
        self.encoded, self.bad = 0, set()
        self._last: tuple[str, dict[int, np.ndarray]] = ("", {})

    def of_batch(self, batch: "pa.RecordBatch") -> "pa.RecordBatch":
        """The column for some rows."""
        rows, pa, width = batch.to_pylist(), arrow(), self.width
        by_image: dict[str, list[dict]] = {}
        for row in rows:
            by_image.setdefault(row["image"], []).append(row)
        tokens = {image: self._tokens(image, own) for image, own in by_image.items()}
        vectors = [tokens[row["image"]].get(row["region"]) for row in rows]
        values = np.concatenate([np.zeros(width, np.float16) if v is None else v for v in vectors])
        missing = pa.array([vector is None for vector in vectors])
        column = pa.FixedSizeListArray.from_arrays(pa.array(values), width, mask=missing)
        return pa.RecordBatch.from_arrays([column], [self.column])

    def _tokens(self, image: str, rows: list[dict]) -> dict[int, Float16[np.ndarray, " D"]]:
        """By region. All regions of an image are encoded together, for they decide which patches are global."""
        if self._last[0] == image:
            return self._last[1]
        journal, found = self.journal[image], {}
        if len(rows) < journal["regions"]:  # the others are in another batch
            asked = self.index.tables.regions.search().where(f"image = {quoted(image)}")
            rows = asked.select(["region", "mask", "image_hash"]).limit(journal["regions"]).to_list()
        try:
            pixels = load_image(self.opener.read(image, rows[0]["image_hash"]))
            masks = torch.from_numpy(decode_masks([row["mask"] for row in rows]))
            tokens, which = self.encode(pixels, RegionMasks(masks, pixels.shape[:2]))
            vectors = tokens.float().cpu().numpy().astype(np.float16)
            found = {rows[int(n)]["region"]: v for n, v in zip(which, vectors, strict=True)}
            self.encoded += 1
        except InputError:
            self.bad.add(image)
        self._last = (image, found)
        return found


def join(index: "RegionIndex", path: str) -> str:
    """Further columns from a CSV or Parquet file with one row an image: `image`, and whatever else it has.

    Images are named as in the table, or as paths from here. Regions of images that the file does not name have none.
    InputError for a file without that column, with an image twice, or with columns that are there already.
    """
    pa, given = arrow(), _read_table(path)
    if "image" not in given.column_names or len(given.column_names) < 2:
        raise InputError(f"{path} has the columns {', '.join(given.column_names)[:200]}, expected image and others")
    names = [name for name in given.column_names if name != "image"]
    if there := sorted(set(names) & set(index.tables.regions.schema.names)):
        raise InputError(f"{index.tables.path} has the column {', '.join(there)} already; name it otherwise in {path}")
    images = [name if is_uri(str(name)) else abspath(str(name)) for name in given["image"].to_pylist()]
    rows = {image: n for n, image in enumerate(images)}
    if len(rows) < len(images):
        raise InputError(f"{path} names {len(images) - len(rows)} images twice, expected one row each")
    known = set(index.tables.journal()["image"].to_pylist())
    if not known & rows.keys():
        raise InputError(f"{path} names none of the {len(known)} images of {index.tables.path}; check its paths")
    extra = given.select(names).combine_chunks()

    def of_batch(batch: "pa.RecordBatch") -> "pa.RecordBatch":
        places = pa.array([rows.get(image) for image in batch["image"].to_pylist()], pa.int64())
        return extra.take(places).combine_chunks().to_batches()[0] if len(batch) else extra.schema.empty_table()

    with index.tables.writing() as writer:
        _add_columns(index, of_batch, extra.schema, ["image"])
        writer.commit()
    told = f"{len(known & rows.keys())} of {len(known)} images have {', '.join(names)}"
    strange = len(rows.keys() - known)
    return told + f"; {strange} images of {path} are not in the table" * bool(strange)


def _add_columns(
    index: "RegionIndex", of_batch: Any, schema: "pa.Schema", read: Sequence[str], kept: Path | None = None
) -> None:
    """Columns made from others, a batch at a time; kept: where what is done is remembered until all is."""
    with lance_errors(f"cannot write to {index.tables.path}; nothing has changed"):
        import lance

        made = lance.batch_udf(schema, checkpoint_file=kept)(of_batch)
        index.tables.regions.to_lance().add_columns(made, read_columns=list(read), batch_size=ROWS_AT_ONCE)
        index.tables.regions.checkout_latest()


def _write_meta(index: "RegionIndex", meta: Meta) -> None:
    with lance_errors(f"cannot write to {index.tables.path}"):
        packed = {key.decode(): value.decode() for key, value in meta.pack().items()}
        index.tables.regions.to_lance().update_schema_metadata(packed)
        index.tables.regions.checkout_latest()


def _read_table(path: str) -> "pa.Table":
    if not isfile(path):
        raise InputError(f"no file {path}; expected CSV or Parquet with a column image")
    with lance_errors(f"{path} is no CSV or Parquet file that can be read"):
        if path.lower().endswith((".parquet", ".pq")):
            from pyarrow import parquet

            return parquet.read_table(path)
        from pyarrow import csv

        return csv.read_csv(path)


# ---------------------------------------------------------------------- in and out


def import_tokens(index: "RegionIndex", sources: Sequence[str | Path]) -> str:
    """Regions that were saved before: tokens.safetensors files, or folders that hold such somewhere.

    run.json beside a file says which image it is of; a file without that is its own image, of which there is no
    picture. Images that are there are replaced. InputError for tokens of another backbone.
    """
    files: list[Path] = []
    for source in map(Path, sources):
        files += sorted(source.rglob(TOKENS_FILE)) if isdir(source) else [source]
    if not files:
        raise InputError(f"no {TOKENS_FILE} in {', '.join(map(str, sources))}; add --save_tokens to textregion segment")
    results = [_imported(index, file) for file in files]
    roots = [str(Path(result.image).parent) for result in results]
    with index.tables.writing() as writer:
        writer.remove(sorted({result.image for result in results} & set(index.tables.journal()["image"].to_pylist())))
        writer.add(list({result.image: result for result in results}.values()))
        writer.commit(roots)
        writer.tidy()
    return f"{len(results)} images, {sum(map(len, results))} regions from {len(files)} files"


def _imported(index: "RegionIndex", file: Path) -> Regions:
    tokens, made_by = RegionTokens.load(file), index.encoder
    if tokens.backbone != made_by.backbone or tokens.tokens.shape[1] != made_by.width:
        there = f"{made_by.backbone}, D {made_by.width}"
        raise InputError(
            f"{file} holds tokens of {tokens.backbone or 'an unknown model'}, D {tokens.tokens.shape[1]}; "
            f"{index.tables.path} was made by {there}"
        )
    image, known_hash = abspath(file), content_hash(read_bytes(str(file)))
    if isfile(file.with_name(RUN_FILE)):
        run = read_json(file.with_name(RUN_FILE), "what `textregion segment` writes")
        try:
            image, known_hash = abspath(run["image"]["path"]), str(run["image"]["sha256"])
        except (KeyError, TypeError) as error:
            raise InputError(f"{file.with_name(RUN_FILE)} names no image ({error!r}); label it again") from error
    height, width = tokens.masks.image_size
    is_same = isfile(image) and content_hash(read_bytes(image)) == known_hash
    told = {"stamp": stamp(image) if is_same else "", "width": width, "height": height}
    return Regions(image, known_hash, **told, rows=region_columns(tokens))


def export(index: "RegionIndex", target: str) -> str:
    """All regions as a Parquet file, or as a FiftyOne data set for `fiftyone:NAME`. Returns what was written."""
    kind, _, name = target.partition(":")
    return _to_fiftyone(index, name or "regions") if kind == "fiftyone" else _to_parquet(index, Path(target))


def _to_parquet(index: "RegionIndex", path: Path) -> str:
    from pyarrow import parquet

    with lance_errors(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        rows = 0
        try:
            with parquet.ParquetWriter(part, index.tables.regions.schema) as file:
                for batch in _batches(index):
                    file.write_batch(batch)
                    rows += len(batch)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return f"{rows} regions in {path}"


def _batches(index: "RegionIndex", columns: Sequence[str] | None = None) -> Iterator["pa.RecordBatch"]:
    chosen = None if columns is None else list(columns)
    yield from index.tables.regions.to_lance().to_batches(columns=chosen, batch_size=ROWS_AT_ONCE)


def _to_fiftyone(index: "RegionIndex", name: str) -> str:
    """A sample an image, a detection a region: box relative to the image, the token as its embedding."""
    with needs("--export fiftyone:NAME", extra="fiftyone"):
        import fiftyone  # pyright: ignore[reportMissingImports]
    sizes = {row["image"]: row for row in index.tables.journal().to_pylist()}
    samples: dict[str, Any] = {}
    for batch in _batches(index, ["image", "region", "box", "area", "predicted_iou", index.column]):
        for row in batch.to_pylist():
            image = row["image"]
            sample = samples.setdefault(image, fiftyone.Sample(image, regions=fiftyone.Detections(detections=[])))
            width, height = sizes[image]["width"], sizes[image]["height"]
            x1, y1, x2, y2 = row["box"]
            box = [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height]
            told = {"region": row["region"], "area": row["area"], "token": np.array(row[index.column], np.float32)}
            detection = fiftyone.Detection(label="region", bounding_box=box, confidence=row["predicted_iou"], **told)
            sample["regions"].detections.append(detection)
    dataset = fiftyone.Dataset(name, persistent=True)
    dataset.add_samples(samples.values())
    return f"{len(samples)} images in the FiftyOne data set {name}"
