"""A grid of options as runs, each in a folder of its own: `python -m eval.sweep grid.yaml`.

A run is a process of its own, of the program that one would start by hand, with --resume: a sweep that was killed goes
on where it stopped, and a run that fails does not stop the others. A run's folder is named by what it is of and locked
while anybody works on it, so that several sweeps may share a grid, and a run that has outlived its sweep is waited for.
"""

import sys

if __name__ == "__main__":  # before what takes seconds to import: Ctrl-C meanwhile is one line too
    from eval import start

    sys.exit(start("python -m eval.sweep", "eval.sweep"))

import argparse
import fcntl
import json
import os
import shlex
import signal
import subprocess
import time
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from eval.collect import CELL, WRITERS, as_markdown, read_cell, read_rows, write_table
from eval.grid import Cell, read_grid
from textregion.cli.command_line import Parser, output_folder, positive, run_program
from textregion.devices import any_gpu, visible_gpus
from textregion.storage import write_atomically

LOG, LOCK = "run.log", ".sweep.lock"
POLL = 0.2  # seconds between looks at the processes
PATIENCE = 60  # seconds that a stopped run may take to say what it has kept


@dataclass
class Running:
    """A cell at work. lock: the open file that is locked until its process ends. log_start: where its log begins."""

    cell: Cell
    process: subprocess.Popen
    lock: int
    started: datetime
    log_start: int


def is_done(cell: Cell, work_dir: Path) -> bool:
    """Whether its run has ended well; one that skipped images is tried again."""
    folder = work_dir / cell.name
    return (folder / "results.json").is_file() and read_cell(folder).get("exit_code") == 0


def run_cells(
    cells: Sequence[Cell], work_dir: Path, jobs: int, gpus: Sequence[str], again: bool = False, anyway: bool = False
) -> list[str]:
    """Run what is not done, `jobs` at a time; returns a line for each that failed or left something out.

    gpus: slot n gets the n-th of them, round and round. again: start finished ones too, which checks that data, weights
    and code are those they were made with. anyway: go on with records of another identity, which the results tell.
    KeyboardInterrupt: the running ones are stopped and waited for.
    """
    flag = "--resume-anyway" if anyway else "--resume"
    waiting, running, told = deque(cells), dict[int, Running](), []
    with tqdm(total=len(cells), desc="sweep", unit="run", mininterval=5) as bar:
        try:
            while waiting or running:
                for slot in sorted({*range(jobs)} - {*running}):
                    taken = _take(waiting, work_dir, again)
                    if taken is not None:
                        running[slot] = _start(*taken, flag, work_dir, gpus[slot % len(gpus)] if gpus else None)
                ended = [slot for slot, run in running.items() if run.process.poll() is not None]
                for slot in ended:
                    told += _finish(running.pop(slot), work_dir)
                elsewhere = "; the rest are at work in other processes" if waiting and not running else ""
                bar.set_postfix_str(f"{len(running)} at work, {len(told)} to look at{elsewhere}", refresh=False)
                bar.update(len(cells) - len(waiting) - len(running) - bar.n)
                time.sleep(0 if ended else POLL)
        except KeyboardInterrupt:
            _stop(list(running.values()))
            raise
    return told


def _take(waiting: deque[Cell], work_dir: Path, again: bool) -> tuple[Cell, int] | None:
    """The next cell that is neither done nor at work elsewhere, and its lock; such ones stay in the queue."""
    for _ in range(len(waiting)):
        cell = waiting.popleft()
        lock = _lock(work_dir / cell.name)
        if lock is None:
            waiting.append(cell)
        elif is_done(cell, work_dir) and not again:
            os.close(lock)
        else:
            return cell, lock
    return None


def _lock(folder: Path) -> int | None:
    """An open file with the folder's lock, which its process inherits and the system frees; None if somebody has it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:  # a drive that knows no locks
        warnings.warn(f"{folder} cannot be locked ({error.strerror}): let no second sweep work there", stacklevel=2)
    return handle


def _start(cell: Cell, lock: int, flag: str, work_dir: Path, gpu: str | None) -> Running:
    folder, chosen = work_dir / cell.name, gpu is not None and any_gpu(cell.device)
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": gpu} if chosen else {})
    with (folder / LOG).open("ab") as log:
        start, command = log.tell(), [*cell.command, flag]
        # In a session of its own: the terminal's Ctrl-C is handed on by `_stop`, once.
        own = {"pass_fds": (lock,), "start_new_session": True, "env": environment}
        process = subprocess.Popen(command, stdout=log, stderr=log, **own)
    return Running(cell, process, lock, datetime.now(UTC), start)


def _finish(run: Running, work_dir: Path) -> list[str]:
    """Note how a run ended, and let go of its folder; a line if it did not end well."""
    folder, code = work_dir / run.cell.name, run.process.returncode
    times = {"started": run.started.isoformat(), "finished": datetime.now(UTC).isoformat()}
    note = {"name": run.cell.name, "varied": run.cell.varied, "command": run.cell.command, "exit_code": code, **times}
    write_atomically(folder / CELL, json.dumps(note, indent=1).encode())
    os.close(run.lock)
    if code == 0:
        return []
    log = (folder / LOG).read_bytes()[run.log_start :].decode(errors="replace")
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    why = [line for line in lines if line.startswith("error: ")] if code != 1 else []
    what = "left something out" if code == 1 else "failed"
    return [f"{what}: {run.cell.name}: {(why or lines or ['no output'])[-1]} (exit code {code}; log: {folder / LOG})"]


def _stop(running: Sequence[Running]) -> None:
    """Ctrl-C for all of them; those that do not end are killed."""
    for run in running:
        run.process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + PATIENCE
    for run in running:
        try:
            run.process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            run.process.kill()
        os.close(run.lock)


def parser() -> Parser:
    """The flags of eval.sweep."""
    made = Parser(prog="python -m eval.sweep", description="Run a grid of options on benchmarks.")
    add = made.add_argument
    add("grid", type=Path, metavar="GRID.yaml", help="program, benchmarks, common, grid: see docs/research.md")
    add("--work-dir", type=Path, metavar="DIR", help="a folder per run below it, and the table (default out/<GRID>)")
    jobs = "runs at a time, on the GPUs in turn; on a CPU set OMP_NUM_THREADS to its cores / N (default 1)"
    add("--jobs", type=positive, default=1, metavar="N", help=jobs)
    anyway = "hand --resume-anyway on: go on with records of another identity, which the results will tell"
    add("--resume-anyway", action="store_true", help=anyway)
    add("--again", action="store_true", help="also start finished runs, to check that nothing they read has changed")
    add("--dry-run", action="store_true", help="only print the commands")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit code is 1 when a run failed or left something out, 2 when none has numbers."""
    options = parser().parse_args(arguments)
    return run_program(lambda: _run(options), "the same command goes on")


def _run(options: argparse.Namespace) -> int:
    work_dir = options.work_dir or Path("out") / options.grid.stem
    cells = read_grid(options.grid, work_dir)
    if options.dry_run:
        print("\n".join(shlex.join(cell.command) for cell in cells))
        return 0
    output_folder(work_dir, "--work-dir")
    told = run_cells(cells, work_dir, options.jobs, visible_gpus(), options.again, options.resume_anyway)
    for line in told:
        print(line, file=sys.stderr)
    rows = read_rows(work_dir)
    for ending in WRITERS:
        write_table(rows, work_dir / f"table{ending}")
    print(as_markdown(rows), end="")
    return 1 if told else 0
