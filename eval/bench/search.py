"""python -m eval.bench search: a table of many made-up regions, written, indexed and searched as a real one is."""

import json
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from eval.bench.measure import peak_memory, reset_peak
from eval.bench.program import machine
from textregion.cli.command_line import Parser, positive, run_program
from textregion.index.region_index import RegionIndex
from textregion.index.schema import TOKEN, Encoder, Meta, Regions
from textregion.index.search import Effort, Query, best_rows
from textregion.index.store import Tables
from textregion.index.upkeep import build_index
from textregion.render import markdown_table, text_table
from textregion.storage import write_atomically

HELP = """\
Made-up regions, 25 an image, their tokens in clusters as those of photographs are: written through the index's own
writer, searched exactly, indexed, searched by the index. Prints seconds, bytes a region, peaks of memory, latency (p50,
p95 of one query after the other) and recall@20: the share of the 20 true nearest that are found.
"""
A_IMAGE = 25  # regions
FLUSH = 100_000
TOP = 20
SPREAD = 0.75  # length of a token's own part, to 1 of its cluster's
EFFORTS = (Effort(10, 10), Effort(20, 10), Effort(20, 20), Effort(40, 20), Effort(80, 40))
COLUMNS = ("stage", "seconds", "peak memory", "what")
LATENCIES = ("search", "probes", "refine", "p50", "p95", "recall@20")


def parse_arguments(arguments: Sequence[str] | None = None) -> Namespace:
    """The command line."""
    parser = Parser(prog="python -m eval.bench search", description=HELP)
    add = parser.add_argument
    add(
        "--rows", type=positive, default=200_000, metavar="N", help="regions (200000); from 100,000 on an index is made"
    )
    add("--width", type=positive, default=512, metavar="D", help="numbers of a token (512)")
    add("--clusters", type=positive, default=4000, metavar="N", help="kinds of things (4000)")
    add("--queries", type=positive, default=200, metavar="N", help="searches (200)")
    add("--kind", choices=("rq", "pq"), default="rq", help="of the index (rq)")
    add("--table", metavar="DIR", help="where the table is made and left; one that is there is searched again")
    add("--json", type=Path, metavar="FILE", help="also write all figures there")
    add("--markdown", action="store_true", help="print the tables as they stand in docs/search.md")
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class Stage:
    """What one stage took. megabytes: the largest memory of the process in it, 2**20 bytes."""

    name: str
    seconds: float
    megabytes: float
    what: str


@dataclass(frozen=True)
class Latency:
    """Of one way to search: milliseconds a query, share of the TOP true nearest found."""

    name: str
    effort: Effort | None
    p50: float
    p95: float
    recall: float


class Tokens:
    """Unit vectors around centres of clusters, the same every time."""

    def __init__(self, clusters: int, width: int) -> None:
        self.centres = _unit(np.random.default_rng(0).normal(size=(clusters, width)).astype(np.float32))

    def draw(self, count: int, seed: int) -> np.ndarray:
        """(count, D) float32."""
        random = np.random.default_rng([1, seed])
        own = _unit(random.normal(size=(count, self.centres.shape[1])).astype(np.float32))
        return _unit(self.centres[random.integers(0, len(self.centres), count)] + SPREAD * own)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def made_up(tokens: np.ndarray, first: int) -> Iterator[Regions]:
    """Images of A_IMAGE regions each, numbered from `first`; masks are of the length that real ones have."""
    code = {"height": 256, "width": 256, "counts": b"0" * 120}
    for number, part in enumerate(np.split(tokens, range(A_IMAGE, len(tokens), A_IMAGE)), first):
        count = len(part)
        rows = {"region": np.arange(count), "box": np.tile(np.float32([8, 8, 120, 90]), (count, 1))}
        rows |= {"area": np.full(count, 0.05), "mask": [code] * count, TOKEN: part}
        rows |= {"predicted_iou": np.ones(count), "stability": np.ones(count)}
        yield Regions(f"/photos/{number % 1000:03d}/{number:08d}.jpg", f"{number:064x}", "1:1", 640, 480, rows=rows)


def measure(args: Namespace, table: Path) -> tuple[list[Stage], list[Latency]]:
    """Write, search, index, search again."""
    tokens, stages = Tokens(args.clusters, args.width), []
    encoder = Encoder("tiny", {}, {}, "", "made up", "", args.width, 1.0, 0.0, "")
    if not Tables.exist(table):
        start = _start()
        tables = Tables.create(table, Meta({TOKEN: encoder}))
        with tables.writing() as writer:
            for part in range(0, args.rows, FLUSH):
                count = min(FLUSH, args.rows - part)
                writer.add(list(made_up(tokens.draw(count, part), part // A_IMAGE)))
                writer.commit()
        size = sum(f.stat().st_size for f in table.rglob("*") if f.is_file())
        stages.append(_stage("write", start, f"{args.rows:,} regions, {size / args.rows:.0f} bytes a region"))
    index = RegionIndex(Tables.open(table))
    queries = tokens.draw(args.queries, 10**9)
    start = _start()
    truth = nearest(index, queries)
    stages.append(_stage("truth", start, f"{args.queries} queries, all rows, one pass"))
    latencies = []
    if not index.is_indexed():
        latencies.append(search(index, queries[:10], truth[:10], None))
        start = _start()
        told = build_index(index, args.kind)
        size = sum(f.stat().st_size for f in table.rglob("*/_indices/**/*") if f.is_file())
        stages.append(_stage("index", start, f"{told}, {size / max(len(index), 1):.0f} bytes a region"))
    if index.is_indexed():
        search(index, queries[:20], truth[:20], EFFORTS[-1])  # read from disk
        start = _start()
        latencies += [search(index, queries, truth, effort) for effort in EFFORTS]
        stages.append(_stage("search", start, f"{len(EFFORTS)} times {args.queries} queries"))
    return stages, latencies


def nearest(index: RegionIndex, queries: np.ndarray) -> np.ndarray:
    """(Q, TOP) row numbers of the true nearest, by their place in the table: image number times A_IMAGE plus region."""
    scores = np.full((len(queries), 0), 0, np.float32)
    rows = np.zeros((len(queries), 0), np.int64)
    first = 0
    for batch in index.tables.regions.to_lance().to_batches(columns=[TOKEN], batch_size=20_000):
        values = batch[TOKEN].values.to_numpy(zero_copy_only=False).reshape(len(batch), -1)
        scores = np.concatenate([scores, queries @ values.astype(np.float32).T], 1)
        rows = np.concatenate([rows, np.tile(np.arange(first, first + len(batch)), (len(queries), 1))], 1)
        best = np.argpartition(-scores, min(TOP, scores.shape[1]) - 1, axis=1)[:, :TOP]
        scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
        first += len(batch)
    return rows


def search(index: RegionIndex, queries: np.ndarray, truth: np.ndarray, effort: Effort | None) -> Latency:
    """One query after the other, as `RegionIndex.search` does it once the words are vectors. None: without an index."""
    times, found = [], []
    none = np.zeros((0, queries.shape[1]), np.float32)
    for vector, true in zip(queries, truth, strict=True):
        start = time.perf_counter()
        index.tables.refresh()
        hits = best_rows(index, Query(vector[None], none), TOP, None, None, effort or Effort())
        times.append(1000 * (time.perf_counter() - start))
        numbers = {int(Path(hit.image).stem) * A_IMAGE + hit.region for hit in hits}
        found.append(len(numbers & set(true.tolist())) / len(true))
    p95 = statistics.quantiles(times, n=20)[-1] if len(times) > 1 else times[0]
    name = "all rows" if effort is None else "index"
    return Latency(name, effort, statistics.median(times), p95, float(np.mean(found)))


def _start() -> float:
    reset_peak(torch.device("cpu"))
    return time.perf_counter()


def _stage(name: str, start: float, what: str) -> Stage:
    seconds = time.perf_counter() - start
    print(f"{name}: {seconds:.1f} s", file=sys.stderr)
    return Stage(name, seconds, peak_memory(torch.device("cpu")) / 2**20, what)


def report(stages: Sequence[Stage], latencies: Sequence[Latency], markdown: bool) -> str:
    """Both tables."""
    first = [(s.name, f"{s.seconds:.1f} s", f"{s.megabytes / 1024:.2f} GiB", s.what) for s in stages]
    second = [
        (
            *(row.name, *((str(row.effort.probes), str(row.effort.refine)) if row.effort else ("–", "–"))),
            *(f"{row.p50:.1f} ms", f"{row.p95:.1f} ms", f"{row.recall:.3f}"),
        )
        for row in latencies
    ]
    if markdown:
        return "\n".join([*markdown_table(COLUMNS, first), "", *markdown_table(LATENCIES, second)])
    return f"{text_table(COLUMNS, first)}\n\n{text_table(LATENCIES, second)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_program(lambda: _main(parse_arguments(arguments)))


def _main(args: Namespace) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        stages, latencies = measure(args, Path(args.table or f"{temporary}/regions.lance"))
    where = machine("cpu", None)
    print(report(stages, latencies, args.markdown))
    print(f"measured on {where}")
    if args.json:
        figures = {"machine": where, "rows": args.rows, "stages": list(map(asdict, stages))}
        figures["latencies"] = list(map(asdict, latencies))
        write_atomically(args.json, json.dumps(figures, indent=1).encode())
