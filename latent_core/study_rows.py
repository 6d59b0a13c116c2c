"""Finished rows of studies in a JSONL file, each with all that decides it: only what is the same is taken over.

A file may hold rows of several n, checkpoints and versions; each study finds its own. Rows that do not say what they
were made with are measured again, and so is what a line that cannot be read held: a run was stopped while it wrote.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from latent_core.study import Condition, Row, Study

MADE = "made_with"
log = logging.getLogger("inscape")


def run_study(study: Study, todo: Sequence[Condition], path: Path) -> Iterator[Row]:
    """Yields a row per condition, finished ones from `path` (JSONL) and new ones as they are measured.

    What is in the file, but is not taken over, is said in the log.
    """
    done = _finished(study, todo, path)
    for condition in todo:
        if condition not in done:
            done[condition] = study.run(condition)
            _append(path, dataclasses.asdict(done[condition]) | {MADE: study.made_with(condition)})
        yield done[condition]


def row_from_json(values: dict) -> Row:
    """A Row from what `dataclasses.asdict` made of it; what it was made with may stand beside."""
    values = {name: value for name, value in values.items() if name != MADE}
    values["condition"] = Condition(**values["condition"])
    for name in ("interval", "changed_interval", "donor_interval"):
        if values[name] is not None:
            values[name] = tuple(values[name])
    return Row(**values)


def _finished(study: Study, todo: Sequence[Condition], path: Path) -> dict[Condition, Row]:
    """The rows of `path` that this study would measure again as they are."""
    done: dict[Condition, Row] = {}
    broken: list[str] = []
    others: dict[Condition, list[str]] = {}
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    wanted = set(todo)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            row, made = row_from_json(values), values.get(MADE)
        except (ValueError, KeyError, TypeError, AttributeError):
            broken.append(str(number))
            continue
        if row.condition not in wanted:
            continue
        differences = _differences(made, study.made_with(row.condition))
        if differences:
            others[row.condition] = differences
        else:
            done[row.condition] = row
    again = [differences for condition, differences in others.items() if condition not in done]
    if broken:
        log.warning("%s: line %s cannot be read; what is missing is measured again.", path, ", ".join(broken))
    if again:
        names = ", ".join(dict.fromkeys(name for differences in again for name in differences))
        log.warning("%s: rows with another or no %s are measured again (%s).", path, names, len(again))
    return done


def _differences(made: object, wanted: dict[str, object]) -> list[str]:
    """What a row was made with that is not as wanted."""
    given = made if isinstance(made, dict) else {}
    return [name for name in (*wanted, *(given.keys() - wanted.keys())) if given.get(name) != wanted.get(name)]


def _append(path: Path, values: dict[str, object]) -> None:
    """One line more, on a line of its own even where the last one was cut off."""
    line = json.dumps(values).encode() + b"\n"
    with path.open("a+b") as file:
        if size := file.seek(0, 2):
            file.seek(size - 1)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)
