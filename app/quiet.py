"""A log that a visitor cannot fill: one line a minute of each kind, which says how often it has happened since."""

import logging
import threading
import time
from collections.abc import Callable

EVERY = 60.0
"""Seconds between two lines of one kind."""


class Quiet:
    """Says what happened, however often it happens, once in EVERY seconds.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, log: logging.Logger, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.log, self.clock = log, clock
        self._logged: dict[str, tuple[float, int]] = {}  # when the kind was said last, and how often it happened since
        self._lock = threading.Lock()

    def say(self, kind: str, sentence: str, problem: BaseException | None = None) -> None:
        """Logs a warning, with the traceback of `problem`. There are but a few kinds, none named by a visitor."""
        with self._lock:
            now = self.clock()
            last, count = self._logged.get(kind, (now - EVERY, 0))
            due = now - last >= EVERY
            self._logged[kind] = (now, 0) if due else (last, count + 1)
        if due:
            more = f" ({count:,} more of this kind since it was said last.)" if count else ""
            self.log.warning("%s%s", sentence, more, exc_info=problem)


class Silenced(logging.Filter):
    """Turns lines of another's log that begin with `start` into one of `quiet`'s; into none without a sentence."""

    def __init__(self, start: str, quiet: Quiet, sentence: str | None = None) -> None:
        super().__init__()
        self.start, self.quiet, self.sentence = start, quiet, sentence

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.getMessage().startswith(self.start):
            return True
        if self.sentence is not None:
            self.quiet.say(self.start, self.sentence)
        return False
