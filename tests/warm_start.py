"""Programs run from a process that has already imported what they all import: a start takes little of its six seconds.

Each is forked from that process, which has computed nothing, and has an environment, a folder, output and an end of its
own. That programs start from nothing is what the tests that kill them, of packaging and of set-up see to.
"""

import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import torch

IMPORTED = ["torch", "open_clip", "sam2.modeling.sam2_base", "textregion.segmenter", "matplotlib", "skimage"]
IMPORTED += ["mmengine.runner", "mmseg.models", "mmseg.engine", "mmseg.evaluation"]


def warm_context() -> ForkServerContext:
    """Starts processes from the one that has already imported what they all import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def _started(words: Sequence[str], cwd: Path, env: Mapping[str, str], printed: Sequence[Path]) -> ForkServerProcess:
    process = warm_context().Process(target=_become, args=(list(words), str(cwd), dict(env), *map(str, printed)))
    process.start()
    return process


class WarmProgram:
    """A program that runs, as subprocess.Popen of this Python has it; what it prints goes to files.

    words: "-m MODULE …", "-c CODE …" or "SCRIPT.py …". env: PYTHONPATH counts, as for a new Python.
    """

    def __init__(self, words: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
        self.words = list(words)
        self._folder = tempfile.TemporaryDirectory()
        self._printed = [Path(self._folder.name, name) for name in ("out", "err")]
        self._process = _started(self.words, cwd, env, self._printed)
        self._texts: list[str] = []

    def poll(self) -> int | None:
        """Its exit code, negative after a signal; None while it runs."""
        return self._process.exitcode

    @property
    def pid(self) -> int:
        """Its process number."""
        number = self._process.pid
        assert number is not None
        return number

    def send_signal(self, number: int) -> None:
        """As subprocess.Popen has it."""
        os.kill(self.pid, number)

    def line(self, number: int, timeout: float = 120) -> str:
        """A line of its output, counted from 0, as soon as it is there. TimeoutExpired when it is not in time."""
        deadline = time.monotonic() + timeout
        while len(lines := self.output().split("\n")) < number + 2:
            if self.poll() is not None or time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.words, timeout, *self._ended())
            time.sleep(0.01)
        return lines[number]

    def kill(self) -> None:
        """kill -9, and wait for its end."""
        self._process.kill()
        self._process.join()
        self._ended()

    def output(self) -> str:
        """What it has printed so far."""
        return self._printed[0].read_text() if self._printed[0].exists() else ""

    def wait(self, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Its exit code and all it printed. TimeoutExpired, and its end, after `timeout` seconds."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise subprocess.TimeoutExpired(self.words, timeout)
        return subprocess.CompletedProcess(self.words, self._process.exitcode, *self._ended())

    def _ended(self) -> list[str]:
        """All it printed; its folder goes."""
        if not self._texts:
            self._texts = [path.read_text() if path.exists() else "" for path in self._printed]
            self._folder.cleanup()
        return self._texts


class WarmPopen:
    """As subprocess.Popen, for programs that start this Python with output to files: sweeps, tables of many runs.

    stdout, stderr: open files that are written at their end. It inherits no other open file.
    """

    def __init__(
        self,
        command: Sequence[str],
        stdout: BinaryIO,
        stderr: BinaryIO,
        env: Mapping[str, str] | None = None,
        **_: object,
    ) -> None:
        assert command[0] == sys.executable
        told = dict(os.environ if env is None else env)
        self._process = _started(command[1:], Path.cwd(), told, [Path(stdout.name), Path(stderr.name)])
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """As subprocess.Popen has it."""
        self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """As subprocess.Popen has it."""
        self._process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired("", timeout or 0)
        return code


WARM = SimpleNamespace(Popen=WarmPopen, TimeoutExpired=subprocess.TimeoutExpired)  # instead of a module's `subprocess`


def run_warm(
    words: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run of this Python with captured text; see WarmProgram."""
    return WarmProgram(words, cwd, env).wait(timeout)


def _become(words: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    """Be the program from here on."""
    gc.freeze()  # what was imported stays: no collection of garbage looks through it
    for number, path in ((1, out), (2, err)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if "OMP_NUM_THREADS" in env:
        torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    places = [place for place in env.get("PYTHONPATH", "").split(os.pathsep) if place]
    if words[0] == "-m":
        sys.path[:0] = [cwd, *places]
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.path[:0] = [cwd, *places]
        sys.argv = ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})
    else:
        sys.path[:0] = [str(Path(words[0]).parent), *places]
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
