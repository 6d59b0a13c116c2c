"""The models and the runs under way; the only place of the app that calls latent_core's engine."""

import contextlib
import itertools
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from app.artifacts import Artifacts
from app.budget import spread
from app.limits import OWN, Limits
from app.listening import Listening
from app.rate import Rate
from app.reread import Reread, reread_by
from app.turns import InOrder, Session, Turn
from app.zerogpu import Lend, Work, lent, seconds_for
from latent_core.checkpoints.embedded import beside
from latent_core.checkpoints.published import PLAIN, PUBLISHED
from latent_core.config import MethodConfig
from latent_core.events import Event
from latent_core.trace import Trace

if TYPE_CHECKING:
    from latent_core.reasoner import Reasoner  # brings transformers, which the page does not wait for

SLOW = 25.0
"""Events per second at the speed `slow`."""
LAYERS = 8
"""Decoder layers of a run whose attention is recorded, at most, beside the one that was measured to be best."""
PATIENCE = 5.0
"""Seconds that a run waits for a place: one that was cancelled ends with its next event, after Gradio's queue has let
the next one in."""
REFRESH = 0.1
"""Seconds between updates of the page."""
T = TypeVar("T")
log = logging.getLogger("inscape")


class Overtime(ValueError):
    """A run that took longer than the instance allows; what came until then is a run all the same."""


class Closed(Overtime):
    """A run that the server's end cut short; likewise."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One question as the page or the API puts it; images are decoded already."""

    images: Sequence[Image.Image]
    question: str
    checkpoint: str
    settings: Mapping[str, Any]
    """Fields of `latent_core.Settings`; the checkpoint fills in the others and checks all."""
    slow: bool = False


class Runner:
    """Models by name, loaded when first asked for, and the runs of every session.

    Args:
        names: checkpoints to offer, as their runs call them; the first is the default.
        load: name or folder → reasoner (latent_core.load).
        others: checkpoints that runs can be compared with, beside those.
        folders: where those lie that `load` does not find by their names.
        lend: lends a GPU for a call (zerogpu.py), where the platform works that way.
        borrowers: those checkpoints that need it. They must be loaded before the page is served.
        limits: what one visitor may ask for.
    """

    def __init__(
        self,
        names: Sequence[str],
        load: "Callable[[str], Reasoner]",
        others: Sequence[str] = (),
        *,
        folders: Mapping[str, str] | None = None,
        lend: Lend | None = None,
        borrowers: Iterable[str] = (),
        limits: Limits = OWN,
    ) -> None:
        self.names = tuple(names)
        self.limit(limits)
        self.known = (*self.names, *(name for name in others if name not in names))
        self.folders = dict(folders or {})
        self.artifacts = Artifacts(self.known, self.folders)
        self.in_order = InOrder()
        self._load = load
        self._reasoners: dict[str, Reasoner] = {}
        self._loading = threading.Lock()
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._closed_tabs: OrderedDict[str, None] = OrderedDict()  # the last ones, by their sessions' names
        self._running = 0
        self._closed = False
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._numbers = itertools.count(time.time_ns() // 1_000_000)  # later than those of a server before this one
        self._borrowers = frozenset(borrowers) if lend else frozenset()
        self._answer_there, self._reread_there = self._answer, self._reread
        if lend is not None:
            self._answer_there = lent(self._answer, lend, self._seconds_of_answer)
            self._reread_there = lent(self._reread, lend, self._seconds_of_reread)

    def limit(self, limits: Limits) -> None:
        """Allows what `limits` say from now on."""
        self.limits = limits
        self.listening = Listening(limits.sessions, limits.share)
        self.starts = Rate(limits.runs_a_minute, "runs", most=limits.sessions)
        self.inspections = Rate(limits.inspections_a_minute, "inspections", most=limits.sessions)

    def reasoner(self, name: str) -> "Reasoner":
        """The model of this name. Raises ValueError for names that are not offered."""
        if name not in self.known:
            raise ValueError(f"Unknown checkpoint {str(name)[:80]!r}; choose one of {', '.join(self.known)}.")
        if name not in self._reasoners:  # whose model is loaded waits for nobody
            with self._loading:  # one at a time: transformers sets torch's default dtype while it reads weights
                if name not in self._reasoners:  # who waited here may find that another has loaded it
                    self._reasoners[name] = self._load(self.folders.get(name, name))
        return self._reasoners[name]

    def config(self, name: str) -> MethodConfig:
        """The config of a checkpoint; waits for its weights only where no file says it. Raises ValueError."""
        if name in self.known and name not in self._reasoners:
            if config := own_config(name, self.folders.get(name)):
                return config
        return self.reasoner(name).config

    def preload(self, name: str) -> threading.Thread:
        """Loads a model in the background, to be ready when Run is pressed; what is wrong with it is logged."""

        def load() -> None:
            try:
                self.reasoner(name)
            except ValueError as problem:
                log.warning("%s", problem)

        thread = threading.Thread(target=load, daemon=True)
        thread.start()
        return thread

    def next_run(self) -> int:
        """A number larger than those of all runs before."""
        return next(self._numbers)

    @property
    def running(self) -> int:
        """Models at work, for runs and inspections of all sessions: at most `Limits.at_once`, whoever called."""
        return self._running

    @property
    def loaded(self) -> tuple[str, ...]:
        return tuple(self._reasoners)

    def stream(self, session: str, ask: Ask, cancelled: threading.Event | None = None) -> Iterator[Event]:
        """The events of a run, without a FinishEvent where it was stopped; a new run of a session ends the one before.

        `cancelled` is that of the turn in which it runs, if it is one of `turns`. Closing the iterator closes the
        engine's. Raises ValueError for what the model cannot read, for a session that starts too many runs and where
        no place is free; Overtime where the run took too long.
        """
        self.starts.take(session)
        cancelled = cancelled or threading.Event()
        with self._under_way(session, cancelled), self._place(cancelled):
            self.reasoner(ask.checkpoint)
            answer: Work = self._answer_there if ask.checkpoint in self._borrowers else self._answer
            with contextlib.closing(answer(ask)) as events:
                yield from paced(timely(events, self.limits.run_seconds), SLOW if ask.slow else None, cancelled)
            if self._closed:
                raise Closed("The server is going down; what came until then is shown. Ask again in a few minutes.")

    def reread(self, trace: Trace) -> Reread:
        """A run once more through its model: where its attention came from, and what its latents read as.

        Raises ValueError for a trace whose vectors were not recorded or that another model made, and where no place is
        free.
        """
        checkpoint = trace.source.checkpoint
        with self._place(threading.Event()):
            self.reasoner(checkpoint)
            reread: Work = self._reread_there if checkpoint in self._borrowers else self._reread
            (result,) = reread(trace)
            return result

    # The two that need the GPU. They take no lock: where they run in a copy of this process, another thread may have
    # held it when the copy was made, and nobody there will release it.

    def _answer(self, ask: Ask) -> Iterator[Event]:
        reasoner = self._reasoners[ask.checkpoint]
        best = {rule.level for rule in self.artifacts.rules(ask.checkpoint) if rule.kind == "attention"}
        layers = {*spread(reasoner.num_layers, LAYERS), *best.intersection(range(reasoner.num_layers))}
        events = reasoner.stream(list(ask.images), ask.question, attention=sorted(layers), **ask.settings)
        with contextlib.closing(events):
            yield from events

    def _reread(self, trace: Trace) -> Iterator[Reread]:
        yield reread_by(self._reasoners[trace.source.checkpoint], trace)

    def _seconds_of_answer(self, ask: Ask) -> int:
        """Raises ValueError for settings out of range, before a GPU is asked for."""
        reasoner = self.reasoner(ask.checkpoint)
        settings, most = reasoner.settings(**ask.settings), reasoner.config.image.max_pixels
        latents = 0 if settings.mode in ("text", "markers") else settings.latents * settings.max_blocks
        pixels = sum(min(image.width * image.height, most or math.inf) for image in ask.images)
        return seconds_for(tokens=settings.max_new_tokens, latents=latents, pixels=pixels)

    def _seconds_of_reread(self, trace: Trace) -> int:
        """One forward for all steps at once, and a few for the lens."""
        pixels = sum(image.shape[0] * image.shape[1] for image in trace.images)
        return seconds_for(tokens=self.reasoner(trace.source.checkpoint).num_layers, latents=0, pixels=pixels)

    def trace(self, ask: Ask, events: Iterable[Event]) -> Trace:
        """The trace of what `stream` gave. Raises ValueError for a run stopped before its prompt was read."""
        return self.reasoner(ask.checkpoint).trace(events, ask.question, **ask.settings)

    def turns(self, session: str, at: float, work: T) -> Iterator[Turn[T]]:
        """The turns of a session: what it asked for at the time `at`, then all that it asks for meanwhile.

        A session does one thing at a time, in one of its calls: what a later call brings ends the turn under way and
        is the next one, and only the last of several is. So nothing comes where another call is at it already, and
        nothing where `at` is not later than what was asked or stopped before.
        """
        with self._lock:
            state = self._session(session)
        try:
            yield from state.turns(at, work)
        finally:
            with self._lock:
                if state.idle and self._gone(session) and self._sessions.get(session) is state:
                    del self._sessions[session]

    def interrupt(self, session: str, at: float) -> None:
        """Ends the turn under way if it was asked for before `at`: another comes, and need not wait for its place."""
        with self._lock:
            state = self._sessions.get(session)
        if state is not None:
            state.interrupt(at)

    def stop(self, session: str, at: float | None = None) -> bool:
        """Ends what the session runs and all that it asked for before `at`; whether there was anything.

        `at` None: all that has been asked for until now. Does nothing where something was asked for after `at`.
        """
        with self._lock:
            remembers = at is not None and not self._gone(session)
            state = self._session(session) if remembers else self._sessions.get(session)
        return state is not None and state.stop(at)

    def forget(self, session: str) -> None:
        """The tab is closed."""
        with self._lock:
            state = self._sessions.pop(session, None)
            self._closed_tabs[session] = None
            while len(self._closed_tabs) > self.limits.sessions:
                self._closed_tabs.popitem(last=False)
        if state is not None:
            state.stop()

    def _gone(self, session: str) -> bool:
        """Whether its tab was closed and has not come back: what was on its way is done, and nothing kept of it."""
        return session in self._closed_tabs and session not in self.listening

    def close(self, seconds: float) -> None:
        """The server goes down: ends what runs, tells it so, and waits for that as long as `seconds`. Nothing more is
        begun."""
        with self._ended:
            self._closed = True
            for state in self._sessions.values():
                state.stop()
            self._ended.wait_for(lambda: not self._running, seconds)

    def _session(self, name: str) -> Session:
        """The session of this name. Idle ones that were not heard of for longest make room for a new one, those whose
        page is not open first."""
        state = self._sessions.setdefault(name, Session())
        self._sessions.move_to_end(name)
        idle = [other for other, session in self._sessions.items() if session.idle and other != name]
        idle.sort(key=self.listening.__contains__)
        for other in idle[: max(0, len(self._sessions) - self.limits.sessions)]:
            del self._sessions[other]
        return state

    @contextlib.contextmanager
    def _under_way(self, name: str, cancelled: threading.Event) -> Iterator[None]:
        """While a run of this session waits for its place or goes on."""
        with self._lock:
            self._session(name).begin(cancelled)
        try:
            yield
        finally:
            with self._lock:
                state = self._sessions.get(name)
                if state is not None:
                    state.end()
                    if state.idle and not state.asked_at:
                        # a program's: it never says that its session has ended, so nothing of it is kept between runs
                        del self._sessions[name]

    @contextlib.contextmanager
    def _place(self, cancelled: threading.Event) -> Iterator[None]:
        """One of the `at_once` places, while a model is at work; none for what is `cancelled` before it begins.

        Waits for it as long as PATIENCE. Raises ValueError where none has become free by then.
        """
        most = self.limits.at_once
        with self._ended:
            self._ended.wait_for(lambda: cancelled.is_set() or self._running < most, PATIENCE)
            counted = not cancelled.is_set()
            if counted and (self._closed or self._running >= most):
                under_way = "One question is" if most == 1 else f"{most} questions are"
                raise ValueError(
                    "The server is going down; ask again in a few minutes."
                    if self._closed
                    else f"{under_way} being answered, as many as this instance answers at once; try again soon."
                )
            self._running += counted
        try:
            yield
        finally:
            with self._ended:
                self._running -= counted
                self._ended.notify_all()


def own_config(checkpoint: str, folder: str | None = None) -> MethodConfig | None:
    """The config of a checkpoint before its model is loaded; None for one from the Hub that is no published one.

    Raises ValueError for a method.json that cannot be used.
    """
    if path := beside(folder or checkpoint, "method.json"):
        return MethodConfig.read(path.parent)
    if checkpoint in PUBLISHED:
        return PUBLISHED[checkpoint].config
    return PLAIN if folder and Path(folder).is_dir() else None


def timely(events: Iterable[T], seconds: float, clock: Callable[[], float] = time.monotonic) -> Iterator[T]:
    """The same events; raises Overtime once they have taken longer than `seconds`, waiting for them included."""
    end = clock() + seconds
    for event in events:
        if clock() > end:
            raise Overtime(
                f"The run was stopped after {seconds:g} seconds, the most that this instance gives; what came until "
                "then is shown. Ask for fewer tokens or latents, or at the speed “real”."
            )
        yield event


def paced(events: Iterable[T], rate: float | None, cancelled: threading.Event) -> Iterator[T]:
    """The same events, at most `rate` a second; ends when `cancelled` is set. Waiting is no part of any event."""
    if cancelled.is_set():  # before the first event, for which the model reads the prompt
        return
    due = time.monotonic()
    for event in events:
        if rate is not None:
            due = max(due + 1 / rate, time.monotonic() - 1 / rate)
            cancelled.wait(max(0.0, due - time.monotonic()))
        if cancelled.is_set():
            return
        yield event


def throttled(items: Iterable[T], seconds: float = REFRESH) -> Iterator[T]:
    """The first and the last of `items`, and of the rest at most one in each `seconds`."""
    last, held = None, []
    for item in items:
        now = time.monotonic()
        if last is None or now - last >= seconds:
            last, held = now, []
            yield item
        else:
            held = [item]
    yield from held
