"""kill -9 at moments of a seed, one after the other, for the tests of what goes on afterwards."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest

from eval.results import ROOT

PATIENCE = 400  # seconds until a program must have got on
KILLS = int(os.environ.get("TEXTREGION_TEST_KILLS", "0"))  # 10: two of each of five seeds; 0 leaves such tests out
SEEDS = range((KILLS + 1) // 2)
long_form = pytest.mark.skipif(KILLS == 0, reason="takes minutes; TEXTREGION_TEST_KILLS=10 runs it")


def kill_at_moments(
    command: Sequence[str],
    progress: Callable[[], int],
    seed: int,
    moments: int = 2,
    most: int = 2,
    first: int = 1,
) -> int:
    """Start the command again and again, the second time with --resume, and kill it at a random moment of its work.

    The processes that it starts are killed with it. A moment is a little after `first` to `most` steps of its own.
    progress: how many steps are on disk. Returns how often it was killed before its end.
    """
    moment, kills = random.Random(seed), 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for number in range(moments):
        before, steps = progress(), moment.randint(first, most)
        words = [*command, *(["--resume"] if number else [])]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True, **quiet)
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and progress() < before + steps and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(moment.uniform(0, 0.2))
        kills += process.poll() is None
        with suppress(ProcessLookupError):  # it has ended, and so have those that it started
            os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() in (0, -signal.SIGKILL), "it failed by itself"
    return kills
