"""Files beside a checkpoint's weights with which its runs are inspected: bank, image decoder, measurements."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from latent_core.checkpoints.embedded import beside
from latent_core.evaluation import grounding
from latent_core.evaluation import image_decoder as depict
from latent_core.evaluation import reference_bank as bank
from latent_core.evaluation.grounding import LookRule
from latent_core.evaluation.image_decoder import Depicter
from latent_core.evaluation.reference_bank import Bank

T = TypeVar("T")
log = logging.getLogger("inscape")


class Artifacts:
    """The artifacts of the checkpoints offered, loaded when first asked for; None for others and where there is none.

    Names may come from a trace, and traces from anybody: only names that the program offers are looked for.
    """

    def __init__(self, names: Iterable[str], folders: Mapping[str, str] | None = None) -> None:
        """folders: where those lie that are no embedded ones."""
        self.folders = {name: name for name in names} | dict(folders or {})
        self._loaded: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["Artifacts"], tuple[list[str], dict[str, str]]]:
        """For another process, which finds them by itself."""
        return Artifacts, ([], self.folders)

    def bank(self, name: str) -> Bank | None:
        """The bank of states of a checkpoint. Raises ValueError for a file that cannot be read."""
        return self._find(name, bank.FILE, Bank.load)

    def depicter(self, name: str) -> Depicter | None:
        """The image decoder of a checkpoint. Raises ValueError for a file that cannot be read."""
        return self._find(name, depict.FILE, Depicter.load)

    def measured(self, name: str) -> dict[str, Any]:
        """Reports by name, `grounding` and `depict`, as far as they are there and can be used."""
        reports = {
            "grounding": self._find(name, grounding.FILE, _usable(grounding.read_report)),
            "depict": self._find(name, depict.REPORT, _usable(depict.read_report)),
        }
        return {what: report for what, report in reports.items() if report is not None}

    def rules(self, name: str) -> tuple[LookRule, ...]:
        """The measured ways to read a checkpoint's latents, best first; none where that was not, or cannot be read."""
        report = self._find(name, grounding.FILE, _usable(grounding.read_report))
        return () if report is None else grounding.measured_rules(report)

    def _find(self, name: str, file: str, load: Callable[[Path], T]) -> T | None:
        if name not in self.folders:
            return None
        if (name, file) not in self._loaded:  # without the lock: see Runner._answer
            with self._lock:
                path = beside(self.folders[name], file)
                self._loaded.setdefault((name, file), None if path is None else load(path))
        return self._loaded[name, file]


def _usable(read: Callable[[Path], dict[str, Any]]) -> Callable[[Path], dict[str, Any] | None]:
    """A reader of reports; one that cannot be used is logged, for runs can be shown without."""

    def load(path: Path) -> dict[str, Any] | None:
        try:
            return read(path)
        except ValueError as problem:
            log.warning("%s", problem)
            return None

    return load
