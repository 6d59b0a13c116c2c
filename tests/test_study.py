"""The evaluator: intervals, donors, replacements, and a study that goes on where it was stopped."""

import json

import pytest
from scipy.stats import binomtest

from latent_core import glyphs, study
from latent_core.events import LatentEvent
from latent_core.study import Condition, Study, conditions, donors, markdown, row_from_json, run_study, wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (481, 500)])
def test_intervals_are_wilsons(successes, n):
    expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_no_samples_say_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_a_donor_has_another_answer():
    answers = ["a", "a", "b", "c", "a"]
    chosen = donors(answers)
    assert chosen == [2, 2, 3, 4, 2]
    assert all(answers[i] != answers[j] for i, j in enumerate(chosen))


@pytest.fixture(scope="module")
def work():
    from latent_core import load

    return Study(load("glyph-monet"), lambda family, index: glyphs.sample(family, index), n=8, batch=5)


def test_the_sham_changes_nothing_and_zeros_change_something(work):
    base = Condition(family="find", latents=6, rule="latents_only")
    clean = work.run(base)
    assert clean.n == 8 and clean.trigger == 1 and clean.latents == 6
    assert 0 <= clean.interval[0] <= clean.accuracy <= clean.interval[1] <= 1
    rows = {
        name: work.run(Condition(family="find", latents=6, rule="latents_only", replace=name))
        for name in study.REPLACEMENTS
    }
    assert rows["sham"].changed == rows["sham"].text_changed == 0
    assert rows["zero"].text_changed > 0
    assert rows["donor"].donor is not None and rows["zero"].donor is None


def test_a_replacement_brings_its_own_clean_run(work):
    condition = Condition(family="count", latents=3, rule="everything", replace="sham")
    assert work.run(condition).changed == 0


def test_modes_are_counted_as_they_are(work):
    text = work.run(Condition(family="find", latents=6, mode="text", rule="latents_only"))
    markers = work.run(Condition(family="find", latents=6, mode="markers", rule="latents_only"))
    assert text.trigger == text.latents == 0
    assert markers.trigger == 1 and markers.latents == 0
    assert text.cosine is None


def test_a_stopped_study_goes_on(work, tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    todo = [Condition(family="find", latents=k, rule="latents_only") for k in (2, 4)]
    running = run_study(work, todo, path)
    first = next(running)
    running.close()
    calls = []
    original = work.run
    monkeypatch.setattr(work, "run", lambda condition: calls.append(condition) or original(condition))
    rows = list(run_study(work, todo, path))
    assert rows[0] == first and calls == todo[1:]
    assert [row_from_json(json.loads(line)) for line in path.read_text().splitlines()] == rows
    assert markdown(rows).count("\n") == 2 + len(rows)


def test_a_full_study_covers_rules_replacements_and_the_sweep(work):
    todo = list(conditions(work.reasoner, ["find"]))
    assert len(todo) == len(set(todo))
    rules = {work.reasoner.config.rule, "everything"}
    assert {c.rule for c in todo} == rules
    assert {c.latents for c in todo} >= set(range(1, 17))
    for rule in rules:
        assert {c.replace for c in todo if c.rule == rule} == {"", *study.REPLACEMENTS}


def test_too_few_samples_are_refused(work):
    with pytest.raises(ValueError, match="n is 1"):
        Study(work.reasoner, work.sample, n=1)


def test_a_run_cut_off_inside_a_block_is_neither_replaced_nor_a_donor(work):
    base = Condition(family="find", latents=6, rule="latents_only")
    work.run(base)
    condition, traces = work._clean
    example = work.examples("find")[2]
    asked = dict(latents=6, rule="latents_only")
    events = list(work.reasoner.stream(example.images, example.question, **asked))
    first = next(number for number, event in enumerate(events) if isinstance(event, LatentEvent))
    cut = work.reasoner.trace(events[: first + 3], example.question, **asked)
    assert len(cut.blocks[0].latents) == 3
    work._clean = condition, [*traces[:2], cut, *traces[3:]]
    others = donors([example.answer for example in work.examples("find")])
    assert work.run(Condition(family="find", latents=6, rule="latents_only", replace="sham")).n == 7
    given = sum(i != 2 and others[i] != 2 for i in range(8))
    assert work.run(Condition(family="find", latents=6, rule="latents_only", replace="donor")).n == given < 7
    work._clean = None
