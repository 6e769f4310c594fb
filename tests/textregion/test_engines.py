"""The two engines: the same results, one each; what a dead worker costs."""

import os
import pickle
import threading
from functools import partial

import pytest
from index_worlds import QUICK, contents, write_scenes

from textregion.engines import Engine, Lost
from textregion.errors import InputError
from textregion.index import RegionIndex


class Doubler:
    """Loads a number, doubles it; ends its process at one of them."""

    def __init__(self, deadly: int | None = None, bad: int | None = None) -> None:
        self.deadly, self.bad, self.batches = deadly, bad, []

    def load(self, item: int) -> tuple[int, str]:
        return item, threading.current_thread().name

    def work(self, loaded: list) -> list:
        self.batches.append(len(loaded))
        numbers = [number for number, _ in loaded]
        if self.deadly in numbers:
            os._exit(1)
        if self.bad in numbers:
            raise InputError(f"got {self.bad}")
        return [2 * number for number in numbers]


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
    """One Ray for all, since starting it takes longest."""
    ray = pytest.importorskip("ray")
    photos = write_scenes(tmp_path / "photos", range(5))
    (photos / "broken.png").write_bytes(b"no image")
    local = RegionIndex.create(tmp_path / "local.lance", "tiny", **QUICK)
    local.add(photos)
    engine = Engine("ray", batch=2, workers=2)
    options = {"object_store_memory": 100 * 2**20, "include_dashboard": False, "log_to_driver": False}
    ray.init(address="local", num_cpus=2, logging_level="ERROR", **options)
    try:
        other = RegionIndex.create(tmp_path / "ray.lance", "tiny", **QUICK)
        added = other.add(photos, engine=engine)
        results = dict(engine.run(partial(Doubler, 6), list(range(12))))
        with pytest.raises(InputError, match="got 4"):
            list(engine.run(partial(Doubler, None, 4), list(range(6))))
    finally:
        ray.shutdown()
    assert (added.encoded, len(added.unreadable)) == (5, 1)
    assert contents(other) == contents(local)
    lost = {n for n, result in results.items() if isinstance(result, Lost)}
    assert 6 in lost
    assert len(lost) <= 2
    assert all(results[n] == 2 * n for n in set(range(12)) - lost)
