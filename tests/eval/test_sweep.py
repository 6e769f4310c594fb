"""Sweeps: what is run, told, waited for and gone on with; on stand-ins for the programs, and once for real."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from kills import long_form
from warm_start import WARM

from eval import sweep as sweep_module
from eval.collect import CELL, as_csv, read_row, read_rows
from eval.grid import Cell
from eval.results import ROOT
from eval.semantic import Evaluation, evaluate
from eval.sweep import LOCK, _lock, main, run_cells
from textregion.devices import visible_gpus
from textregion.tiny.scenes import CLASS_NAMES

# A program that notes each start and its GPU in `starts`, then does what it is told.
PROGRAM = """
import os, pathlib, sys, time
folder, told = pathlib.Path(sys.argv[1]), sys.argv[2]
with open(folder / "starts", "a") as file:
    print(os.environ.get("CUDA_VISIBLE_DEVICES"), *sys.argv[3:], file=file)
if told == "hang":
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        (folder / "stopped").touch()
        sys.exit(130)
if told == "break":
    print("error: no such thing")
    sys.exit(2)
(folder / "results.json").write_text("{}")
sys.exit(int(told))
"""


def cell(work_dir, name, told="0", device="auto"):
    return Cell(name, {}, [sys.executable, "-c", PROGRAM, str(work_dir / name), told], device)


def starts(work_dir, name):
    return (work_dir / name / "starts").read_text().splitlines()


def test_a_run_that_fails_is_told_and_the_others_are_done(tmp_path):
    cells = [cell(tmp_path, "a", "break"), cell(tmp_path, "b"), cell(tmp_path, "c", "1")]
    told = run_cells(cells, tmp_path, 2, [])
    assert sorted(line.partition(" (exit")[0] for line in told) == [
        "failed: a: error: no such thing",
        "left something out: c: no output",
    ]
    assert (tmp_path / "b" / "results.json").exists()
    assert json.loads((tmp_path / "a" / CELL).read_text())["exit_code"] == 2


def test_only_what_is_not_done_is_started_again_and_with_resume(tmp_path):
    cells = [cell(tmp_path, "a", "break"), cell(tmp_path, "b"), cell(tmp_path, "c", "1")]
    run_cells(cells, tmp_path, 1, [])
    cells[0] = cell(tmp_path, "a")
    assert [line.partition(":")[0] for line in run_cells(cells, tmp_path, 3, [])] == ["left something out"]
    assert {name: len(starts(tmp_path, name)) for name in "abc"} == {"a": 2, "b": 1, "c": 2}
    assert starts(tmp_path, "a") == ["None --resume"] * 2
    run_cells(cells[:2], tmp_path, 1, [], again=True)
    assert {name: len(starts(tmp_path, name)) for name in "abc"} == {"a": 3, "b": 2, "c": 2}


def test_runs_of_another_identity_go_on_where_that_is_asked_for(tmp_path):
    run_cells([cell(tmp_path, "a")], tmp_path, 1, [], anyway=True)
    assert starts(tmp_path, "a") == ["None --resume-anyway"]


def test_what_is_told_is_of_the_last_start(tmp_path):
    run_cells([cell(tmp_path, "a", "break")], tmp_path, 1, [])
    (line,) = run_cells([cell(tmp_path, "a", "3")], tmp_path, 1, [])
    assert line.startswith("failed: a: no output (exit code 3; log: ")
    assert (tmp_path / "a" / "run.log").read_text() == "error: no such thing\n"


def test_gpus_go_round(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    names = [f"run{number}" for number in range(6)]
    run_cells([cell(tmp_path, name) for name in names], tmp_path, 3, ["4", "GPU-7"])
    used = [starts(tmp_path, name)[0].split()[0] for name in names]
    assert set(used) == {"4", "GPU-7"}
    assert used[:3] == ["4", "GPU-7", "4"]
    run_cells([cell(tmp_path, "cpu", device="cpu")], tmp_path, 1, ["4"])
    assert starts(tmp_path, "cpu") == ["None --resume"]


@pytest.mark.parametrize(("given", "expected"), [("", []), ("3", ["3"]), ("2,GPU-a", ["2", "GPU-a"])])
def test_the_gpus_that_may_be_used(given, expected, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == expected


def test_a_folder_at_work_elsewhere_is_waited_for(tmp_path):
    lock = _lock(tmp_path / "a")
    assert _lock(tmp_path / "a") is None

    def leave():
        while not (tmp_path / "b" / "results.json").exists():
            time.sleep(0.01)
        assert not (tmp_path / "a" / "starts").exists()
        os.close(lock)

    thread = threading.Thread(target=leave)
    thread.start()
    assert run_cells([cell(tmp_path, "a"), cell(tmp_path, "b")], tmp_path, 1, []) == []
    thread.join()
    assert len(starts(tmp_path, "a")) == 1


def test_ctrl_c_stops_the_runs_once_and_waits_for_them(tmp_path):
    def interrupt():
        while not all((tmp_path / name / "starts").exists() for name in "ab"):
            time.sleep(0.01)
        time.sleep(0.3)  # a stand-in has no Ctrl-C until it sleeps
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a program in the background ignores it
    try:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            run_cells([cell(tmp_path, name, "hang") for name in "abc"], tmp_path, 2, [])
        thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert all((tmp_path / name / "stopped").exists() for name in "ab")
    assert not (tmp_path / "c" / "starts").exists()
    assert run_cells([cell(tmp_path, name) for name in "abc"], tmp_path, 2, []) == []


# ---------------------------------------------------------------------- for real

SCENES, SIZE = 3, 64
COMMON = {"benchmark.scenes": SCENES, "benchmark.size": SIZE, "model.scale": [192, 96], "model.points_per_side": 3}
AXES = {
    "recipe": ["semantic", "demo"],
    "masks": ["slic", "ground-truth"],
    "model.probability_threshold": [0.0, 0.4, 0.7],
}
CELLS = math.prod(map(len, AXES.values()))


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """A grid file of CELLS runs."""
    monkeypatch.setenv("TEXTREGION_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    (tmp_path / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    common = {**COMMON, "model.classes": str(tmp_path / "classes.txt"), "device": "cpu"}
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"benchmarks": ["tiny"], "common": common, "grid": AXES}, sort_keys=False))
    return path


def sweep(path: Path, work_dir: Path) -> list[str]:
    return [sys.executable, "-m", "eval.sweep", str(path), "--work-dir", str(work_dir), "--jobs", "2"]


def single_runs(folder: Path, config: dict) -> list:
    """The rows of the grid's options, each evaluated by itself."""
    rows = []
    for recipe in AXES["recipe"]:
        for masks in AXES["masks"]:
            for threshold in AXES["model.probability_threshold"]:
                work_dir = folder / f"{recipe}-{masks}-{threshold}"
                model = {"recipe": recipe, "masks": masks}
                options = {**config, "model.probability_threshold": threshold}
                evaluate(Evaluation(ROOT / "configs/cfg_ds/cfg_tiny.py", work_dir, model, options, device="cpu"))
                rows.append(read_row(work_dir / "results.json"))
    return rows


@pytest.mark.slow
@long_form
def test_runs_killed_twice_are_as_many_single_runs(grid, tmp_path):
    """The first kill leaves the runs at work alone, the second takes them too."""
    work_dir = tmp_path / "sweep"
    for ended, whole in ((CELLS // 6, False), (CELLS // 2, True)):
        process = subprocess.Popen(
            sweep(grid, work_dir), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 300
        while len(list(work_dir.glob(f"*/{CELL}"))) < ended and time.monotonic() < deadline:
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        assert children, "killed when nothing was at work"
        for child in children if whole else []:
            child.kill()
    before = len(list(work_dir.glob(f"*/{CELL}")))
    assert CELLS // 2 <= before < CELLS, "killed too late or too early to show anything"
    done = subprocess.run(sweep(grid, work_dir), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    config = {**yaml.safe_load(grid.read_text())["common"]}
    config.pop("device")
    single = {
        (row.options["recipe"], row.options["masks"], row.options["probability_threshold"]): row
        for row in single_runs(tmp_path / "single", config)
    }
    rows = read_rows(work_dir)
    assert len(rows) == len(single) == CELLS
    for row in rows:
        alone = single[row.options["recipe"], row.options["masks"], row.options["probability_threshold"]]
        assert (row.metrics, row.items, row.skipped) == (alone.metrics, alone.items, alone.skipped)
        assert row.options == alone.options
    assert len({json.dumps(row.metrics) for row in rows}) > CELLS // 2, "the options change the numbers"
    assert (work_dir / "table.csv").read_text() == as_csv(rows)
    assert all((work_dir / name).exists() for name in ("table.md", "table.tex"))
    assert all((work_dir / row.run / LOCK).exists() for row in rows)


def test_nothing_to_show_is_an_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TEXTREGION_DATA", str(tmp_path / "none"))
    monkeypatch.setattr(sweep_module, "subprocess", WARM)
    (tmp_path / "grid.yaml").write_text("benchmarks: [voc21]\ncommon: {device: cpu}\n")
    assert main([str(tmp_path / "grid.yaml"), "--work-dir", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert any(line.startswith("failed: voc21,") and "error: no folder" in line for line in said)
    assert said[-1].startswith(f"error: no results.json below {tmp_path / 'out'}")


def test_a_dry_run_runs_nothing(grid, tmp_path, capsys):
    assert main([str(grid), "--work-dir", str(tmp_path / "out"), "--dry-run"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == CELLS
    assert not (tmp_path / "out").exists()
