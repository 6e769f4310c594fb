"""Run by test_engines.py: the Ray engine against the local one, with two actors on CPUs. One Ray for all of it."""

import sys
from functools import partial
from pathlib import Path

import pytest
import ray
from doubler import Doubler
from index_worlds import QUICK, contents, write_scenes

from textregion.engines import Engine, Lost
from textregion.errors import InputError
from textregion.index import RegionIndex


def main(folder: Path) -> None:
    """AssertionError where they differ."""
    photos = write_scenes(folder / "photos", range(5))
    (photos / "broken.png").write_bytes(b"no image")
    local = RegionIndex.create(folder / "local.lance", "tiny", **QUICK)
    local.add(photos)
    other = RegionIndex.create(folder / "ray.lance", "tiny", **QUICK)
    engine = Engine("ray", batch=2, workers=2)
    options = {"object_store_memory": 100 * 2**20, "include_dashboard": False, "log_to_driver": False}
    ray.init(address="local", num_cpus=2, logging_level="ERROR", **options)
    added = other.add(photos, engine=engine)
    assert (added.encoded, len(added.unreadable)) == (5, 1), added
    assert contents(other) == contents(local)
    results = dict(engine.run(partial(Doubler, 6), list(range(12))))
    lost = {n for n, result in results.items() if isinstance(result, Lost)}
    assert 6 in lost, results
    assert len(lost) <= 2, results
    assert all(results[n] == 2 * n for n in set(range(12)) - lost), results
    with pytest.raises(InputError, match="got 4"):
        list(engine.run(partial(Doubler, None, 4), list(range(6))))
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
