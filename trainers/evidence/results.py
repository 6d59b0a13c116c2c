"""The evidence in README and docs/RESULTS.md, written from the embedded checkpoints' measurements and nothing else."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from latent_core import glyphs
from latent_core.analysis.statistics import Interval
from latent_core.assets import ASSETS
from latent_core.checkpoints.embedded import EMBEDDED
from latent_core.evaluation import grounding
from latent_core.evaluation import image_decoder as depict
from latent_core.evaluation.grounding import Grounding
from latent_core.evaluation.study import REPLACEMENTS, Condition, Row
from latent_core.evaluation.study_rows import row_from_json
from latent_core.evaluation.tables import percent, table
from latent_core.files import write_file
from latent_core.records import from_json
from trainers.evidence.cards import as_markdown
from trainers.evidence.reports import ABLATIONS_FILE, METRICS_FILE, REINFORCEMENT_FILE, Report, read_report

README = ASSETS.parent / "README.md"
RESULTS = README.parent / "docs" / "RESULTS.md"
BEGIN, END = "<!-- evidence: written by `python -m trainers glyphs` -->", "<!-- /evidence -->"


def measurements(name: str) -> Report:
    """metrics.json of an embedded checkpoint, its rows as Row."""
    report = read_report(EMBEDDED / name / METRICS_FILE)
    return report | {"rows": [row_from_json(row) for row in report["rows"]]}


def write_evidence(
    names: Sequence[str], reinforced: Sequence[str] = (), readme: Path = README, results: Path = RESULTS
) -> None:
    """Replaces what stands between the two markers of the README, and all of docs/RESULTS.md.

    Raises ValueError where a marker is missing.
    """
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme} lacks the marker {BEGIN} or {END}.")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    write_file(readme, f"{before}{BEGIN}\n{headline(names)}{END}{after}".encode())
    write_file(results, evidence(names, reinforced).encode())


def headline(names: Sequence[str]) -> str:
    """Markdown for the README: accuracy by family, and what becomes of answers when latents are replaced."""
    reports, latent = _reports(names)
    return "\n".join([_accuracies(reports), _interventions(latent)])


def evidence(names: Sequence[str], reinforced: Sequence[str] = ()) -> str:
    """docs/RESULTS.md: the headline, K, attention, images, blocks against text, ablations, reinforcement."""
    reports, latent = _reports(names)
    parts = [TITLE, _accuracies(reports), "## Do the latents matter?", _interventions(latent)]
    parts += ["## How many latents, and how fast", _sweeps(latent)]
    parts += ["## Where they look, what they stand for", _looks(latent), _depictions(names)]
    parts += [_without_blocks(name, latent[name]) for name in names if _is_long(latent.get(name))]
    for name in names:
        if report := as_markdown(name, ABLATIONS_FILE):
            parts.append(f"## `{name}`, one part at a time\n{report}")
    for name in reinforced:
        parts.append(f"## `{name}`, before and after reinforcement\n{as_markdown(name, REINFORCEMENT_FILE)}")
    return "\n".join(part for part in parts if part)


TITLE = """# What the embedded models do
Written by `python -m trainers glyphs` from the measurements that lie beside each checkpoint (`metrics.json`,
`grounding.json`, `depict.json`, `ablations.json`, `reinforcement.json` in `assets/checkpoints/`); a test compares
them. What the checkpoints are stands in the [README](../README.md#the-embedded-models).

## How often they are right"""


def _reports(names: Sequence[str]) -> tuple[dict[str, dict], dict[str, dict]]:
    """All measurements by checkpoint, and those of checkpoints with latents."""
    reports = {name: measurements(name) for name in names}
    return reports, {name: report for name, report in reports.items() if _default_rule_and_k(report)[1] is not None}


def _accuracies(reports: dict[str, dict]) -> str:
    first = next(iter(reports.values()))
    families = (*glyphs.FAMILIES, "views")
    lines = []
    for label, key in (("uniform guessing", "guessing"), ("best answer from the question alone", "blind_accuracy")):
        shares = {family: share for report in reports.values() for family, share in report[key].items()}
        lines.append([label, *(percent(shares.get(family)) for family in families)])
    for name, report in reports.items():
        rows, rule, latents = _rows(report), *_default_rule_and_k(report)
        if latents is None:
            conditions = {f"`{name}`": {"latents": 0, "mode": "text"}}
        else:
            rules = dict.fromkeys((rule, "causal"))
            conditions = {f"`{name}`, K = {latents}, `{r}`": {"latents": latents, "rule": r} for r in rules}
        for label, fields in conditions.items():
            measured = (rows.get(Condition(family=family, **fields)) for family in families)
            lines.append([label, *("" if row is None else percent(row.accuracy) for row in measured)])
    return (
        f"Test split, seeds {first['seeds'][0]} to {first['seeds'][1]}, greedy; accuracy in %, 95% intervals:\n\n"
        + table(["", *families], lines)
    )


def _interventions(reports: dict[str, dict]) -> str:
    lines = []
    for name, report in reports.items():
        rows, default_rule, latents = _rows(report), *_default_rule_and_k(report)
        for rule in dict.fromkeys((default_rule, "causal")):
            base = Condition(family="find", latents=latents, rule=rule)
            by = {what: rows[replace(base, replace=what)] for what in REPLACEMENTS}
            cells = [f"`{name}`", f"`{rule}`", percent(rows[base].accuracy), percent(by["donor"].donor)]
            cells += [percent(by[what].changed.value) for what in REPLACEMENTS]
            cells += [percent(rows[replace(base, mode="markers")].accuracy.value)]
            cells += [percent(rows[replace(base, wrong_image=True)].accuracy.value)]
            cosine = rows[base].cosine
            lines.append([*cells, "" if cosine is None else f"{cosine:.2f}"])
    header = ["", "rule", "as it is", "donor's answer", "sham", "zeros", "noise", "permuted", "donor"]
    return (
        "What becomes of answers to `find` when latents are replaced, in percent: accuracy as it is, answers equal "
        "to those of the sample that the latents are from, answers that change (`sham` feeds a run its own latents "
        "again), accuracy with markers alone and with another image, cosine of neighbouring latents:\n\n"
        + table([*header, "markers alone", "another image", "cosine"], lines)
    )


def _sweeps(reports: dict[str, dict]) -> str:
    counts = (1, 2, 4, 6, 8, 9, 12, 16, 25, 36)
    lines = []
    for name, report in reports.items():
        rows, rule, latents = _rows(report), *_default_rule_and_k(report)
        measured = [rows.get(Condition(family="find", latents=count, rule=rule)) for count in counts]
        times = report["timing_ms"]
        cells = [f"`{name}`", *("" if row is None else percent(row.accuracy.value) for row in measured)]
        usual = rows[Condition(family="find", latents=latents, rule=rule)]
        cells += [percent(usual.trigger), f"{usual.latents:.1f}", f"{times['latent']:.2f}", f"{times['thought']:.1f}"]
        lines.append(cells)
    header = [
        *(f"K = {count}" for count in counts),
        "opens a block",
        "latents a run",
        "ms a latent",
        "ms a run's latents",
    ]
    return "`find` by K, accuracy in percent; at the checkpoint's own K the rest:\n\n" + table(["", *header], lines)


def _looks(names: Iterable[str]) -> str:
    """The table of what each checkpoint's latents attend to, by the two rules that were measured."""
    lines = []
    for name in names:
        file = EMBEDDED / name / grounding.FILE
        if file.is_file():
            for row in read_report(file)["rows"]:
                grounded = from_json(Grounding, row, file.name)
                shares = map(percent, (grounded.latents, grounded.words, grounded.elsewhere))
                lines.append([f"`{name}`", str(grounded.rule), *shares])
    header = ["", "looks at the highest", "latents", "words of the same runs", "random region of that size"]
    return (
        "How often a look falls on the thing asked for, `find`, percent (`python -m trainers ground`, n = 300):\n\n"
        + table(header, lines)
        if lines
        else ""
    )


def _depictions(names: Sequence[str]) -> str:
    """The table of marks, as read from what a decoder paints."""
    lines = []
    for name in names:
        file = EMBEDDED / name / depict.REPORT
        if file.is_file():
            read = read_report(file)["read"]
            lines.append([f"`{name}`", *(percent(Interval(**read[picture]["mark"])) for picture in DEPICTED)])
    return (
        "The mark, read by a classifier of true pictures from what a decoder of latents paints, in percent "
        "(`python -m trainers depict`, n = 500):\n\n" + table(["", *DEPICTED], lines)
        if lines
        else ""
    )


DEPICTED = ("the true picture", "from the block", "from the words before it", "from another sample’s block")


def _is_long(report: dict | None) -> bool:
    """Whether a checkpoint learned several views, and so chains with a block before every step."""
    return report is not None and "views" in report["guessing"]


def _without_blocks(name: str, report: dict) -> str:
    """The table of accuracy against the length of the reasoning, with blocks and without."""
    rows, rule, latents = _rows(report), *_default_rule_and_k(report)
    lines = []
    for family in report["guessing"]:
        cells = [f"`{family}`"]
        for shown_rule in dict.fromkeys((rule, "causal")):
            for mode in ("latent", "text"):
                row = rows[Condition(family=family, latents=latents, rule=shown_rule, mode=mode)]
                cells += [percent(row.accuracy), f"{row.tokens:.0f}"]
        lines.append(cells)
    header = [
        f"`{shown_rule}`, {words}{what}"
        for shown_rule in dict.fromkeys((rule, "causal"))
        for words in ("with blocks", "words only")
        for what in ("", ": tokens")
    ]
    return f"`{name}` with its blocks and without, by the length of the answer:\n\n" + table(["", *header], lines)


def _rows(report: dict) -> dict[Condition, Row]:
    return {row.condition: row for row in report["rows"]}


def _default_rule_and_k(report: dict) -> tuple[str, int | None]:
    """The checkpoint's rule and K where its user names none, as in its first row; None for a model without latents."""
    condition = report["rows"][0].condition
    return condition.rule, None if condition.mode == "text" else condition.latents
