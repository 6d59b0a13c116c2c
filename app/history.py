"""The runs that a session has made or opened, and the recorded examples that every session can open.

A run is known by its id: its number, or `recorded:NAME`. What comes from the browser is looked up here and nowhere on
the disk.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from app.forms import Form
from app.limits import OWN, Limits
from app.retention import delete
from latent_core.trace import Trace

RECORDED = Path(__file__).parent.parent / "assets" / "traces"
"""Traces that come with Inscape."""
MOST_LETTERS = 60
"""Of a name that a person gives to a run."""
MOST_GIVEN = 120
"""Letters of one that it is given here, after its method and its answer: all names travel with every inspection."""

log = logging.getLogger("inscape")


@dataclass(frozen=True, slots=True)
class Kept:
    """A run that can be opened again."""

    id: str
    name: str
    path: Path
    form: Form | None = None
    """What stood in the fields when it was asked; None for a run that was not asked there."""


class History:
    """Runs by session, newest last. Sessions that were not heard of for longest are dropped.

    A run that is dropped takes its trace with it.
    """

    def __init__(self, recorded: Path = RECORDED, limits: Limits = OWN) -> None:
        self.limits = limits
        self.recorded = tuple(
            Kept(f"recorded:{path.stem}", f"Recorded: {path.stem.replace('_', ', ')}", path)
            for path in sorted(recorded.glob("*.safetensors"))
        )
        self._runs: OrderedDict[str, list[Kept]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, session: str, number: int, name: str, path: str | Path, form: Form | None = None) -> Kept:
        """Keeps a run. The end of an overlong name, such as that of an answer without end, is left out."""
        name = name if len(name) <= MOST_GIVEN else f"{name[: MOST_GIVEN - 1]}…"
        kept = Kept(str(number), name, Path(path), form)
        with self._lock:
            runs = self._runs.setdefault(session, [])
            runs.append(kept)
            dropped = runs[: -self.limits.session_runs]
            del runs[: -self.limits.session_runs]
            self._runs.move_to_end(session)
            while len(self._runs) > self.limits.sessions or self._count() > self.limits.all_runs:
                dropped += self._runs.popitem(last=False)[1]
        _delete(dropped)
        return kept

    def runs(self, session: str) -> tuple[Kept, ...]:
        """The session's own runs, newest first, then the recorded ones."""
        with self._lock:
            return (*reversed(self._runs.get(session, [])), *self.recorded)

    def choices(self, session: str) -> list[tuple[str, str]]:
        """(name, id) of `runs`, for a list to choose from."""
        return [(kept.name, kept.id) for kept in self.runs(session)]

    def find(self, session: str, id: object) -> Kept:
        """Raises ValueError for a run that this session does not have."""
        for kept in self.runs(session):
            if kept.id == id and kept.path.exists():
                return kept
        raise ValueError("That run is no longer kept; ask the question again.")

    def open(self, session: str, id: object) -> Trace:
        """The trace of a run. Raises ValueError where it is not kept or its file is gone."""
        return Trace.load(self.find(session, id).path)

    def rename(self, session: str, id: object, name: str) -> None:
        """Gives one of the session's own runs another name. Raises ValueError for an empty or overlong one."""
        name = " ".join(name.split())
        if not 0 < len(name) <= MOST_LETTERS:
            raise ValueError(f"A name has 1 to {MOST_LETTERS} letters; this one has {len(name)}.")
        self._change(session, id, lambda kept: [replace(kept, name=name)])

    def remove(self, session: str, id: object) -> None:
        """Forgets one of the session's own runs and deletes its trace."""
        kept = self.find(session, id)
        self._change(session, id, lambda _: [])
        delete(kept.path)

    def forget(self, session: str) -> None:
        """The tab is closed: its runs are deleted."""
        with self._lock:
            runs = self._runs.pop(session, [])
        _delete(runs)

    def _count(self) -> int:
        return sum(len(runs) for runs in self._runs.values())

    def _own(self, session: str, id: object) -> bool:
        with self._lock:
            return any(kept.id == id for kept in self._runs.get(session, []))

    def _change(self, session: str, id: object, change: Callable[[Kept], list[Kept]]) -> None:
        if not self._own(session, id):
            raise ValueError("Only your own runs can be renamed or deleted.")
        with self._lock:
            runs = self._runs[session]
            self._runs[session] = [new for kept in runs for new in (change(kept) if kept.id == id else [kept])]


def _delete(runs: Sequence[Kept]) -> None:
    """Deletes traces that no session can open any more; one that stays is logged, and swept away later."""
    for kept in runs:
        try:
            delete(kept.path)
        except OSError as problem:
            log.warning("A trace could not be deleted: %s", problem)
