"""Two runs of one benchmark side by side: `python -m eval.compare RUN_A RUN_B`.

Metrics, classes and images, differences being B - A; for segmentation also a paired bootstrap interval of the mIoU
difference, and a picture of the images that differ most. What else than the options differs between the runs is told.
"""

import sys

if __name__ == "__main__":  # before what takes seconds to import: Ctrl-C meanwhile is one line too
    from eval import start

    sys.exit(start("python -m eval.compare", "eval.compare"))

import argparse
import csv
import io
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from eval.collect import marks_of, options_of, read_cell, read_results
from eval.journal import differences
from eval.results import figure
from eval.run_images import Counts, class_counts, image_scores, per_class_iou
from textregion.cli.command_line import Parser, output_folder, positive, run_program
from textregion.errors import InputError
from textregion.render import markdown_table, png_bytes
from textregion.storage import write_atomically

LEVEL = 95  # percent of the bootstrap's samples within the interval
CHUNK = 100  # bootstrap samples that are summed at once
SHOWN = 10  # rows of a table that is printed
WATCHED = ("labels", "queries", "dataset", "benchmark", "test_evaluator", "data")  # of a config: what is measured
PLACES = ("data_root", "pipeline")


@dataclass(frozen=True)
class Run:
    """One side of the comparison: its folder, results.json, {image: score} and {image: (classes, 3) counts}."""

    folder: Path
    content: dict
    scores: dict[str, float]
    counts: dict[str, Counts]

    @property
    def classes(self) -> list[str]:
        """The classes, in the order of their labels."""
        return list(self.content.get("per_class", {}))


def read_run(folder: Path) -> Run:
    """What a run's folder holds. InputError without a results.json."""
    content = read_results(folder / "results.json")
    counts = class_counts(folder, list(content.get("per_class", {}))) if content.get("part") == "class" else {}
    return Run(folder, content, image_scores(folder, counts), counts)


def bootstrap(
    a: Float[np.ndarray, "images classes 3"],
    b: Float[np.ndarray, "images classes 3"],
    samples: int = 2000,
    seed: int = 0,
) -> Float[np.ndarray, " samples"]:
    """mIoU differences B - A in percent of `samples` draws of as many images, with repetition, the same for both.

    a, b: intersection, true and predicted pixels per image and class.
    """
    images, random = len(a), np.random.default_rng(seed)
    found = []
    for start in range(0, samples, CHUNK):
        drawn = random.multinomial(images, [1 / images] * images, min(CHUNK, samples - start)).astype(np.float64)
        sides = [np.tensordot(drawn, side, 1) for side in (a, b)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a draw without any class has no mean
            means = [np.nanmean(per_class_iou(sums), axis=-1) for sums in sides]
        found.append(means[1] - means[0])
    return np.concatenate(found)


def compare(a: Run, b: Run, samples: int = 2000, seed: int = 0) -> dict:
    """The comparison, JSON-able. InputError for runs of different benchmarks or tasks."""
    for key in ("task", "benchmark"):
        of = [repr(run.content.get(key)) for run in (a, b)]
        if of[0] != of[1]:
            raise InputError(f"{a.folder} is of {key} {of[0]}, {b.folder} of {of[1]}; expected the same")
    metrics = {name: _pair(a.content["metrics"].get(name), value) for name, value in b.content["metrics"].items()}
    classes = {
        name: {key: _pair(a.content["per_class"][name].get(key), value) for key, value in row.items()}
        for name, row in b.content.get("per_class", {}).items()
        if name in a.content.get("per_class", {})
    }
    common = [image for image in a.scores if image in b.scores]
    images = {image: _pair(a.scores[image], b.scores[image]) for image in common}
    order = sorted(images, key=lambda image: (-_size(images[image]), image))
    found = {
        "a": str(a.folder),
        "b": str(b.folder),
        "options": compared(a, b),
        "warnings": warnings_of(a, b),
        "metrics": metrics,
        "by": a.content.get("part", "class"),
        "classes": classes,
        "images": {image: images[image] for image in order},
        "bootstrap": None,
    }
    paired = [image for image in common if image in a.counts and image in b.counts]
    if paired and a.classes == b.classes:
        sides = [np.stack([run.counts[image] for image in paired]).astype(np.float64) for run in (a, b)]
        drawn = bootstrap(*sides, samples, seed)
        whole = [float(np.nanmean(per_class_iou(side.sum(0)))) for side in sides]
        low, high = np.nanpercentile(drawn, [(100 - LEVEL) / 2, (100 + LEVEL) / 2]).tolist()
        about = {"images": len(paired), "samples": samples, "seed": seed, "level": LEVEL}
        found["bootstrap"] = {"mIoU": _pair(*whole), "low": low, "high": high, **about}
    return found


def _pair(a: float | None, b: float | None) -> dict[str, float | None]:
    """{"a", "b", "difference"}: None where there is nothing to measure."""
    sides = [None if side is None or side != side else side for side in (a, b)]
    known = sides[0] is not None and sides[1] is not None
    return {"a": sides[0], "b": sides[1], "difference": sides[1] - sides[0] if known else None}


def warnings_of(a: Run, b: Run) -> list[str]:
    """What differs between two runs beyond the options that were chosen for them, and what both must be read with."""
    chosen = {one.partition(":")[0] for one in compared(a, b)}
    told = []
    for part in {**(old := _beside_options(a.content)), **(new := _beside_options(b.content))}:
        differing = differences(old.get(part), new.get(part), part)
        if part == "weights" and "backbone" in chosen:
            continue  # another backbone has other weights
        more = [f"{part}: {len(differing) - SHOWN} more differences"] if len(differing) > SHOWN else []
        told += [*differing[:SHOWN], *more]
    marks = [marks_of(run.content, read_cell(run.folder)) for run in (a, b)]
    for mark in dict.fromkeys([*marks[0], *marks[1]]):
        who = [name for name, own in zip("AB", marks, strict=True) if mark in own]
        if mark.partition("=")[0].removeprefix("model.") not in chosen:
            told.append(f"{' and '.join(who)} marked: {mark}")
    for name, own, other in (("A", a, b), ("B", b, a)):
        if own.content.get("skipped"):
            told.append(f"{name} has skipped {len(own.content['skipped'])} images")
        if own.counts and len(own.counts) != own.content["items"]:
            told.append(f"{name} counted {own.content['items']} images, {len(own.counts)} are on disk")
        if alone := [image for image in own.scores if image not in other.scores]:
            told.append(f"{len(alone)} images are in {name} only ({alone[0]} first) and not compared")
        if not own.scores:
            told.append(f"{name} has nothing by image; images are not compared")
    return told


def compared(a: Run, b: Run) -> list[str]:
    """The options in which two runs differ: "recipe: was …, now …"."""
    return differences(*({"backbone": run.content["backbone"], **options_of(run.content)} for run in (a, b)))


def _beside_options(content: Mapping) -> dict:
    """What was measured, and the parts of a run's identity besides its settings (or what earlier versions noted)."""
    identity = content.get("identity") or {key: content.get(key) for key in ("commit", "versions")}
    made_with = {key: value for key, value in identity.items() if key != "settings"}
    return {**_measured(content), **made_with, "device": content.get("device")}


def _measured(content: Mapping) -> dict:
    """What of the settings says what was measured, not how."""
    config = content["config"]
    everything = {**config.get("resolved", {}), **config}
    everything["dataset"] = config.get("test_dataloader", {}).get("dataset", {})
    return {
        key: {k: v for k, v in value.items() if k not in PLACES} if isinstance(value, dict) else value
        for key in WATCHED
        if (value := everything.get(key)) is not None
    }


# ---------------------------------------------------------------------- what is printed and written


def report(found: Mapping[str, Any]) -> str:
    """Markdown: everything but that of classes and images only those that differ most."""
    by, interval = found["by"], found["bootstrap"]
    lines = [f"# {Path(found['b']).name} (B) against {Path(found['a']).name} (A)", ""]
    lines += [f"- {one}" for one in found["options"]] or ["- no option differs"]
    lines += [f"- warning: {one}" for one in found["warnings"]]
    lines += ["", *_table("metric", found["metrics"])]
    if interval is not None:
        low, high, images = interval["low"], interval["high"], interval["images"]
        told = f"mIoU difference {_signed(interval['mIoU']['difference'])}, {LEVEL} % interval {_signed(low)} to "
        lines += ["", f"{told}{_signed(high)} (paired bootstrap over {images} images, {interval['samples']} samples)"]
    for what, rows in ((by, first_column(found["classes"])), ("image", found["images"])):
        if rows:
            shown = dict(list(rows.items())[:SHOWN])
            lines += ["", f"By {what}, {len(shown)} of {len(rows)}:", "", *_table(what, shown)]
    return "\n".join(lines) + "\n"


def first_column(rows: Mapping[str, Mapping[str, Mapping]]) -> dict[str, Mapping]:
    """Of the rows by class or part their first number (IoU), those that differ most first."""
    main = {name: next(iter(row.values())) for name, row in rows.items() if row}
    return dict(sorted(main.items(), key=lambda item: (-_size(item[1]), item[0])))


def _size(pair: Mapping[str, float | None]) -> float:
    """How much two sides differ; what cannot be compared comes last."""
    return -1.0 if pair["difference"] is None else abs(pair["difference"])


def _table(what: str, rows: Mapping[str, Mapping]) -> list[str]:
    cells = [[k, *(figure(_nan(v[side])) for side in "ab"), _signed(v["difference"])] for k, v in rows.items()]
    return markdown_table([what, "A", "B", "B - A"], cells)


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def as_csv(what: str, rows: Mapping[str, Mapping]) -> bytes:
    """A row per class or image: A, B, B - A, in full precision."""
    text = io.StringIO()
    lines = [[name, row["a"], row["b"], row["difference"]] for name, row in rows.items()]
    csv.writer(text, lineterminator="\n").writerows([[what, "a", "b", "difference"], *lines])
    return text.getvalue().encode()


def parser() -> Parser:
    """The flags of eval.compare."""
    made = Parser(prog="python -m eval.compare", description="Compare two runs of one benchmark.")
    add = made.add_argument
    add(
        "runs",
        nargs=2,
        type=Path,
        metavar="RUN",
        help="two folders with a results.json; differences are second - first",
    )
    add("--output", type=Path, metavar="DIR", help="report, CSV files, picture (default: only the report is printed)")
    add("--count", type=positive, default=9, metavar="N", help="images in the picture (default 9)")
    add("--samples", type=positive, default=2000, metavar="N", help="of the bootstrap (default 2000)")
    add("--seed", type=int, default=0, metavar="N", help="of the bootstrap (default 0)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    options = parser().parse_args(arguments)
    return run_program(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    a, b = map(read_run, options.runs)
    found = compare(a, b, options.samples, options.seed)
    text = report(found)
    print(text, end="")
    if options.output is None:
        return
    folder = output_folder(options.output)
    write_atomically(folder / "compare.json", json.dumps(found, indent=1).encode())
    write_atomically(folder / "compare.md", text.encode())
    write_atomically(folder / "classes.csv", as_csv(found["by"], first_column(found["classes"])))
    write_atomically(folder / "images.csv", as_csv("id", found["images"]))
    if b.counts and found["images"]:
        from eval.compare_sheet import difference_sheet

        try:
            sheet = difference_sheet(options.runs, b.content, found["images"], options.count)
            write_atomically(folder / "differences.png", png_bytes(sheet))
        except InputError as error:
            print(f"no picture: {error}", file=sys.stderr)
    print(f"written to {folder}")
