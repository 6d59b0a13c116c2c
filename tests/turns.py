"""Turns of tests that run in several processes: what measures time runs while nothing else does. Linux and macOS."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def turn(folder: Path, *, alone: bool) -> Iterator[None]:
    """Waits until no test runs alone, or if `alone` until none runs at all; all processes name the same folder."""
    with open(folder / "gate", "w") as gate, open(folder / "running", "w") as running:
        # Who waits for the others keeps the gate, so that meanwhile none of them begins another test.
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(running, fcntl.LOCK_UN)  # closing would not do: a forked child may still hold the file
