"""Time and peak memory of two formulations, each in a process of its own, run in turn."""

import ctypes
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.bench.comparisons import Comparison, Facts, Options
from textregion.errors import InputError

PROCESS = Path("/proc/self")
PEAK_OPERATIONS, PEAK_BYTES = 989e12, 4.8e12  # a second, of an H200, nominal: dense bf16, HBM3e


@dataclass(frozen=True)
class Cost:
    """What one formulation takes, already scaled to the whole task.

    seconds: median of the repeats. megabytes: peak beyond its inputs, 2**20 bytes. share: of the task that was run.
    """

    seconds: float
    megabytes: float
    share: float


@dataclass(frozen=True)
class Measured:
    """A comparison's figures. difference: in its own measure, over the part both have run. operations, traffic: the
    least multiply-adds * 2 and bytes the task needs, for the floor. note: what was compared and at which sizes.
    """

    name: str
    ours: Cost
    obvious: Cost | None
    difference: float | None
    operations: float
    traffic: float
    note: str

    @property
    def speed(self) -> float | None:
        """How many times faster ours is."""
        return None if self.obvious is None else self.obvious.seconds / self.ours.seconds

    @property
    def saving(self) -> float | None:
        """How many times less memory ours takes (its own at least one megabyte, below which nothing is measured)."""
        return None if self.obvious is None else self.obvious.megabytes / max(self.ours.megabytes, 1.0)

    @property
    def floor_seconds(self) -> float:
        """The least time on the named GPU: arithmetic or traffic, whichever takes longer."""
        return max(self.operations / PEAK_OPERATIONS, self.traffic / PEAK_BYTES)

    def json(self) -> dict:
        """JSON-able, with the ratios and the floor."""
        ratios = {"speed": self.speed, "saving": self.saving}
        return {**asdict(self), **ratios, "floor_seconds_h200": self.floor_seconds}


def compare(comparison: Comparison, options: Options, repeats: int) -> Measured:
    """Measure both formulations, alternating, `repeats` times each.

    Raises InputError when a process runs out of memory or dies.
    """
    names = ("ours", "obvious") if comparison.compared else ("ours",)
    with ExitStack() as stack:
        workers = {name: stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))) for name in names}
        try:
            prepared = [workers[name].submit(_prepare, comparison, options, name) for name in names]
            facts, *_ = [made.result() for made in prepared]
            runs = [[workers[name].submit(_run).result() for name in names] for _ in range(repeats)]
            results = [workers[name].submit(_result).result() for name in names]
        except BrokenProcessPool as error:
            raise InputError("a benchmark process died (lack of memory? take a smaller --limit)") from error
    ours, *obvious = zip(*runs, strict=True)
    memory_share = facts.share if facts.memory_scales else 1.0
    return Measured(
        comparison.title(options),
        _cost(ours, facts.own_share, 1.0),
        _cost(obvious[0], facts.share, memory_share) if obvious else None,
        facts.difference(*results) if obvious else None,
        facts.operations,
        facts.traffic,
        facts.note,
    )


def _cost(runs: Sequence[tuple[float, float]], share: float, memory_share: float) -> Cost:
    """Medians of time; the largest peak, because a later run may reuse what an earlier one left."""
    seconds, peaks = zip(*runs, strict=True)
    return Cost(statistics.median(seconds) / share, max(peaks) / memory_share / 2**20, share)


# What follows runs in a formulation's own process, which keeps it in `_own` from one request to the next.
_own: dict[str, Any] = {}


@torch.inference_mode()
def _prepare(comparison: Comparison, options: Options, name: str) -> Facts:
    if options.threads:
        torch.set_num_threads(options.threads)
    ours, obvious, facts = comparison.make(options)
    _own.update(form=ours if name == "ours" else obvious, device=torch.device(options.device))
    return facts


@torch.inference_mode()
def _run() -> tuple[float, float]:
    _own.pop("result", None)
    seconds, peak, _own["result"] = measured(_own["form"], _own["device"])
    return seconds, peak


def _result() -> np.ndarray:
    result = _own["result"]
    return result.numpy(force=True) if isinstance(result, torch.Tensor) else result


def measured(function: Callable[[], object], device: torch.device) -> tuple[float, float, Any]:
    """(seconds, peak bytes beyond what was there before, result) of one call, the device waited for."""
    before = reset_peak(device)
    start = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, max(peak_memory(device) - before, 0), result


def reset_peak(device: torch.device) -> float:
    """Start a new peak; bytes in use now. On Linux the kernel's own mark is reset, elsewhere a process's only grows."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if (PROCESS / "clear_refs").exists():
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)  # what was freed before goes back to the kernel, or a run that reuses it seems to need nothing
        (PROCESS / "clear_refs").write_text("5")
        return _status("VmRSS")
    return peak_memory(device)


def peak_memory(device: torch.device) -> float:
    """Largest number of bytes in use since `reset_peak`: of the device for CUDA, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (PROCESS / "status").exists():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes


def _status(name: str) -> float:
    lines = (PROCESS / "status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
