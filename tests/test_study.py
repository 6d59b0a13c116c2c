"""The evaluator: intervals, donors, replacements, and a study that goes on where it was stopped."""

import dataclasses
import json

import pytest
import torch

from latent_core import glyphs
from latent_core.analysis.statistics import Interval
from latent_core.checkpoints.embedded import EMBEDDED
from latent_core.evaluation import study
from latent_core.evaluation.study import Condition, Row, Study, conditions, donors
from latent_core.evaluation.study_rows import row_from_json, row_to_json, run_study
from latent_core.events import LatentEvent
from latent_core.settings import FORMER_NAMES


def test_a_donor_has_another_answer():
    answers = ["a", "a", "b", "c", "a"]
    chosen = donors(answers)
    assert chosen == [2, 2, 3, 4, 2]
    assert all(answers[i] != answers[j] for i, j in enumerate(chosen))


@pytest.fixture(scope="module")
def work():
    from latent_core import load

    return Study(load("glyph-monet"), lambda family, index: glyphs.sample(family, index), n=8, batch=5)


@pytest.mark.slow
def test_the_sham_changes_nothing_and_zeros_change_something(work):
    base = Condition(family="find", latents=6, rule="latents_only")
    clean = work.run(base)
    assert clean.n == 8 and clean.trigger == 1 and clean.latents == 6
    assert 0 <= clean.accuracy.low <= clean.accuracy.value <= clean.accuracy.high <= 1
    rows = {
        name: work.run(Condition(family="find", latents=6, rule="latents_only", replace=name))
        for name in study.REPLACEMENTS
    }
    assert rows["sham"].changed.value == rows["sham"].text_changed == 0
    assert rows["zero"].text_changed > 0
    assert rows["donor"].donor is not None and rows["zero"].donor is None


def test_a_replacement_brings_its_own_clean_run(work):
    condition = Condition(family="count", latents=3, rule="causal", replace="sham")
    assert work.run(condition).changed.value == 0


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


def measured(work: Study, todo: list[Condition], path, monkeypatch) -> tuple[list[Row], list[Condition]]:
    """The rows of a study, and which of them were measured for it; what they say is made up."""
    calls = []

    def run(condition: Condition) -> Row:
        calls.append(condition)
        n = work.n - bool(condition.replace)  # one run opened no block
        figures = dict(accuracy=Interval(0.5, 0.3, 0.7, n), trigger=0.9, tokens=20.5, latents=2.0, cosine=None)
        return Row(condition=condition, n=n, changed=Interval(0.15, 0.1, 0.2, n), **figures)

    with monkeypatch.context() as patch:
        patch.setattr(work, "run", run)
        return list(run_study(work, todo, path)), calls


TODO = [Condition(family="find", latents=2, rule="latents_only", replace=name) for name in ("", "sham", "donor")]


def again(work: Study, **changed: object) -> Study:
    """The same study but for what is named."""
    given = {"n": work.n, "batch": work.batch, "sample": work.sample, "reasoner": work.reasoner} | changed
    return Study(given.pop("reasoner"), given.pop("sample"), **given)


def test_rows_of_another_n_are_kept_and_not_taken_over(work, tmp_path, monkeypatch, caplog):
    path = tmp_path / "rows.jsonl"
    few, first = measured(again(work, n=6), TODO, path, monkeypatch)
    rows, calls = measured(work, TODO, path, monkeypatch)
    assert first == calls == TODO and "another or no n, examples" in caplog.text
    assert [row.n for row in few] == [6, 5, 5] and [row.n for row in rows] == [8, 7, 7]
    caplog.clear()
    for n, known in ((6, few), (8, rows), (6, few)):
        assert measured(again(work, n=n), TODO, path, monkeypatch) == (known, [])
    assert not caplog.text


def test_a_replacement_that_counts_fewer_runs_is_taken_over_whatever_the_batch(work, tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    rows, _ = measured(work, TODO, path, monkeypatch)
    assert [row.n for row in rows] == [8, 7, 7]
    assert measured(again(work, batch=3), TODO, path, monkeypatch) == (rows, [])


def other_weights(work: Study) -> Study:
    from latent_core import load

    reasoner = load("glyph-monet")
    with torch.no_grad():
        next(reasoner.backbone.layers[1].parameters()).flatten()[0] += 1
    return again(work, reasoner=reasoner)


def other_settings(work: Study) -> Study:
    from latent_core import load

    reasoner = load("glyph-monet")
    sampling = dataclasses.replace(reasoner.config.sampling, max_new_tokens=60)
    reasoner.config = dataclasses.replace(reasoner.config, sampling=sampling)
    return again(work, reasoner=reasoner)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_weights, "checkpoint"),
        (other_settings, "checkpoint, settings"),
        (lambda work: again(work, sample=lambda family, i: glyphs.sample(family, i, "val")), "examples"),
        (lambda work: again(work, sample=lambda family, i: glyphs.sample(family, i + 1)), "examples"),
        (lambda work: again(work, reasoner=load_in(torch.float64)), "checkpoint, dtype"),
    ],
    ids=["weights", "settings", "split", "seeds", "dtype"],
)
def test_whatever_decides_a_row_belongs_to_its_key(change, named, work, tmp_path, monkeypatch, caplog):
    path = tmp_path / "rows.jsonl"
    measured(work, TODO[:1], path, monkeypatch)
    assert measured(change(work), TODO[:1], path, monkeypatch)[1] == TODO[:1]
    assert f"rows with another or no {named} are measured again (1)" in caplog.text


def load_in(dtype: torch.dtype):
    from latent_core import load

    return load("glyph-monet", dtype=dtype)


def test_other_rules_of_grading_and_other_versions_count_anew(work, tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    measured(work, TODO[:1], path, monkeypatch)
    monkeypatch.setattr(study.grading, "VERSION", -1)
    assert measured(work, TODO[:1], path, monkeypatch)[1] == TODO[:1]
    monkeypatch.setattr(study, "version", lambda name: "0")
    assert measured(work, TODO[:1], path, monkeypatch)[1] == TODO[:1]
    monkeypatch.undo()
    assert measured(work, TODO[:1], path, monkeypatch)[1] == []


def test_a_checkpoint_loaded_again_is_the_same(work, tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    rows, _ = measured(work, TODO[:1], path, monkeypatch)
    assert measured(again(work, reasoner=load_in(torch.float32)), TODO[:1], path, monkeypatch) == (rows, [])


@pytest.mark.parametrize("cut", [1, 2, 300, 700])
def test_a_last_line_that_was_cut_off_is_measured_again(cut, work, tmp_path, monkeypatch, caplog):
    path = tmp_path / "rows.jsonl"
    rows, _ = measured(work, TODO, path, monkeypatch)
    path.write_bytes(path.read_bytes()[:-cut])
    found, calls = measured(work, TODO, path, monkeypatch)
    whole = cut == 1  # all but the newline
    assert found == rows and calls == ([] if whole else TODO[2:]) and ("line 3 cannot be read" in caplog.text) != whole
    assert measured(work, [*TODO, TODO[0].clean], path, monkeypatch)[1] == []


@pytest.mark.parametrize(
    "line", ["[]", "3", '{"condition": {"family": "find", "colour": 1}}', "{", "null", "\x00", '"a"']
)
def test_a_line_that_is_no_row_does_not_block(line, work, tmp_path, monkeypatch, caplog):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{line}\n")
    assert measured(work, TODO[:1], path, monkeypatch)[1] == TODO[:1] and "line 1 cannot be read" in caplog.text
    assert measured(work, TODO[:1], path, monkeypatch)[1] == []


def test_rows_that_do_not_say_what_they_were_made_with_are_measured_again(work, tmp_path, monkeypatch, caplog):
    path = tmp_path / "rows.jsonl"
    rows, _ = measured(work, TODO, path, monkeypatch)
    path.write_text("".join(json.dumps(row_to_json(row)) + "\n" for row in rows))
    assert measured(work, TODO, path, monkeypatch) == (rows, TODO)
    assert "rows with another or no n, examples, checkpoint" in caplog.text and "measured again (3)" in caplog.text


def test_what_ships_can_be_read():
    """Rows of measurements that say nothing of what they were made with, as of all shipped checkpoints."""
    report = json.loads((EMBEDDED / "glyph-monet" / "metrics.json").read_text())
    assert [row_from_json(row).n for row in report["rows"]][0] == 500
    for row in report["rows"]:  # the rule of some has a former name
        row["condition"]["rule"] = FORMER_NAMES.get(row["condition"]["rule"], row["condition"]["rule"])
    assert [row_to_json(row_from_json(row)) for row in report["rows"]] == report["rows"]


def test_answers_are_graded_as_rewards_are(work):
    base = Condition(family="find", latents=2, rule="latents_only")
    written = again(work, sample=lambda family, i: in_other_words(glyphs.sample(family, i)))
    known = work.run(base).accuracy
    assert written.run(base).accuracy == known and known.value > 0


def in_other_words(example):
    return dataclasses.replace(example, answer=f"“{example.answer.upper()}”!")


def test_samples_that_all_have_one_answer_have_no_donor():
    with pytest.raises(ValueError, match="All 3 samples have the answer 'a', but a donor needs another"):
        donors(["a", "a", "A."])


def test_a_full_study_covers_rules_replacements_and_the_sweep(work):
    todo = list(conditions(work.reasoner, ["find"]))
    assert len(todo) == len(set(todo))
    rules = {work.reasoner.config.rule, "causal"}
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
