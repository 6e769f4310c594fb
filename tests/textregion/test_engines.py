"""The two engines: the same results, one each; what a dead worker costs."""

import os
import pickle
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from doubler import Doubler

from textregion.engines import Engine, Lost
from textregion.errors import InputError


def test_the_local_engine_loads_in_threads_and_works_in_order():
    made = []

    def build():
        made.append(Doubler())
        return made[-1]

    results = list(Engine(batch=3, threads=2).run(build, list(range(10))))
    assert results == [(n, 2 * n) for n in range(10)]
    assert [worker.batches for worker in made] == [[3, 3, 3, 1]]
    assert list(Engine().run(build, [])) == []
    with pytest.raises(InputError, match="got 4"):
        list(Engine().run(partial(Doubler, None, 4), list(range(10))))


def test_flags_that_exclude_each_other():
    for options in (
        {"name": "spark"},
        {"batch": 0},
        {"workers": 2},
        {"address": "auto"},
        {"name": "ray", "workers": 0},
    ):
        with pytest.raises(InputError):
            Engine(**options)


def test_what_travels_can_be_pickled():
    assert pickle.loads(pickle.dumps(Lost("why"))) == Lost("why")


@pytest.mark.slow
def test_ray_gives_the_same_rows_and_a_dead_actor_costs_its_batch(tmp_path):
    """In a process of its own: Ray changes the environment and the signals of the one that starts it."""
    if find_spec("ray") is None:
        pytest.skip("ray is not installed: bash setup_env.sh --cluster")
    tests = Path(__file__).resolve().parents[1]
    # Ray's own processes make way for all others (nice 15), so that they would starve among busy tests.
    environment = {**os.environ, "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}", "RAY_worker_niceness": "0"}
    command = [sys.executable, str(tests / "ray_engine.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
