"""All segmentation benchmarks with any number of backbones (the program eval_all_semantic.py).

Every run is a process of its own, so one that fails, whatever the reason, does not stop the others.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.results import ROOT, published_figures
from eval.semantic_cli import model_arguments, shared_arguments
from textregion.cli.command_line import Parser, positive, run_program
from textregion.cli.flags import chosen_preset
from textregion.errors import InputError
from textregion.presets import find_preset
from textregion.render import markdown_table
from textregion.storage import write_atomically

BENCHMARKS = ("voc21", "context60", "coco_object", "voc20", "context59", "coco_stuff164k", "city_scapes", "ade20k")
AVERAGE = "average8"
CONFIGS = ROOT / "configs" / "cfg_ds"
PROGRAM = ROOT / "eval_semantic.py"


@dataclass
class Outcome:
    """What became of the runs. scores: {backbone: {benchmark: mIoU}}."""

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def parser() -> Parser:
    """The flags of eval_all_semantic.py."""
    made = Parser(prog="eval_all_semantic.py", description="Evaluate all segmentation benchmarks.")
    add = made.add_argument
    add("--presets", nargs="+", metavar="NAME", help="several backbones (default: clip-vit-b16, or --preset)")
    add("--datasets", nargs="+", default=list(BENCHMARKS), metavar="NAME", help="default: the eight benchmarks")
    add("--work-dir", type=Path, default=Path("out/semantic"), metavar="DIR", help="default: out/semantic")
    add("--nproc", type=positive, default=1, metavar="N", help="processes (GPUs) per run (default: 1)")
    shared_arguments(made)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit code is 1 when a run failed, 2 when nothing could be run, else as `run_program` says."""
    options = parser().parse_args(arguments)
    if options.data_root:
        os.environ["TEXTREGION_DATA"] = options.data_root
    return run_program(lambda: _run(options), "the same command with --resume goes on")


def _run(options: argparse.Namespace) -> int:
    one = chosen_preset(options)
    if one and options.presets:
        raise InputError("give either --presets or --preset (or the two flags that stand for one), not both")
    options.presets = options.presets or [one or "clip-vit-b16"]
    outcome = run_all(options)
    lines = overview(outcome.scores, f"first {options.limit} images" if options.limit else "")
    print("\n".join(["", *lines]))
    save(options.work_dir, outcome, lines)
    for line in outcome.failed:
        print(f"failed: {line}", file=sys.stderr)
    if outcome.failed:
        return 1
    return 0 if outcome.scores else 2


def run_all(options: argparse.Namespace) -> Outcome:
    """Every backbone on every benchmark whose data are there. InputError for names that do not exist."""
    for name in options.datasets:
        if not config_of(name).is_file():
            known = sorted(path.stem.removeprefix("cfg_") for path in CONFIGS.glob("cfg_*.py"))
            raise InputError(f"unknown data set {name!r}; expected some of {', '.join(known)}")
    for preset in options.presets:
        find_preset(preset)
    outcome = Outcome()
    there = [name for name in options.datasets if _is_there(name, outcome)]
    for preset in options.presets:
        for name in there:
            _run_one(options, preset, name, outcome)
    return outcome


def config_of(name: str) -> Path:
    """The config file of a benchmark."""
    return CONFIGS / f"cfg_{name}.py"


def _is_there(name: str, outcome: Outcome) -> bool:
    from eval.data import check_folders
    from eval.semantic import load_config

    config = load_config(config_of(name))
    if name == "tiny":  # drawn on first use
        return True
    try:
        check_folders(config)
    except InputError as error:
        print(f"skipped: {name}: {error}", flush=True)
        outcome.skipped.append(f"{name}: {error}")
        return False
    return True


def _run_one(options: argparse.Namespace, preset: str, name: str, outcome: Outcome) -> None:
    work_dir = options.work_dir / preset.replace("/", "-") / name
    print(f"running: {name}, {preset} (log: {work_dir / 'run.log'})", flush=True)
    work_dir.mkdir(parents=True, exist_ok=True)
    (work_dir / "results.json").unlink(missing_ok=True)  # so that an old result is not taken for this run's
    with (work_dir / "run.log").open("w") as log:
        code = subprocess.run(command(options, preset, name, work_dir), stdout=log, stderr=log, check=False).returncode
    if code:
        outcome.failed.append(f"{name}, {preset}: {_last_line(work_dir / 'run.log')} (exit code {code})")
    try:
        results = json.loads((work_dir / "results.json").read_text())
    except FileNotFoundError:
        return
    if results["metrics"]["mIoU"] is not None:
        outcome.scores.setdefault(preset, {})[name] = results["metrics"]["mIoU"]


def command(options: argparse.Namespace, preset: str, benchmark: str, work_dir: Path) -> list[str]:
    """The command line of one run."""
    torchrun, launcher = [], []
    if options.nproc > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={options.nproc}"]
        launcher = ["--launcher", "pytorch"]
    made = [sys.executable, *torchrun, str(PROGRAM), "--config", str(config_of(benchmark))]
    made += ["--work-dir", str(work_dir), "--preset", preset]
    for flag, value in {**model_arguments(options), "limit": options.limit, "device": options.device}.items():
        if flag == "random_weights":
            made += [f"--{flag}"]
        elif flag == "global_patch_threshold" and value is None:
            made += ["--remove_global_patch", "False"]
        elif flag != "preset" and value is not None:
            made += [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]
    made += ["--resume"] * options.resume
    pairs = [f"{key}={value}" for key, value in options.cfg_options.items()]
    return [*made, *launcher, *(["--cfg-options", *pairs] if pairs else [])]


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["no output"])[-1]


def save(work_dir: Path, outcome: Outcome, lines: list[str]) -> None:
    """Write table.md and table.json to the work dir."""
    told = [f"- skipped: {line}" for line in outcome.skipped] + [f"- failed: {line}" for line in outcome.failed]
    write_atomically(work_dir / "table.md", "\n".join([*lines, "", *told, ""]).encode())
    content = {"mIoU": outcome.scores, "skipped": outcome.skipped, "failed": outcome.failed}
    write_atomically(work_dir / "table.json", json.dumps(content, indent=1).encode())


def overview(scores: Mapping[str, Mapping[str, float]], note: str = "") -> list[str]:
    """Markdown lines: a row per backbone of ours, then published figures, which are marked.

    scores: {backbone: {benchmark: mIoU in percent}}. Columns: the eight benchmarks, any others, the average of
    the eight where all are there. note: said in our rows' names, e.g. "first 10 images".
    """
    rows = {f"{name} ({note})" if note else name: dict(row) for name, row in scores.items()}
    others = sorted({name for row in rows.values() for name in row} - set(BENCHMARKS))
    for row in rows.values():
        if set(BENCHMARKS) <= set(row):
            row[AVERAGE] = sum(row[name] for name in BENCHMARKS) / len(BENCHMARKS)
    for figure in published_figures():
        if figure.unit == "mIoU" and figure.where in (*BENCHMARKS, AVERAGE):
            rows.setdefault(f"{figure.method}, {figure.backbone} (published)", {})[figure.where] = figure.value
    columns = [*BENCHMARKS, *others, AVERAGE]
    cells = [[name, *(f"{row[c]:.1f}" if c in row else "" for c in columns)] for name, row in rows.items()]
    return markdown_table(["backbone", *columns], cells)
