"""The interval: a measured value with its 95% bounds and its count, as every report of this repository holds it.

Sources: Wilson, JASA 22 (1927), for a share; Newcombe, Statistics in Medicine 17 (1998) 873, method 10, for a
difference of shares; the normal approximation for a mean over runs.
"""

import math
from dataclasses import dataclass

import torch

Z = 1.959964
"""The normal distribution's 97.5% quantile, for shares."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value between its 95% bounds. All three have the unit of what was measured: shares are in 0…1."""

    value: float
    low: float
    high: float
    n: int
    """Samples or runs that it is from."""


def wilson(successes: int, n: int) -> Interval:
    """The share of successes among n samples, in 0…1, with Wilson's score interval. n = 0 gives 0 in (0, 1).

    p̂ = successes / n; (p̂ + z²/2n ± z √(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n)
    """
    if n == 0:
        return Interval(0.0, 0.0, 1.0, 0)
    rate, square = successes / n, Z * Z / n
    middle = (rate + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(rate * (1 - rate) / n + square / (4 * n))
    return Interval(rate, max(0.0, middle - half), min(1.0, middle + half), n)


def difference(first: Interval, second: Interval) -> Interval:
    """The first share minus the second, in −1…1, with Newcombe's interval from Wilson's; the samples are independent.

    d = p₁ − p₂; from d − √((p₁ − l₁)² + (u₂ − p₂)²) to d + √((u₁ − p₁)² + (p₂ − l₂)²)
    """
    gap = first.value - second.value
    low = gap - math.hypot(first.value - first.low, second.high - second.value)
    high = gap + math.hypot(first.high - first.value, second.value - second.low)
    return Interval(gap, low, high, first.n + second.n)


def mean(values: torch.Tensor) -> Interval:
    """The mean of a quantity over n ≥ 2 runs (n,), with mean ± 1.96 · s / √n."""
    middle, half = values.mean().item(), 1.96 * values.std().item() / math.sqrt(len(values))
    return Interval(middle, middle - half, middle + half, len(values))


def mean_share(values: torch.Tensor) -> Interval:
    """The mean of runs' shares (n,), n ≥ 2, its interval cut to 0…1.

    What is counted within one run, such as its latents, is not independent, so the run is what is counted.
    """
    whole = mean(values)
    return Interval(whole.value, max(0.0, whole.low), min(1.0, whole.high), whole.n)


def is_share(value: object) -> bool:
    """Whether a JSON value is a share's Interval, as reports hold it."""
    if not isinstance(value, dict) or type(value.get("n")) is not int:
        return False
    return all(type(value.get(edge)) in (int, float) and 0 <= value[edge] <= 1 for edge in ("value", "low", "high"))
