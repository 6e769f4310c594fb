"""The program of python -m eval.bench: both formulations measured in turn, each in a process of its own; a table."""

import json
import platform
import re
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.bench import fast, image
from eval.bench.comparisons import COMPARISONS, Comparison, Facts, Options
from eval.bench.measure import measured, shown_seconds
from textregion.cli.command_line import Parser, Sides, positive, run_program
from textregion.devices import device_facts, resolve_device
from textregion.errors import InputError
from textregion.masks.sam2_model import SIZES
from textregion.presets import find_preset
from textregion.render import markdown_table, text_table
from textregion.storage import write_atomically

HELP = """\
Each sub-benchmark runs our formulation and the obvious one (tests/oracles.py) on the same inputs, each in a process of
its own, in turn, and prints medians of time, peaks of memory, their ratios and the largest difference of the results.
An obvious form that would not fit into --limit is run on a part and scaled; the note says on which.

  masks        fusing masks that contain each other, at full size     | full-size masks, pair by pair
  decoder      what clicks share computed once, batches filtered | SAM 2's own decoder, all logits kept
  encode       all crops in one batch, on a CPU crop by crop | crop by crop
  pool         masked mean or soft sum; global-patch scores  | patches repeated per region; all pairs of patches
  postprocess  a matrix product in bands of rows             | the product of labels, regions and pixels
  text         no padding, what templates share computed once, where exact | 80 prompts of one label at a time; the
               same without sharing
  end2end      all stages of one image, with SAM 2's network, and their sum (text is computed once per label list)
  image        a whole image, stage by stage: seconds, operations, share of the rate of matrix products that the machine
               reaches just then, and mask generation against what else there is; preset tiny by default, in one process
  fast         the fast mode and its parts on drawn scenes: mean IoU, agreement with the normal mode, seconds
  all          everything but decoder, end2end, image and fast
  search       a table of made-up regions: written, indexed, searched (python -m eval.bench search --help)
  memory       what a region memory adds to an image (python -m eval.bench memory --help)
"""
EXAMPLES = """\
examples:
  python -m eval.bench pool --regions 100 --random-weights
  python -m eval.bench postprocess --labels 150 --regions 200 --size 672 1008
  python -m eval.bench end2end --preset pe-core-l14-336 --random-weights --device cuda --markdown
  python -m eval.bench all --random-weights --json outputs/bench.json
  python -m eval.bench image
  python -m eval.bench image --preset clip-vit-l14-336 openclip-vit-h14 pe-core-l14-336 --sam2 large tiny \
      --labels 21 150 --random-weights --repeats 1
memory: MB is 2**20 bytes; the process's (Linux: the kernel's peak mark, reset before each run) or CUDA's allocator's.
floor: operations / 989 TFLOP/s or bytes / 4.8 TB/s, whichever is longer: the nominal figures of an H200 (dense bf16).
"""
PEAK_OPERATIONS, PEAK_BYTES = 989e12, 4.8e12  # a second, of an H200, nominal: dense bf16, HBM3e
DEFAULT_PRESETS = {"pool": ("pe-core-l14-336", "siglip2-l16-256"), "text": ("clip-vit-b16",)}
LONG = ("decoder", "end2end")
IMAGE, IMAGE_OF_TINY = ((672, 1008), 100, 150, 16), ((192, 256), 20, 5, 4)  # size, regions, labels, clicks a side
DEFAULT_REGIONS = {"pool": 100, "end2end": 100}
COLUMNS = ("benchmark", "time", "obvious", "faster", "memory", "obvious", "less", "difference", "H200 floor")


def parse_arguments(arguments: Sequence[str] | None = None) -> Namespace:
    """The command line."""
    parser = Parser(prog="python -m eval.bench", description=HELP, epilog=EXAMPLES)
    add = parser.add_argument
    add("benchmark", choices=[*COMPARISONS, "image", "fast", "all"], metavar="BENCHMARK", help="one of the names above")
    add("--preset", nargs="+", metavar="NAME", help="whose architecture (clip-vit-l14-336; pool: PE-L and SigLIP-L)")
    size = "resized image (672 1008; image with the tiny models: 192 256)"
    add("--size", nargs="+", action=Sides, metavar="H W", help=size)
    add("--sam2", nargs="+", choices=[*SIZES], metavar="SIZE", help="of image: SAM 2.1 sizes (the preset's)")
    add("--regions", type=positive, metavar="N", help="regions, or masks to fuse (200; pool and end2end: 100)")
    add("--labels", nargs="+", type=positive, metavar="N", help="labels (150; image with the tiny models: 5)")
    add("--points", type=positive, metavar="N", help="clicks a side, of decoder and image (16; tiny models: 4)")
    add("--scenes", type=positive, default=24, metavar="N", help="drawn scenes, of fast (24)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N (auto)")
    add("--random-weights", action="store_true", help="real architectures without weight files")
    add("--repeats", type=positive, default=3, metavar="N", help="runs of each form, of which the median counts (3)")
    add("--threads", type=positive, metavar="N", help="CPU threads of each form (all; 1 where others work too)")
    busy = "of image: seconds of one processor, not of the clock, where others work too"
    add("--processor_time", action="store_true", help=busy)
    add("--limit", type=float, default=2.0, metavar="GB", help="memory the obvious form may take (2)")
    add("--json", type=Path, metavar="FILE", help="also write all figures there")
    add("--markdown", action="store_true", help="print the table as it stands in docs/performance.md")
    return parser.parse_args(arguments)


def jobs(args: Namespace) -> list[tuple[Comparison, Options]]:
    """Which comparisons at which sizes. InputError for an unknown preset, device or limit, before anything runs."""
    device, limit = str(resolve_device(args.device)), limit_of(args)
    names = [name for name in COMPARISONS if name not in LONG] if args.benchmark == "all" else [args.benchmark]
    found = []
    for name in names:
        sizes = (args.size or (672, 1008), args.regions or DEFAULT_REGIONS.get(name, 200), *(args.labels or [150])[:1])
        presets = args.preset or DEFAULT_PRESETS.get(name, ("clip-vit-l14-336",))
        for preset in presets:
            options = Options(preset, *sizes, device, args.random_weights, args.threads or 0, limit, args.points or 16)
            options.spec  # noqa: B018 (an unknown name is said here)
            again = preset != presets[0] and name != "end2end"
            found += [(each, options) for each in COMPARISONS[name] if each.of_preset or not again]
    return found


def limit_of(args: Namespace) -> int:
    """--limit in bytes. InputError unless it is above 0."""
    if args.limit <= 0:
        raise InputError(f"got --limit {args.limit}, expected gigabytes above 0")
    return int(args.limit * 2**30)


def image_jobs(args: Namespace) -> list[Options]:
    """One for every model and number of labels. InputError for what does not exist, before anything runs."""
    found = []
    for preset in args.preset or ["tiny"]:
        size, regions, labels, points = IMAGE_OF_TINY if preset == "tiny" else IMAGE
        sizes = (args.size or size, args.regions or regions)
        find_preset(preset)
        for sam2, number in product(args.sam2 or [None], args.labels or [labels]):
            how = (str(resolve_device(args.device)), args.random_weights, args.threads or 0, limit_of(args))
            found.append(Options(preset, *sizes, number, *how, args.points or points, sam2))
    return found


@dataclass(frozen=True)
class Cost:
    """What one formulation takes, already scaled to the whole task.

    seconds: median of the repeats. megabytes: peak beyond its inputs, 2**20 bytes. share: of the task that was run.
    """

    seconds: float
    megabytes: float
    share: float


@dataclass(frozen=True)
class Measured:
    """A comparison's figures. difference: in its own measure, over the part both have run. operations, traffic: the
    least multiply-adds * 2 and bytes the task needs, for the floor. note: what was compared and at which sizes.
    """

    name: str
    ours: Cost
    obvious: Cost | None
    difference: float | None
    operations: float
    traffic: float
    note: str

    @property
    def speed(self) -> float | None:
        """How many times faster ours is."""
        return None if self.obvious is None else self.obvious.seconds / self.ours.seconds

    @property
    def saving(self) -> float | None:
        """How many times less memory ours takes (its own at least one megabyte, below which nothing is measured)."""
        return None if self.obvious is None else self.obvious.megabytes / max(self.ours.megabytes, 1.0)

    @property
    def floor_seconds(self) -> float:
        """The least time on the named GPU: arithmetic or traffic, whichever takes longer."""
        return max(self.operations / PEAK_OPERATIONS, self.traffic / PEAK_BYTES)


def compare(comparison: Comparison, options: Options, repeats: int) -> Measured:
    """Measure both formulations, alternating, `repeats` times each.

    Raises InputError when a process runs out of memory or dies.
    """
    names = ("ours", "obvious") if comparison.compared else ("ours",)
    with ExitStack() as stack:
        workers = {name: stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))) for name in names}
        try:
            prepared = [workers[name].submit(_prepare, comparison, options, name) for name in names]
            facts, *_ = [made.result() for made in prepared]
            runs = [[workers[name].submit(_run).result() for name in names] for _ in range(repeats)]
            results = [workers[name].submit(_result).result() for name in names]
        except BrokenProcessPool as error:
            raise InputError("a benchmark process died (lack of memory? take a smaller --limit)") from error
    ours, *obvious = zip(*runs, strict=True)
    theirs, difference = None, None
    if obvious:
        theirs = _cost(obvious[0], facts.share, facts.share if facts.memory_scales else 1.0)
        difference = facts.difference(*results)
    least = facts.operations, facts.traffic
    cost = _cost(ours, facts.own_share, 1.0)
    return Measured(comparison.title(options), cost, theirs, difference, *least, facts.note)


def _cost(runs: Sequence[tuple[float, float]], share: float, memory_share: float) -> Cost:
    """Medians of time; the largest peak, because a later run may reuse what an earlier one left."""
    seconds, peaks = zip(*runs, strict=True)
    return Cost(statistics.median(seconds) / share, max(peaks) / memory_share / 2**20, share)


# What follows runs in a formulation's own process, which keeps it in `_own` from one request to the next.
_own: dict[str, Any] = {}


@torch.inference_mode()
def _prepare(comparison: Comparison, options: Options, name: str) -> Facts:
    if options.threads:
        torch.set_num_threads(options.threads)
    ours, obvious, facts = comparison.make(options)
    _own.update(form=ours if name == "ours" else obvious, device=torch.device(options.device))
    return facts


@torch.inference_mode()
def _run() -> tuple[float, float]:
    _own.pop("result", None)
    seconds, peak, _own["result"] = measured(_own["form"], _own["device"])
    return seconds, peak


def _result() -> np.ndarray:
    result = _own["result"]
    return result.numpy(force=True) if isinstance(result, torch.Tensor) else result


# ---------------------------------------------------------------------- the table


def total(rows: Sequence[Measured]) -> Measured:
    """All stages of an image together; a stage without an obvious form counts alike in both."""

    def add(costs: Sequence[Cost]) -> Cost:
        seconds, megabytes, shares = zip(*map(astuple, costs), strict=True)
        return Cost(sum(seconds), max(megabytes), min(shares))

    ours = replace(add([row.ours for row in rows]), share=1.0)
    obvious = add([row.obvious or row.ours for row in rows])
    difference = max(row.difference or 0.0 for row in rows)
    least = sum(row.operations for row in rows), sum(row.traffic for row in rows)
    return Measured("sum", ours, obvious, difference, *least, note="")


def cells(row: Measured) -> list[str]:
    """The figures as text, under COLUMNS."""
    obvious, costs = row.obvious, ["–"] * 5
    if obvious is not None:
        star = "" if obvious.share == 1 else " *"
        costs = [shown_seconds(obvious.seconds) + star, _times(row.speed), _memory(obvious.megabytes) + star]
        costs += [_times(row.saving), f"{row.difference:.1e}"]
    ours = shown_seconds(row.ours.seconds), _memory(row.ours.megabytes)
    return [row.name, ours[0], *costs[:2], ours[1], *costs[2:], shown_seconds(row.floor_seconds)]


def _times(ratio: float) -> str:
    return f"{ratio:.1f}×" if ratio < 100 else f"{ratio:.0f}×"


def _memory(megabytes: float) -> str:
    return f"{megabytes:.0f} MB" if megabytes < 1024 else f"{megabytes / 1024:.1f} GB"


def machine(device: str, threads: int | None) -> str:
    """What the figures were measured on."""
    facts = device_facts(torch.device(device))
    if "threads" not in facts:  # no CPU
        return f"{facts['name']}, torch {torch.__version__}"
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.is_file() else []
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"CPU {processor}, {threads or torch.get_num_threads()} threads, torch {torch.__version__}"


def report(rows: Sequence[Measured], where: str, markdown: bool) -> str:
    """Everything that is printed."""
    table = [cells(row) for row in rows]
    lines = markdown_table(COLUMNS, table) if markdown else [text_table(COLUMNS, table)]
    notes = [f"{'- ' if markdown else ''}{row.name}: {row.note}" for row in rows if row.note]
    scaled = any(row.obvious and row.obvious.share < 1 for row in rows)
    star = ["* run on a part and scaled to the whole"] * scaled
    return "\n".join([*lines, "", *notes, *star, f"measured on {where}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_program(lambda: _main(parse_arguments(arguments)))


def _main(args: Namespace) -> None:
    if args.benchmark == "image":
        return _image(args)
    if args.benchmark == "fast":
        return _fast(args)
    chosen, rows = jobs(args), []
    for comparison, options in chosen:
        print(f"running {comparison.title(options)} …", file=sys.stderr)
        rows.append(compare(comparison, options, args.repeats))
    if args.benchmark == "end2end":
        rows.append(total(rows))
    where = machine(chosen[0][1].device, args.threads)
    print(report(rows, where, args.markdown))
    ratios = [{"speed": row.speed, "saving": row.saving, "floor_seconds_h200": row.floor_seconds} for row in rows]
    _write(args.json, where, [{**asdict(row), **own} for row, own in zip(rows, ratios, strict=True)])


def _image(args: Namespace) -> None:
    figures, jobs_ = [], image_jobs(args)
    threads = 1 if args.processor_time else args.threads
    if threads:
        torch.set_num_threads(threads)
    clock = time.process_time if args.processor_time else time.perf_counter
    where = machine(jobs_[0].device, threads) + ", seconds of its processor" * args.processor_time
    for options in jobs_:
        stages, others, missing = image.run(options, args.repeats, clock)
        sam2 = options.sam2 or find_preset(options.preset).sam2
        of_size = f"{options.size[0]} x {options.size[1]} px, {options.points}² clicks, {options.labels} labels"
        title = f"{options.preset}, SAM 2.1 {sam2}, {of_size}; {where}"
        print(image.report(title, stages, others, missing, args.markdown), flush=True)
        figures += [{"model": title, **asdict(each)} for each in (*stages, image.whole(stages), *others)]
    _write(args.json, where, figures)


def _fast(args: Namespace) -> None:
    device = str(resolve_device(args.device))
    if args.threads:
        torch.set_num_threads(args.threads)
    where, modes = machine(device, args.threads), fast.run(args.scenes, device)
    print(fast.report(modes, where, args.markdown))
    _write(args.json, where, [asdict(mode) for mode in modes])


def _write(path: Path | None, where: str, rows: Sequence[dict]) -> None:
    """All figures as JSON, where a path is given. InputError when it cannot be written."""
    if path is None:
        return
    try:
        write_atomically(path, json.dumps({"machine": where, "rows": rows}, indent=1).encode())
    except OSError as error:
        raise InputError(f"cannot write {path} ({error}); give another --json") from error
