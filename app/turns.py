"""The turns of a session: next is the last thing that a person asked for, whatever was under way or waiting before."""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

SETTLE = 0.2
"""Seconds without a further change after which an interrupted run starts again: a dragged slider changes on and on."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Turn(Generic[T]):
    """A piece of work, and the event that cancels it."""

    at: float
    """When it was asked for; see `Session.asked_at`."""
    work: T
    cancelled: threading.Event
    """Set when something else is asked for, when the session stops, and when it ends."""


class Session:
    """What one browser tab or program has under way. Safe to use from several threads."""

    def __init__(self) -> None:
        self.asked_at = 0.0
        """The time of the last thing that was asked for or stopped, by the page's own clock; 0 for none. What is
        older has no turn any more, in whatever order it arrives."""
        self._cancelled = threading.Event()  # of what is under way
        self._started = 0.0  # when the turn under way was asked for
        self._next: Turn | None = None
        self._working = False
        self._active = 0  # runs that have not ended yet: two for a moment, when one replaces the other
        self._changed = threading.Condition()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way or waiting."""
        return not self._active and not self._working

    def turns(self, at: float, work: T) -> Iterator[Turn[T]]:
        """See `Runner.turns`."""
        with self._changed:
            if at <= self.asked_at:
                return
            self.asked_at = at
            self._next = Turn(at, work, threading.Event())
            self._cancelled.set()
            self._changed.notify_all()
            if self._working:
                return
            self._working = True
        turn = self._take()
        try:
            while turn is not None:
                yield turn
                self._settle()
                turn = self._take()
        finally:
            if turn is not None:  # closed in the middle
                with self._changed:
                    self._working, self._next = False, None

    def _take(self) -> Turn | None:
        with self._changed:
            turn, self._next = self._next, None
            if turn is None:
                self._working = False  # in the same step: what is asked for from now on finds nobody at work
            else:
                self._cancelled, self._started = turn.cancelled, turn.at
            return turn

    def _settle(self) -> None:
        """Waits until the next turn is the last for now."""
        with self._changed:
            while self._next is not None:
                if not self._changed.wait(SETTLE):
                    return

    def interrupt(self, at: float) -> None:
        """See `Runner.interrupt`."""
        with self._changed:
            if self._started < at:
                self._cancelled.set()

    def stop(self, at: float | None = None) -> bool:
        """See `Runner.stop`."""
        with self._changed:
            if at is not None and at < self.asked_at:
                return False
            self.asked_at = max(self.asked_at, at or 0.0)
            self._next = None
            self._cancelled.set()
            self._changed.notify_all()
            return not self.idle

    def begin(self, cancelled: threading.Event) -> None:
        """A run starts, and ends the one before unless both belong to the same turn."""
        with self._changed:
            if self._cancelled is not cancelled:
                self._cancelled.set()
                self._cancelled = cancelled
            self._active += 1

    def end(self) -> None:
        """A run has ended."""
        with self._changed:
            self._active -= 1


class InOrder:
    """What one session asks for is done one after the other, and no answer overtakes a later one's."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, _Lock] = WeakValueDictionary()  # gone with who last waits

    @contextmanager
    def __call__(self, session: str) -> Iterator[None]:
        """Waits until what the session asked for before is done."""
        lock = self._locks.setdefault(session, _Lock())
        with lock.lock:
            yield


class _Lock:
    """A lock that can be referred to weakly."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def taking_turns(under_way: Sequence[str], waiting: Sequence[str]) -> list[int]:
    """Places of those who wait, by owner, in the order in which they are served: whoever has fewest before them first.

    What an owner has under way counts as before; of equals the one that came first is first.
    """
    before, rank = Counter(under_way), []
    for owner in waiting:
        rank.append(before[owner])
        before[owner] += 1
    return sorted(range(len(waiting)), key=rank.__getitem__)
