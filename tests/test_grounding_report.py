"""grounding.json as the page reads it: what a checkpoint's latents were measured to look at best."""

import copy
import json

import pytest

from app.artifacts import Artifacts
from latent_core.checkpoints.embedded import EMBEDDED, beside, offered
from latent_core.evaluation.grounding import LookRule, measured_rules, read_report

MEASURED = [name for name in offered() if beside(name, "grounding.json")]
SHARE = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
REPORT = {
    "command": "python -m trainers ground mine",
    "family": "find",
    "rows": [
        {"rule": {"kind": kind, "level": 1, "part": 0}, "latents": SHARE, "words": SHARE, "elsewhere": SHARE}
        for kind in ("similarity", "attention")
    ],
}


def changed(*place, to):
    """The report with one value replaced, or removed where `to` is ..."""
    report = copy.deepcopy(REPORT)
    inner = report
    for key in place[:-1]:
        inner = inner[key]
    if to is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = to
    return report


def written(folder, report):
    folder.mkdir(exist_ok=True)
    (folder / "grounding.json").write_text(report if isinstance(report, str) else json.dumps(report))
    return folder / "grounding.json"


def test_what_hits_oftenest_comes_first():
    found = {name: measured_rules(read_report(EMBEDDED / name / "grounding.json"))[0] for name in MEASURED}
    assert found["glyph-monet"] == LookRule("attention", 4, 2)  # block 5, head 3
    assert found["glyph-lvr"] == LookRule("similarity", 0, 0)  # as often as attention, so the first of the report
    assert found["glyph-deeplatent"] == LookRule("similarity", 4, 0)


def test_the_embedded_checkpoints_can_be_read():
    artifacts = Artifacts(offered())
    assert len(MEASURED) >= 8
    for name in offered():
        rules = artifacts.rules(name)
        assert {rule.kind for rule in rules} == ({"similarity", "attention"} if name in MEASURED else set())


def test_names_that_are_not_offered_are_not_looked_for(tmp_path):
    written(tmp_path / "mine", REPORT)
    assert Artifacts(["glyph-monet"]).rules(str(tmp_path / "mine")) == ()
    assert Artifacts(["mine"], {"mine": str(tmp_path / "mine")}).rules("mine")[0].kind == "similarity"


@pytest.mark.parametrize(
    "report",
    [
        "",
        "no json",
        "[" * 100_000,
        "[]",
        "null",
        '{"rows": NaN}',
        changed("rows", to=...),
        changed("rows", to=[]),
        changed("rows", to=[None]),
        changed("rows", to=REPORT["rows"] * 100),
        changed("family", to="x" * 5000),
        changed("command", to=7),
        changed("rows", 0, "rule", to="attention"),
        changed("rows", 0, "rule", "kind", to="magic"),
        changed("rows", 0, "rule", "kind", to=["similarity"]),
        changed("rows", 0, "rule", "level", to=-1),
        changed("rows", 0, "rule", "level", to=1.5),
        changed("rows", 0, "rule", "level", to=True),
        changed("rows", 0, "rule", "level", to=10**30),
        changed("rows", 0, "rule", "part", to=2),
        changed("rows", 1, "rule", "part", to=-2),
        changed("rows", 1, "rule", "part", to="0"),
        changed("rows", 1, "rule", "extra", to=1),
        changed("rows", 0, "latents", to=...),
        changed("rows", 0, "latents", "value", to="0.5"),
        changed("rows", 0, "latents", "value", to=float("nan")),
        changed("rows", 0, "words", "low", to=-0.1),
        changed("rows", 0, "elsewhere", "n", to=None),
        changed("padding", to="x" * 1_000_001),
    ],
)
def test_a_report_that_cannot_be_used_is_named_and_does_without(tmp_path, caplog, report):
    path = written(tmp_path / "mine", report)
    with pytest.raises(ValueError, match="mine/grounding.json cannot be used: .* Measure it again"):
        read_report(path)
    artifacts = Artifacts(["mine"], {"mine": str(path.parent)})
    assert artifacts.rules("mine") == () and "grounding" not in artifacts.measured("mine")
    assert "cannot be used" in caplog.text


def test_a_rule_beyond_the_model_is_no_fault_of_the_report(tmp_path):
    assert measured_rules(read_report(written(tmp_path / "mine", changed("rows", 0, "rule", "level", to=99))))
