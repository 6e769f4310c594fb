"""What a grid file of eval.sweep stands for: cells, each the command of a run, checked before anything is run."""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

from eval.journal import fingerprint
from eval.results import ROOT
from textregion.cli.command_line import Parser
from textregion.errors import InputError, one_of
from textregion.yaml_files import read_yaml

PROGRAMS = {
    "semantic": ("eval_semantic.py", "eval.semantic_cli"),
    "referring": ("eval_referring.py", "eval.referring"),
    "reasoning": ("eval_reason_seg.py", "eval.reasoning"),
}
KEYS = ("program", "benchmarks", "common", "grid")
# What a grid cannot set.
OURS = ("config", "work_dir", "resume", "resume_anyway", "cfg_options", "launcher", "local_rank")
EXPECTED = "a grid: benchmarks (a list), common (an option: its value), grid (an option: a list of values)"
Options = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run of a grid. name: of its folder. varied: its values of the grid's options. command: without its --resume.

    device: as its --device.
    """

    name: str
    varied: Options
    command: list[str]
    device: str = "auto"


def read_grid(path: Path, work_dir: Path) -> list[Cell]:
    """The cells of a grid file, benchmark by benchmark, the last option changing fastest.

    Every command is parsed by its program. InputError for what no run could be made of.
    """
    grid = read_yaml(path, EXPECTED)
    if not isinstance(grid, dict) or set(grid) - set(KEYS):
        given = sorted(map(str, set(grid) - set(KEYS))) if isinstance(grid, dict) else type(grid).__name__
        raise InputError(f"{path} has {given}; expected {EXPECTED}, and program ({', '.join(PROGRAMS)})")
    program = one_of("program", str(grid.get("program", "semantic")), tuple(PROGRAMS))
    benchmarks = grid.get("benchmarks") or ([] if program == "semantic" else [program])
    common, axes = grid.get("common") or {}, grid.get("grid") or {}
    lists = isinstance(benchmarks, list) and isinstance(axes, dict) and all(isinstance(v, list) for v in axes.values())
    if not lists or not isinstance(common, dict) or not benchmarks or not all(axes.values()):
        raise InputError(f"{path} holds no run; expected {EXPECTED}")
    if program != "semantic" and benchmarks != [program]:
        raise InputError(f"{path}: program {program} takes no benchmarks; its data are options, under common")
    for name in (*common, *axes):
        if not isinstance(name, str) or name.replace("-", "_") in OURS or (name in common and name in axes):
            raise InputError(f"{path} sets {name!r}, which the sweep sets itself, is set twice, or is no name")
    cells = []
    for benchmark in benchmarks:
        for values in product(*axes.values()):
            varied = dict(zip(axes, values, strict=True))
            cells.append(_cell(program, str(benchmark), common, varied, work_dir))
    twice = [cell.name for at, cell in enumerate(cells) if cell in cells[:at]]
    if twice:
        raise InputError(f"{path} has {twice[0]} twice; leave one of the equal values out")
    return cells


def _cell(program: str, benchmark: str, common: Options, varied: Options, work_dir: Path) -> Cell:
    """One run, its command checked."""
    door, module = PROGRAMS[program]
    options = {**common, **varied}
    config = [f"--config={config_of(benchmark)}"] if program == "semantic" else []
    short = Path(benchmark).stem.removeprefix("cfg_")
    told = [short, *(f"{name}={_short(value)}" for name, value in varied.items())]
    key = fingerprint({"program": program, "benchmark": benchmark, "options": options})[:8]
    name = f"{re.sub(r'[^A-Za-z0-9=.,_+-]+', '-', ','.join(told))[:120]},{key}"
    parser = import_module(module).parser()
    words = [*config, f"--work_dir={work_dir / name}", *as_flags(options, parser)]
    parsed = parser.parse_args(words)
    for key, value in options.items():
        if "." in key and value is not None:
            taken = parsed.cfg_options.get(key)
            if json.dumps(taken) != json.dumps(value):
                raise InputError(f"{key}: {value!r} becomes {taken!r} on a command line; write it as that, or a config")
    return Cell(name, varied, [sys.executable, str(ROOT / door), *words], parsed.device)


def config_of(benchmark: str) -> Path:
    """The config of a benchmark: a file of configs/cfg_ds by its name, or any by its path. InputError without one."""
    path = Path(benchmark) if benchmark.endswith(".py") else ROOT / "configs" / "cfg_ds" / f"cfg_{benchmark}.py"
    if not path.is_file():
        known = sorted(file.stem.removeprefix("cfg_") for file in (ROOT / "configs" / "cfg_ds").glob("cfg_*.py"))
        raise InputError(
            f"unknown benchmark {benchmark!r}; expected one of {', '.join(known)}, or the path of a config"
        )
    return path


def as_flags(options: Mapping[str, Any], parser: Parser) -> list[str]:
    """Options as a program's words: flags, and with a dot in the name --cfg_options. None: as if not given.

    InputError for a flag that the program does not have, or a value that is no number, text, truth value, or list.
    """
    words, pairs = [], []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(one, (str, int, float, type(None))) for one in values):
            raise InputError(f"{name}: got {value!r}, expected a number, a text, true or false, or a list of these")
        flag = f"--{name.replace('-', '_')}"
        action = parser._option_string_actions.get(flag)
        if value is None:
            continue
        if "." in name:
            pairs.append(f"{name}=[{','.join(map(str, value))}]" if isinstance(value, list) else f"{name}={value}")
        elif action is None:
            raise InputError(f"{parser.prog} has no {flag}; a value of the config has a dot in its name, model.{name}")
        elif action.nargs == 0:
            words += [flag] * bool(value)
        else:
            words += [flag, *map(str, value)] if isinstance(value, list) else [f"{flag}={value}"]
    if pairs and "--cfg_options" not in parser._option_string_actions:
        raise InputError(f"{parser.prog} has no config; expected flags of it, got {pairs[0]}")
    return [*words, *(["--cfg_options", *pairs] if pairs else [])]


def _short(value: object) -> str:
    if value is None:
        return "default"
    return "x".join(map(str, value)) if isinstance(value, list) else str(value).replace("/", "-")
