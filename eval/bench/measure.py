"""Time and peak memory of two formulations, each in a process of its own, run in turn."""

import ctypes
import multiprocessing
import resource
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from textregion.errors import InputError

SELF = Path("/proc/self")


@dataclass(frozen=True)
class Side:
    """One formulation, already scaled to the whole task.

    seconds: median of the repeats. megabytes: peak beyond its inputs, 2**20 bytes. share: of the task that was run.
    """

    seconds: float
    megabytes: float
    share: float


@dataclass(frozen=True)
class Row:
    """A comparison. difference: in the case's own measure, over the part both have run. operations, traffic: the
    least multiply-adds * 2 and bytes the task needs, for the floor. note: what was compared and at which sizes.
    """

    name: str
    ours: Side
    obvious: Side | None
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

    def json(self) -> dict:
        """JSON-able, with the ratios."""
        return {**asdict(self), "speed": self.speed, "saving": self.saving}


def compare(case: type, options: object, repeats: int) -> Row:
    """Measure `case(options).ours()` and `.obvious()`, alternating, `repeats` times each.

    Raises InputError when a process runs out of memory or dies.
    """
    context = multiprocessing.get_context("spawn")
    names = ("ours", "obvious") if case.has_obvious else ("ours",)
    pipes, processes = {}, {}
    try:
        for name in names:
            pipes[name], other = context.Pipe()
            processes[name] = context.Process(target=_serve, args=(other, case, options, name), daemon=True)
            processes[name].start()
            other.close()
        facts = {name: _answer(pipes[name]) for name in names}
        runs = {name: [] for name in names}
        for _ in range(repeats):
            for name in names:
                pipes[name].send("run")
                runs[name].append(_answer(pipes[name]))
        results = {}
        for name in names:
            pipes[name].send("result")
            results[name] = _answer(pipes[name])
    finally:
        for process in processes.values():
            process.terminate()
            process.join()
    sides = {name: _side(runs[name], facts[name]) for name in names}
    difference = case.difference(results["ours"], results["obvious"]) if case.has_obvious else None
    info = facts["ours"]
    return Row(
        case.title(options),
        sides["ours"],
        sides.get("obvious"),
        difference,
        info["operations"],
        info["traffic"],
        info["note"],
    )


def _side(runs: list[tuple[float, float]], facts: dict) -> Side:
    """Medians of time; the largest peak, because a later run may reuse what an earlier one left."""
    seconds, peaks = zip(*runs, strict=True)
    memory = max(peaks) / (facts["share"] if facts["memory_scales"] else 1)
    return Side(statistics.median(seconds) / facts["share"], memory / 2**20, facts["share"])


def _answer(pipe):
    try:
        answer = pipe.recv()
    except EOFError as error:
        raise InputError("a benchmark process died (lack of memory? take a smaller --limit)") from error
    if isinstance(answer, InputError):
        raise answer
    return answer


def _serve(pipe, case: type, options, name: str) -> None:
    """Body of a process: make the inputs, then answer "run" with (seconds, peak bytes) and "result" with arrays."""
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        with torch.inference_mode():
            _loop(pipe, case(options), name, torch.device(options.device))
    except InputError as error:
        pipe.send(error)


def _loop(pipe, case, name: str, device: torch.device) -> None:
    share, scales = (case.share, case.memory_scales) if name == "obvious" else (case.own_share, False)
    facts = {"operations": case.operations, "traffic": case.traffic, "note": case.note}
    pipe.send({**facts, "share": share, "memory_scales": scales})
    result = None
    while (request := pipe.recv()) == "run":
        del result
        seconds, peak, result = measured(getattr(case, name), device)
        pipe.send((seconds, peak))
    if request == "result":
        pipe.send([np.asarray(t.cpu()) if isinstance(t, torch.Tensor) else np.asarray(t) for t in _listed(result)])


def _listed(result) -> list:
    return list(result) if isinstance(result, (tuple, list)) else [result]


def measured(function, device: torch.device) -> tuple[float, float, object]:
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
    if (SELF / "clear_refs").exists():
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)  # what was freed before goes back to the kernel, or a run that reuses it seems to need nothing
        (SELF / "clear_refs").write_text("5")
        return _status("VmRSS")
    return peak_memory(device)


def peak_memory(device: torch.device) -> float:
    """Largest number of bytes in use since `reset_peak`: of the device for CUDA, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (SELF / "status").exists():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes


def _status(name: str) -> float:
    lines = (SELF / "status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
