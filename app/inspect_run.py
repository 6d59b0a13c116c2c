"""Inspections, comparisons and repetitions of runs: a run's id in, a value for the page out."""

from collections.abc import Mapping
from typing import Any

from app import traces
from app.ask import first_view, folded, save_trace, unsaved
from app.components import as_file
from app.formulas import all_formulas
from app.history import History, SavedRun
from app.names import run_name
from app.reread import Reread
from app.runner import Ask, Runner
from app.workers import TRACES
from latent_core.events import Event
from latent_core.trace import Trace

MOST_STEPS = 600
"""Steps of a run that can be read by a model again for the page."""


def inspected(
    runner: Runner,
    history: History,
    session: str,
    id: object,
    *,
    model: bool = False,
    heading: traces.Heading | None = None,
) -> dict[str, Any]:
    """The Inspect view of a run; `model` loads its model where that is not loaded yet, to read latents by layer.

    heading: the run's, where it is known already.

    Raises ValueError for a run that is not kept, a broken file, or a model that does not fit.
    """
    saved = history.find(session, id)
    heading = heading or TRACES.run(runner.limits, traces.heading, str(saved.path))
    offered = heading.checkpoint in runner.known
    ready = offered and (model or heading.checkpoint in runner.loaded)
    renamable = not saved.id.startswith("recorded:")
    value = TRACES.run(
        runner.limits,
        traces.figures,
        str(saved.path),
        runner.artifacts,
        run=saved.id,
        name=saved.name,
        own=renamable,
        replayed=_reread(runner, saved, heading) if ready else None,
    )
    return value | {
        "formulas": all_formulas(),
        "known": offered,
        "trace": as_file(str(saved.path)) if renamable else None,
    }


def _reread(runner: Runner, saved: SavedRun, heading: traces.Heading) -> Reread | None:
    """The run once more through its model; None where it has no vectors or is too long for that."""
    if not heading.whole or heading.steps > MOST_STEPS:
        return None
    return runner.reread(Trace.load(saved.path))


def compared(runner: Runner, history: History, session: str, first: object, second: object) -> dict[str, Any]:
    """The Compare view of two runs. Raises ValueError for a run that is not kept or a broken file."""
    runs = [history.find(session, id) for id in (first, second)]
    value = TRACES.run(runner.limits, traces.compared, *(str(each.path) for each in runs), runner.artifacts)
    sides = [{"id": each.id, "name": each.name, "view": view} for each, view in zip(runs, value["views"], strict=True)]
    return {"sides": sides, "same": value["same"], "words": value["words"], "pairs": value["pairs"]}


CHANGES = {"latents": int, "mode": str, "checkpoint": str}


def run_again(
    runner: Runner, history: History, session: str, id: object, changes: Mapping[str, Any]
) -> SavedRun | None:
    """The question of a run once more with other settings; None where it was stopped.

    Raises ValueError for a run that is not kept, for settings that do not exist, and where the disk is full.
    """
    saved = history.find(session, id)
    wrong = [name for name, value in changes.items() if type(value) is not CHANGES.get(name)]
    if wrong:
        raise ValueError(f"{wrong[0]!r} cannot be changed to {changes[wrong[0]]!r}.")
    former = TRACES.run(runner.limits, traces.asked, str(saved.path))
    checkpoint = changes.get("checkpoint", former.checkpoint)
    old = former.settings
    settings = {name: getattr(old, name) for name in old.__dataclass_fields__} | {"rule": None}
    if checkpoint == former.checkpoint:
        settings["rule"] = old.rule
    else:
        settings["latents"] = runner.reasoner(checkpoint).config.latents.default  # what it was taught with
    settings |= {name: value for name, value in changes.items() if name != "checkpoint"}
    runner.limits.check_settings(settings)
    runner.limits.check_images(len(former.images))
    question = runner.limits.check_question(former.question)
    ask = Ask(images=former.images, question=question, checkpoint=checkpoint, settings=settings)
    view, events = first_view(runner, ask), list[Event]()
    for view in folded(view, runner.stream(session, ask), events):  # noqa: B007, B020, the last view is the whole run
        pass
    if view.finish is None:
        return None
    number = runner.next_run()
    try:
        path = save_trace(runner.trace(ask, events), number, runner.limits)
    except OSError as failure:
        raise ValueError(unsaved(failure)) from failure
    return history.add(session, number, run_name(view), path)
