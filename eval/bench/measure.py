"""Seconds and peak memory of one call, as both kinds of benchmark take them."""

import ctypes
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from textregion import devices

PROCESS = Path("/proc/self")


def measured(
    function: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float, Any]:
    """(seconds, peak bytes beyond what was there before, result) of one call, the device waited for."""
    before = reset_peak(device)
    start = clock()
    result = function()
    devices.synchronise(device)
    return clock() - start, max(peak_memory(device) - before, 0), result


def reset_peak(device: torch.device) -> float:
    """Start a new peak; bytes in use now. On Linux the kernel's own mark is reset, elsewhere a process's only grows."""
    if (in_use := devices.reset_peak_memory(device)) is not None:
        return in_use
    if (PROCESS / "clear_refs").exists():
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)  # what was freed before goes back to the kernel, or a run that reuses it seems to need nothing
        (PROCESS / "clear_refs").write_text("5")
        return _status("VmRSS")
    return peak_memory(device)


def peak_memory(device: torch.device) -> float:
    """Largest number of bytes in use since `reset_peak`: of the device for CUDA, else of the process."""
    if (peak := devices.peak_memory(device)) is not None:
        return peak
    if (PROCESS / "status").exists():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes


def _status(name: str) -> float:
    lines = (PROCESS / "status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def shown_seconds(value: float) -> str:
    """As a table shows it, in µs, ms or s."""
    if value < 1e-3:
        return f"{value * 1e6:.0f} µs"
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.1f} s"
