"""`python -m trainers ground`: how often latents attend to what they are about; rule from val, figures on test."""

import dataclasses
from pathlib import Path

from latent_core import glyphs, load
from latent_core.evaluation import grounding
from latent_core.evaluation.tables import percent, table
from latent_core.records import from_json
from trainers.evidence.measurements import beside_weights
from trainers.evidence.reports import Report, write_report

FAMILY = "find"
KINDS = ("similarity", "attention")


def ground(checkpoint: str, *, n: int = 300) -> Path:
    """Measures `find` on seeds 0…n−1; returns the Markdown table. It lies beside the weights.

    Raises ValueError for a checkpoint without latents and for n below 2.
    """
    if n < 2:
        raise ValueError(f"n is {n}; at least 2 samples are needed.")
    reasoner = load(checkpoint)
    latents = reasoner.config.latents.default
    if reasoner.method.open_id is None:
        raise ValueError(f"{checkpoint} has no latents, so there is nothing to ground.")
    by_split = {}
    for split in ("val", "test"):
        examples = [glyphs.sample(FAMILY, seed, split) for seed in range(n)]
        by_split[split] = grounding.collect(reasoner, examples, latents=latents)
    rows = [grounding.report(by_split["test"], grounding.best(by_split["val"], kind)) for kind in KINDS]
    command = f"python -m trainers ground {checkpoint} --n {n}"
    report = {
        "command": command,
        "fingerprint": reasoner.config.provenance.get("fingerprint", "unknown"),
        "family": FAMILY,
        "latents": latents,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    return write_report(beside_weights(checkpoint, "ground") / grounding.FILE, report, markdown)


def markdown(report: Report) -> str:
    """A grounding.json as Markdown: how it was measured, and a line per rule."""
    rows = [from_json(grounding.Grounding, row, grounding.FILE) for row in report["rows"]]
    numbers = [str(t + 1) for t in range(len(rows[0].by_latent))]
    header = ["looks at the highest", "all latents", *numbers, "words of the same runs", "random region of that size"]
    lines = []
    for row in rows:
        each = [f"{100 * one.value:.0f}" for one in row.by_latent]
        lines.append([str(row.rule), percent(row.latents), *each, percent(row.words), percent(row.elsewhere)])
    return (
        f"`{report['command']}`: `{report['family']}`, K = {report['latents']}, seeds 0 to {rows[0].words.n - 1} of "
        "test, rule chosen on as many of val; share of looks at the thing asked for in percent, 95% intervals over "
        f"runs.\n\n{table(header, lines)}"
    )
