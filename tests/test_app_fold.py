"""fold() and payload() on hand-made events: no server, no model."""

import base64
import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image

from app.payload import LAST, maps, payload
from app.view import View, answer, fold
from latent_core.analysis.compact import COSINE_UNITS
from latent_core.analysis.similarity import nearest_patch
from latent_core.evaluation.grounding import LookRule
from latent_core.events import FinishEvent
from latent_core.settings import Settings
from tests.scripted import LEVELS, TOKENS, ScriptedReasoner, latent_event, start_event, token_event


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def empty() -> View:
    return View(checkpoint="scripted", question="?", settings=Settings(rule="latents_only"), opens=True)


def whole_run(view: View, **settings) -> View:
    for event in ScriptedReasoner().stream([Image.new("RGB", (96, 96))], "?", **settings):
        view = fold(view, event)
    return view


def test_fold_is_pure(empty, draw):
    after = fold(empty, token_event("I", draw))
    assert empty.items == () and len(after.items) == 1
    assert fold(after, token_event(" look", draw)).text == "I look" and after.text == "I"


def test_fold_refuses_what_is_no_event(empty):
    with pytest.raises(TypeError, match="str is not an event"):
        fold(empty, "token")


def test_fold_numbers_blocks_and_marks_what_comes_after(empty, draw):
    view = fold(empty, start_event([Image.new("RGB", (8, 8))], draw))
    for block in range(2):
        view = fold(view, token_event("word", draw))
        view = fold(view, token_event("", draw, kind="open"))
        view = fold(view, latent_event(0, draw, block=block))
        view = fold(view, token_event("", draw, kind="close"))
    assert [item.block for item in view.items] == [-1, 0, 0, 0, -1, 1, 1, 1]
    assert [item.after_block for item in view.items] == [False] * 4 + [True] * 4
    assert view.text == "wordword"


def test_a_latent_glows_where_its_own_vector_is(empty, draw):
    view = fold(
        dataclasses.replace(empty, measured=(LookRule("similarity", 0, 0),)),
        start_event([Image.new("RGB", (8, 8))], draw),
    )
    vector = view.start.image_states[0, 17]
    event = dataclasses.replace(latent_event(0, draw), fed=vector)
    glow = fold(view, event).items[-1].glow
    assert glow.shape == (TOKENS,)
    assert glow.argmax() == 17 and glow[17] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ((" ring or \\boxed{", "ring", "}, a ring"), "ring"),
        ((" <answer>\\boxed{", "\\textbf{B}", "}</answer>"), "B"),
        ((" B? \\boxed{", "5\\text{ kg}", "} it is"), "5 kg"),
    ],
)
def test_the_probability_is_that_of_the_answer_where_it_stands(words, found, empty, draw):
    view = empty
    for word, logprob in zip(words, (-1.0, -0.25, -2.0), strict=True):
        view = fold(view, dataclasses.replace(token_event(word, draw), logprob=logprob))
    assert answer(view) == (found, pytest.approx(math.exp(-0.25)))


def test_answer_and_its_probability(empty):
    assert answer(empty) is None
    word, probability = answer(whole_run(empty))
    assert word == "ring"
    assert probability == pytest.approx(math.exp(-0.5))  # one token of log-probability -0.5


def test_a_streaming_payload_holds_the_last_items_and_no_maps(empty, draw):
    view = fold(empty, start_event([Image.new("RGB", (8, 8))], draw))
    for _ in range(LAST + 10):
        view = fold(view, token_event(" x", draw))
    value = payload(view, 3, label="Monet")
    assert value["state"] == "running" and value["n"] == LAST + 10 and len(value["items"]) == LAST
    assert "maps" not in value and value["rule"] == "latents_only"


def test_the_last_payload_holds_everything(empty):
    value = payload(whole_run(empty, latents=3), 3, label="Monet", truth="ring")
    assert value["state"] == "finished" and len(value["items"]) == value["n"]
    assert value["finish"]["answer"] == value["truth"] == "ring"
    assert value["finish"]["latents"] == 3 and value["finish"]["max_p_open"] == 0.9
    assert value["finish"]["ms_per_latent"] == pytest.approx(6.67)
    assert value["images"][0].startswith("data:image/png;base64,")


def test_maps_are_the_similarities_of_the_analysis(empty):
    view = whole_run(empty, latents=3)
    sent = maps(view)
    vectors = torch.stack([view.items[n].vector for n in sent["of"]])
    for name, centred in (("raw", False), ("centred", True)):
        expected = nearest_patch(
            vectors, view.start.image_states, centred=centred, reference=view.start.image_states[-1]
        )
        units = np.frombuffer(base64.b64decode(sent[name]), "<i2").reshape(expected.shape)
        np.testing.assert_allclose(units / COSINE_UNITS, expected.numpy(), atol=1 / COSINE_UNITS)
    latents = [sent["of"].index(n) for n, item in enumerate(view.items) if item.kind == "latent"]
    previous = [sent["previous"][q] for q in latents]
    assert previous[0] is None and all(-1 <= value <= 1 for value in previous[1:])


@pytest.mark.parametrize("level", range(LEVELS))
@pytest.mark.parametrize("part", [0, 1])
def test_glow_and_maps_agree(empty, level, part):
    view = whole_run(dataclasses.replace(empty, measured=(LookRule("similarity", level, part),)), latents=2)
    sent = maps(view)
    packed = base64.b64decode(sent["centred" if part else "raw"])
    units = np.frombuffer(packed, "<i2").reshape(len(sent["of"]), -1, TOKENS)
    for q, n in enumerate(sent["of"]):
        if view.items[n].glow is not None:
            np.testing.assert_allclose(units[q, level] / COSINE_UNITS, view.items[n].glow, atol=1 / COSINE_UNITS)


@pytest.mark.parametrize(
    ("measured", "used"),
    [
        ([("attention", 1, 0), ("similarity", 0, 0)], ("attention", 1, 0)),
        ([("attention", 2, -1)], ("attention", 2, -1)),
        ([("attention", 9, 0), ("similarity", 0, 0)], ("similarity", 0, 0)),  # a block that was not recorded
        ([("attention", 1, 7), ("similarity", 2, 1)], ("similarity", 2, 1)),  # a head that does not exist
        ([("similarity", 9, 0)], ("similarity", LEVELS - 2, 1)),
        ([], ("similarity", LEVELS - 2, 1)),  # never measured
    ],
)
def test_a_latent_glows_under_the_first_rule_that_its_run_recorded(empty, measured, used):
    view = whole_run(dataclasses.replace(empty, measured=tuple(LookRule(*rule) for rule in measured)), latents=3)
    kind, place, part = used
    for item in view.items:
        if item.kind != "latent":
            continue
        if kind == "similarity":
            states = view.start.image_states
            expected = nearest_patch(item.vector[None], states[[place]], centred=part == 1, reference=states[-1])[0, 0]
        else:
            weights = item.attention.image[place].float()
            expected = weights.mean(0) if part < 0 else weights[part]
        torch.testing.assert_close(item.glow, expected)
    sent = payload(view, 1, label="Monet")["looks"]
    assert sent[-1] == {"kind": "similarity", "level": LEVELS - 2, "part": 1, "measured": False}


def test_the_level_that_was_measured_is_never_left_out(empty, monkeypatch):
    monkeypatch.setattr("app.payload.MAP_BUDGET", 2)
    assert maps(whole_run(dataclasses.replace(empty, measured=(LookRule("similarity", 1, 0),))))["levels"] == [0, 1, 2]


def test_without_recorded_attention_a_latent_glows_by_similarity(empty, draw):
    rules = LookRule("attention", 1, 0), LookRule("similarity", 1, 0)
    start = dataclasses.replace(start_event([Image.new("RGB", (8, 8))], draw), layers=())
    view = fold(dataclasses.replace(empty, measured=rules), start)
    view = fold(view, dataclasses.replace(latent_event(0, draw), attention=None))
    expected = nearest_patch(view.items[0].vector[None], start.image_states[[1]], centred=False)[0, 0]
    torch.testing.assert_close(view.items[0].glow, expected)


def test_attention_is_sent_by_layer_and_head(empty):
    view = whole_run(empty, latents=2)
    sent = maps(view)["attention"]
    assert sent["layers"] == [0, 1, 2] and sent["heads"] == 3
    units = np.frombuffer(base64.b64decode(sent["maps"]), "u1").reshape(-1, 3, 3, TOKENS)
    peaks = np.array(sent["peaks"]).reshape(-1, 3, 3)
    assert [view.items[n].kind for n in sent["of"]].count("close") == 0
    for q, n in enumerate(sent["of"]):
        weights = view.items[n].attention.image.float().numpy()
        expected = np.concatenate([weights.mean(1, keepdims=True), weights], 1)
        np.testing.assert_allclose(units[q] / 255 * peaks[q][..., None], expected, atol=expected.max() / 250)


def test_attention_of_long_runs_leaves_out_heads_then_layers(empty, monkeypatch):
    monkeypatch.setattr("app.payload.ATTENTION_BUDGET", 3 * 36 * 14)
    assert maps(whole_run(empty))["attention"]["heads"] == 1
    monkeypatch.setattr("app.payload.ATTENTION_BUDGET", 2)
    assert maps(whole_run(empty))["attention"]["layers"] == [0, 2]


def test_a_run_without_recorded_attention_sends_none(empty):
    view = whole_run(empty)
    bare = dataclasses.replace(view, items=tuple(dataclasses.replace(item, attention=None) for item in view.items))
    assert maps(bare)["attention"] is None


def test_maps_of_long_runs_leave_out_levels(empty, monkeypatch):
    monkeypatch.setattr("app.payload.MAP_BUDGET", 2)
    assert maps(whole_run(empty))["levels"] == [0, 2]


def test_a_run_without_recorded_states_has_no_maps(empty, draw):
    view = fold(empty, dataclasses.replace(token_event("I", draw), hidden=None))
    finish = FinishEvent(
        reason="stop", tokens=1, latents=0, blocks=0, text_seconds=0.0, latent_seconds=0.0, max_p_open=0.0
    )
    value = payload(fold(view, finish), 1, label="Text")
    assert value["maps"] is None and value["finish"]["tokens_per_second"] is None
