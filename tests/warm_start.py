"""Programs run from a process that has already imported what they all import: a start takes little of its six seconds.

Each is forked from that process, which has computed nothing, and has an environment, a folder, output and an end of its
own. That programs start from nothing is what the tests that kill them, of packaging and of set-up see to.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

IMPORTED = ["torch", "open_clip", "sam2.modeling.sam2_base", "textregion.segmenter", "matplotlib", "skimage"]
IMPORTED += ["mmengine.runner", "mmseg.models", "mmseg.engine", "mmseg.evaluation"]


def run_warm(
    words: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run of this Python with captured text. words: "-m MODULE …" or "SCRIPT.py …".

    env: PYTHONPATH counts, as for a new Python. TimeoutExpired after `timeout` seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = context.Process(target=_become, args=(list(words), str(cwd), dict(env), str(out), str(err)))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(list(words), timeout)
        printed = [path.read_text() if path.exists() else "" for path in (out, err)]
    return subprocess.CompletedProcess(list(words), process.exitcode, *printed)


def _become(words: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    """Be the program from here on."""
    for number, path in ((1, out), (2, err)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    places = [place for place in env.get("PYTHONPATH", "").split(os.pathsep) if place]
    if words[0] == "-m":
        sys.path[:0] = [cwd, *places]
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[:0] = [str(Path(words[0]).parent), *places]
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
