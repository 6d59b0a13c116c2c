"""Work that is repeated in the background while the page is served."""

import logging
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
