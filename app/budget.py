"""Budgets of bytes for what the browser is sent at once. What would take more is thinned out: levels, heads, layers,
then maps of text, then of latents.
"""

import json
from collections.abc import Iterable
from typing import Any

ANSWER = 8_000_000
"""Of a finished run, of an inspection, of a comparison. One of the embedded models' takes 0.5 million."""
UPDATE = 1_000_000
"""Of one of the ten updates a second while a run streams."""
PICTURES = 700_000
"""Of all images of a run together; four photos of 768 pixels a side take about as much."""
FIGURE = 500_000
"""Of one of the figures of an inspection that grow with the run."""


def size(value: Any) -> int:
    """Bytes of a value as JSON, at most."""
    return len(json.dumps(value))


def leading(parts: Iterable[Any], budget: int) -> list[Any]:
    """The first parts that take no more than `budget` bytes together; the rest is not even made."""
    fitting: list[Any] = []
    for part in parts:
        budget -= size(part)
        if budget < 0:
            break
        fitting.append(part)
    return fitting


def spread(count: int, most: int) -> list[int]:
    """At most `most` ≥ 2 of the numbers 0…count−1, evenly spaced, first and last included."""
    if count <= most:
        return list(range(count))
    return sorted({round(step * (count - 1) / (most - 1)) for step in range(most)})
