"""The tables of reinforced checkpoints: what is measured, what stands where."""

import json

import pytest

from latent_core import load
from latent_core.analysis.statistics import Interval
from latent_core.evaluation.study import Condition, Row
from latent_core.evaluation.study_rows import row_to_json
from trainers.evidence.reinforcement import conditions, curve, reinforce
from trainers.evidence.reinforcement_runs import RUNS, Run
from trainers.evidence.reinforcement_table import markdown
from trainers.recipe import load_recipe


def row(family: str, accuracy: float, **fields: object) -> Row:
    donor = {"donor": Interval(0.4, 0.3, 0.5, 500)} if fields.get("replace") == "donor" else {}
    condition = Condition(family=family, rule="latents_only", **{"latents": 24} | fields)
    share = Interval(accuracy, accuracy - 0.1, accuracy + 0.1, 500)
    return Row(condition=condition, n=500, accuracy=share, trigger=0.9, tokens=20.0, latents=8.0, cosine=None, **donor)


def measured(accuracy: float) -> list[Row]:
    return [
        row("count", accuracy),
        row("count", 0.3, replace="donor"),
        row("count", 0.2, mode="markers"),
        row("count", accuracy / 2, latents=8),
        *(row(family, 0.8) for family in ("find", "relate", "trace")),
    ]


def points() -> list[dict[str, float]]:
    shared = {"token_ratio": 1.0, "token_ratio_std": 0.02, "token_clipped": 0.01, "token_kl": 0.1, "trigger": 1.0}
    return [
        {"step": step, "eval_reward": 0.5 + step / 100, "solved_0": 0.5, "solved_1": 0.5, **shared} for step in (4, 8)
    ]


def test_before_and_after_stand_one_below_the_other():
    rows = {"`glyph-monet`": measured(0.5), "seed 0": measured(0.75)}
    report = {
        "command": "python -m trainers reinforce glyph-monet-rl",
        "n": 500,
        "families": ["count"],
        "latents": 24,
        "training": {"steps": 8, "questions": 32, "group": 8, "updates": 4, "responses": 128},
        "rows": {label: list(map(row_to_json, found)) for label, found in rows.items()},
        "curves": {"seed 0": points()},
    }
    text = markdown(report)
    assert "seeds 0 to 499" in text and "8 steps: 32 questions of count, 8 responses to each" in text
    assert "| `glyph-monet` | 50.0 [40.0, 60.0] | 80.0 [70.0, 90.0] |" in text
    assert "| seed 0 | 75.0 [65.0, 85.0] |" in text and "| 40.0 [30.0, 50.0] | 20.0 | 90.0 |" in text
    assert "|  | K = 8 | K = 24 |" in text and "| seed 0 | 37.5 | 75.0 |" in text
    assert "| seed 0 | 0.540 | 0.580 |" in text
    assert "| seed 0 | 1.000 ± 0.020 | 1.0 |  |  | 0.100 |  | 100.0 to 100.0 |" in text
    assert "Groups of 1 by how many" in text


def test_a_short_run_is_reported_as_json_and_as_what_the_json_says(tmp_path, monkeypatch):
    short = ("max_steps=2", "per_device_train_batch_size=2", "val_size=2", "per_device_eval_batch_size=2")
    often = ("eval_steps=1", "logging_steps=1", "warmup_steps=0", "rl.group=2", "rl.updates=1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RUNS, "glyph-text-rl", (Run(name="short", options=(*short, *often)),))
    written = reinforce("glyph-text-rl", n=2, split="val")
    report = json.loads(written.with_suffix(".json").read_text())
    assert written.read_text() == markdown(report)
    assert list(report["rows"]) == ["`glyph-text`", "short"] and report["latents"] is None
    assert [point["step"] for point in report["curves"]["short"]] == [1, 2]
    assert report["training"]["responses"] == 128 and "seeds 0 to 1, greedy" in written.read_text()


def test_a_curve_has_the_means_between_two_evaluations(tmp_path):
    lines = [
        {"step": 4, "reward": 0.2, "trigger": 1.0, "solved_0": 1.0, "learning_rate": 1.0},
        {"step": 8, "reward": 0.4, "trigger": 0.5, "solved_0": 0.0, "learning_rate": 1.0},
        {"step": 8, "eval_reward": 0.6},
        {"step": 12, "reward": 1.0, "trigger": 0.0, "solved_0": 0.0, "latent_kl": 3.0},
        {"step": 12, "eval_reward": 0.7},
        {"step": 12, "train_loss": 0.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = curve(tmp_path / "metrics.jsonl")
    assert first == {"step": 8, "reward": pytest.approx(0.3), "trigger": 0.75, "solved_0": 0.5, "eval_reward": 0.6}
    assert second["latent_kl"] == 3.0 and second["eval_reward"] == 0.7


def test_what_is_measured():
    recipe, _ = load_recipe("glyph-lvr-rl", [])
    todo = list(conditions(load("glyph-lvr"), recipe))
    assert todo[0] == Condition(family="count", latents=8, rule="latents_only")
    assert [c.replace for c in todo[:3]] == ["", "donor", ""] and todo[2].mode == "markers"
    swept = [c.latents for c in todo if c.family == "count" and not c.replace and c.mode == "latent"]
    assert swept == [8, 1, 2, 4, 6, 9, 12, 16]
    assert {c.family for c in todo} == {"count", "find", "relate", "trace"}
    recipe, _ = load_recipe("glyph-text-rl", [])
    assert {(c.mode, c.latents) for c in conditions(load("glyph-text"), recipe)} == {("text", 0)}


def test_every_run_is_a_recipe_that_can_be_read():
    for name, runs in RUNS.items():
        assert runs[0] == Run(name="seed 0") and len({run.name for run in runs}) == len(runs)
        for run in runs:
            recipe, arguments = load_recipe(name, [*run.options, f"seed={run.seed}"])
            assert recipe.stage == "rl" and arguments.seed == run.seed
    with pytest.raises(ValueError, match="There are no runs of 'glyph-monet'"):
        reinforce("glyph-monet")
