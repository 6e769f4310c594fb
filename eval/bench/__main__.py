"""python -m eval.bench: our formulations against the obvious ones."""

import json
import platform
import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path

import torch

from eval.bench.comparisons import COMPARISONS, Comparison, Options
from eval.bench.measure import Cost, Measured, compare
from eval.results import markdown_table
from textregion.cli.command_line import Parser, Sides, positive, run_program
from textregion.errors import InputError
from textregion.runtime import resolve_device
from textregion.storage import write_atomically

HELP = """\
Each sub-benchmark runs our formulation and the obvious one (tests/oracles.py) on the same inputs, each in a process of
its own, in turn, and prints medians of time, peaks of memory, their ratios and the largest difference of the results.
An obvious form that would not fit into --limit is run on a part and scaled; the note says on which.

  masks        fusing masks that contain each other, at full size     | full-size masks, pair by pair
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
COLUMNS = ("benchmark", "time", "obvious", "faster", "memory", "obvious", "less", "difference", "H200 floor")


def parse_arguments(arguments: Sequence[str] | None = None) -> Namespace:
    """The command line."""
    parser = Parser(prog="python -m eval.bench", description=HELP, epilog=EXAMPLES)
    add = parser.add_argument
    add("benchmark", choices=[*COMPARISONS, "all"], metavar="BENCHMARK", help="one of the names above")
    add("--preset", nargs="+", metavar="NAME", help="whose architecture (clip-vit-l14-336; pool: PE-L and SigLIP-L)")
    add("--size", nargs="+", action=Sides, default=(672, 1008), metavar="H W", help="resized image (672 1008)")
    add("--regions", type=positive, metavar="N", help="regions, or masks to fuse (200; pool and end2end: 100)")
    add("--labels", type=positive, default=150, metavar="N", help="labels (150)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N (auto)")
    add("--random-weights", action="store_true", help="real architectures without weight files")
    add("--repeats", type=positive, default=3, metavar="N", help="runs of each form, of which the median counts (3)")
    add("--threads", type=positive, metavar="N", help="CPU threads of each form (all; 1 where others work too)")
    add("--limit", type=float, default=2.0, metavar="GB", help="memory the obvious form may take (2)")
    add("--json", type=Path, metavar="FILE", help="also write all figures there")
    add("--markdown", action="store_true", help="print the table as it stands in docs/performance.md")
    return parser.parse_args(arguments)


def jobs(args: Namespace) -> list[tuple[Comparison, Options]]:
    """Which comparisons at which sizes. InputError for an unknown preset, device or limit, before anything runs."""
    if args.limit <= 0:
        raise InputError(f"got --limit {args.limit}, expected gigabytes above 0")
    device, limit = str(resolve_device(args.device)), int(args.limit * 2**30)
    names = [name for name in COMPARISONS if name != "end2end"] if args.benchmark == "all" else [args.benchmark]
    found = []
    for name in names:
        regions = args.regions or DEFAULT_REGIONS.get(name, 200)
        presets = args.preset or DEFAULT_PRESETS.get(name, ("clip-vit-l14-336",))
        for preset in presets:
            sizes = (args.size, regions, args.labels)
            options = Options(preset, *sizes, device, args.random_weights, args.threads or 0, limit)
            options.spec  # noqa: B018 (an unknown name is said here)
            again = preset != presets[0] and name != "end2end"
            found += [(each, options) for each in COMPARISONS[name] if each.of_preset or not again]
    return found


def total(rows: Sequence[Measured]) -> Measured:
    """All stages of an image together; a stage without an obvious form counts alike in both."""

    def add(costs: Sequence[Cost]) -> Cost:
        seconds, megabytes, shares = zip(*map(astuple, costs), strict=True)
        return Cost(sum(seconds), max(megabytes), min(shares))

    return Measured(
        "sum",
        replace(add([row.ours for row in rows]), share=1.0),
        add([row.obvious or row.ours for row in rows]),
        difference=max(row.difference or 0.0 for row in rows),
        operations=sum(row.operations for row in rows),
        traffic=sum(row.traffic for row in rows),
        note="",
    )


def cells(row: Measured) -> list[str]:
    """The figures as text, under COLUMNS."""
    obvious, costs = row.obvious, ["–"] * 5
    if obvious is not None:
        star = "" if obvious.share == 1 else " *"
        costs = [_seconds(obvious.seconds) + star, _times(row.speed), _memory(obvious.megabytes) + star]
        costs += [_times(row.saving), f"{row.difference:.1e}"]
    ours = _seconds(row.ours.seconds), _memory(row.ours.megabytes)
    return [row.name, ours[0], *costs[:2], ours[1], *costs[2:], _seconds(row.floor_seconds)]


def _times(ratio: float) -> str:
    return f"{ratio:.1f}×" if ratio < 100 else f"{ratio:.0f}×"


def _seconds(value: float) -> str:
    if value < 1e-3:
        return f"{value * 1e6:.0f} µs"
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.1f} s"


def _memory(megabytes: float) -> str:
    return f"{megabytes:.0f} MB" if megabytes < 1024 else f"{megabytes / 1024:.1f} GB"


def machine(device: str, threads: int | None) -> str:
    """What the figures were measured on."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.is_file() else []
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"CPU {processor}, {threads or torch.get_num_threads()} threads, torch {torch.__version__}"


def report(rows: Sequence[Measured], where: str, markdown: bool) -> str:
    """Everything that is printed."""
    table = [COLUMNS, *map(cells, rows)]
    if markdown:
        lines = markdown_table(table[0], table[1:])
    else:
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in table]
    notes = [f"{'- ' if markdown else ''}{row.name}: {row.note}" for row in rows if row.note]
    scaled = any(row.obvious and row.obvious.share < 1 for row in rows)
    star = ["* run on a part and scaled to the whole"] if scaled else []
    return "\n".join([*lines, "", *notes, *star, f"measured on {where}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_program(lambda: _run(parse_arguments(arguments)))


def _run(args: Namespace) -> None:
    chosen, rows = jobs(args), []
    for comparison, options in chosen:
        print(f"running {comparison.title(options)} …", file=sys.stderr)
        rows.append(compare(comparison, options, args.repeats))
    if args.benchmark == "end2end":
        rows.append(total(rows))
    where = machine(chosen[0][1].device, args.threads)
    print(report(rows, where, args.markdown))
    if args.json:
        content = {"machine": where, "rows": [row.json() for row in rows]}
        try:
            write_atomically(args.json, json.dumps(content, indent=1).encode())
        except OSError as error:
            raise InputError(f"cannot write {args.json} ({error}); give another --json") from error


if __name__ == "__main__":
    sys.exit(main())
