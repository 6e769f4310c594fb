"""Tests stand alone: what each one gets for itself, and what none may leave changed.

A test has its own home, caches and working directory, an environment without variables that steer the programs or
their libraries, and torch's random numbers seeded by its name. State of the whole process that it leaves changed is
an error of that test, not of a later one: `PROCESS_STATE` is the list. (pytest itself puts the filters of warnings back
after each test, pytest-randomly seeds Python's and numpy's random numbers before each.)
"""

import os
import signal
import socket
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

# Read by the tests themselves: where the golden data and the browser are.
FOR_THE_TESTS = {"TEXTREGION_BROWSER", "TEXTREGION_GOLDEN", "TEXTREGION_TEST_KILLS"}
STEERING = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("PYTEST_CURRENT_TEST", "COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "PYTHON_COLORS", "PYTHONWARNINGS"),
}
STEERING_PREFIXES = ("TEXTREGION_", "HF_", "HUGGINGFACE_", "TORCH", "TRITON_", "GRADIO_", "XDG_", "MPL", "SLURM_")


def clear(environment: MutableMapping[str, str]) -> None:
    """Take out the variables that steer the programs under test, torch's launchers or the look of messages."""
    for name in set(environment) - FOR_THE_TESTS:
        if name in STEERING or name.startswith(STEERING_PREFIXES):
            del environment[name]


def places(home: Path) -> dict[str, str]:
    """The variables that keep a program's caches and settings in one folder."""
    folders = {
        **{"HOME": home, "HF_HOME": home / "huggingface", "TORCH_HOME": home / "torch"},
        **{"XDG_CACHE_HOME": home / ".cache", "XDG_CONFIG_HOME": home / ".config", "MPLCONFIGDIR": home / "matplotlib"},
        **{"TORCHINDUCTOR_CACHE_DIR": home / "inductor", "TRITON_CACHE_DIR": home / "triton"},
    }
    return {name: str(folder) for name, folder in folders.items()}


def seed_of(item: pytest.Item) -> int:
    """The test's seed of torch: its name and pytest-randomly's seed, which the head of the output says."""
    return zlib.crc32(item.nodeid.encode()) + item.config.getoption("randomly_seed", 0)


def _figures() -> list[int]:
    pyplot = sys.modules.get("matplotlib.pyplot")
    return pyplot.get_fignums() if pyplot else []


def _umask() -> int:
    mask = os.umask(0o22)
    os.umask(mask)
    return mask


PROCESS_STATE: dict[str, Callable[[], object]] = {
    "torch.get_default_dtype()": torch.get_default_dtype,
    "torch.get_default_device()": torch.get_default_device,
    "torch.get_num_threads()": torch.get_num_threads,
    "torch.is_grad_enabled()": torch.is_grad_enabled,
    "torch.is_inference_mode_enabled()": torch.is_inference_mode_enabled,
    "torch.is_autocast_enabled('cpu')": lambda: torch.is_autocast_enabled("cpu"),
    "torch.are_deterministic_algorithms_enabled()": torch.are_deterministic_algorithms_enabled,
    "torch.get_float32_matmul_precision()": torch.get_float32_matmul_precision,
    "torch.backends.cudnn.benchmark": lambda: torch.backends.cudnn.benchmark,
    "torch.backends.cudnn.deterministic": lambda: torch.backends.cudnn.deterministic,
    "numpy.geterr()": np.geterr,
    "numpy.get_printoptions()": np.get_printoptions,
    "os.environ": lambda: dict(os.environ),
    "os.getcwd()": os.getcwd,
    "os.umask()": _umask,
    "sys.path": lambda: [path for path in sys.path if "site-packages" not in path],  # packages add theirs on import
    "sys.argv": lambda: list(sys.argv),
    "sys.excepthook": lambda: sys.excepthook,
    "sys.getrecursionlimit()": sys.getrecursionlimit,
    "open figures of matplotlib.pyplot": _figures,
    "PIL.Image.MAX_IMAGE_PIXELS": lambda: Image.MAX_IMAGE_PIXELS,
    "PIL.ImageFile.LOAD_TRUNCATED_IMAGES": lambda: ImageFile.LOAD_TRUNCATED_IMAGES,
    "handlers of signals": lambda: [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
    "socket.getdefaulttimeout()": socket.getdefaulttimeout,
    "threading.excepthook": lambda: threading.excepthook,
    "jaxtyping's checks": lambda: jaxtyping.config.jaxtyping_disable,
}


def changes(before: dict[str, object]) -> Iterator[str]:
    """One line for each part of the state that is not as it was."""
    for name, get in PROCESS_STATE.items():
        was, now = before[name], get()
        if isinstance(was, dict) and isinstance(now, dict):
            keys = [key for key in was.keys() | now.keys() if was.get(key) != now.get(key)]
            was, now = ({key: state.get(key) for key in keys} for state in (was, now))
        if was != now:
            yield f"{name} was {was!r}, is now {now!r}"


BEFORE = pytest.StashKey[dict[str, object]]()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item):
    """Before any fixture of the test, also the wider ones that it is the first to use."""
    item.stash[BEFORE] = {name: get() for name, get in PROCESS_STATE.items()}
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item):
    """After the last fixture of the test."""
    result = yield
    if left := list(changes(item.stash[BEFORE])):
        pytest.fail("the test left changed what the whole process shares:\n" + "\n".join(left), pytrace=False)
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config):
    """A failure in one order may need it: the seed at the end too, where a long or quiet output has lost its head."""
    seed = config.getoption("randomly_seed", None)
    if seed is not None and terminalreporter.stats.keys() & {"failed", "error"}:
        terminalreporter.write_line(f"The order and the random numbers were those of --randomly-seed={seed}")
