"""Every results.json below folders as one table: `python -m eval.collect out/`.

A row is a run: what it was of, the options in which the rows differ, its metrics, what must be known about it (marks),
and where it is. Markdown is printed; `--output` writes CSV (full precision, for pandas), Markdown or LaTeX (booktabs).
"""

import sys

if __name__ == "__main__":  # before what takes seconds to import: Ctrl-C meanwhile is one line too
    from eval import start

    sys.exit(start("python -m eval.collect", "eval.collect"))

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from eval.results import Published, published_figures
from textregion.cli.command_line import Parser, run_program
from textregion.errors import InputError
from textregion.render import markdown_table
from textregion.storage import read_json, write_atomically
from textregion.yaml_files import read_yaml

CELL = "cell.json"  # beside a results.json: what eval.sweep knows about the run
NO_OPTIONS = ("type", "preset", "device", "mask_cache", "crops_per_batch", "clip_download_root")
FORMATS = (".csv", ".md", ".tex")
LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}
Options = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One run, or one published figure.

    options: what was chosen for it, by the options' names. metrics: None for NaN. marks: what sets its numbers apart.
    source: "measured", or "published: …". run: the folder of its results.json.
    """

    benchmark: str
    backbone: str
    metrics: dict[str, float | None]
    options: Options = field(default_factory=dict)
    marks: tuple[str, ...] = ()
    source: str = "measured"
    items: int | None = None
    skipped: int | None = None
    commit: str = ""
    run: str = ""


def read_rows(folder: str | Path) -> list[Row]:
    """A row for every results.json below a folder, in the order of their paths, 8 before 16.

    InputError when there is none, or one that no evaluation wrote.
    """
    folder = Path(folder)
    paths = sorted(folder.rglob("results.json"), key=_natural)
    if not paths:
        raise InputError(f"no results.json below {folder}; give a folder that an evaluation has written to")
    return [read_row(path) for path in paths]


def _natural(path: Path) -> list[str | int]:
    """Its parts without and with digits in turn, the latter as numbers."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", str(path))]


def read_row(path: Path) -> Row:
    """The row of one results.json."""
    content, cell = read_results(path), read_cell(path.parent)
    commit = content.get("commit") or {}
    return Row(
        benchmark=content["benchmark"],
        backbone=content["backbone"],
        metrics=content["metrics"],
        options=options_of(content) | {k.removeprefix("model."): v for k, v in cell.get("varied", {}).items()},
        marks=tuple(marks_of(content, cell)),
        items=content["items"],
        skipped=len(content.get("skipped", ())),
        commit=(commit.get("hash") or "")[:9] + "+" * bool(commit.get("changed")),
        run=path.parent.as_posix(),
    )


def read_results(path: Path) -> dict:
    """The content of a results.json. InputError for another file."""
    expected = "a results.json that an evaluation has written"
    content = read_json(path, expected)
    needed = {"benchmark": str, "backbone": str, "metrics": dict, "items": int, "config": dict}
    if not isinstance(content, dict) or any(not isinstance(content.get(k), kind) for k, kind in needed.items()):
        raise InputError(f"{path} lacks some of {', '.join(needed)}; expected {expected}")
    return content


def read_cell(folder: Path) -> dict:
    """What eval.sweep wrote about a run, {} for runs that were started otherwise."""
    path = folder / CELL
    return read_json(path, "what eval.sweep writes about a run") if path.is_file() else {}


def options_of(content: Mapping) -> Options:
    """{option: value} of what a run's config or its flags name, as it was resolved; the recipe by its name.

    content: of results.json, of any task.
    """
    config = content["config"]
    model = config.get("model", {})
    described = config.get("resolved", model)
    resolved = described.get("config", {})
    given = model.get("given", model)
    options = {k: resolved.get(k, v) for k, v in given.items() if k not in NO_OPTIONS}
    options["recipe"] = content.get("recipe", {}).get("name", "")
    if "mask_source" in described:
        options["masks"] = described["mask_source"]
    data = config.get("data", {})
    return options | {k: v for k, v in data.items() if isinstance(v, (str, int, float, bool))}


def marks_of(content: Mapping, cell: Mapping) -> list[str]:
    """What must be said beside the numbers: limits, random weights, overrides of the config, a forced resume.

    Results of earlier versions have no marks: theirs are read off the command that eval.sweep noted, if it did.
    """
    forced = ["resumed with another identity"] * bool(content.get("resumed_anyway"))
    if "marks" in content:
        return [*content["marks"], *forced]
    command, marks = cell.get("command", []), []
    if limit := _values(command, "--limit"):
        marks.append(f"first {limit[0]} images")
    if images := _values(command, "--images"):
        marks.append(f"images of {images[0]}")
    if "random_weights" in json.dumps([content["config"].get("model"), command]):
        marks.append("random weights")
    if overrides := _values(command, "--cfg_options"):
        marks += [pair for pair in overrides if pair.partition("=")[0] not in cell.get("varied", {})]
    return marks


def _values(command: Sequence[str], flag: str) -> list[str]:
    """What follows a flag up to the next one, "-" and "_" in it being the same; [] where it is not given."""
    words = [word.replace("-", "_") if word.startswith("--") else word for word in command]
    name = flag.replace("-", "_")
    values = [word.partition("=")[2] for word in command if word.replace("-", "_").startswith(f"{name}=")]
    if name in words:
        for word in command[words.index(name) + 1 :]:
            if word.startswith("--"):
                break
            values.append(word)
    return values


def read_published(path: str | Path) -> list[Published]:
    """The figures of a YAML file like eval/published.yaml. InputError for a figure that lacks something."""
    content = read_yaml(path, "published figures, as eval/published.yaml has them")
    rows = content.get("figures") if isinstance(content, dict) else None
    rows = rows if isinstance(rows, list) else [None]
    names = [one.name for one in fields(Published) if one.default is MISSING]
    more = [one.name for one in fields(Published) if one.name not in names]
    for row in rows:
        value = row.get("value") if isinstance(row, dict) and {*names} <= {*row} <= {*names, *more} else None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            wanted = (
                f"figures: a list of mappings with {', '.join(names)} (value: a number), and {', '.join(more)} at will"
            )
            raise InputError(f"{path} has the figure {row!r}; expected {wanted}")
    return [Published(**row) for row in rows]


def published_rows(rows: Sequence[Row], figures: Sequence[Published]) -> list[Row]:
    """The published figures of the benchmarks that the rows are of: a row per method, backbone and benchmark.

    A figure's `where` is a benchmark, its metric then the unit, or "<benchmark> <metric>" ("LVIS box AP").
    """
    found: dict[tuple[str, str, str, str], dict[str, float | None]] = {}
    benchmarks = list(dict.fromkeys(row.benchmark for row in rows))
    for one in figures:
        for benchmark in benchmarks:
            first, _, metric = one.where.partition(" ")
            if one.where == benchmark or (metric and first.lower() == benchmark.lower()):
                key = (one.method, one.backbone, benchmark, one.source)
                found.setdefault(key, {})[metric or one.unit] = one.value
    return [
        Row(benchmark, f"{method}, {backbone} (published)", metrics, source=f"published: {source}")
        for (method, backbone, benchmark, source), metrics in found.items()
    ]


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """(header, cells): the options in which measured rows of the table differ, and every metric, have a column each."""
    measured = [row for row in rows if row.source == "measured"]
    names = dict.fromkeys(name for row in measured for name in row.options)
    differing = [name for name in names if len({json.dumps(row.options.get(name)) for row in measured}) > 1]
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    ends = ["items", "skipped", "marks", "source", "commit", "run"]
    cells = []
    for row in rows:
        options = [_option(row.options.get(name)) for name in differing]
        numbers = [row.metrics.get(name) for name in metrics]
        about = [row.items, row.skipped, "; ".join(row.marks), row.source, row.commit, row.run]
        cells.append([row.benchmark, row.backbone, *options, *numbers, *about])
    return ["benchmark", "backbone", *differing, *metrics, *ends], cells


def _option(value: object) -> object:
    """A list as words; anything else as it is."""
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value


def as_csv(rows: Sequence[Row]) -> str:
    """Full precision; empty where there is nothing."""
    header, cells = table(rows)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *cells])
    return text.getvalue()


def as_markdown(rows: Sequence[Row]) -> str:
    """Two decimals."""
    header, cells = table(rows)
    return "\n".join(markdown_table(header, [[_text(cell) for cell in line] for line in cells])) + "\n"


def as_latex(rows: Sequence[Row]) -> str:
    """A tabular of booktabs, two decimals, published rows below a line of their own; without commit and folder."""
    header, cells = table(rows)
    kept = [at for at, name in enumerate(header) if name not in ("commit", "run")]
    numeric = [all(isinstance(line[at], (int, float, type(None))) for line in cells) for at in kept]
    align = "".join("r" if is_number else "l" for is_number in numeric)
    lines = [[_escaped(_text(line[at])) for at in kept] for line in [header, *cells]]
    texts = [" & ".join(line) + r" \\" for line in lines]
    ours = 1 + sum(row.source == "measured" for row in rows)
    rule = [r"\midrule"] if 1 < ours < len(texts) else []
    body = [r"\toprule", texts[0], r"\midrule", *texts[1:ours], *rule, *texts[ours:], r"\bottomrule"]
    return "\n".join([r"% needs \usepackage{booktabs}", rf"\begin{{tabular}}{{{align}}}", *body, r"\end{tabular}", ""])


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _escaped(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


WRITERS = dict(zip(FORMATS, (as_csv, as_markdown, as_latex), strict=True))


def write_table(rows: Sequence[Row], path: Path) -> None:
    """In the format that the name ends with. InputError for another ending."""
    if path.suffix not in WRITERS:
        raise InputError(f"got --output {path}, expected a name that ends with one of {', '.join(FORMATS)}")
    write_atomically(path, WRITERS[path.suffix](rows).encode())


def parser() -> Parser:
    """The flags of eval.collect."""
    made = Parser(prog="python -m eval.collect", description="Gather results.json files into one table.")
    add = made.add_argument
    add("folders", nargs="+", type=Path, metavar="DIR", help="any results.json below them is a row")
    outputs = "also write the table: .csv, .md or .tex"
    add("--output", nargs="+", type=Path, default=[], metavar="FILE", help=outputs)
    published = "add published figures of the same benchmarks, marked so: eval/published.yaml or a file like it"
    add("--published", nargs="?", const="", metavar="YAML", help=published)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    options = parser().parse_args(arguments)

    def body() -> None:
        for path in options.output:
            if path.suffix not in WRITERS:
                raise InputError(f"got --output {path}, expected a name that ends with one of {', '.join(FORMATS)}")
        rows = [row for folder in options.folders for row in read_rows(folder)]
        if options.published is not None:
            figures = read_published(options.published) if options.published else published_figures()
            rows += published_rows(rows, figures)
        print(as_markdown(rows), end="")
        for path in options.output:
            write_table(rows, path)

    return run_program(body)
