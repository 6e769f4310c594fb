"""python -m eval.bench: our formulations against the obvious ones."""

import json
import platform
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from eval.bench.cases import CASES, Case
from eval.bench.measure import Row, Side, compare
from eval.bench.options import Options
from eval.results import markdown_table
from textregion.cli.command_line import Parser, Sides, run_program
from textregion.errors import InputError
from textregion.runtime import resolve_device
from textregion.storage import write_atomically

HELP = """\
Each sub-benchmark runs our formulation and the obvious one (tests/oracles.py) on the same inputs, each in a process of
its own, in turn, and prints medians of time, peaks of memory, their ratios and the largest difference of the results.
An obvious form that would not fit into --limit is run on a part and scaled; the note says on which.

  masks        fusing masks that contain each other; at full size, and with the option fuse_resolution="low"
  encode       all crops of an image in one batch            | crop by crop
  pool         masked mean or soft sum; global-patch scores  | patches repeated per region; all pairs of patches
  postprocess  a matrix product in bands of rows             | the product of labels, regions and pixels
  text         large batches, no padding where exact         | 80 prompts of one label at a time
  end2end      all stages of one image, with SAM 2's network, and their sum (text is computed once per label list)
  all          everything but end2end
"""
EXAMPLES = """\
examples:
  python -m eval.bench pool --regions 100 --random-weights
  python -m eval.bench postprocess --labels 150 --regions 200 --size 672 1008
  python -m eval.bench end2end --preset pe-core-l14-336 --random-weights --device cuda --markdown
  python -m eval.bench all --random-weights --json outputs/bench.json
memory: MB is 2**20 bytes; the process's (Linux: the kernel's peak mark, reset before each run) or CUDA's allocator's.
floor: operations / 989 TFLOP/s or bytes / 4.8 TB/s, whichever is longer: the nominal figures of an H200 (dense bf16).
"""
DEFAULT_PRESETS = {"pool": ("pe-core-l14-336", "siglip2-l16-256"), "text": ("clip-vit-b16",)}
DEFAULT_REGIONS = {"pool": 100, "end2end": 100}
PEAK_OPERATIONS, PEAK_BYTES = 989e12, 4.8e12  # H200, nominal: dense bf16, HBM3e
COLUMNS = ("benchmark", "time", "obvious", "faster", "memory", "obvious", "less", "difference", "H200 floor")


def parse_arguments(arguments: Sequence[str] | None = None) -> Namespace:
    """The command line."""
    parser = Parser(prog="python -m eval.bench", description=HELP, epilog=EXAMPLES)
    parser.add_argument("benchmark", choices=[*CASES, "all"], metavar="BENCHMARK", help="one of the names above")
    add = parser.add_argument
    add("--preset", nargs="+", metavar="NAME", help="whose architecture (clip-vit-l14-336; pool: PE-L and SigLIP-L)")
    add("--size", nargs="+", action=Sides, default=(672, 1008), metavar="H W", help="resized image (672 1008)")
    add("--regions", type=_count, metavar="N", help="regions, or masks to fuse (200; pool and end2end: 100)")
    add("--labels", type=_count, default=150, metavar="N", help="labels (150)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N (auto)")
    add("--random-weights", action="store_true", help="real architectures without weight files")
    add("--repeats", type=_count, default=3, metavar="N", help="runs of each form, of which the median counts (3)")
    add("--threads", type=_count, metavar="N", help="CPU threads of each form (all; 1 on a machine shared with others)")
    add("--limit", type=float, default=2.0, metavar="GB", help="memory the obvious form may take (2)")
    add("--json", type=Path, metavar="FILE", help="also write all figures there")
    add("--markdown", action="store_true", help="print the table as it stands in docs/performance.md")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"got {text!r}, expected a whole number of at least 1")
    return int(text)


def jobs(args: Namespace) -> list[tuple[type[Case], Options]]:
    """Which comparisons at which sizes."""
    names = [name for name in CASES if name != "end2end"] if args.benchmark == "all" else [args.benchmark]
    found = []
    for name in names:
        presets = args.preset or DEFAULT_PRESETS.get(name, ("clip-vit-l14-336",))
        for index, preset in enumerate(presets):
            regions = args.regions or DEFAULT_REGIONS.get(name, 200)
            options = Options(
                preset,
                args.size,
                regions,
                args.labels,
                str(resolve_device(args.device)),
                args.random_weights,
                args.threads or 0,
                int(args.limit * 2**30),
            )
            options.spec  # noqa: B018 (an unknown name is said before anything runs)
            repeated = name in ("masks", "postprocess") and index > 0  # these do not depend on the preset
            found += [] if repeated else [(case, options) for case in CASES[name]]
    return found


def floor_seconds(row: Row) -> float:
    """The least time on the named GPU: arithmetic or traffic, whichever takes longer."""
    return max(row.operations / PEAK_OPERATIONS, row.traffic / PEAK_BYTES)


def table(rows: Sequence[Row]) -> list[list[str]]:
    """The figures as text, under COLUMNS."""
    return [
        [
            row.name,
            _seconds(row.ours.seconds),
            _seconds(row.obvious.seconds) + _scaled(row.obvious) if row.obvious else "–",
            _times(row.speed),
            _memory(row.ours.megabytes),
            _memory(row.obvious.megabytes) + _scaled(row.obvious) if row.obvious else "–",
            _times(row.saving),
            f"{row.difference:.1e}" if row.obvious else "–",
            _seconds(floor_seconds(row)),
        ]
        for row in rows
    ]


def total(rows: Sequence[Row]) -> Row:
    """All stages of an image together; a stage without an obvious form counts alike in both."""
    ours = Side(sum(r.ours.seconds for r in rows), max(r.ours.megabytes for r in rows), 1.0)
    sides = [r.obvious or r.ours for r in rows]
    share = min(side.share for side in sides)
    obvious = Side(sum(s.seconds for s in sides), max(s.megabytes for s in sides), share)
    difference = max(r.difference or 0.0 for r in rows)
    return Row("sum", ours, obvious, difference, sum(r.operations for r in rows), sum(r.traffic for r in rows), "")


def _times(ratio: float | None) -> str:
    if ratio is None:
        return "–"
    return f"{ratio:.1f}×" if ratio < 100 else f"{ratio:.0f}×"


def _seconds(value: float) -> str:
    if value < 1e-3:
        return f"{value * 1e6:.0f} µs"
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.1f} s"


def _memory(megabytes: float) -> str:
    return f"{megabytes:.0f} MB" if megabytes < 1024 else f"{megabytes / 1024:.1f} GB"


def _scaled(side: Side) -> str:
    return "" if side.share == 1 else " *"


def machine(device: str, threads: int | None) -> str:
    """What the figures were measured on."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    cores = threads or torch.get_num_threads()
    return f"CPU {_processor()}, {cores} threads, torch {torch.__version__}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def report(rows: Sequence[Row], where: str, markdown: bool) -> str:
    """Everything that is printed."""
    cells = table(rows)
    if markdown:
        lines = markdown_table(COLUMNS, cells)
    else:
        widths = [max(len(line[i]) for line in (COLUMNS, *cells)) for i in range(len(COLUMNS))]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in (COLUMNS, *cells)]
    notes = [f"{'- ' if markdown else ''}{row.name}: {row.note}" for row in rows if row.note]
    scaled = any(row.obvious and row.obvious.share < 1 for row in rows)
    star = ["* run on a part and scaled to the whole"] if scaled else []
    return "\n".join([*lines, "", *notes, *star, f"measured on {where}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The program."""

    def body() -> None:
        args = parse_arguments(arguments)
        if args.limit <= 0:
            raise InputError(f"got --limit {args.limit}, expected gigabytes above 0")
        chosen = jobs(args)
        rows = []
        for case, options in chosen:
            print(f"running {case.title(options)} …", file=sys.stderr)
            rows.append(compare(case, options, args.repeats))
        if args.benchmark == "end2end":
            rows.append(total(rows))
        where = machine(chosen[0][1].device, args.threads)
        print(report(rows, where, args.markdown))
        if args.json:
            _write(args.json, rows, where)

    return run_program(body)


def _write(path: Path, rows: Sequence[Row], where: str) -> None:
    figures = [{**row.json(), "floor_seconds_h200": floor_seconds(row)} for row in rows]
    try:
        write_atomically(path, json.dumps({"machine": where, "rows": figures}, indent=1).encode())
    except OSError as error:
        raise InputError(f"cannot write {path} ({error}); give another --json") from error


if __name__ == "__main__":
    sys.exit(main())
