"""python -m tests.fuzz.hostile: every reader, many hostile files, in processes of their own with limits."""

import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from tests.fuzz import report
from tests.fuzz.case import FAILURE, REFUSED, WORKS, clear_line
from tests.fuzz.mutations import pick
from tests.fuzz.readers import READERS, Reader
from textregion.cli.command_line import Parser, output_folder, positive
from textregion.errors import InputError, out_of_memory
from textregion.render import markdown_table

HELP = """\
Hostile files, made from whole ones by damage, lies about lengths, odd archives, deep nesting, huge numbers and wrong
types, go through every reader. Each must be read or end in one clear line: no traceback, no crash, within 10 s of
processor time and 4 GB of memory a file. Prints a table; exit code 1 when a file fails. Failing files are kept.
"""
EXAMPLES = """\
examples:
  python -m tests.fuzz.hostile
  python -m tests.fuzz.hostile --files 5000 --seed 1
  python -m tests.fuzz.hostile --only "masks: npz" --number 17
"""
MEMORY = 4 * 2**30  # bytes beyond those the process has before the first file
SECONDS = 10  # of processor time a file may take
START = 30  # more for what is loaded before the first file
PATIENCE = 120  # seconds on the clock, for what waits without working


@dataclass
class Row:
    """What became of a reader's files."""

    name: str
    files: int = 0
    refused: int = 0
    accepted: int = 0
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    peak: int = 0

    def cells(self) -> list[str]:
        """As the table has it."""
        counts = (self.files, self.refused, self.accepted, len(self.failures))
        return [self.name, *map(str, counts), f"{self.slowest:.1f} s", f"{self.peak / 1e6:.0f} MB"]


def hostile_file(reader: Reader, seeds: list, seed: int, number: int) -> tuple[str, bytes]:
    """The name and content of a reader's file with a number: the same every time."""
    random = np.random.default_rng([seed, zlib.crc32(reader.name.encode()), number])
    name, data, change = pick(random, seeds)
    return name, change(data, random)


# ---------------------------------------------------------------------- the process that reads


def read_files(reader_number: int, seed: int, numbers: Sequence[int], folder: Path, told: Connection) -> None:
    """Read files one after the other; tell before each which, and after each (outcome, message, seconds, peak).

    folder: each file gets a folder in it, named by its number, which stays. What libraries print goes to `printed`.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with (folder / "printed").open("ab") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    reader = READERS[reader_number]
    seeds = reader.seeds()
    for name, data, _ in seeds[:1]:  # whatever is loaded or imported once
        _read(reader, _written(folder / "whole", name, data))
    base = _memory("VmRSS")
    most = _memory("VmSize") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for number in numbers:
        path = _written(folder / str(number), *hostile_file(reader, seeds, seed, number))
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
        told.send(("reads", number))
        start = time.process_time()
        outcome, message = _read(reader, path)
        told.send(("done", outcome, message, time.process_time() - start, max(_memory("VmHWM") - base, 0)))
    told.send(("end",))


def _written(folder: Path, name: str, data: bytes) -> Path:
    """The only file in a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return folder / name


def _read(reader: Reader, path: Path) -> tuple[str, str]:
    try:
        reader.read(path)
    except InputError as error:
        cause: BaseException | None = error
        while cause is not None:
            if out_of_memory(cause) and not isinstance(cause, InputError) and not _is_of_parser(cause):
                return FAILURE, f"asks for more than {MEMORY >> 30} GB: {error}"
            cause = cause.__cause__ or cause.__context__
        return clear_line(str(error))
    except Exception as unexpected:  # noqa: BLE001 (any exception at all is the finding)
        return FAILURE, "".join(traceback.format_exception(unexpected))
    return WORKS, ""


def _is_of_parser(error: BaseException) -> bool:
    """Whether it is Python's parser that calls brackets within brackets a MemoryError; no memory is asked for then."""
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename).name == "ast.py"


def _memory(name: str, process: int | str = "self") -> int:
    """Bytes, as Linux says of a process."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


# ---------------------------------------------------------------------- the process that watches


def watch(reader_number: int, seed: int, numbers: Sequence[int], kept: Path) -> Row:
    """All files of a reader; a process that dies or takes too long is told, and another one goes on behind it."""
    row, rest = Row(READERS[reader_number].name), list(numbers)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fuzz.readers"])
    with tempfile.TemporaryDirectory() as temporary, tqdm(total=len(rest), desc=row.name, leave=False) as bar:
        folder = Path(temporary)
        while rest:
            told, tell = context.Pipe(duplex=False)
            process = context.Process(target=read_files, args=(reader_number, seed, rest, folder, tell), daemon=True)
            process.start()
            tell.close()
            for number, outcome, message, seconds, peak in _results(process, told, folder / "printed"):
                rest = rest[rest.index(number) + 1 :]
                bar.update()
                row.files += 1
                row.refused += outcome == REFUSED
                row.accepted += outcome == WORKS
                row.slowest, row.peak = max(row.slowest, seconds), max(row.peak, peak)
                if outcome not in (REFUSED, WORKS):
                    row.failures.append(f"{row.name} {number}: {message}")
                    _keep(folder, number, kept, f"{row.name} {number}", message)
                shutil.rmtree(folder / str(number), ignore_errors=True)
            process.kill()
            process.join()
    return row


def _results(process: BaseProcess, told: Connection, printed: Path) -> Iterator[tuple[int, str, str, float, int]]:
    """(number, outcome, message, seconds, peak) of each file until all are read, or the process has to be ended.

    RuntimeError, with what the process printed, when it fails outside of reading a file.
    """
    number = None
    while (answer := _answer(process, told))[0] != "end":
        if answer[0] == "reads":
            number = answer[1]
        elif number is None:
            raise RuntimeError(f"{answer[1]} outside of reading: {printed.read_text(errors='replace')[-2000:]}")
        elif answer[0] == "gone":
            yield number, FAILURE, answer[1], 0.0, 0
            return
        else:
            _, outcome, message, seconds, peak = answer
            if seconds > SECONDS or peak > MEMORY:
                outcome, message = FAILURE, f"took {seconds:.1f} s and {peak / 1e9:.1f} GB; {message}"
            yield number, outcome, message, seconds, peak
            number = None


def _answer(process: BaseProcess, told: Connection) -> tuple:
    """What the process tells next; ("gone", why) when it has died, or works or waits too long."""
    start, work = time.monotonic(), _processor_time(process)
    while not told.poll(0.5):
        if _processor_time(process) - work > START + SECONDS:
            return "gone", f"no answer after {SECONDS} s of processor time"
        if time.monotonic() - start > PATIENCE:
            return "gone", "no answer, it waits"
    try:
        return told.recv()
    except EOFError:
        process.join()
        return "gone", f"the process died with exit code {process.exitcode}"


def _processor_time(process: BaseProcess) -> float:
    """Seconds so far, as Linux says."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _keep(folder: Path, number: int, kept: Path, name: str, message: str) -> None:
    """The file that failed, why, and what was printed until then."""
    place = kept / "hostile" / re.sub(r"\W+", "_", name)
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder / str(number), place)
    (place / "why.txt").write_text(message, errors="backslashreplace")
    shutil.copyfile(folder / "printed", place / "printed.txt")


# ---------------------------------------------------------------------- the program


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown: a row for each reader, and all together."""
    everything = Row(
        f"all {len(rows)}",
        *(sum(getattr(row, name) for row in rows) for name in ("files", "refused", "accepted")),
        [failure for row in rows for failure in row.failures],
        max(row.slowest for row in rows),
        max(row.peak for row in rows),
    )
    columns = ["reader", "files", "refused", "accepted", "failures", "slowest", "peak"]
    return markdown_table(columns, [row.cells() for row in [*rows, everything]])


def parse_arguments(arguments: Sequence[str] | None = None) -> Namespace:
    """The command line."""
    parser = Parser(prog="python -m tests.fuzz.hostile", description=HELP, epilog=EXAMPLES)
    add = parser.add_argument
    add("--files", type=positive, default=500, metavar="N", help="for each reader (500)")
    add("--seed", type=int, default=0, metavar="N", help="of the files, 0 or more (0)")
    add("--only", metavar="READER", help="the reader of that name, or all whose name contains it")
    add("--number", type=int, metavar="N", help="only the file with that number, of each reader")
    add("--output", metavar="DIR", default="outputs/fuzz", help="where failing files go (outputs/fuzz)")
    return parser.parse_args(arguments)


def run(args: Namespace) -> bool:
    """Read everything, print the table; whether nothing failed."""
    wanted = args.only or ""
    chosen = [n for n, reader in enumerate(READERS) if reader.name == wanted]
    chosen = chosen or [n for n, reader in enumerate(READERS) if wanted in reader.name]
    if not chosen or args.seed < 0:
        known = ", ".join(reader.name for reader in READERS)
        raise InputError(f"got --only {wanted!r} --seed {args.seed}, expected 0 or more and one of {known}")
    kept = output_folder(args.output)
    numbers = range(args.files) if args.number is None else [args.number]
    rows = [watch(number, args.seed, numbers, kept) for number in tqdm(chosen, "readers")]
    print("\n".join(table(rows)))
    failures = [failure for row in rows for failure in row.failures]
    for failure in failures:
        lines = failure.strip().splitlines()
        print(f"FAILURE {lines[0][:200]} … {lines[-1][:300]}")
    print(f"{sum(row.files for row in rows)} files, {len(failures)} failures, seed {args.seed}")
    return not failures


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns 0, 1 when a file failed, 2 after one line about bad input."""
    return report.exit_code(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
