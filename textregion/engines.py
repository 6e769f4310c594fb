"""Many items through one worker after the other, or through many at once: in this process, or in actors of Ray.

Nothing here knows what the items are: paths go in, results come out. A worker is made by `build` where it is used, in
this process or in every actor, so only `build`, items and results travel.
"""

import logging
import pickle
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from textregion.errors import InputError, at_least, first_line, needs, one_of

ENGINES = ("local", "ray")
AHEAD = 2  # batches that are loaded while one is worked on
MOST_BLOCKS = 10_000  # of a Ray data set: more only keep its scheduler busy
OBJECT_STORE = 256 * 2**20  # bytes, of a Ray that we start: paths and region tokens, no pixels


@runtime_checkable
class Worker(Protocol):
    """What is done with the items."""

    def load(self, item: Any) -> Any:
        """What waits for a disk or a network; it runs in threads beside the work. Never raises an InputError."""
        ...

    def work(self, loaded: list[Any]) -> list[Any]:
        """One result per loaded item, in their order. An exception stops the whole run."""
        ...


@dataclass(frozen=True)
class Lost:
    """In place of the result of an item whose worker died. reason: what to tell."""

    reason: str


@dataclass(frozen=True)
class Engine:
    """Where the work is done.

    name: local (this process) or ray. batch: items worked on at once. threads: that load items, in each worker.
    address: of a Ray cluster, "auto" for the one this machine belongs to; None starts Ray on this machine alone.
    workers: actors; default one per GPU, or per CPU where there is none.
    """

    name: str = "local"
    batch: int = 1
    threads: int = 2
    address: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        one_of("engine", self.name, ENGINES)
        at_least("batch", self.batch)
        at_least("threads", self.threads)
        if self.workers is not None:
            at_least("workers", self.workers)
        if self.name == "local" and (self.address is not None or self.workers is not None):
            raise InputError("got an address or a number of workers with the local engine; add --engine ray")

    def run(self, build: Callable[[], Worker], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """(position in `items`, result) of every item, once each; in order with the local engine.

        A worker that dies costs the batch it held: its items' results are `Lost`, and the run goes on. What a worker
        raises is raised here.
        """
        if self.name == "local":
            return _run_local(build(), items, self.batch, self.threads)
        return _run_ray(build, items, self)


def _run_local(worker: Worker, items: Sequence[Any], batch: int, threads: int) -> Iterator[tuple[int, Any]]:
    """Loading runs AHEAD batches ahead, in threads."""
    pool, loading, places = ThreadPoolExecutor(threads), deque[Future](), iter(range(len(items)))
    try:
        done = 0
        while done < len(items):
            for place in islice(places, batch * (1 + AHEAD) - len(loading)):
                loading.append(pool.submit(worker.load, items[place]))
            loaded = [loading.popleft().result() for _ in range(min(batch, len(loading)))]
            yield from zip(range(done, done + len(loaded)), worker.work(loaded), strict=True)
            done += len(loaded)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _Actor:
    """A worker in a process of Ray, made when its first batch comes, so that bad input there is told like any other."""

    def __init__(self, build: Callable[[], Worker], batch: int, threads: int) -> None:
        self.build, self.batch, self.threads = build, batch, threads
        self.worker: Worker | None = None

    def __call__(self, rows: dict[str, Any]) -> dict[str, list]:
        places = [int(place) for place in rows["place"]]
        try:
            self.worker = self.worker or self.build()
            items = [pickle.loads(item) for item in rows["item"]]
            results = [result for _, result in _run_local(self.worker, items, self.batch, self.threads)]
        except Exception as error:  # noqa: BLE001 (it is raised again where the results are read)
            return {"place": places[:1], "result": [pickle.dumps(error)]}
        return {"place": places, "result": [pickle.dumps(result) for result in results]}


def _run_ray(build: Callable[[], Worker], items: Sequence[Any], engine: Engine) -> Iterator[tuple[int, Any]]:
    """A pool of actors over a Ray data set with one row per item: decoding and work in one actor, no pixels sent."""
    with needs("--engine ray", layer="cluster", extra="cluster"):
        import ray
        import ray.data
    with _joined(ray, engine.address), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*ray_remote_args.* is deprecated")  # there is nothing else before 2.64
        gpus = int(ray.cluster_resources().get("GPU", 0))
        workers = engine.workers or gpus or max(1, int(ray.cluster_resources().get("CPU", 1)))
        context = ray.data.DataContext.get_current()
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what is lost is told here
        context.enable_progress_bars, context.max_errored_blocks = False, -1  # a dead actor costs its block
        rows = [{"place": place, "item": pickle.dumps(item)} for place, item in enumerate(items)]
        size = max(engine.batch, len(rows) // MOST_BLOCKS)
        results = ray.data.from_items(rows, override_num_blocks=max(1, len(rows) // size)).map_batches(
            _Actor,
            fn_constructor_args=(build, engine.batch, engine.threads),
            batch_size=None,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),  # what dies with it
            num_cpus=1,
            num_gpus=1 if gpus else 0,
            max_restarts=-1,
            max_task_retries=0,
        )
        missing = set(range(len(items)))
        for block in results.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            for place, result in zip(block["place"], map(pickle.loads, block["result"]), strict=True):
                if isinstance(result, Exception):
                    raise result
                missing.discard(int(place))
                yield int(place), result
        for place in sorted(missing):
            yield place, Lost("the worker that held it died; run the same command again")


@contextmanager
def _joined(ray: Any, address: str | None) -> Iterator[None]:
    """Ray, joined or started for the body; one that this process runs already is used and left as it is."""
    if ray.is_initialized():
        yield
        return
    alone = {"object_store_memory": OBJECT_STORE, "include_dashboard": False} if address is None else {}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*fork support is experimental")  # lancedb's, of a fork that execs
            ray.init(address=address or "local", logging_level="ERROR", log_to_driver=False, **alone)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        where = address or "this machine"
        raise InputError(f"cannot join Ray at {where} ({first_line(error)}); see `ray status`") from error
    try:
        yield
    finally:
        ray.shutdown()
