"""Signal handlers that end the program: SIGTERM, which containers send, does what Ctrl-C does."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within it SIGTERM raises KeyboardInterrupt, as SIGINT does; the first process of a container would ignore it."""
    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield
        return
    with _handled(signal.default_int_handler):
        yield


@contextlib.contextmanager
def ended_at_once() -> Iterator[None]:
    """Within it SIGINT and SIGTERM end the program with no further word: huggingface_hub would first finish the file
    under way, minutes for a shard."""
    with _handled(_end):
        yield


def _end(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)


@contextlib.contextmanager
def _handled(handler: object) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
