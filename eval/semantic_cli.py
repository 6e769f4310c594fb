"""Command lines of eval_semantic.py, one segmentation benchmark, and of eval_all_semantic.py, all with any backbones.

Of the latter, every run is a process of its own, so one that fails, whatever the reason, does not stop the others.
"""

import argparse
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path

from mmengine.config import DictAction

from eval.journal import LAUNCHERS
from eval.results import ROOT, nothing_measured, published_figures, resumable
from eval.selection import DIGITS, selection_flags
from textregion.cli.command_line import Parser, output_folder, positive, run_program
from textregion.cli.flags import (
    add_memory_flags,
    add_model_flags,
    add_option_flags,
    chosen_preset,
    given_options,
    mask_source_flag,
)
from textregion.concepts import LABELLERS, SAM3_CONCEPTS
from textregion.errors import InputError
from textregion.masks import automatic_sources
from textregion.masks.given import GROUND_TRUTH
from textregion.pooling import RECIPES
from textregion.presets import find_preset
from textregion.render import markdown_table
from textregion.storage import read_json, write_atomically

BENCHMARKS = ("voc21", "context60", "coco_object", "voc20", "context59", "coco_stuff164k", "city_scapes", "ade20k")
AVERAGE = "average8"

PLURALS = {"mask_sources": "masks", "recipes": "recipe", "memories": "memory"}  # flags of eval_all_semantic.py
NO_MEMORY = "none"
PIECES = ("masks", "recipe", "memory")  # columns beside the backbone
MADE_WITH = (*PIECES, "memory_alpha", "memory_neighbours", "method")  # marks that these columns tell
RowName = tuple[str, str, str, str]  # (backbone, masks, recipe, memory)
CONFIGS = ROOT / "configs" / "cfg_ds"
PATIENCE = 60  # seconds that a run has to end after Ctrl-C
OWN = ("names", "masks", "method", "mask_cache", "memory", "memory_key", "memory_key_checkpoint")  # of the mmseg model
GO_ON = "the same command with --resume goes on"


def parser() -> Parser:
    """The flags of eval_semantic.py."""
    made = Parser(prog="eval_semantic.py", description="Evaluate one segmentation benchmark.")
    add = made.add_argument
    add("--config", required=True, type=Path, help="of configs/cfg_ds")
    add("--work-dir", type=Path, metavar="DIR", help="results, journal, logs (default: out/BENCHMARK/PRESET-IDENTITY)")
    add("--draw", action="store_true", help="draw predictions through mmseg's SegVisualizationHook")
    add("--launcher", choices=LAUNCHERS, default="none", help="none, pytorch (torchrun) or slurm (srun)")
    add("--local-rank", type=int, help="given by some launchers")
    return _shared_arguments(made)


def all_parser() -> Parser:
    """The flags of eval_all_semantic.py."""
    made = Parser(prog="eval_all_semantic.py", description="Evaluate all segmentation benchmarks.")
    add = made.add_argument
    add("--presets", nargs="+", metavar="NAME", help="several backbones (default: clip-vit-b16, or --preset)")
    sources = (*automatic_sources(), GROUND_TRUTH, SAM3_CONCEPTS)
    told = f"several of {', '.join(sources)}, the last being --method {SAM3_CONCEPTS}, once (default: --masks)"
    add("--mask-sources", nargs="+", choices=sources, metavar="SOURCE", help=told)
    add("--recipes", nargs="+", choices=(*RECIPES,), metavar="NAME", help="several recipes (default: --recipe)")
    told = "several tables for --memory, and none: without one; a path may have {preset} and {recipe} in it"
    add("--memories", nargs="+", metavar="TABLE", help=f"{told} (default: --memory)")
    add("--datasets", nargs="+", default=list(BENCHMARKS), metavar="NAME", help="default: the eight benchmarks")
    add("--work-dir", type=Path, default=Path("out/semantic"), metavar="DIR", help="default: out/semantic")
    add("--nproc", type=positive, default=1, metavar="N", help="processes (GPUs) per run (default: 1)")
    return _shared_arguments(made)


def _shared_arguments(parser: Parser) -> Parser:
    group = parser.add_argument_group("the run")
    add = group.add_argument
    add("--data-root", metavar="DIR", help="where the data lie (default: $TEXTREGION_DATA, else data)")
    selection_flags(add)
    maps = "also label maps as PNG and the confusion matrix as CSV and picture"
    add("--save-predictions", action="store_true", help=maps)
    choices = (*automatic_sources(), GROUND_TRUTH)
    mask_source_flag(group, " or ground-truth, an ablation (default: the preset's, mostly sam2)", choices=choices)
    method = "textregion, or sam3-concepts: SAM 3 asked with the words, without regions (default: textregion)"
    add("--method", choices=LABELLERS, help=method)
    add("--mask-cache", metavar="DIR", help="keep the masks there and use those that are there")
    add("--names", choices=("published", "natural"), help="spelling of the prompt words (default: published)")
    add("--cfg-options", nargs="+", action=DictAction, default={}, metavar="K=V", help="override config values")
    add_memory_flags(parser)
    overlap = "take a --memory that has images of the benchmark, too; an image's own regions are left out even so"
    add("--memory_may_overlap", action="store_true", help=overlap)
    add_model_flags(parser, "the config's")
    add_option_flags(parser, "the config's; recipe and dense_fallback: auto, as published for the weights")
    return parser


def _parsed(parser: Parser, arguments: Sequence[str] | None) -> argparse.Namespace:
    options = parser.parse_args(arguments)
    if options.data_root:
        os.environ["TEXTREGION_DATA"] = options.data_root
    return options


def _model_arguments(options: argparse.Namespace) -> dict:
    """The model arguments that were given as flags; InputError for a backbone that is not known."""
    given = {name: value for name in OWN if (value := getattr(options, name)) is not None}
    if options.memory_may_overlap:
        given["memory_may_overlap"] = True
    preset = chosen_preset(options)
    return {**given, **given_options(options), **({"preset": preset} if preset else {})}


def main(arguments: Sequence[str] | None = None) -> int:
    """eval_semantic.py; its exit code is 1 when images were skipped, 2 when all were, else as `run_program` says."""
    options = _parsed(parser(), arguments)
    first = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) == 0
    return run_program(lambda: _run(options), GO_ON, tells=first)


def _run(options: argparse.Namespace) -> int:
    model = _model_arguments(options)
    from eval.semantic import Evaluation, evaluate

    logging.raiseExceptions = False  # a log on a full disk is no reason for tracebacks
    flags = {field.name: getattr(options, field.name, None) for field in fields(Evaluation)}
    with resumable():
        results = evaluate(Evaluation(**{**flags, "model": model}))
    if results is None:
        return 0
    work_dir = Path(results.folder or ".")
    if results.without_numbers:
        raise nothing_measured(results.skipped, work_dir)
    metrics = ", ".join(f"{name} {value:.2f}" for name, value in results.metrics.items())
    print(f"{results.benchmark}, {results.backbone}: {metrics} ({results.items} images)")
    if results.skipped:
        first = results.skipped[0]
        print(f"{len(results.skipped)} images were skipped, first {first['id']}: {first['reason']}")
    print(f"written to {work_dir / 'results.json'}, results.md and images.csv beside it")
    return 1 if results.skipped else 0


# ---------------------------------------------------------------------- all benchmarks


@dataclass
class Outcome:
    """What became of the runs. scores: {name of a Combination: {benchmark: mIoU}} of this call."""

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def main_all(arguments: Sequence[str] | None = None) -> int:
    """eval_all_semantic.py; its exit code is 1 when a run failed, 2 when nothing could be run, else `run_program`'s."""
    options = _parsed(all_parser(), arguments)
    return run_program(lambda: _run_all(options), GO_ON)


@dataclass(frozen=True)
class Combination:
    """A row of the table. preset: of SAM 3 asked with words its name. varied: what the row has of each plural flag that
    was given, by the singular one.
    """

    preset: str
    varied: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its folder: the preset, and what is varied."""
        told = [f"{key}={self._filled(value)}" for key, value in self.varied.items()]
        return re.sub(r"[^A-Za-z0-9=.,_+-]+", "-", ",".join([self.preset, *told]))

    def options(self, options: argparse.Namespace) -> argparse.Namespace:
        """Those of its runs. A path of a memory or of weights may have {preset}, {masks}, {recipe} in it, the row's."""
        made = {**vars(options), **self.varied}
        if self.preset == SAM3_CONCEPTS:
            made |= {"method": SAM3_CONCEPTS, "masks": None, "recipe": None, "memory": None}
        elif made["label_filter"] != "presence":
            made["sam3_checkpoint"] = None  # of the row of SAM 3
        if made["memory"] == NO_MEMORY:
            made["memory"] = None
        for path in ("memory", "clip_checkpoint", "sam2_checkpoint"):
            made[path] = made[path] and self._filled(made[path])
        return argparse.Namespace(**made)

    def _filled(self, path: str) -> str:
        for name, value in {"preset": self.preset, **self.varied}.items():
            path = path.replace(f"{{{name}}}", value.replace("/", "-"))
        return path


def combinations(options: argparse.Namespace) -> list[Combination]:
    """Every backbone with every mask source, recipe and memory, and SAM 3 asked with words where that is among them.

    InputError for names that do not exist, and flags that exclude each other.
    """
    one = chosen_preset(options)
    if one and options.presets:
        raise InputError("give either --presets or --preset (or the two flags that stand for one), not both")
    for plural, single in PLURALS.items():
        if getattr(options, plural) and getattr(options, single) is not None:
            raise InputError(f"give either --{plural} or --{single}, not both")
    if options.method == SAM3_CONCEPTS:
        if options.presets or one:
            raise InputError(f"got --method {SAM3_CONCEPTS} and a preset, which it has none of; leave one out")
        if plural := next((name for name in PLURALS if getattr(options, name)), None):
            raise InputError(f"got --method {SAM3_CONCEPTS} and --{plural}; give it as one of --mask_sources instead")
        return [Combination(SAM3_CONCEPTS)]
    presets = options.presets or [one or "clip-vit-b16"]
    for preset in presets:
        find_preset(preset)
    axes = {single: dict.fromkeys(values) for plural, single in PLURALS.items() if (values := getattr(options, plural))}
    sources = axes.get("masks", {})
    last = [Combination(SAM3_CONCEPTS)] if SAM3_CONCEPTS in sources else []
    if last:
        axes["masks"] = {source: None for source in sources if source != SAM3_CONCEPTS}
    varied = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    rows = [Combination(preset, one) for preset in presets for one in varied]
    return [*rows, *last]


def _run_all(options: argparse.Namespace) -> int:
    """Every combination on every benchmark whose data are there. InputError for names that do not exist."""
    rows = combinations(options)
    for name in options.datasets:
        if not _config_of(name).is_file():
            known = sorted(path.stem.removeprefix("cfg_") for path in CONFIGS.glob("cfg_*.py"))
            raise InputError(f"unknown data set {name!r}; expected some of {', '.join(known)}")
    from eval.data import check_folders
    from eval.semantic import load_config
    from textregion.index.store import Tables

    for table in {row.options(options).memory for row in rows} - {None}:
        Tables.check(table)
    outcome = Outcome()
    there = []
    for name in options.datasets:
        config = load_config(_config_of(name))
        try:
            if name != "tiny":  # drawn on first use
                check_folders(config)
            there.append(name)
        except InputError as error:
            print(f"skipped: {name}: {error}", flush=True)
            outcome.skipped.append(f"{name}: {error}")
    output_folder(options.work_dir, "--work-dir")
    with resumable():
        try:
            for row in rows:
                for name in there:
                    _run_one(row.options(options), row, name, outcome)
        finally:  # also after Ctrl-C: what is finished is in the table
            save_table(options.work_dir, outcome)
    for line in outcome.failed:
        print(f"failed: {line}", file=sys.stderr)
    if outcome.failed:
        return 1
    if not outcome.scores:
        raise InputError(f"nothing was measured: {len(outcome.skipped)} data sets were skipped, for the reasons above")
    return 0


def _config_of(benchmark: str) -> Path:
    return CONFIGS / f"cfg_{benchmark}.py"


def _run_one(options: argparse.Namespace, row: Combination, name: str, outcome: Outcome) -> None:
    """One run in a process of its own; what it prints goes to the end of run.log.

    Nothing that is there is touched here: the run itself sees to what an earlier one left.
    """
    work_dir = options.work_dir / row.name / name
    path, results = work_dir / "run.log", work_dir / "results.json"
    print(f"running: {name}, {row.name} (log: {path})", flush=True)
    work_dir.mkdir(parents=True, exist_ok=True)
    before = _stamp(results)
    with path.open("ab") as log:
        start = log.tell()
        code = _wait(subprocess.Popen(_command(options, row.preset, name, work_dir), stdout=log, stderr=log))
    if code:
        said = path.read_bytes()[start:].decode(errors="replace")
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        outcome.failed.append(f"{name}, {row.name}: {(errors or lines or ['no output'])[-1]} (exit code {code})")
    if _stamp(results) != before and (score := json.loads(results.read_text())["metrics"]["mIoU"]) is not None:
        outcome.scores.setdefault(row.name, {})[name] = score


def _stamp(path: Path) -> tuple[int, int] | None:
    """By which a file that was written anew is known."""
    if not path.exists():
        return None
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _wait(process: subprocess.Popen) -> int:
    """The exit code. After Ctrl-C, which the run got as well or gets now, it has time to end by itself."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


def _command(options: argparse.Namespace, preset: str, benchmark: str, work_dir: Path) -> list[str]:
    torchrun, launcher = [], []
    if options.nproc > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={options.nproc}"]
        launcher = ["--launcher", "pytorch"]
    made = [sys.executable, *torchrun, str(ROOT / "eval_semantic.py"), "--config", str(_config_of(benchmark))]
    made += ["--work-dir", str(work_dir), *(["--preset", preset] if preset != SAM3_CONCEPTS else [])]
    own = {"limit": options.limit, "images": options.images, "device": options.device}
    for flag, value in {**_model_arguments(options), **own}.items():
        if flag in ("random_weights", "memory_may_overlap"):
            made += [f"--{flag}"]
        elif flag == "global_patch_threshold" and value is None:
            made += ["--remove_global_patch", "False"]
        elif flag != "preset" and value is not None:
            made += [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]
    made += [f"--{name}" for name in ("resume", "resume_anyway", "save_predictions") if getattr(options, name)]
    pairs = [f"{key}={value}" for key, value in options.cfg_options.items()]
    return [*made, *launcher, *(["--cfg-options", *pairs] if pairs else [])]


def save_table(work_dir: Path, outcome: Outcome) -> None:
    """Print the table of all that was measured in this folder, in this call and before; table.md and table.json.

    A row that was measured before stays, also when its run's folder has other results by now.
    """
    path = work_dir / "table.json"
    rows: dict[str, dict] = {}
    if path.is_file():
        told = read_json(path, "a table of eval_all_semantic.py")
        rows = {_row_key(row): row for row in (told.get("rows", []) if isinstance(told, dict) else [])}
    for found in sorted(work_dir.glob("*/*/results.json")):
        if (row := table_row(found)) is not None:
            rows[_row_key(row)] = row
    listed = list(rows.values())
    lines = table_lines(listed)
    print("\n".join(["", *lines]))
    told = [f"- skipped: {line}" for line in outcome.skipped] + [f"- failed: {line}" for line in outcome.failed]
    write_atomically(work_dir / "table.md", "\n".join([*lines, "", *told, ""]).encode())
    content = {"mIoU": outcome.scores, "skipped": outcome.skipped, "failed": outcome.failed, "rows": listed}
    write_atomically(path, json.dumps(content, indent=1).encode())


def _row_key(row: Mapping) -> str:
    return json.dumps([row["preset"], row["benchmark"], row["identity"], row["selection"]])


def table_row(path: Path) -> dict | None:
    """What the table keeps of a run: its score and everything that it must say of it. None for one without a score."""
    told = read_json(path, "results of a run")
    try:
        if (score := told["metrics"]["mIoU"]) is None:
            return None
        names = ("items", "marks", "finished")
        code = f"{(told['commit']['hash'] or 'unknown')[:DIGITS]}{'+' * bool(told['commit']['changed'])}"
        own = {"identity": told["identity_hash"], "selection": told["selection"]["content"], "code": code}
        own |= {"skipped": len(told["skipped"]), **{name: told[name] for name in names}}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not the results of a segmentation ({error}); move it elsewhere") from error
    # The folder's name is the benchmark's file; published configs of other names keep apart.
    return {"preset": told["backbone"], **_made_with(told), "benchmark": path.parent.name, "mIoU": score, **own}


def _made_with(told: Mapping) -> dict[str, str]:
    """{"masks", "recipe", "memory"} of a run as the table names them. told: its results.json."""
    resolved = told["config"]["resolved"]
    if resolved["backbone"] == SAM3_CONCEPTS:
        return dict.fromkeys(PIECES, "")
    config, memory, source = resolved["config"], resolved["memory"], resolved["masks"]["source"]
    bank = ""
    if memory:
        key = f", key {memory['key'][0]}" if memory["key"] else ""
        bank = f"{memory['regions']} regions ({memory['content'][:DIGITS]}){key}"
        bank += f", α {config['memory_alpha']:g}, K {config['memory_neighbours']}"
    given = resolved["mask_source"] if source == "given" else source
    return {"masks": given, "recipe": config["recipe"]["name"], "memory": bank}


def table_lines(rows: Sequence[Mapping]) -> list[str]:
    """Markdown: the overview, in which runs of one preset, masks, recipe, memory, marks and code share a row, then
    every run's identity.

    Where there are several of these for one benchmark, the latest is in the overview.
    """
    scores: dict[RowName, dict[str, float]] = {}
    codes = {row["code"] for row in rows}
    for row in sorted(rows, key=lambda row: row["finished"]):
        marks = [mark for mark in row["marks"] if mark.partition("=")[0] not in MADE_WITH]
        notes = [*marks, *([f"code {row['code']}"] if len(codes) > 1 else [])]
        name = f"{row['preset']} ({', '.join(notes)})" if notes else row["preset"]
        scores.setdefault((name, *_pieces(row)), {})[row["benchmark"]] = row["mIoU"]
    columns = ["backbone", *PIECES, "benchmark", "mIoU", "images", "skipped", "not as published", "identity", "code"]
    cells = []
    for row in rows:
        measured = [f"{row['mIoU']:.2f}", str(row["items"]), str(row["skipped"]), ", ".join(row["marks"])]
        cells.append([row["preset"], *_pieces(row), row["benchmark"], *measured, row["identity"], row["code"]])
        cells[-1].append(row["finished"])
    return [*overview(scores), *(["", *markdown_table([*columns, "finished"], cells)] if cells else [])]


def _pieces(row: Mapping) -> tuple[str, str, str]:
    """Masks, recipe and memory of a row of table.json; of one that was written before they were told, ""."""
    masks, recipe, memory = (row.get(name, "") for name in PIECES)
    return masks, recipe, memory


def overview(scores: Mapping[RowName, Mapping[str, float]]) -> list[str]:
    """Markdown lines: a row per combination of ours, then published figures, which are marked.

    scores: {(backbone, masks, recipe, memory): {benchmark: mIoU in percent}}. Columns: these four, the eight
    benchmarks, any others, the average of the eight where all are there.
    """
    rows = {name: dict(row) for name, row in scores.items()}
    others = sorted({name for row in rows.values() for name in row} - set(BENCHMARKS))
    for row in rows.values():
        if set(BENCHMARKS) <= set(row):
            row[AVERAGE] = sum(row[name] for name in BENCHMARKS) / len(BENCHMARKS)
    for figure in published_figures():
        if figure.unit == "mIoU" and figure.where in (*BENCHMARKS, AVERAGE):
            name = f"{figure.method}, {figure.backbone} (published)"
            rows.setdefault((name, figure.masks, "", figure.memory), {})[figure.where] = figure.value
    columns = [*BENCHMARKS, *others, AVERAGE]
    cells = [[*name, *(f"{row[c]:.1f}" if c in row else "" for c in columns)] for name, row in rows.items()]
    return markdown_table(["backbone", *PIECES, *columns], cells)
