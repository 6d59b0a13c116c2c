"""Who looks on while an instance is under attack: /health, an honest visitor, its memory, files and log."""

import itertools
import threading
import time
from dataclasses import dataclass, field

import httpx

from latent_core import glyphs
from tests.hostile import written
from tests.instance import CHECKPOINT, Instance
from tests.visitor import COMPLETE, Tab, client, fate

LOST = 30.0
"""Seconds after which nobody waits for an answer any more."""


class Watcher(threading.Thread):
    """Does one thing again and again until it is told to stop."""

    pause = 0.0
    """Seconds between two."""

    def __init__(self, instance: Instance) -> None:
        super().__init__(daemon=True)
        self.instance, self.over = instance, threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            self.look()
            self.over.wait(self.pause)

    def look(self) -> None:
        """Once."""
        raise NotImplementedError

    def end(self) -> None:
        """Stops, after what is under way."""
        self.over.set()
        self.join(timeout=3 * LOST)


class Prober(Watcher):
    """Asks /health five times a second, by turns over a connection of its own and over a new one."""

    pause = 0.2

    def __init__(self, instance: Instance) -> None:
        super().__init__(instance)
        self.kept = client(instance.url, timeout=LOST)
        self.heard: list[tuple[float, float, int]] = []
        """When it was asked, seconds until the answer (LOST for none), runs under way."""
        self._turns = itertools.cycle([True, False])

    def look(self) -> None:
        http = self.kept if next(self._turns) else client(self.instance.url, timeout=LOST)
        began = time.monotonic()
        try:
            running = http.get("health").raise_for_status().json()["running"]
        except httpx.HTTPError:
            self.heard.append((began, LOST, 0))
        else:
            self.heard.append((began, time.monotonic() - began, running))
        if http is not self.kept:
            http.close()

    def worst(self, start: float = 0.0, end: float = float("inf")) -> float:
        """The longest wait for an answer between two times; LOST where there was none at all."""
        return max((seconds for began, seconds, _ in self.heard if start <= began <= end), default=LOST)

    def running(self) -> int:
        """The most runs that were under way at once."""
        return max((running for *_, running in self.heard), default=0)


@dataclass
class Question:
    """One question of an honest visitor."""

    way: str
    tries: list[tuple[str, float]] = field(default_factory=list)
    """What became of each, and how many seconds that took, uploading the picture included."""
    waited: float = 0.0
    """Seconds from the first refusal to the answer; 0 where nothing was refused."""

    @property
    def became(self) -> str:
        """What became of the last try."""
        return self.tries[-1][0] if self.tries else "failed: not asked"


class Honest(Watcher):
    """A visitor who asks about a scene every few seconds.

    By turns on the page and as a program, in a tab that was open before and in a new one. Who is refused with a
    sentence tries again after two seconds.
    """

    pause = 2.0

    def __init__(self, instance: Instance) -> None:
        super().__init__(instance)
        self.questions: list[Question] = []
        self.tab: Tab | None = None
        self.picture = written(glyphs.sample("find", 11, split="test").images[0], "PNG")
        self._ways = itertools.cycle([("page", True), ("program", True), ("page", False), ("program", False)])

    def open(self) -> None:
        """Opens the tab that is there before the attack."""
        self.tab = Tab(self.instance.url, CHECKPOINT, timeout=LOST)

    def look(self) -> None:
        way, before = next(self._ways)
        question = Question(f"{way}, {'open before' if before else 'new'}")
        self.questions.append(question)
        refused = None
        while not question.tries or (question.became.startswith("refused") and time.monotonic() - refused < LOST):
            if question.tries:
                time.sleep(2.0)
            began = time.monotonic()
            became = self._try(way, before)
            question.tries.append((became, time.monotonic() - began))
            if became.startswith("refused"):
                refused = refused or time.monotonic()
        if refused:
            question.waited = time.monotonic() - refused

    def _try(self, way: str, before: bool) -> str:
        tab = self.tab if before else None
        try:
            tab = tab or Tab(self.instance.url, CHECKPOINT, timeout=LOST)
            uploaded = tab.upload(self.picture)
            if uploaded.status_code != 200:
                return fate(False, uploaded.text)
            image = {"path": uploaded.json()[0], "meta": {"_type": "gradio.FileData"}}
            ask = tab.press if way == "page" else tab.ask
            return fate(*ask("Which mark is on the blue square?", image), COMPLETE)
        except (httpx.HTTPError, OSError) as problem:
            return f"failed: no answer ({type(problem).__name__})"
        finally:
            if tab is not None and tab is not self.tab:
                tab.close()


class Meter(Watcher):
    """The largest memory, files and bytes of an instance, which it ends before the machine is in trouble."""

    pause = 0.2

    def __init__(self, instance: Instance, most_memory: int) -> None:
        super().__init__(instance)
        self.most_memory, self.killed = most_memory, False
        self.memory = self.files = self.disk = 0
        self._turn = itertools.count()

    def look(self) -> None:
        self.memory = max(self.memory, self.instance.memory())
        if self.memory > self.most_memory and not self.killed:
            self.killed = True
            self.instance.process.kill()
        if next(self._turn) % 5 == 0:  # walking them takes longer
            self.files, self.disk = max(self.files, self.instance.files()), max(self.disk, self.instance.disk())
