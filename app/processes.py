"""One piece of work in a process of its own, which the system ends at its limits of time and memory.

It is forked from one that has imported what the work needs (forked.py) and nothing more, which takes hundredths of a
second. This module is imported on both sides, so it imports little.
"""

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

PRELOADED = "app.forked"
"""What the process imports from which the others are forked."""
FORKS = "forkserver" in multiprocessing.get_all_start_methods()
"""Whether this system has it (Windows does not). Elsewhere work is done in the thread that asks for it, without a
deadline; server.py lets no public page be served there."""


@dataclass(frozen=True)
class Outcome:
    """The end of a piece of work: a value, or a sentence for the visitor, or what went wrong for the log."""

    value: Any = None
    problem: str | None = None
    failure: str | None = None


def prepare() -> None:
    """Starts the process from which the others are forked, unless it is there; does not wait until it is ready."""
    if FORKS:
        from multiprocessing import forkserver  # not on every system

        multiprocessing.set_forkserver_preload([PRELOADED])
        forkserver.ensure_running()


def do(
    sender: connection.Connection, bounds: tuple[int, int], work: Callable[..., Any], arguments: tuple, named: dict
):
    """The body of the process: sends the outcome of the work, or ends without one where it exceeds its limits.

    bounds: seconds of CPU, and bytes of memory.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this
    _bound(*bounds)
    try:
        outcome = Outcome(value=work(*arguments, **named))
    except ValueError as problem:
        outcome = Outcome(problem=str(problem))
    except MemoryError:
        return  # as where the system ends it
    except Exception:  # the last place before this process ends, with which it would be lost
        outcome = Outcome(failure=traceback.format_exc())
    sender.send(outcome)


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
