"""Processes for what visitors start beside the models: a few at once, each with a deadline, each dead afterwards.

Reading a file that somebody made up can take minutes or gigabytes whatever is checked before, and a thread cannot be
stopped. So every such piece of work is a process of its own, which the system ends at its limits. It is forked from
one that has imported what the work needs and nothing more, which takes hundredths of a second.
"""

import contextlib
import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, TypeVar

from app.limits import Limits

PRELOADED = "app.forked"
"""What the process imports from which the others are forked."""
FORKS = "forkserver" in multiprocessing.get_all_start_methods()
"""Whether this system has it (Windows does not). Elsewhere work is done in the thread that asks for it, without a
deadline; server.py lets no public page be served there."""
PATIENCE = 30.0
"""Seconds that work waits for its turn."""
WALL = 5.0
"""Seconds on the clock for each of CPU: more processes than cores, and disks, make work take longer."""

T = TypeVar("T")
log = logging.getLogger("inscape")


class Overdue(ValueError):
    """Work that took more time or memory than it may."""


@dataclass(frozen=True)
class Outcome:
    """What a process says at its end: a value, or a sentence for the visitor, or what went wrong for the log."""

    value: Any = None
    problem: str | None = None
    failure: str | None = None


class Workers:
    """So many processes at once, and so many pieces of work that wait for one.

    Args:
        what: what they do, for the sentences, e.g. `Reading a picture`.
    """

    def __init__(self, what: str, *, count: int = 2, waiting: int = 16) -> None:
        self.what, self.most = what, count + waiting
        self._free = threading.BoundedSemaphore(count)
        self._lock = threading.Lock()
        self._here = 0

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
        with self._lock:
            if self._here >= self.most:
                raise busy
            self._here += 1
        try:
            if not self._free.acquire(timeout=PATIENCE):
                raise busy
            try:
                yield
            finally:
                self._free.release()
        finally:
            with self._lock:
                self._here -= 1

    def _outcome(self, limits: Limits, work: Callable[..., Any], arguments: tuple, named: dict[str, Any]) -> Outcome:
        context = multiprocessing.get_context("forkserver")
        answer, said = context.Pipe(duplex=False)
        bounds = math.ceil(limits.look_seconds), limits.look_bytes
        process = context.Process(target=_work, args=(said, bounds, work, arguments, named), daemon=True)
        prepare()
        process.start()
        said.close()
        try:
            if answer.poll(WALL * limits.look_seconds):
                return answer.recv()
        except EOFError:  # it has ended without a word
            process.join()
            log.warning("%s ended with exit code %s.", self.what, process.exitcode)
        finally:
            process.kill()
            process.join()
            process.close()
            answer.close()
        raise Overdue(
            f"{self.what} takes more than {limits.look_seconds:g} seconds or {limits.look_bytes / 1e9:g} GB here, "
            "so it was stopped; use a smaller file."
        )


def prepare() -> None:
    """Starts the process from which the others are forked, unless it is there; does not wait until it is ready."""
    if FORKS:
        from multiprocessing import forkserver  # not on every system

        multiprocessing.set_forkserver_preload([PRELOADED])
        forkserver.ensure_running()


def _work(
    said: connection.Connection, bounds: tuple[int, int], work: Callable[..., Any], arguments: tuple, named: dict
):
    """What a process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this
    _bound(*bounds)
    try:
        outcome = Outcome(value=work(*arguments, **named))
    except ValueError as problem:
        outcome = Outcome(problem=str(problem))
    except MemoryError:
        return  # as where the system ends it
    except Exception:
        outcome = Outcome(failure=traceback.format_exc())
    said.send(outcome)


def _bound(seconds: int, size: int) -> None:
    """The system ends this process after so many seconds of CPU, gives it so many bytes beside what it has already,
    and serves the models first."""
    import resource  # which Windows does not have

    os.nice(5)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    if sys.platform == "linux":
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData")]
        limit = 1024 * int(line.split()[1]) + size
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


PICTURES = Workers("Reading a picture")
TRACES = Workers("Reading a run")
"""Apart, so that nobody's question waits for figures."""
