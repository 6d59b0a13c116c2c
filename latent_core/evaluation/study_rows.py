"""Finished rows of studies in a JSONL file, each with all that decides it: only what is the same is taken over.

A file may hold rows of several n, checkpoints and versions; each study finds its own. Rows that do not say what they
were made with are measured again, and so is what a line that cannot be read held: a run was stopped while it wrote.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from latent_core.analysis.statistics import Interval
from latent_core.evaluation.study import Condition, Row, Study
from latent_core.lines import append_line, read_lines
from latent_core.settings import FORMER_NAMES

MADE = "made_with"
BOUNDS = {"accuracy": "interval", "changed": "changed_interval", "donor": "donor_interval"}
"""In JSON a row's shares stand as numbers, and their bounds under names of their own."""
log = logging.getLogger("inscape")


def run_study(study: Study, todo: Sequence[Condition], path: Path) -> Iterator[Row]:
    """Yields a row per condition, finished ones from `path` (JSONL) and new ones as they are measured.

    What is in the file, but is not taken over, is said in the log.
    """
    done = _finished(study, todo, path)
    for condition in todo:
        if condition not in done:
            done[condition] = study.run(condition)
            append_line(path, row_to_json(done[condition]) | {MADE: study.made_with(condition)})
        yield done[condition]


def row_to_json(row: Row) -> dict[str, object]:
    """A Row as JSON values."""
    values: dict[str, object] = {}
    for name, value in dataclasses.asdict(row).items():
        values[name] = value["value"] if name in BOUNDS and value else value
        if name in BOUNDS:
            values[BOUNDS[name]] = value and [value["low"], value["high"]]
    return values


def row_from_json(values: dict) -> Row:
    """A Row from what `row_to_json` made of it; what it was made with may stand beside."""
    values = {name: value for name, value in values.items() if name != MADE}
    condition = values["condition"]
    values["condition"] = Condition(**condition | {"rule": FORMER_NAMES.get(condition["rule"], condition["rule"])})
    for name, bounds in BOUNDS.items():
        edges = values.pop(bounds)
        if values[name] is not None:
            values[name] = Interval(values[name], *edges, values["n"])
    return Row(**values)


def _finished(study: Study, todo: Sequence[Condition], path: Path) -> dict[Condition, Row]:
    """The rows of `path` that this study would measure again as they are, by condition."""
    done: dict[Condition, Row] = {}
    outdated: dict[Condition, list[str]] = {}
    lines, broken = read_lines(path)
    conditions = set(todo)
    for number, values in lines:
        try:
            row, made_with = row_from_json(values), values.get(MADE)
        except (ValueError, KeyError, TypeError, AttributeError):
            broken.append(number)
            continue
        if row.condition not in conditions:
            continue
        differences = _differences(made_with, study.made_with(row.condition))
        if differences:
            outdated[row.condition] = differences
        else:
            done[row.condition] = row
    again = [differences for condition, differences in outdated.items() if condition not in done]
    if broken:
        log.warning(
            "%s: line %s cannot be read; what is missing is measured again.", path, ", ".join(map(str, sorted(broken)))
        )
    if again:
        names = ", ".join(dict.fromkeys(name for differences in again for name in differences))
        log.warning("%s: rows with another or no %s are measured again (%s).", path, names, len(again))
    return done


def _differences(made_with: object, expected: dict[str, object]) -> list[str]:
    """The names of what a row was made with that differ from what is expected."""
    actual = dict(made_with) if isinstance(made_with, dict) else {}
    if isinstance(settings := actual.get("settings"), dict) and settings.get("rule") in FORMER_NAMES:
        actual["settings"] = settings | {"rule": FORMER_NAMES[settings["rule"]]}
    names = (*expected, *(actual.keys() - expected.keys()))
    return [name for name in names if actual.get(name) != expected.get(name)]
