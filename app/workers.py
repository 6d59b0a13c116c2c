"""Processes for what visitors start beside the models: a few at once, each with a deadline, each dead afterwards.

Reading a file that somebody made up can take minutes or gigabytes whatever is checked before, and a thread cannot be
stopped. So every such piece of work is a process of its own, which the system ends at its limits.
"""

import contextlib
import logging
import math
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from app import visitor
from app.limits import Limits
from app.processes import FORKS, Outcome, do, prepare
from app.turns import taking_turns

PATIENCE = 30.0
"""Seconds that work waits for its turn."""
WALL = 5.0
"""Seconds on the clock for each of CPU: more processes than cores, and disks, make work take longer."""

T = TypeVar("T")
log = logging.getLogger("inscape")


class Overdue(ValueError):
    """Work that took more time or memory than it may."""


class Workers:
    """A pool of processes: `count` at once, and `waiting` pieces of work in line, different addresses in turns.

    Args:
        what: what they do, for the sentences, e.g. `Reading a picture`.
    """

    def __init__(self, what: str, *, count: int = 2, waiting: int = 16) -> None:
        self.what, self.most = what, count + waiting
        self.count = count
        self._at_work: list[str] = []  # the addresses for which something is done
        self._line: list[tuple[str, object]] = []  # who waits
        self._changed = threading.Condition()

    def run(self, limits: Limits, work: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """What `work` returns, in a process of its own; it, its arguments and its value must be picklable.

        Raises ValueError as `work` does, Overdue where it exceeds `limits`, and where too many wait; RuntimeError for
        what nobody foresaw.
        """
        if not FORKS:
            return work(*arguments, **named)
        with self._turn():
            outcome = self._outcome(limits, work, arguments, named)
        if outcome.failure is not None:
            raise RuntimeError(f"{self.what} failed in its process:\n{outcome.failure}")
        if outcome.problem is not None:
            raise ValueError(outcome.problem)
        return outcome.value

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        busy = ValueError(f"{self.what} has to wait: this server is busy with others. Try again in a few seconds.")
        owner = visitor.of_handler()
        place = owner, object()
        with self._changed:
            if len(self._at_work) + len(self._line) >= self.most:
                raise busy
            self._line.append(place)
            served = self._changed.wait_for(lambda: self._next() is place, PATIENCE)
            self._line.remove(place)
            if not served:
                raise busy
            self._at_work.append(owner)
            self._changed.notify_all()  # there may be room for another
        try:
            yield
        finally:
            with self._changed:
                self._at_work.remove(owner)
                self._changed.notify_all()

    def _next(self) -> tuple[str, object] | None:
        """Who is served next; None while there is no room."""
        if not self._line or len(self._at_work) >= self.count:
            return None
        return self._line[taking_turns(self._at_work, [owner for owner, _ in self._line])[0]]

    def _outcome(self, limits: Limits, work: Callable[..., Any], arguments: tuple, named: dict[str, Any]) -> Outcome:
        context = multiprocessing.get_context("forkserver")
        receiver, sender = context.Pipe(duplex=False)
        bounds = math.ceil(limits.worker_seconds), limits.worker_bytes
        process = context.Process(target=do, args=(sender, bounds, work, arguments, named), daemon=True)
        prepare()
        process.start()
        sender.close()
        try:
            if receiver.poll(WALL * limits.worker_seconds):
                return receiver.recv()
        except EOFError:  # it has ended without a word
            process.join()
            log.warning("%s ended with exit code %s.", self.what, process.exitcode)
        finally:
            process.kill()
            process.join()
            process.close()
            receiver.close()
        raise Overdue(
            f"{self.what} takes more than {limits.worker_seconds:g} seconds or {limits.worker_bytes / 1e9:g} GB here, "
            "so it was stopped; use a smaller file."
        )


PICTURES = Workers("Reading a picture")
TRACES = Workers("Reading a run")
"""Apart, so that nobody's question waits for figures."""
