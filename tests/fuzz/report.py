"""The table of outcomes, and the files that a run leaves."""

import json
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from eval.results import markdown_table
from tests.fuzz.case import FAILURE, OUTCOMES, Result
from textregion.cli.command_line import run_program
from textregion.storage import write_atomically


def table(results: Sequence[Result]) -> list[str]:
    """Markdown: how many cases of each kind had which outcome."""
    counts = Counter((result.kind, result.outcome) for result in results)
    kinds = dict.fromkeys(result.kind for result in results)
    rows = [[kind, *(str(counts[kind, outcome] or "") for outcome in OUTCOMES)] for kind in sorted(kinds)]
    totals = Counter(result.outcome for result in results)
    rows.append([f"all {len(results)}", *(str(totals[outcome]) for outcome in OUTCOMES)])
    return markdown_table(["kind", *OUTCOMES], rows)


def reproduction(result: Result, seed: int, folder: Path) -> str:
    """The command that runs a case again; its files are kept."""
    again = f"python -m tests.fuzz --seed {seed} --output {shlex.quote(str(folder))} --only {shlex.quote(result.name)}"
    direct = f"python TextRegionSegmenter.py {shlex.join(result.command)}" if result.command else ""
    return f"{again}\n{direct}\n"


def write(results: Sequence[Result], seed: int, folder: Path) -> None:
    """report.json, and one text file for each failure."""
    content = {"seed": seed, "results": [asdict(result) for result in results]}
    write_atomically(folder / "report.json", json.dumps(content, indent=1).encode())
    for number, result in enumerate(result for result in results if result.outcome == FAILURE):
        text = f"{result.kind}: {result.name}\n\n{reproduction(result, seed, folder)}\n{result.message}\n"
        write_atomically(folder / "failures" / f"{number:03}.txt", text.encode(errors="backslashreplace"))


def exit_code(judge: Callable[[], bool]) -> int:
    """Of a program that judges: 0, 1 when something failed, 2 after one line about bad input."""
    fine = []
    code = run_program(lambda: fine.append(judge()))
    return code or int(not fine[0])
