"""python -m tests.fuzz: hundreds of bad inputs through the program and the API."""

import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from tests.fuzz import files, given, images, labels, meanings, options, report, runs, system, tables
from tests.fuzz.case import FAILURE, FAST, Case, Judge, Result
from textregion.cli.command_line import Parser, output_folder, positive
from textregion.errors import InputError
from textregion.tiny.scenes import draw_scene

HELP = """\
Images, labels, masks, boxes, files, flags and surroundings that are odd, wrong or damaged go through the program and
the Python interface. Each case must either work or end in one clear line (exit code 2; 130 after Ctrl-C): no traceback,
no hanging, no damage to results that were there before. Exit code 1 when a case fails.
"""
EXAMPLES = """\
examples:
  python -m tests.fuzz
  python -m tests.fuzz --slow
  python -m tests.fuzz --only "--image /dev/zero"
"""
CORPORA = {
    "images": images.cases,
    "labels": labels.cases,
    "given": given.cases,
    "meanings": meanings.cases,
    "files": files.cases,
    "options": options.cases,
    "runs": runs.cases,
    "system": system.cases,
    "tables": tables.cases,
}


def parse_arguments(arguments: Sequence[str] | None = None) -> Namespace:
    """The command line."""
    parser = Parser(prog="python -m tests.fuzz", description=HELP, epilog=EXAMPLES)
    add = parser.add_argument
    add("--count", type=positive, metavar="N", help="only so many cases, evenly spread over all (default: all)")
    add("--seed", type=int, default=0, metavar="N", help="of the random cases, 0 or more (0)")
    add("--only", metavar="NAME", help="the case of that name, or all whose name contains it")
    add("--corpus", choices=CORPORA, help="the cases of one corpus (default: all)")
    add("--slow", action="store_true", help="also the cases that take minutes")
    add("--output", metavar="DIR", help="where inputs, report.json and failures go (outputs/fuzz; only if any failed)")
    return parser.parse_args(arguments)


def collect(args: Namespace, folder: Path) -> list[Case]:
    """The cases asked for; their input files are written."""
    if args.seed < 0:
        raise InputError(f"got --seed {args.seed}, expected 0 or more")
    names = [args.corpus] if args.corpus else list(CORPORA)
    cases = [case for name in names for case in CORPORA[name](folder / name, np.random.default_rng(args.seed))]
    cases = [case for case in cases if args.slow or not case.slow]
    if args.only is not None:
        cases = [case for case in cases if case.name == args.only] or [c for c in cases if args.only in c.name]
    if not cases:
        raise InputError(f"no case is called {args.only!r}; see report.json for the names")
    if args.count is not None and args.count < len(cases):
        cases = [cases[index] for index in np.linspace(0, len(cases) - 1, args.count).astype(int)]
    return cases


def judge_all(cases: Sequence[Case], folder: Path) -> Iterator[Result]:
    """Every case's result, one after the other."""
    picture = folder / "earlier.png"
    Image.fromarray(draw_scene(1, 64).image).save(picture)
    judge = Judge(folder, (*FAST, "--image", str(picture), "--labels", "sky", "grass"))
    for case in tqdm(cases, "cases"):
        yield judge.judge(case)


def run(args: Namespace) -> bool:
    """Judge the cases, print the table, keep what failed; whether none did."""
    kept = output_folder(args.output or "outputs/fuzz")
    with tempfile.TemporaryDirectory() as temporary:
        folder = kept if args.output else Path(temporary)
        shutil.rmtree(folder / "inputs", ignore_errors=True)
        cases = collect(args, folder / "inputs")
        results = list(judge_all(cases, folder))
    failures = [result for result in results if result.outcome == FAILURE]
    report.write(results, args.seed, kept)
    print("\n".join(report.table(results)))
    for result in failures:
        print(f"FAILURE {result.name!r}: {(result.message.strip().splitlines() or [''])[-1][:300]}")
    print(f"{len(results)} cases, {len(failures)} failures -> {kept / 'report.json'}")
    return not failures


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns 0, 1 when a case failed, 2 after one line about bad input."""
    return report.exit_code(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
