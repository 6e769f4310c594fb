"""`results.json`, `results.md` and `images.csv`: numbers that can be traced to what made them (docs/run-files.md)."""

import csv
import io
import json
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from eval.run_folder import keep_other_results
from textregion.config import fingerprint
from textregion.devices import device_facts, resolve_device
from textregion.errors import InputError
from textregion.render import markdown_table
from textregion.runtime import package_versions
from textregion.storage import write_atomically
from textregion.yaml_files import read_yaml

ROOT = Path(__file__).resolve().parents[1]
NOT_SCORED = "left out of the score"
WRONG = "scored as wrong"
SCORED = "scored as answered"


@dataclass(frozen=True)
class Published:
    """A figure from a paper or another group, never measured here. where: benchmark or metric.

    masks, memory: what the method took, where that is told.
    """

    method: str
    backbone: str
    where: str
    value: float
    unit: str
    source: str
    masks: str = ""
    memory: str = ""


@dataclass
class Results:
    """One evaluation.

    metrics: {"mIoU": 46.6, …}, NaN for what there is none of; per_class: {class: {"IoU": …}}; shares are in percent.
    part: what per_class is by, if not classes ("split").
    config: the full resolved settings. recipe: the pooling switches (method 7.2). items: how many were counted.
    skipped: [{"id", "reason"}]. measured: items done in this run (the others came from an earlier one).
    seconds: {"total": wall clock of this run, "per_stage": {…} summed over its processes}.
    identity: everything that decides the numbers (eval/identity.py). selection: which of the data's images.
    marks: what a table must say of them ("first 2 images", "random weights", "recipe=demo"). resumed_anyway: what
    differed when the run went on with another identity's records. command, started, host: of this call.
    """

    task: str
    benchmark: str
    backbone: str
    metrics: dict[str, float]
    items: int
    config: dict
    recipe: dict = field(default_factory=dict)
    per_class: dict[str, dict] = field(default_factory=dict)
    part: str = "class"
    skipped: list[dict] = field(default_factory=list)
    seconds: dict = field(default_factory=dict)
    measured: int = 0
    processes: int = 1
    device: dict = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=package_versions)
    commit: dict = field(default_factory=lambda: git_commit())
    identity: dict = field(default_factory=dict)
    selection: dict = field(default_factory=dict)
    marks: list[str] = field(default_factory=list)
    resumed_anyway: list[str] = field(default_factory=list)
    started: str = field(default_factory=lambda: now())
    command: list[str] = field(default_factory=lambda: list(sys.argv))
    host: str = field(default_factory=socket.gethostname)
    folder: Path | None = field(default=None, repr=False)  # where it was saved

    @property
    def identity_hash(self) -> str:
        """Of the identity; short enough for the name of a folder, equal exactly where the identities are."""
        return fingerprint(self.identity)

    @property
    def items_per_second(self) -> float | None:
        """Items of this run by its wall-clock time, all processes together; None when nothing was run."""
        total = self.seconds.get("total", 0)
        return self.measured / total if total and self.measured else None

    @property
    def without_numbers(self) -> bool:
        """Whether there is no number among the metrics."""
        return all(value != value for value in self.metrics.values())

    def save(self, work_dir: str | Path, images: Sequence[Mapping[str, Any]] = ()) -> None:
        """Write images.csv, results.md and then results.json, each in one step. NaN (nothing to measure) is null.

        images: a row per image that was measured, its `id` first.
        """
        self.folder = Path(work_dir)
        keep_other_results(self.folder, self.identity_hash, self.selection)
        published = [asdict(figure) for figure in published_for(self.benchmark, self.backbone)]
        told = {name: value for name, value in asdict(self).items() if name != "folder"}
        content = {**told, "identity_hash": self.identity_hash, "finished": now()}
        content |= {"images_per_second": self.items_per_second, "published": published}
        data = json.dumps(_without_nan(content), indent=1, default=str)
        write_csv(self.folder / "images.csv", images)
        write_atomically(self.folder / "results.md", self.markdown().encode())
        write_atomically(self.folder / "results.json", data.encode())

    def markdown(self) -> str:
        """The same as a text: metrics beside published figures, what made them, classes, skipped items."""

        def section(heading: str, columns: list[str], rows: list[list[str]]) -> list[str]:
            return ["", heading, "", *markdown_table(columns, rows)] if rows else []

        names = list(next(iter(self.per_class.values()), ()))
        classes = [[c, *(_number(v[n]) for n in names)] for c, v in self.per_class.items()]
        published = published_for(self.benchmark, self.backbone)
        figures = [[f"{f.method}, {f.backbone}", f"{f.value:g} {f.unit}", f.source] for f in published]
        skipped = [[s["id"], s["reason"]] for s in self.skipped]
        speed = self.items_per_second
        stages = ", ".join(f"{k} {v:.1f}" for k, v in self.seconds.get("per_stage", {}).items())
        lines = [
            f"# {self.benchmark}: {self.task}, {self.backbone}",
            "",
            *markdown_table(["metric", "here"], [[k, figure(v)] for k, v in self.metrics.items()]),
            *section("Published figures (not measured here):", ["method", "published", "source"], figures),
            "",
            f"- items: {self.items}, skipped: {len(self.skipped)}, processes: {self.processes}",
            *([f"- not as published: {'; '.join(self.marks)}"] if self.marks else []),
            *([f"- resumed with another identity: {'; '.join(self.resumed_anyway)}"] if self.resumed_anyway else []),
            f"- identity: {self.identity_hash}",
            f"- recipe: {json.dumps(self.recipe)}",
            f"- device: {json.dumps(self.device)}",
            f"- speed: {f'{speed:.3f} images/s' if speed else 'nothing new was run'}",
            f"- seconds per stage: {stages}",
            f"- commit: {self.commit.get('hash')}{', with changes' if self.commit.get('changed') else ''}",
            "- packages: " + ", ".join(f"{k} {v}" for k, v in self.versions.items()),
            "- the full configuration is in results.json",
            *section("## Classes" if self.part == "class" else f"## By {self.part}", [self.part, *names], classes),
            *section("## Skipped", ["item", "reason"], skipped),
        ]
        return "\n".join(lines) + "\n"


def figure(value: float) -> str:
    """A metric in a text: two decimals, "–" for NaN, which says that there is nothing to measure."""
    return "–" if value != value else f"{value:.2f}"


def now() -> str:
    """The date in UTC, to the second, as ISO 8601 has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A table with a header of the first row's names, in one step; NaN and None are empty cells."""
    text, listed = io.StringIO(), list(rows)
    writer = csv.DictWriter(text, list(listed[0]) if listed else ["id"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: None if value != value else value for name, value in row.items()} for row in listed)
    write_atomically(path, text.getvalue().encode())


@cache
def published_figures() -> tuple[Published, ...]:
    """All figures of published.yaml."""
    content = read_yaml(Path(__file__).with_name("published.yaml"), "the published figures")
    return tuple(Published(**row) for row in content["figures"])


def published_for(benchmark: str, backbone: str | None = None) -> list[Published]:
    """Published figures of a benchmark, optionally of one backbone only."""
    return [f for f in published_figures() if f.where == benchmark and backbone in (None, f.backbone)]


def git_commit(root: Path = ROOT) -> dict:
    """{"hash", "changed": whether tracked files differ from it}; hash None outside a git checkout."""
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.check_output([*git, "rev-parse", "HEAD"], stderr=subprocess.PIPE, text=True)
        changes = [*git, "status", "--porcelain", "--untracked-files=no"]
        changed = subprocess.check_output(changes, stderr=subprocess.PIPE, text=True)
    except (OSError, subprocess.CalledProcessError):
        return {"hash": None, "changed": None}
    return {"hash": head.strip(), "changed": bool(changed.strip())}


def describe_device(device: str | torch.device = "auto") -> dict:
    """{"type", "name", "threads"} of where the numbers were made."""
    return device_facts(resolve_device(device))


def sum_seconds(stages: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Seconds per stage, summed over processes."""
    names = dict.fromkeys(name for seconds in stages for name in seconds)
    return {name: sum(seconds.get(name, 0.0) for seconds in stages) for name in names}


def _number(value: object) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {str(k): _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and value != value else value


# ---------------------------------------------------------------- what could not be used: never fatal, never silent


@dataclass(frozen=True)
class Skipped:
    """One oddity. id: image, line or sentence. kind: a few words to count by. effect: what it did to the score."""

    id: str
    kind: str
    reason: str
    effect: str = NOT_SCORED

    def row(self) -> dict[str, str]:
        """As results.json has it."""
        return {**asdict(self), "reason": f"{self.kind}: {self.reason} ({self.effect})"}


@contextmanager
def resumable() -> Iterator[None]:
    """What goes wrong with the disk in the body (full, lost) is one line that says how to go on."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{error}; put that right, then go on with --resume: what is finished is kept") from error


def nothing_measured(skipped: Sequence[Mapping[str, str]], work_dir: str | Path) -> InputError:
    """What a program raises that has no number to tell. skipped: as `Results.skipped` has them."""
    first = f", first {skipped[0]['id']}: {skipped[0]['reason']}" if skipped else ""
    told = f"{len(skipped)} could not be used{first}; see {Path(work_dir) / 'results.json'}"
    return InputError(f"nothing was measured: {told}, put that right, then go on with --resume")


def skipped_line(skipped: Sequence[Skipped]) -> str:
    """One line: how many of which kind."""
    if not skipped:
        return "nothing was skipped"
    kinds = Counter(f"{one.kind} ({one.effect})" for one in skipped)
    return f"{len(skipped)} skipped or noted: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
