"""python -m tests.soak: many images through one segmenter; memory must stay flat and the speed the same."""

import csv
import ctypes
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
import psutil
from jaxtyping import Float64
from matplotlib.figure import Figure
from tqdm import tqdm

from eval.results import markdown_table
from textregion.cli.command_line import Parser, Sides, output_folder, positive, run_program
from textregion.errors import InputError, at_least
from textregion.masks import find_source
from textregion.tiny.scenes import REFERENCE_SIZE, draw_scene
from TextRegionSegmenter import TextRegionSegmenter

HELP = """\
Draws scene after scene, encodes each with one segmenter and labels it with the scene's words and some that were never
used before, so that caches are exercised too. After every image the process's memory and the seconds are noted.

Memory is judged by the slope of a least-squares line over the images after the warm-up, the speed by the median CPU
seconds of the last tenth of them over that of the first tenth. Exit code 1 when one of them is beyond its bound.

A label never used before takes about 2 KB with the tiny preset: its embedding, until 20,000 are remembered and the
oldest go, and the pieces of its words, which open_clip's tokenizer keeps. A drawn scene of 256 pixels has 192 KB.
"""
EXAMPLES = """\
examples:
  python -m tests.soak --images 10000
  python -m tests.soak --images 500 --masks sam2
  python -m tests.soak --images 500 --labels-per-image 3 --max-growth 10
"""
SYLLABLES = tuple(first + second for first in "bdfgklmnprstvz" for second in "aeiou")
LEAST_JUDGED = 10  # images after the warm-up


@dataclass(frozen=True)
class Sample:
    """After one image. seconds: wall clock; cpu_seconds: of this process; megabytes: resident, 2**20 bytes."""

    image: int
    seconds: float
    cpu_seconds: float
    megabytes: float


@dataclass(frozen=True)
class Verdict:
    """growth: kilobytes (2**10) per image. slowdown: last over first tenth's median CPU seconds. Bounds of both."""

    growth: float
    slowdown: float
    max_growth: float
    max_slowdown: float

    @property
    def flat(self) -> bool:
        """Whether memory grows no more than allowed."""
        return self.growth <= self.max_growth

    @property
    def steady(self) -> bool:
        """Whether it slows down no more than allowed."""
        return self.slowdown <= self.max_slowdown


def parse_arguments(arguments: Sequence[str] | None = None) -> Namespace:
    """The command line."""
    parser = Parser(prog="python -m tests.soak", description=HELP, epilog=EXAMPLES)
    add = parser.add_argument
    add("--images", type=positive, default=1000, metavar="N", help="how many scenes (1000)")
    add("--masks", default="slic", metavar="NAME", help="mask source: slic, which is fast, or sam2 (slic)")
    add("--labels-per-image", type=int, default=1, metavar="N", help="labels never used before, for each image (1)")
    add("--size", type=positive, default=REFERENCE_SIZE, metavar="N", help=f"side of a scene ({REFERENCE_SIZE})")
    add("--scale", nargs="+", action=Sides, metavar="N", help="fit the image into these two sides (the preset's)")
    add("--warmup", type=positive, default=50, metavar="N", help="images left out of the judgement, at the start (50)")
    add("--seed", type=int, default=0, metavar="N", help="of the first scene, 0 or more (0)")
    add("--preset", default="tiny", metavar="NAME", help="which models (tiny)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N (auto)")
    add("--max-growth", type=float, default=5.0, metavar="KB", help="most growth per image, 2**10 bytes (5)")
    add("--max-slowdown", type=float, default=1.2, metavar="X", help="most slowdown, last tenth / first tenth (1.2)")
    add("--output", default="outputs/soak", metavar="DIR", help="where soak.csv and soak.png go (outputs/soak)")
    return parser.parse_args(arguments)


def check(args: Namespace) -> None:
    """InputError for numbers that do not fit together."""
    at_least("--labels-per-image", args.labels_per_image, 0)
    at_least("--seed", args.seed, 0)
    if args.images < args.warmup + LEAST_JUDGED:
        least = args.warmup + LEAST_JUDGED
        raise InputError(f"got --images {args.images} and --warmup {args.warmup}, expected at least {least} images")
    if args.size % 4 or args.size < 64:
        raise InputError(f"got --size {args.size}, expected a multiple of 4 of at least 64")
    if args.masks != "sam2" and find_source(args.masks).needs:
        raise InputError(f"got --masks {args.masks}, expected slic or sam2: others must be given something")


def soak(segmenter: TextRegionSegmenter, args: Namespace) -> Iterator[Sample]:
    """One sample per image, as they are done."""
    words = np.random.default_rng(args.seed)
    for index in range(args.images):
        scene = draw_scene(args.seed + index, args.size)
        labels = [*scene.labels, *(new_label(words) for _ in range(args.labels_per_image))]
        start, cpu_start = time.perf_counter(), time.process_time()
        regions = segmenter.encode_image(scene.image)
        segmenter.segment(regions, labels)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        yield Sample(index, seconds, cpu_seconds, resident_megabytes())


def resident_megabytes() -> float:
    """This process's own memory, 2**20 bytes, without what the C library only keeps in reserve where it can be told so.

    Pages of files (libraries) do not count where they can be told apart: the system takes and gives them as it likes.
    """
    if sys.platform == "linux" and hasattr(c_library := ctypes.CDLL(None), "malloc_trim"):
        c_library.malloc_trim(0)
    memory = psutil.Process().memory_info()
    return (memory.rss - getattr(memory, "shared", 0)) / 2**20


def new_label(random: np.random.Generator) -> str:
    """Three words of two to four syllables, made up."""
    return " ".join("".join(random.choice(SYLLABLES, random.integers(2, 5))) for _ in range(3))


def judge(samples: Sequence[Sample], warmup: int, max_growth: float, max_slowdown: float) -> Verdict:
    """Slope of memory and slowdown of the images after the warm-up, of which there are at least ten."""
    megabytes, seconds = columns(samples[warmup:], "megabytes", "cpu_seconds")
    slope = np.polynomial.Polynomial.fit(np.arange(len(megabytes)), megabytes, 1).convert().coef
    growth = slope[1] * 2**10 if len(slope) > 1 else 0.0
    tenth = len(seconds) // 10
    slowdown = np.median(seconds[-tenth:]) / max(np.median(seconds[:tenth]), 1e-9)
    return Verdict(float(growth), float(slowdown), max_growth, max_slowdown)


def columns(samples: Sequence[Sample], *names: str) -> list[Float64[np.ndarray, " N"]]:
    """Some fields of all samples."""
    return [np.array([getattr(sample, name) for sample in samples], np.float64) for name in names]


def table(samples: Sequence[Sample], warmup: int) -> list[str]:
    """Markdown: memory and seconds at the start, the end and in between."""
    judged = np.array_split(np.arange(warmup, len(samples)), 10)
    rows = []
    for part in (judged[0], judged[4], judged[9]):
        wall, cpu, megabytes = columns([samples[i] for i in part], "seconds", "cpu_seconds", "megabytes")
        medians = [f"{np.median(wall) * 1e3:.0f}", f"{np.median(cpu) * 1e3:.0f}", f"{np.median(megabytes):.1f}"]
        rows.append([f"{part[0] + 1} to {part[-1] + 1}", *medians])
    return markdown_table(["images", "ms", "CPU ms", "resident MB"], rows)


def report(verdict: Verdict) -> list[str]:
    """The judgement in two lines."""
    return [
        f"memory: {verdict.growth:+.2f} KB an image, bound {verdict.max_growth:g}: "
        f"{'flat' if verdict.flat else 'GROWS'}",
        f"speed: last tenth / first tenth {verdict.slowdown:.2f}, bound {verdict.max_slowdown:g}: "
        f"{'steady' if verdict.steady else 'SLOWS DOWN'}",
    ]


def plot(samples: Sequence[Sample], path: Path) -> None:
    """Memory and CPU seconds over the images, as PNG."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    image, megabytes, seconds = columns(samples, "image", "megabytes", "cpu_seconds")
    upper.plot(image, megabytes, linewidth=1)
    upper.set(ylabel="resident memory, MB", ylim=(0, None))
    lower.plot(image, seconds * 1e3, ".", markersize=2)
    lower.set(xlabel="image", ylabel="CPU ms an image", ylim=(0, 2 * np.percentile(seconds, 95) * 1e3))
    figure.savefig(path, dpi=100)


def run(args: Namespace) -> bool:
    """Soak, write, print; whether both bounds hold."""
    check(args)
    folder = output_folder(args.output)
    options = {"scale": args.scale} if args.scale else {}
    segmenter = TextRegionSegmenter.from_preset(args.preset, mask_generator=args.masks, device=args.device, **options)
    samples = []
    with (folder / "soak.csv").open("w", newline="", buffering=1) as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in fields(Sample))
        for sample in tqdm(soak(segmenter, args), "images", args.images):
            samples.append(sample)
            writer.writerow(astuple(sample))
    verdict = judge(samples, args.warmup, args.max_growth, args.max_slowdown)
    plot(samples, folder / "soak.png")
    print("\n".join([*table(samples, args.warmup), "", *report(verdict)]))
    print(f"{len(samples)} images, {len(segmenter.remembered_labels)} labels remembered -> {folder}/soak.csv, soak.png")
    return verdict.flat and verdict.steady


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns 0, 1 when a bound is broken, 2 after one line about bad input."""
    holds = []
    code = run_program(lambda: holds.append(run(parse_arguments(arguments))))
    return code or int(not holds[0])


if __name__ == "__main__":
    sys.exit(main())
