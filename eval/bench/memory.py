"""python -m eval.bench memory: what a region memory adds to an image, in a bank of many made-up regions."""

import json
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from eval.bench.measure import peak_memory, reset_peak
from eval.bench.program import machine
from eval.bench.search import Tokens
from textregion.cli.command_line import Parser, positive, run_program
from textregion.devices import resolve_device, synchronise
from textregion.index.memory import Bank, RegionMemory
from textregion.neighbours import AT_ONCE, EXACT_VECTORS, Blocks, exact_search
from textregion.render import markdown_table, text_table
from textregion.storage import write_atomically

HELP = """\
A bank of made-up regions, their tokens in clusters as those of photographs are, held in memory as RegionMemory holds
one; then the regions of one image after another: their nearest neighbours, the mean of these, its product with words.
Prints milliseconds an image (p50, p95), recall@K (the share of the true nearest that are found) and how alike the
support is to that of the true nearest (cosine). Exact below 100,000 regions and on a GPU, by blocks on a CPU.
"""
COLUMNS = ("bank", "search", "regions", "K", "p50", "p95", "recall", "support's cosine", "made in", "peak memory")


def parse_arguments(arguments: Sequence[str] | None = None) -> Namespace:
    """The command line."""
    parser = Parser(prog="python -m eval.bench memory", description=HELP)
    add = parser.add_argument
    add("--rows", type=positive, default=100_000, metavar="N", help="regions of the bank (100000)")
    add("--width", type=positive, default=512, metavar="D", help="numbers of a token (512)")
    add("--clusters", type=positive, metavar="N", help="kinds of things (a 250th of the regions)")
    add("--regions", type=positive, default=100, metavar="N", help="regions of an image (100)")
    add("--neighbours", type=positive, default=20, metavar="K", help="that support a region (20)")
    add("--labels", type=positive, default=150, metavar="N", help="words (150)")
    add("--images", type=positive, default=20, metavar="N", help="that are measured (20)")
    add("--threads", type=positive, metavar="N", help="CPU threads (all)")
    busy = "milliseconds of all processors together, not of the clock: where others work too, with --threads 1"
    add("--processor_time", action="store_true", help=busy)
    add("--device", default="cpu", help="auto, cpu, cuda, cuda:N (cpu)")
    add("--json", type=Path, metavar="FILE", help="also write all figures there")
    add("--markdown", action="store_true", help="print the table as it stands in docs/region-memory.md")
    return parser.parse_args(arguments)


def made_up(tokens: Tokens, rows: int, device: torch.device) -> RegionMemory:
    """A memory of so many regions, as `RegionMemory.open` would hold it."""
    small = device.type == "cpu" and rows < EXACT_VECTORS
    keys = torch.empty(rows, tokens.centres.shape[1], dtype=torch.float32 if small else torch.float16, device=device)
    for start in range(0, rows, AT_ONCE):
        part = torch.from_numpy(tokens.draw(min(AT_ONCE, rows - start), start))
        keys[start : start + len(part)] = part.to(keys)
    blocks = Blocks.of(keys) if device.type == "cpu" and not small else None
    bank = Bank(keys, [keys], torch.zeros(rows, dtype=torch.int64), ["made up"])
    return RegionMemory("made up", bank, own_rows=True, blocks=blocks)


@torch.inference_mode()
def measure(args: Namespace) -> dict:
    """All figures of one bank."""
    device = resolve_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    clock = time.process_time if args.processor_time else time.perf_counter
    tokens = Tokens(args.clusters or max(args.rows // 250, 1), args.width)
    reset_peak(device)
    start = time.perf_counter()
    memory = made_up(tokens, args.rows, device)
    made = time.perf_counter() - start
    print(f"bank: {made:.1f} s", file=sys.stderr)
    text = F.normalize(torch.randn(args.labels, args.width), dim=1).to(device)
    times, recalls, cosines = [], [], []
    for image in range(-3, args.images):  # the first ones are not counted
        queries = torch.from_numpy(tokens.draw(args.regions, 10**9 + image)).to(device)
        synchronise(device)
        start = clock()
        rows = memory.nearest(queries, args.neighbours)
        (support,) = memory.supports(rows)
        _ = support @ text.T
        synchronise(device)
        if image >= 0:
            times.append(1000 * (clock() - start))
            true = exact_search(memory.bank.keys, queries, args.neighbours)[1] if image < 3 else rows
            if image < 3:
                recalls.append(float((rows[:, :, None] == true[:, None]).any(2).float().mean()))
                cosines.append(float((support * memory.supports(true)[0]).sum(1).mean()))
    return {
        "rows": args.rows,
        "search": "exact" if memory.blocks is None else f"{len(memory.blocks.rows)} blocks",
        "regions": args.regions,
        "neighbours": args.neighbours,
        "p50": statistics.median(times),
        "p95": statistics.quantiles(times, n=20)[-1] if len(times) > 1 else times[0],
        "recall": statistics.mean(recalls),
        "cosine": statistics.mean(cosines),
        "made": made,
        "megabytes": peak_memory(device) / 2**20,
    }


def report(figures: dict, markdown: bool) -> str:
    """The table, of one row."""
    row = [f"{figures['rows']:,}", figures["search"], str(figures["regions"]), str(figures["neighbours"])]
    row += [f"{figures['p50']:.1f} ms", f"{figures['p95']:.1f} ms", f"{figures['recall']:.3f}"]
    row += [f"{figures['cosine']:.4f}", f"{figures['made']:.1f} s", f"{figures['megabytes'] / 1024:.2f} GiB"]
    return "\n".join(markdown_table(COLUMNS, [row])) if markdown else text_table(COLUMNS, [row])


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return run_program(lambda: _main(parse_arguments(arguments)))


def _main(args: Namespace) -> None:
    figures = measure(args)
    where = machine(str(resolve_device(args.device)), args.threads)
    print(report(figures, args.markdown))
    print(f"{'processor time, ' * args.processor_time}measured on {where}")
    if args.json:
        write_atomically(args.json, json.dumps({"machine": where, **figures}, indent=1).encode())
