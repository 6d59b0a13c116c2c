"""The arithmetic of the ablation tables, on made-up counts; every variant's fields are fields of its recipe."""

import json
import shutil

import pytest

from latent_core.analysis.statistics import Interval, wilson
from latent_core.checkpoints.embedded import EMBEDDED
from latent_core.evaluation.study import Row
from latent_core.records import from_json
from trainers.evidence.ablation_table import Result, markdown, tables, verdict
from trainers.evidence.ablation_variants import ABLATIONS, BUDGETS, DEEPLATENT, LVR, MONET, Ablation, Variant
from trainers.evidence.ablations import ablate, conditions
from trainers.recipe import load_recipe

EVERY = [(ablation, variant) for ablation in ABLATIONS.values() for variant in ablation.variants]


def result(ablation: Ablation, variant: Variant, accuracy: float, n: int = 100) -> Result:
    rows = [
        Row(
            condition=condition,
            n=n,
            accuracy=wilson(0 if condition.replace else round(accuracy * n), n),
            trigger=1.0,
            tokens=20.0,
            latents=8.0,
            cosine=0.5,
            changed=wilson({"sham": 2, "zero": 62}.get(condition.replace, 32), n) if condition.replace else None,
            donor=wilson(round(0.9 * n), n) if condition.replace == "donor" else None,
        )
        for condition in conditions(ablation, variant, "latents_only")
    ]
    return Result(variant, rows)


def test_verdict_says_whether_the_sign_agrees_and_when_nothing_can_be_said():
    whole, worse = Variant(name="whole", paper=82.2), Variant(name="less", paper=46.07)
    assert verdict(Interval(-0.2, -0.3, -0.1, 200), worse, whole) == "lower: agrees"
    assert verdict(Interval(0.2, 0.1, 0.3, 200), worse, whole) == "higher: disagrees"
    assert verdict(Interval(-0.02, -0.1, 0.05, 200), worse, whole) == "no difference beyond chance"
    assert "not at hand" in verdict(Interval(-0.2, -0.3, -0.1, 200), Variant(name="?"), whole)
    assert verdict(Interval(-0.2, -0.3, -0.1, 200), Variant(name="collapses", lower=True), whole) == "lower: agrees"
    assert (
        verdict(Interval(-0.2, -0.3, -0.1, 200), Variant(name="same", paper=82.2), whole)
        == "lower: in the paper equal"
    )


def test_monets_table_names_every_variant():
    text = tables(MONET, [result(MONET, v, 0.9 if v is MONET.variants[0] else 0.5) for v in MONET.variants])
    for variant in MONET.variants:
        assert f"| {variant.name} |" in text
    assert text.count("lower: agrees") == 3 and "-40.0 [-45" in text
    assert "| whole method | 100.0 | 8.0 | 90.0 [82.6, 94.5] | 60.0 | 30.0 | 30.0 | 0.50 |" in text


def test_a_variant_may_be_compared_with_another_than_the_first():
    accuracies = (0.4, 0.9, 0.9, 0.5, 0.9)
    text = tables(LVR, [result(LVR, v, a) for v, a in zip(LVR.variants, accuracies, strict=True)])
    vector, switch = (line for line in text.splitlines() if line.startswith("| exit") and "against" in line)
    assert "-40.0 [" in vector and "(against an MLP head) | worse | lower: agrees" in vector
    assert "+0.0 [" in switch and "no difference beyond chance" in switch
    assert "| an MLP head | 90.0 | 90.0 | 90.0 | 90.0 [86.1, 92.9] | +50.0 [" in text and "higher: disagrees" in text


def test_sweeps_have_a_column_per_budget_and_text_no_latents():
    results = [result(DEEPLATENT, variant, 0.5) for variant in DEEPLATENT.variants]
    text = tables(DEEPLATENT, results)
    header = next(line for line in text.splitlines() if "| K = " in line)
    assert header == "| variant | " + " | ".join(f"K = {k}" for k in BUDGETS) + " |"
    assert text.count("fixed grids, one by one |") == 3 and text.count("| text only |") == 1


@pytest.mark.parametrize(("ablation", "variant"), EVERY, ids=lambda value: getattr(value, "name", ""))
def test_options_of_every_variant_are_fields_of_the_recipe(ablation, variant):
    name, _ = ablation.stages[0]
    whole, _ = load_recipe(variant.recipe or name, list(ablation.shared))
    recipe, _ = load_recipe(variant.recipe or name, [*ablation.shared, *variant.options])
    changed = recipe != whole
    assert changed == bool(variant.options) or variant.name == "K = 9" or variant.name == "an MLP head"
    names = [other.name for other in ablation.variants]
    assert len(set(names)) == len(names) and (variant.against is None or variant.against in names)


def test_short_runs_are_reported_as_json_and_as_what_the_json_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EMBEDDED / "glyph-lvr", tmp_path / "runs/start/final")
    ablation = Ablation(
        checkpoint="short",
        stages=(("glyph-lvr", 1),),
        start="start",
        figure="V*",
        shared=("mixture={find: 1}", "per_device_train_batch_size=2", "warmup_steps=0", "val_size=2"),
        families=("find",),
        latents=4,
        variants=(Variant(name="whole method", paper=80.0), Variant(name="two latents", latents=2, replace=False)),
    )
    monkeypatch.setitem(ABLATIONS, "short", ablation)
    written = ablate("short", n=6, split="val")
    report = json.loads(written.with_suffix(".json").read_text())
    assert from_json(Ablation, report["ablation"], "report") == ablation
    assert {name: len(rows) for name, rows in report["rows"].items()} == {"whole method": 3, "two latents": 1}
    assert written.read_text() == markdown(report)
    assert "seeds 0 to 5, K = 4 unless named, greedy; glyph-lvr for 1 steps" in written.read_text()


def test_unknown_checkpoints_are_refused():
    with pytest.raises(ValueError, match="no ablations of 'glyph-text'; choose one of glyph-monet"):
        ablate("glyph-text")
