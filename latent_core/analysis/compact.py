"""Compact forms of tensors for a browser: few digits, bytes or 16-bit steps, and what each of them loses.

Shapes: N image tokens or points, A axes, … any leading dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

COSINE_UNITS = 10_000
"""Steps per 1 of a cosine."""
GRID = 32_000
"""Steps from the middle of a layout to its farthest point; int16 has 32,767."""


def rounded(values: torch.Tensor, digits: int = 4) -> Any:
    """Nested lists of values (…), or one number for (), with `digits` decimals; off by at most ½ · 10^−digits.

    round(10^d x) / 10^d, in float64, halves to even
    """
    scale = 10**digits
    return ((values.double() * scale).round() / scale).tolist()


def cosine_steps(cosines: torch.Tensor) -> torch.Tensor:
    """Cosines (…) in −1…1 as int16 (…) in −COSINE_UNITS…COSINE_UNITS; off by at most ½ / COSINE_UNITS.

    u = clamp(round(COSINE_UNITS · c), −COSINE_UNITS, COSINE_UNITS)
    """
    return (cosines * COSINE_UNITS).round().clamp(-COSINE_UNITS, COSINE_UNITS).to(torch.int16)


def byte_maps(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (…, N) ≥ 0 as uint8 (…, N), 255 for the largest of each row, and those largest (…).

    u_n = round(255 · w_n / max_n w_n); a row of zeros stays zero
    """
    peaks = weights.amax(-1)
    return (weights * (255 / peaks.clamp(min=1e-12))[..., None]).round().to(torch.uint8), peaks


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Points of several groups on one grid of 16-bit steps."""

    groups: tuple[torch.Tensor, ...]
    """int16 (N, A) each, in −GRID…GRID."""
    middle: torch.Tensor
    """(A,) the middle of the box around all points."""
    unit: torch.Tensor
    """() length of a step, the same on all axes so that nothing is distorted; above 0."""


def layout_steps(groups: Sequence[torch.Tensor]) -> Layout:
    """Coordinates (N, A) of one or more groups on one grid; off by at most half a step.

    u = round((x − m) / s), m = (max x + min x) / 2 by axis, s = max over the axes of (max x − min x) / 2 / GRID
    """
    every = torch.cat(list(groups))
    low, high = every.amin(0), every.amax(0)
    middle, unit = (low + high) / 2, ((high - low) / 2).amax().clamp(min=1e-9) / GRID
    steps = (((group - middle) / unit).round().clamp(-GRID, GRID).to(torch.int16) for group in groups)
    return Layout(tuple(steps), middle, unit)
