"""What is done again and again while the page is served: old files are swept away, freed memory is given back."""

import ctypes
import logging
import sys
import threading
import time
from collections.abc import Callable

SWEEP_SECONDS = 60.0
"""Between two sweeps at most: files stay that much longer than is said."""

_ARENAS = -8
"""The parameter of glibc's mallopt that limits the number of heaps, M_ARENA_MAX in malloc.h."""

log = logging.getLogger("inscape")


def every(seconds: float, work: Callable[[], object], serving: Callable[[], bool]) -> threading.Thread:
    """Does `work` now and every so many seconds for as long as `serving()`."""

    def run() -> None:
        while serving():
            try:
                work()
            except OSError as problem:  # the disk's, which may be well again the next time
                log.warning("What is done every %g seconds failed: %s", seconds, problem)
            time.sleep(seconds)

    thread = threading.Thread(target=run, daemon=True, name="sweeper")
    thread.start()
    return thread


def one_heap() -> None:
    """Lets all threads take their memory from one heap where the C library is glibc; to be called before they start.

    By itself it has one for each of some threads, and gives back what is free at the end of the first one alone:
    after answers of 8 MB the others keep hundreds.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_ARENAS, 1)


def give_back() -> None:
    """Gives freed memory back to the system where the C library is glibc, which keeps what its threads have freed."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") else None
