"""Bilinear resizing of chosen rows and columns only, with the arithmetic of torch's own `interpolate`."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def bilinear_taps(size_in: int, size_out: int, device: torch.device | str = "cpu") -> list[Tensor]:
    """Both source indices and the weight of the second, per output position (align_corners=False).

    Returns [lower (size_out,) int64, upper (size_out,) int64, weight (size_out,) float32 in [0, 1)].
    """
    scale = torch.tensor(size_in, dtype=torch.float32) / size_out
    centre = torch.arange(size_out, dtype=torch.float64) + 0.5
    position = (centre * scale.double() - 0.5).float()  # one rounding, as the fused multiply-add of torch's kernels
    position = position.clamp(0, size_in - 1)
    lower = position.floor().long()
    upper = (lower + 1).clamp(max=size_in - 1)
    return [lower.to(device), upper.to(device), (position - lower).to(device)]


def taps_at(taps: Sequence[Tensor], where: slice | Int[Tensor, " n"]) -> tuple[Int[Tensor, " m"], list[Tensor]]:
    """The m source positions, ascending, that some output positions need, and the taps of those into them."""
    lower, upper, weight = (tap[where] for tap in taps)
    needed, inverse = torch.unique(torch.cat([lower, upper]), return_inverse=True)
    return needed, [*inverse.chunk(2), weight]


def lerp_columns(x: Float[Tensor, "m y w"], taps: Sequence[Tensor]) -> Float[Tensor, "m y x"]:
    """Blend pairs of columns: x[..., lower] * (1 - weight) + x[..., upper] * weight."""
    lower, upper, weight = taps
    return x[..., lower].mul_(1 - weight).add_(x[..., upper].mul_(weight))  # indexing copies: in place on the copies


def lerp_rows(x: Float[Tensor, "m h x"], taps: Sequence[Tensor]) -> Float[Tensor, "m y x"]:
    """Blend pairs of rows: x[..., lower, :] * (1 - weight) + x[..., upper, :] * weight."""
    lower, upper, weight = taps
    return x[..., lower, :].mul_(1 - weight[:, None]).add_(x[..., upper, :].mul_(weight[:, None]))
