"""The runs that a session has made or opened, and the recorded examples that every session can open.

A run is known by its id: its number, or `recorded:NAME`. What comes from the browser is looked up here and nowhere on
the disk.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from app.components import paths
from app.forms import Form
from app.limits import OWN, Limits
from app.store import store
from latent_core.assets import ASSETS

RECORDED = ASSETS / "traces"
"""Traces that come with Inscape."""
MOST_LETTERS = 60
"""Of a name that a person gives to a run."""
MOST_GIVEN = 120
"""Letters of one that it is given here, after its method and its answer: all names travel with every inspection."""

log = logging.getLogger("inscape")


@dataclass(frozen=True, slots=True)
class SavedRun:
    """A run that can be opened again."""

    id: str
    name: str
    path: Path
    form: Form | None = None
    """What stood in the fields when it was asked; None for a run that was not asked there."""


class History:
    """Runs by session, newest last.

    Those of a session that does not listen are dropped after `limits.away_seconds`, and before where there are too
    many, of the sessions that were not heard of for longest. A run that is dropped takes its trace with it.

    Args:
        listening: the sessions whose page is open.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        recorded: Path = RECORDED,
        limits: Limits = OWN,
        listening: Container[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits, self.listening, self.clock = limits, listening, clock
        self.recorded = tuple(
            SavedRun(f"recorded:{path.stem}", f"Recorded: {path.stem.replace('_', ', ')}", path)
            for path in sorted(recorded.glob("*.safetensors"))
        )
        self._runs: OrderedDict[str, list[SavedRun]] = OrderedDict()
        self._heard: dict[str, float] = {}  # when a session that has runs was last heard of
        self._lock = threading.Lock()

    def admit(self, session: str) -> None:
        """Raises ValueError with a sentence for a session whose runs could not be kept: too many pages are open."""
        with self._lock:
            others = [other for other in self._runs if other != session]
            if len(others) >= self.limits.sessions and all(other in self.listening for other in others):
                raise ValueError(
                    f"This server keeps the runs of {self.limits.sessions} open pages, and so many are open; try "
                    "again when one has been closed."
                )

    def add(self, session: str, number: int, name: str, path: str | Path, form: Form | None = None) -> SavedRun:
        """Keeps a run; the end of an overlong name, such as that of an answer without end, is left out.

        Raises ValueError as `admit` does.
        """
        self.admit(session)
        name = name if len(name) <= MOST_GIVEN else f"{name[: MOST_GIVEN - 1]}…"
        run = SavedRun(str(number), name, Path(path), form)
        with self._lock:
            runs = self._runs.setdefault(session, [])
            runs.append(run)
            dropped = runs[: -self.limits.session_runs]
            del runs[: -self.limits.session_runs]
            self._runs.move_to_end(session)
            self._heard[session] = self.clock()
            while len(self._runs) > self.limits.sessions or self._count() > self.limits.all_runs:
                away = [other for other in self._runs if other != session and other not in self.listening]
                if away:
                    dropped += self._pop(away[0])
                else:  # only the number of runs can be too large, and who has most of them gives the oldest
                    dropped.append(max(self._runs.values(), key=len).pop(0))
        _delete(dropped)
        return run

    def expire(self) -> None:
        """Deletes the runs of sessions that have not listened for `limits.away_seconds`, as far as it is called often
        enough to see it."""
        with self._lock:
            now, dropped = self.clock(), []
            for session in list(self._runs):
                if session in self.listening:
                    self._heard[session] = now
                elif now - self._heard[session] >= self.limits.away_seconds:
                    dropped += self._pop(session)
        _delete(dropped)

    def held(self) -> set[str]:
        """The files that open pages show: trace and images of the newest run of each."""
        with self._lock:
            newest = [runs[-1] for session, runs in self._runs.items() if runs and session in self.listening]
        files = {str(run.path.resolve()) for run in newest}
        for run in newest:
            try:
                files.update(paths(run.form["files"] if run.form else None))
            except ValueError:  # deleted meanwhile
                continue
        return files

    def runs(self, session: str) -> tuple[SavedRun, ...]:
        """The session's own runs, newest first, then the recorded ones."""
        with self._lock:
            return (*reversed(self._runs.get(session, [])), *self.recorded)

    def choices(self, session: str) -> list[tuple[str, str]]:
        """(name, id) of `runs`, for a list to choose from."""
        return [(run.name, run.id) for run in self.runs(session)]

    def find(self, session: str, id: object) -> SavedRun:
        """Raises ValueError for a run that this session does not have."""
        for run in self.runs(session):
            if run.id == id and run.path.exists():
                return run
        raise ValueError("That run is no longer kept; ask the question again.")

    def rename(self, session: str, id: object, name: str) -> None:
        """Gives one of the session's own runs another name. Raises ValueError for an empty or overlong one."""
        name = " ".join(name.split())
        if not 0 < len(name) <= MOST_LETTERS:
            raise ValueError(f"A name has 1 to {MOST_LETTERS} letters; this one has {len(name)}.")
        self._change(session, id, lambda run: [replace(run, name=name)])

    def remove(self, session: str, id: object) -> None:
        """Forgets one of the session's own runs and deletes its trace."""
        run = self.find(session, id)
        self._change(session, id, lambda _: [])
        store().delete(run.path)

    def forget(self, session: str) -> None:
        """Deletes the runs of a session."""
        with self._lock:
            runs = self._pop(session)
        _delete(runs)

    def _pop(self, session: str) -> list[SavedRun]:
        self._heard.pop(session, None)
        return self._runs.pop(session, [])

    def _count(self) -> int:
        return sum(len(runs) for runs in self._runs.values())

    def _own(self, session: str, id: object) -> bool:
        with self._lock:
            return any(run.id == id for run in self._runs.get(session, []))

    def _change(self, session: str, id: object, change: Callable[[SavedRun], list[SavedRun]]) -> None:
        if not self._own(session, id):
            raise ValueError("Only your own runs can be renamed or deleted.")
        with self._lock:
            runs = self._runs[session]
            self._runs[session] = [new for run in runs for new in (change(run) if run.id == id else [run])]


def _delete(runs: Sequence[SavedRun]) -> None:
    """Deletes traces that no session can open any more; one that stays is logged, and swept away later."""
    for run in runs:
        try:
            store().delete(run.path)
        except OSError as problem:
            log.warning("A trace could not be deleted: %s", problem)
