"""`python -m trainers study`: the evidence table of a checkpoint, as JSON and Markdown."""

import dataclasses
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from latent_core import glyphs, load
from latent_core.checkpoints.embedded import available
from latent_core.checkpoints.loading import find
from latent_core.evaluation.study import Condition, Row, Study, conditions, timing
from latent_core.evaluation.study_rows import row_from_json, row_to_json, run_study
from latent_core.evaluation.tables import percent, table
from trainers.evidence.reports import METRICS_FILE, Report, write_report


def beside_weights(checkpoint: str, what: str) -> Path:
    """The folder of a checkpoint's reports and files: its own, or runs/`what`/ for one from the Hub.

    Raises ValueError for a checkpoint that is not there.
    """
    if checkpoint in available() or Path(checkpoint).is_dir():
        return find(checkpoint)
    folder = Path("runs") / what / Path(checkpoint).name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def study(
    checkpoint: str,
    *,
    families: Sequence[str] = glyphs.FAMILIES,
    split: str = "test",
    n: int = 500,
    batch: int = 64,
    out: Path | None = None,
) -> Path:
    """Measures a checkpoint on the seeds 0…n−1 of a split; returns the folder with metrics.json and metrics.md.

    Stopped studies go on where they were. Raises ValueError for an unknown family, split or checkpoint.
    """
    for family in families:
        glyphs.sample(family, 0, split)
    reasoner = load(checkpoint)
    fingerprint = str(reasoner.config.provenance.get("fingerprint", "unknown"))
    out = out or Path("runs/study") / f"{Path(reasoner.name).name}-{split}-{fingerprint[:8]}"
    out.mkdir(parents=True, exist_ok=True)
    work = Study(reasoner, lambda family, index: glyphs.sample(family, index, split), n=n, batch=batch)
    todo = list(conditions(reasoner, families))
    rows: list[Row] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("", total=len(todo))
        began = time.monotonic()
        for row in run_study(work, todo, out / "rows.jsonl"):
            rows.append(row)
            c = row.condition
            label = f"{c.family} {c.rule} K {c.latents} {c.mode} {_change(c)}"
            progress.update(task, advance=1, description=f"{label}: {row.accuracy.value:.3f}")
    times = timing(work, families[0])
    blind = {family: glyphs.blind_accuracy(family, split=split) for family in families}
    flags = "" if tuple(families) == glyphs.FAMILIES else f" --families {' '.join(families)}"
    report = {
        "checkpoint": checkpoint,
        "fingerprint": fingerprint,
        "command": f"python -m trainers study {checkpoint} --n {n} --split {split}{flags}",
        "split": split,
        "seeds": [0, n - 1],
        "n": n,
        "seconds": round(time.monotonic() - began, 1),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "blind_accuracy": blind,
        "guessing": {family: 1 / len(glyphs.answers(family)) for family in families},
        "timing_ms": dataclasses.asdict(times),
        "rows": [row_to_json(row) for row in rows],
    }
    write_report(out / METRICS_FILE, report, markdown)
    return out


def markdown(report: Report) -> str:
    """A metrics.json as Markdown: how it was measured, guessing, speed, and a line per condition."""
    blind = ", ".join(f"{family} {percent(value)}%" for family, value in report["blind_accuracy"].items())
    guess = ", ".join(f"{family} {percent(value)}%" for family, value in report["guessing"].items())
    times = report["timing_ms"]
    speed = f"{times['token']:.1f} ms per token, {times['run']:.0f} ms per run"
    if times["latent"] is not None:
        speed = f"{times['latent']:.1f} ms per latent, {times['thought']:.0f} ms per thought, {speed}"
    return (
        f"`{report['command']}`: split {report['split']}, seeds {report['seeds'][0]} to {report['seeds'][1]}, greedy, "
        f"95% Wilson intervals.\n\n"
        f"Uniform guessing: {guess}. Best answer from the question alone: {blind}. "
        f"Single runs (median of {times['n']}): {speed}.\n\n"
        f"{_conditions([row_from_json(row) for row in report['rows']])}"
    )


def _conditions(rows: Sequence[Row]) -> str:
    header = ["family", "rule", "mode", "K", "condition", "n", "accuracy % [95%]", "trigger %", "answer changed %"]
    lines = []
    for row in rows:
        c = row.condition
        cells = [c.family, c.rule, c.mode, str(c.latents), _change(c), str(row.n), percent(row.accuracy)]
        cells += [percent(row.trigger), percent(row.changed), percent(row.donor)]
        lines.append([*cells, "" if row.cosine is None else f"{row.cosine:.2f}", f"{row.tokens:.1f}"])
    return table([*header, "donor's answer %", "cosine", "tokens"], lines)


def _change(condition: Condition) -> str:
    """What was done to the runs of a condition, in a word."""
    return condition.replace or ("wrong image" if condition.wrong_image else "clean")
