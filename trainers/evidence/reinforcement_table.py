"""A reinforcement report as Markdown: accuracy before and after, by K, and what happened along training."""

from latent_core import glyphs
from latent_core.evaluation.study import Condition, Row
from latent_core.evaluation.study_rows import row_from_json
from latent_core.evaluation.tables import percent, table
from trainers.evidence.reports import Report

DASHES = " --- "
"""Below the names of a header, as in the tables that ship."""
Rows = dict[str, list[Row]]
"""By the name of the run, the checkpoint before it first."""
Curves = dict[str, list[dict[str, float]]]
"""By the name of the run: its evaluations in order."""


def markdown(report: Report) -> str:
    """A reinforcement.json as Markdown."""
    rows = {label: list(map(row_from_json, values)) for label, values in report["rows"].items()}
    training, curves = report["training"], report["curves"]
    text = (
        f"`{report['command']}`: seeds 0 to {report['n'] - 1}, greedy, 95% intervals. {training['steps']} steps: "
        f"{training['questions']} questions of {' and '.join(report['families'])}, {training['group']} responses to "
        f"each, {training['updates']} updates for every {training['responses']} responses.\n"
    )
    families, latents = report["families"], report["latents"]
    parts = [text, _accuracies(families, latents, rows), _by_latents(families[0], rows) if latents else ""]
    return "\n".join(part for part in [*parts, _rewards(curves), _movements(curves), _groups(curves)] if part)


def _accuracies(learned: list[str], latents: int | None, rows: Rows) -> str:
    """Every family's accuracy; for a model with latents also what the donor's, and none at all, do to the first."""
    families = [*learned, *(family for family in glyphs.FAMILIES if family not in learned)]
    header = ["", *(f"`{family}`{f', K = {latents}' if latents else ''}" for family in families)]
    if latents:
        header += ["donor's answer", "markers alone", "opens a block"]
    lines = []
    for label, measured in rows.items():
        usual = [row for row in measured if _is_clean(row.condition) and row.condition.latents in (latents, 0)]
        clean = {row.condition.family: row for row in usual}
        cells = [label, *(percent(clean[family].accuracy) for family in families)]
        if latents:
            donor = next((r.donor for r in measured if r.condition.replace == "donor"), None)
            markers = next(r for r in measured if r.condition.mode == "markers")
            cells += [percent(donor), percent(markers.accuracy.value), percent(clean[families[0]].trigger)]
        lines.append(cells)
    return table(header, lines, dashes=DASHES)


def _is_clean(condition: Condition) -> bool:
    return not condition.replace and condition.mode != "markers"


def _by_latents(family: str, rows: Rows) -> str:
    by_label = {
        label: {
            r.condition.latents: r.accuracy.value
            for r in each
            if _is_clean(r.condition) and r.condition.family == family
        }
        for label, each in rows.items()
    }
    counts = sorted({latents for by in by_label.values() for latents in by})
    lines = [[label, *(percent(by.get(latents)) for latents in counts)] for label, by in by_label.items()]
    return f"`{family}` by K, in percent:\n\n" + table(["", *(f"K = {k}" for k in counts)], lines, dashes=DASHES)


def _rewards(curves: Curves) -> str:
    steps = [str(point["step"]) for point in next(iter(curves.values()))]
    lines = [[label, *(f"{point['eval_reward']:.3f}" for point in points)] for label, points in curves.items()]
    text = "Mean reward of greedy answers on the validation split, by step:\n\n"
    return text + table(["", *steps], lines, dashes=DASHES)


def _movements(curves: Curves) -> str:
    """Ratios of probabilities to those at sampling, how many were clipped, KL from the start in nats."""
    header = ["", "token ratio ± sd", "clipped", "latent ratio ± sd", "clipped", "KL of tokens", "of latents"]
    lines = []
    for label, points in curves.items():
        mean = {name: sum(point.get(name, 0.0) for point in points) / len(points) for name in points[-1]}
        cells = [label]
        for kind in ("token", "latent"):
            if f"{kind}_ratio" in mean:
                ratio = f"{mean[f'{kind}_ratio']:.3f} ± {mean[f'{kind}_ratio_std']:.3f}"
                cells += [ratio, percent(mean[f"{kind}_clipped"])]
            else:
                cells += ["", ""]
        last = points[-1]
        cells += [f"{last['token_kl']:.3f}", f"{last['latent_kl']:.3f}" if "latent_kl" in last else ""]
        lines.append([*cells, f"{percent(points[0]['trigger'])} to {percent(last['trigger'])}"])
    text = "How far the policy moves: means over the run, KL from the start at its end, blocks first and last:\n\n"
    return text + table([*header, "opens a block"], lines, dashes=DASHES)


def _groups(curves: Curves) -> str:
    """The table of how many of a group's responses were right, at the first run's beginning and at its end."""
    label, points = next(iter(curves.items()))
    names = [name for name in points[0] if name.startswith("solved_")]
    ends = (("first", points[0]), ("last", points[-1]))
    lines = [[when, *(percent(point[name]) for name in names)] for when, point in ends]
    return f"Groups of {len(names) - 1} by how many of them were right, in percent ({label}):\n\n" + table(
        ["", *(name.removeprefix("solved_") for name in names)], lines, dashes=DASHES
    )
