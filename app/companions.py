"""What lies beside a checkpoint's weights for its runs to be inspected with: bank, decoder, measurements."""

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from latent_core import bank, depict
from latent_core.bank import Bank
from latent_core.depict import Depicter
from latent_core.embedded import beside

T = TypeVar("T")


class Companions:
    """Companions of the checkpoints offered, loaded when first asked for; None for others and where there is none.

    Names may come from a trace, and traces from anybody: only names that the program offers are looked for.
    """

    def __init__(self, names: Iterable[str], folders: Mapping[str, str] | None = None) -> None:
        """folders: where those lie that are no embedded ones."""
        self.folders = {name: name for name in names} | dict(folders or {})
        self._loaded: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()

    def bank(self, name: str) -> Bank | None:
        """Raises ValueError for a file that cannot be read."""
        return self._find(name, bank.FILE, Bank.load)

    def depicter(self, name: str) -> Depicter | None:
        """Raises ValueError for a file that cannot be read."""
        return self._find(name, depict.FILE, Depicter.load)

    def measured(self, name: str) -> dict[str, Any]:
        """Reports by name, `grounding` and `depict`, as far as they are there."""
        reports = {what: self._find(name, f"{what}.json", _json) for what in ("grounding", "depict")}
        return {what: report for what, report in reports.items() if report is not None}

    def _find(self, name: str, file: str, load: Callable[[Path], T]) -> T | None:
        if name not in self.folders:
            return None
        with self._lock:
            if (name, file) not in self._loaded:
                path = beside(self.folders[name], file)
                self._loaded[name, file] = None if path is None else load(path)
            return self._loaded[name, file]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
