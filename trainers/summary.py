"""The README's evidence section, written from the embedded checkpoints' measurements and from nothing else."""

import json
from collections.abc import Sequence
from pathlib import Path

from latent_core import glyphs
from latent_core.embedded import EMBEDDED
from latent_core.files import write_file
from latent_core.study import Condition, Row, row_from_json

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- evidence: written by `python -m trainers glyphs` -->", "<!-- /evidence -->"


def measurements(name: str) -> dict:
    """metrics.json of an embedded checkpoint, its rows as Row."""
    report = json.loads((EMBEDDED / name / "metrics.json").read_text())
    return report | {"rows": [row_from_json(row) for row in report["rows"]]}


def write_evidence(names: Sequence[str], readme: Path = README) -> None:
    """Replaces what stands between the two markers of the README. Raises ValueError where a marker is missing."""
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme} lacks the marker {BEGIN} or {END}.")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    write_file(readme, f"{before}{BEGIN}\n{evidence(names)}{END}{after}".encode())


def evidence(names: Sequence[str]) -> str:
    """Markdown: accuracy of every checkpoint by family; what happens to answers when latents are replaced; K."""
    reports = {name: measurements(name) for name in names}
    first = next(iter(reports.values()))
    families = glyphs.FAMILIES
    lines = [
        f"Test split, seeds {first['seeds'][0]} to {first['seeds'][1]}, greedy; accuracy in percent, 95% intervals:",
        "",
        f"| | {' | '.join(families)} |",
        "|---" * (len(families) + 1) + "|",
        _line("uniform guessing", [_number(first["guessing"][family]) for family in families]),
        _line(
            "best answer from the question alone", [_number(first["blind_accuracy"][family]) for family in families]
        ),
    ]
    for name, report in reports.items():
        rows, rule, latents = _rows(report), *_own(report)
        if latents is None:
            cells = [_accuracy(rows[Condition(family=family, latents=0, mode="text")]) for family in families]
            lines.append(_line(f"`{name}`", cells))
            continue
        for asked in dict.fromkeys((rule, "everything")):
            cells = [_accuracy(rows[Condition(family=family, latents=latents, rule=asked)]) for family in families]
            lines.append(_line(f"`{name}`, K = {latents}, `{asked}`", cells))
    for name, report in reports.items():
        if _own(report)[1] is not None:
            lines += ["", *_interventions(name, report)]
    for name in reports:
        looks = EMBEDDED / name / "grounding.md"
        if looks.is_file():
            lines += ["", f"Where `{name}` looks. {looks.read_text().strip()}"]
    for name in reports:
        pictures = EMBEDDED / name / "depict.md"
        if pictures.is_file():
            lines += ["", f"What `{name}`'s latents depict. {pictures.read_text().strip()}"]
    return "\n".join(lines) + "\n"


def _interventions(name: str, report: dict) -> list[str]:
    rows, rule, latents = _rows(report), *_own(report)
    rules = list(dict.fromkeys((rule, "everything")))
    lines = [
        f"What becomes of `{name}`'s answers to `find`, K = {latents}, in percent:",
        "",
        "| | " + " | ".join(f"`{asked}`: accuracy | answer changed | donor's answer" for asked in rules) + " |",
        "|---" * (3 * len(rules) + 1) + "|",
    ]
    words = {
        "": "as it is",
        "sham": "its own latents fed again (sham)",
        "zero": "zeros for latents",
        "noise": "noise of the same norm",
        "permute": "latents permuted",
        "donor": "another sample's latents",
    }
    for replace, label in words.items():
        cells = []
        for asked in rules:
            row = rows[Condition(family="find", latents=latents, rule=asked, replace=replace)]
            cells += [_accuracy(row), _rate(row.changed, row.changed_interval), _rate(row.donor, row.donor_interval)]
        lines.append(_line(label, cells))
    for label, fields in (
        ("no latents, only the markers", {"mode": "markers"}),
        ("another image", {"wrong_image": True}),
    ):
        cells = []
        for asked in rules:
            cells += [_accuracy(rows[Condition(family="find", latents=latents, rule=asked, **fields)]), "", ""]
        lines.append(_line(label, cells))
    counts = sorted({c.latents for c in rows if c.family == "find" and c.mode == "latent" and c.rule == rule})
    sweep = ", ".join(
        f"{count}: {_number(rows[Condition(family='find', latents=count, rule=rule)].accuracy)}" for count in counts
    )
    own = rows[Condition(family="find", latents=latents, rule=rule)]
    lines += [
        "",
        f"`find` by K: {sweep}. Runs that open a block: {_number(own.trigger)}%. Cosine of neighbouring latents: "
        f"{own.cosine:.2f}. {report['timing_ms']['latent']:.1f} ms per latent in single runs.",
    ]
    return lines


def _rows(report: dict) -> dict[Condition, Row]:
    return {row.condition: row for row in report["rows"]}


def _own(report: dict) -> tuple[str, int | None]:
    """The checkpoint's own rule and K, which its first row was measured with; None for a model without latents."""
    condition = report["rows"][0].condition
    return condition.rule, None if condition.mode == "text" else condition.latents


def _number(share: float) -> str:
    return f"{100 * share:.1f}"


def _rate(share: float | None, interval: tuple[float, float] | None) -> str:
    return "" if share is None else f"{_number(share)} [{_number(interval[0])}, {_number(interval[1])}]"


def _accuracy(row: Row) -> str:
    return _rate(row.accuracy, row.interval)


def _line(label: str, cells: Sequence[str]) -> str:
    return f"| {label} | {' | '.join(cells)} |"
