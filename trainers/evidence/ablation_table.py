"""An ablation's report as Markdown: accuracy of every variant, what replacing its latents does, accuracy by K."""

from collections.abc import Sequence
from dataclasses import dataclass

from latent_core.analysis.statistics import Interval, difference, wilson
from latent_core.evaluation.study import Row
from latent_core.evaluation.study_rows import row_from_json
from latent_core.evaluation.tables import percent, points, table
from latent_core.records import from_json
from trainers.evidence.ablation_variants import Ablation, Variant
from trainers.evidence.reports import Report


@dataclass(frozen=True, slots=True)
class Result:
    """A variant's answers over all families together."""

    variant: Variant
    rows: list[Row]

    def at(self, latents: int) -> list[Row]:
        """One row per family decoded with K latents, nothing replaced."""
        return [row for row in self.rows if not row.condition.replace and row.condition.latents == latents]

    @property
    def clean(self) -> list[Row]:
        """One row per family, nothing replaced, at the variant's first K."""
        return self.at(self.rows[0].condition.latents)

    def replaced(self, by: str) -> Row | None:
        """The row of `find` with its latents replaced; none for a variant without latents."""
        return next((row for row in self.rows if row.condition.replace == by), None)


def together(rows: Sequence[Row]) -> Interval:
    """The accuracy over all rows together."""
    return wilson(sum(round(row.accuracy.value * row.n) for row in rows), sum(row.n for row in rows))


def markdown(report: Report) -> str:
    """An ablations.json as Markdown."""
    ablation = from_json(Ablation, report["ablation"], "ablations.json")
    rows = {name: list(map(row_from_json, values)) for name, values in report["rows"].items()}
    results = [Result(variant, rows[variant.name]) for variant in ablation.variants]
    steps = ", then ".join(f"{name} for {budget} steps" for name, budget in ablation.stages)
    text = (
        f"`{report['command']}`: seeds 0 to {report['n'] - 1}, K = {ablation.latents} unless named, greedy; {steps}, "
        f"one training seed; intervals are 95%. {ablation.note}"
    )
    return f"{text.rstrip()}\n\n{tables(ablation, results)}"


def tables(ablation: Ablation, results: Sequence[Result]) -> str:
    """The tables of a report, with what stands above each."""
    parts = [_accuracies(ablation, results), _replaced(ablation, results), _swept(results)]
    return "\n".join(part for part in parts if part)


def verdict(gap: Interval, variant: Variant, whole: Variant) -> str:
    """Whether the sign of a difference to the whole method is the paper's."""
    if gap.low <= 0 <= gap.high:
        return "no difference beyond chance"
    direction = "lower" if gap.value < 0 else "higher"
    if variant.paper is None and variant.lower is None:
        return f"{direction}; the paper's figure is not at hand"
    if variant.lower is None and variant.paper == whole.paper:
        return f"{direction}: in the paper equal"
    lower = variant.lower if variant.lower is not None else variant.paper < whole.paper
    return f"{direction}: {'agrees' if (gap.value < 0) == lower else 'disagrees'}"


def _accuracies(ablation: Ablation, results: Sequence[Result]) -> str:
    """Accuracy per family and over all, the difference to the whole method, the paper's figure."""
    first = results[0].variant
    header = ["variant", *ablation.families, "all", f"minus {first.name}", f"{ablation.figure} in the paper", "sign"]
    by_name = {result.variant.name: result for result in results}
    lines = []
    for result in results:
        variant, accuracy = result.variant, together(result.clean)
        paper = {True: "worse", False: "better", None: ""}[variant.lower]
        paper = paper if variant.paper is None else f"{variant.paper:.2f}".removesuffix("0")
        cells = [variant.name, *(percent(row.accuracy.value) for row in result.clean), percent(accuracy)]
        if variant is first:
            cells += ["", paper, ""]
        else:
            other = by_name[variant.against or first.name]
            gap = difference(accuracy, together(other.clean))
            against = f" (against {variant.against})" if variant.against else ""
            cells += [f"{points(gap)}{against}", paper, verdict(gap, variant, other.variant)]
        lines.append(cells)
    return table(header, lines)


def _replaced(ablation: Ablation, results: Sequence[Result]) -> str:
    """The table of what replacing the latents does to answers of `find`."""
    words = {"zero": "zeros change", "noise": "noise", "permute": "permuting"}
    shown = [by for by in ablation.replace if by in words]
    header = ["variant", "opens a block", "latents", "donor's answer", *(words[by] for by in shown)]
    lines = []
    for result in results:
        clean, sham, donor = result.clean[0], result.replaced("sham"), result.replaced("donor")
        if donor is None:
            continue
        changed = [result.replaced(by).changed.value - sham.changed.value for by in shown]
        cells = [result.variant.name, percent(clean.trigger), f"{clean.latents:.1f}", percent(donor.donor)]
        lines.append([*cells, *map(percent, changed), "" if clean.cosine is None else f"{clean.cosine:.2f}"])
    return (
        "What becomes of answers to `find` when the latents are replaced, in percent"
        + ("; changes are beyond the sham's:\n\n" if shown else ":\n\n")
        + table([*header, "neighbours' cosine"], lines)
    )


def _swept(results: Sequence[Result]) -> str:
    """Accuracy over all families by K, where variants were decoded with several."""
    swept = [result for result in results if result.variant.sweep]
    if not swept:
        return ""
    counts = sorted({row.condition.latents for result in swept for row in result.rows})
    lines = [[result.variant.name, *(percent(together(result.at(k))) for k in counts)] for result in swept]
    return "Accuracy over all families by the latents of a block, in percent:\n\n" + table(
        ["variant", *(f"K = {k}" for k in counts)], lines
    )
