"""The arithmetic of the ablation table, on made-up counts."""

import pytest

from latent_core import glyphs
from latent_core.study import REPLACEMENTS, Condition, Row, wilson
from trainers.ablations import VARIANTS, WHOLE, Result, difference, table, verdict
from trainers.recipe import load_recipe


def result(variant, accuracy: float, n: int = 100) -> Result:
    conditions = [Condition(family="find", replace=by) for by in ("", *REPLACEMENTS)]
    conditions += [Condition(family=family) for family in glyphs.FAMILIES if family != "find"]
    rows = [
        Row(
            condition=condition,
            n=n,
            accuracy=0.0 if condition.replace else accuracy,
            interval=wilson(round(accuracy * n), n),
            trigger=1.0,
            tokens=20.0,
            latents=8.0,
            cosine=0.5,
            changed={"": None, "sham": 0.02, "zero": 0.62}.get(condition.replace, 0.32),
            donor=0.9 if condition.replace == "donor" else None,
            donor_interval=wilson(round(0.9 * n), n) if condition.replace == "donor" else None,
        )
        for condition in conditions
    ]
    return Result(variant, rows)


def test_difference_has_newcombes_interval():
    """Newcombe 1998, method 10, table II (a): 56/70 against 48/80 gives 0.2000 [0.0524, 0.3339]."""
    first, second = result(WHOLE, 0), result(WHOLE, 0)
    first.rows[:] = [first.rows[0].__class__(**fields(first.rows[0], 56, 70))]
    second.rows[:] = [second.rows[0].__class__(**fields(second.rows[0], 48, 80))]
    assert difference(first, second) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def fields(row: Row, right: int, n: int) -> dict:
    names = ("condition", "trigger", "tokens", "latents", "cosine")
    return {name: getattr(row, name) for name in names} | {
        "n": n,
        "accuracy": right / n,
        "interval": wilson(right, n),
    }


def test_verdict_says_whether_the_sign_agrees_and_when_nothing_can_be_said():
    assert verdict(-0.2, -0.3, -0.1, 46.07) == "lower: agrees"
    assert verdict(0.2, 0.1, 0.3, 46.07) == "higher: disagrees"
    assert verdict(-0.02, -0.1, 0.05, 46.07) == "no difference beyond chance"
    assert "not at hand" in verdict(-0.2, -0.3, -0.1, None)


def test_table_names_every_variant():
    text = table([result(variant, 0.9 if variant is WHOLE else 0.5) for variant in VARIANTS])
    for variant in VARIANTS:
        assert f"| {variant.name} |" in text
    assert text.count("lower: agrees") == 3 and "-40.0 [-45" in text
    assert "| whole method | 100.0 | 90.0 [82.6, 94.5] | 60.0 | 30.0 | 30.0 | 0.50 |" in text


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_options_of_every_variant_are_fields_of_the_recipe(variant):
    whole, _ = load_recipe("glyph-monet-stage2", [])
    recipe, _ = load_recipe("glyph-monet-stage2", list(variant.options))
    assert (recipe.monet == whole.monet) == (variant is WHOLE)
