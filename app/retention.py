"""What is done again and again while the page is served: old files are swept away, freed memory is given back."""

import ctypes
import logging
import sys
import threading
import time
from collections.abc import Callable

SWEEP_SECONDS = 60.0
"""Between two sweeps at most: files stay that much longer than is said."""

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


def give_back() -> None:
    """Gives freed memory back to the system where the C library is glibc, which keeps what its threads have freed."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
