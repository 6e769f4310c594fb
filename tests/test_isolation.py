"""The tests' own guard: what a test leaves changed is said at that test, by name, and each has its own place."""

import os
import subprocess
import sys
from pathlib import Path

import isolation
import pytest
import torch

HERE = Path(__file__).parent
LEAVING = """
import os, signal, socket, sys, threading
import jaxtyping, numpy as np, pytest, torch
from matplotlib import pyplot
from PIL import Image, ImageFile

KEPT = []

def enter(context):
    context.__enter__()
    KEPT.append(context)  # a context that is collected ends

LEFT = {
    "torch.get_default_dtype()": lambda: torch.set_default_dtype(torch.float64),
    "torch.get_default_device()": lambda: torch.set_default_device("meta"),
    "torch.get_num_threads()": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "torch.is_grad_enabled()": lambda: torch.set_grad_enabled(False),
    "torch.is_inference_mode_enabled()": lambda: enter(torch.inference_mode()),
    "torch.is_autocast_enabled('cpu')": lambda: enter(torch.autocast("cpu")),
    "torch.are_deterministic_algorithms_enabled()": lambda: torch.use_deterministic_algorithms(True),
    "torch.get_float32_matmul_precision()": lambda: torch.set_float32_matmul_precision("medium"),
    "torch.backends.cudnn.benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "torch.backends.cudnn.deterministic": lambda: setattr(torch.backends.cudnn, "deterministic", True),
    "numpy.geterr()": lambda: np.seterr(all="raise"),
    "numpy.get_printoptions()": lambda: np.set_printoptions(precision=3),
    "os.environ": lambda: os.environ.update(LEFT_BEHIND="1"),
    "os.getcwd()": lambda: os.chdir("/"),
    "os.umask()": lambda: os.umask(0o77),
    "sys.path": lambda: sys.path.insert(0, "/nowhere"),
    "sys.argv": lambda: sys.argv.append("--more"),
    "sys.excepthook": lambda: setattr(sys, "excepthook", print),
    "sys.getrecursionlimit()": lambda: sys.setrecursionlimit(5000),
    "open figures of matplotlib.pyplot": lambda: pyplot.figure(),
    "PIL.Image.MAX_IMAGE_PIXELS": lambda: setattr(Image, "MAX_IMAGE_PIXELS", None),
    "PIL.ImageFile.LOAD_TRUNCATED_IMAGES": lambda: setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True),
    "handlers of signals": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "socket.getdefaulttimeout()": lambda: socket.setdefaulttimeout(9),
    "threading.excepthook": lambda: setattr(threading, "excepthook", print),
    "jaxtyping's checks": lambda: jaxtyping.config.update("jaxtyping_disable", True),
}

def test_that_puts_everything_back(monkeypatch, tmp_path):
    monkeypatch.setenv("LEFT_BEHIND", "1")
    monkeypatch.chdir(tmp_path)

@pytest.mark.parametrize("name", LEFT)
def test_that_leaves(name):
    LEFT[name]()
"""


def test_every_change_that_a_test_leaves_is_its_error(tmp_path):
    (tmp_path / "conftest.py").write_text("from isolation import pytest_runtest_setup, pytest_runtest_teardown\n")
    (tmp_path / "test_leaving.py").write_text(LEAVING)
    # -rN: with CI set, pytest's summary of the errors would say every line a second time
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:randomly",
        "-p",
        "no:cacheprovider",
        "-q",
        "-rN",
        str(tmp_path),
    ]
    environment = {name: os.environ[name] for name in os.environ if name != "PYTEST_CURRENT_TEST"}
    environment["PYTHONPATH"] = str(HERE)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    told = [line.split(" was ")[0] for line in done.stdout.splitlines() if " was " in line and ", is now " in line]
    assert told == list(isolation.PROCESS_STATE), done.stdout + done.stderr
    count = len(isolation.PROCESS_STATE)
    assert f"{count + 1} passed, {count} errors in " in done.stdout


def test_a_change_names_only_what_is_different(monkeypatch):
    before = {name: get() for name, get in isolation.PROCESS_STATE.items()}
    assert list(isolation.changes(before)) == []
    monkeypatch.setenv("LEFT_BEHIND", "1")
    monkeypatch.delenv("HOME")
    (line,) = isolation.changes(before)
    assert line.startswith("os.environ was {")
    assert "'LEFT_BEHIND': '1'" in line
    assert "'HOME': None" in line
    assert "PATH" not in line


def test_variables_that_steer_programs_are_gone_and_those_of_the_tests_stay():
    environment = dict.fromkeys(
        ["TEXTREGION_DATA", "HF_TOKEN", "RANK", "SLURM_PROCID", "COLUMNS", "XDG_CACHE_HOME"], "1"
    )
    kept = dict.fromkeys(["PATH", "TEXTREGION_GOLDEN", "TEXTREGION_BROWSER", "OMP_NUM_THREADS", "LANG"], "2")
    environment |= kept
    isolation.clear(environment)
    assert environment == kept


def test_each_test_has_an_empty_place_and_a_seed_of_its_own(request, tmp_path_factory):
    home = Path(os.environ["HOME"])
    assert home.is_relative_to(tmp_path_factory.getbasetemp())
    assert Path.cwd() == home / "folder"
    assert list(Path.cwd().iterdir()) == []
    assert Path(os.environ["HF_HOME"]).parent == Path(os.environ["XDG_CACHE_HOME"]).parent == home
    assert torch.initial_seed() == isolation.seed_of(request.node)


@pytest.mark.parametrize("number", range(3))
def test_a_seed_is_that_of_the_name(request, number):
    expected = torch.rand(3, generator=torch.Generator().manual_seed(isolation.seed_of(request.node)))
    assert torch.equal(torch.rand(3), expected)
