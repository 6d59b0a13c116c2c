"""Queues of Gradio's messages to sessions that do not listen yet: counted in bytes, as JSON, within a budget.

Gradio would keep every update of every run, up to a megabyte each and several times that as Python's objects, for
whoever never listens.
"""

import asyncio
from collections import deque
from typing import Any, NamedTuple

import gradio as gr
import orjson
from fastapi import Request

from app import visitor
from app.gradio_private import EventMessage, ProcessCompletedMessage, ProcessGeneratingMessage, order_lines
from app.limits import Limits
from app.listening import Listening, Remembered
from app.turns import taking_turns

LOST = "The answer was not listened for, and is no longer kept; ask again."
GROUPS = 4
"""Of events that wait apart, see page.py."""
_LEAST = 500
"""Bytes that a message counts at least."""


class Packed(NamedTuple):
    """A message without its output, the output as JSON, and the bytes that they count."""

    message: EventMessage
    output: bytes | None
    size: int

    def unpacked(self) -> EventMessage:
        if self.output is None:
            return self.message
        return self.message.model_copy(update={"output": orjson.loads(self.output)})


class Waiting(asyncio.Queue):
    """The queue of messages that wait for one session.

    Above its budget only ends of events stay, which hold the whole answer; updates are differences to the one before,
    so none of an event comes after one that was dropped.
    """

    def __init__(self, all_waiting: "AllWaiting") -> None:
        self.size = 0
        self.since = 0.0
        """When something last came for it, by the clock of the server's loop."""
        self._all, self._cut = all_waiting, set[str | None]()
        super().__init__()

    def shed(self, *, ends: bool = False) -> None:
        """Drops updates and notices; with `ends`, answers are replaced by a sentence."""
        packed, self._queue = self._queue, deque[Packed]()
        self.size = 0
        for each in packed:
            if isinstance(each.message, ProcessCompletedMessage):
                self._append(_lost(each.message) if ends else each)
            elif isinstance(each.message, ProcessGeneratingMessage):
                self._cut.add(each.message.event_id)

    # The three that asyncio.Queue has for its kinds.

    def _init(self, maxsize: int) -> None:
        self._queue: deque[Packed] = deque()

    def _put(self, message: EventMessage) -> None:
        update, event = isinstance(message, ProcessGeneratingMessage), message.event_id
        end = isinstance(message, ProcessCompletedMessage)
        if update and event in self._cut:
            return
        if end:
            self._cut.discard(event)
        if self._getters and not self._queue:  # handed on at once
            self._append(Packed(message, None, 0))
            return
        packed = _packed(message)
        self.since = self._all.came()
        if not self._all.fits(self, packed.size):
            self.shed()
        if not self._all.fits(self, packed.size) and end:
            packed = _lost(message)
        if self._all.fits(self, packed.size) and not (update and event in self._cut):
            self._append(packed)
        elif update:
            self._cut.add(event)

    def _get(self) -> EventMessage:
        packed = self._queue.popleft()
        self.size -= packed.size
        return packed.unpacked()

    def _append(self, packed: Packed) -> None:
        self._queue.append(packed)
        self.size += packed.size


class AllWaiting(Remembered):
    """The queues of all sessions, in place of the cache that Gradio has for them.

    Args:
        events: Gradio's table of the events that each session has not heard the end of; it goes with what waits.
    """

    def __init__(self, limits: Limits, listening: Listening, events: dict[str, set[str]]) -> None:
        super().__init__(listening)
        self._limits, self._events = limits, events
        # beside the open pages, whose number is limited, there is always one that can go
        self.max_size = limits.sessions + GROUPS * limits.queue + limits.places
        self._due: asyncio.TimerHandle | None = None

    def fits(self, waiting: Waiting, size: int) -> bool:
        """Whether `size` more bytes may wait for a session; those for whom most waits make room for those of all."""
        if waiting.size + size > self._limits.waiting_bytes:
            return False
        while sum(other.size for other in self.values()) + size > self._limits.all_waiting_bytes:
            most = max(self.values(), key=lambda other: other.size, default=waiting)
            before = most.size
            most.shed(ends=True)
            if most.size == before:
                return False
        return True

    def came(self) -> float:
        """Something has come to wait: the time now. It goes unless somebody listens by `Limits.away_seconds` later."""
        loop = asyncio.get_running_loop()
        if self._due is None:
            self._due = loop.call_later(self._limits.away_seconds, self._expire, loop)
        return loop.time()

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        now, self._due = loop.time(), None
        for session, waiting in list(self.items()):
            if waiting.size and session not in self._listening and now - waiting.since >= self._limits.away_seconds:
                del self[session]
        if any(waiting.size for waiting in self.values()):
            self._due = loop.call_later(self._limits.away_seconds, self._expire, loop)

    def __setitem__(self, session: str, _: object) -> None:
        while session not in self and len(self) >= self.max_size:
            self.popitem(last=False)
        super().__setitem__(session, Waiting(self))

    def __delitem__(self, session: str) -> None:
        super().__delitem__(session)
        self._events.pop(session, None)

    def __missing__(self, session: str) -> Waiting:
        """A new queue for a session whose own had to go, whose events have not ended: nobody will hear of them."""
        return Waiting(self)


def _packed(message: EventMessage) -> Packed:
    output: Any = message.model_dump().get("output")
    if output is None:
        return Packed(message, None, _LEAST)
    # a copy, for what orjson returns keeps the room in which it was written, up to eight times its length
    written = bytes(memoryview(orjson.dumps(output, default=str, option=orjson.OPT_NON_STR_KEYS)))
    return Packed(message.model_copy(update={"output": {}}), written, len(written) + _LEAST)


def _lost(message: ProcessCompletedMessage) -> Packed:
    failure = message.model_copy(update={"output": {"error": LOST}, "success": False, "title": "Error"})
    return Packed(failure, None, _LEAST)


def in_turns(page: gr.Blocks, most: int) -> None:
    """Lets `most` events of each group wait, and those of different addresses take turns."""

    def order(under_way: list[Request], waiting: list[Request]) -> list[int]:
        owners = [[visitor.of(request.scope) for request in requests] for requests in (under_way, waiting)]
        return taking_turns(*owners)

    order_lines(page, most, f"Queue is full. {most} wait already; try again in a few seconds.", order)
