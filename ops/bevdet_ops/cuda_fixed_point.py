"""Sums that do not depend on the order of their terms: 64-bit fixed point, scaled by a bound (csrc/accumulate.cuh)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fixed_point_format(factors: Sequence[Tensor], terms: int) -> Tensor:
    """Scale and poison, [2], for sums of `terms` products of one number of each of `factors`."""
    bound = torch.full((), float(terms), dtype=torch.float64, device=factors[0].device)
    for factor in factors:
        bound = bound * torch.where(factor.isfinite(), factor.abs(), 0).amax()
    return torch.stack((2.0**62 / bound.clamp(min=1e-200), torch.zeros_like(bound)))


def from_fixed_point(total: Tensor, format: Tensor | None) -> Tensor:
    """The numbers that an int64 accumulator holds; `total` itself where it is no such thing."""
    return total if format is None else total.double() / format[0] + format[1]
