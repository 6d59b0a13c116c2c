"""Medians of interleaved repeats."""

import statistics
import time
from collections.abc import Callable

REPEATS = 5


def medians(timed: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Seconds of each, taking turns; the first round warms up and does not count."""
    rounds = [{name: run() for name, run in timed.items()} for _ in range(REPEATS + 1)]
    return {name: statistics.median(r[name] for r in rounds[1:]) for name in timed}


def clock(run: Callable[[], object], now: Callable[[], float] = time.process_time) -> Callable[[], float]:
    """A function that runs `run` and returns the seconds that it took.

    CPU time by default: with one thread that is the wall time of a machine that does nothing else, and stays so on one
    that does. `time.perf_counter` gives wall time, for what uses all cores.
    """

    def timed() -> float:
        began = now()
        run()
        return now() - began

    return timed
