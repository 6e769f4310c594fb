"""How far two computations of the same numbers may lie apart: counted in steps of their type, or measured.

Processors and libraries add in different orders, so what one machine computes is not a bound for another. Where few
operations lie between input and output, `steps` is the bound: so many distances of neighbouring numbers. Where a whole
network lies between them, `rounding_noise` measures what that network makes of a change that every machine makes
anyway, the last bit of its input; from there on all rounding differs, as it does on another machine.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FACTOR = 8  # largest values of a few draws are scattered: over six kinds of processors by a factor of 4


def steps(reference: Tensor | np.ndarray | float, dtype: torch.dtype, count: int) -> float:
    """`count` distances of neighbouring numbers of `dtype`, at the largest magnitude of `reference`."""
    largest = torch.as_tensor(reference).detach().abs().max().to(dtype)
    exponent = torch.frexp(largest.float()).exponent.item() - 1  # 2^exponent <= largest
    return count * torch.finfo(dtype).eps * 2.0**exponent


def positions(size: int, largest: float) -> float:
    """What one rounding of a source position does to interpolated values of at most `largest`, of `size` of them.

    torch's kernels for processors with fused multiply-add, and for GPUs, round a position once, its other ones twice.
    """
    return steps(size, torch.float32, 1) * largest


def rounds_positions_once() -> bool:
    """Whether torch's CPU kernels here are those with fused multiply-add."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@dataclass(frozen=True)
class Noise:
    """Differences of one function's outputs whose inputs differ in the last bit: largest, and root mean square."""

    largest: float
    rms: float

    def check(self, actual: Tensor, expected: Tensor) -> None:
        """Assert that two computations differ by no more than FACTOR times the noise.

        The root mean square is the sharper of the two: it hardly depends on chance.
        """
        difference = (actual.float() - expected.float()).double()
        largest, rms = difference.abs().max().item(), difference.square().mean().sqrt().item()
        assert largest <= FACTOR * self.largest, f"largest difference {largest:.3g}, noise {self.largest:.3g}"
        assert rms <= FACTOR * self.rms, f"difference {rms:.3g} on average, noise {self.rms:.3g}"


def rounding_noise(function: Callable[[Tensor], tuple[Tensor, ...]], given: Tensor, draws: int = 4) -> list[Noise]:
    """What the last bit of `given` does to each output of `function`, over some random directions of all values."""
    outputs, differences = function(given), []
    for seed in range(draws):
        up = torch.rand(given.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
        moved = torch.nextafter(given, torch.where(up, torch.inf, -torch.inf))
        pairs = zip(function(moved), outputs, strict=True)
        differences.append([(new.float() - old.float()).double() for new, old in pairs])
    stacked = [torch.stack(one_output) for one_output in zip(*differences, strict=True)]
    return [Noise(d.abs().max().item(), d.square().mean().sqrt().item()) for d in stacked]
