"""A recorded run in one forward: the same states, rollout against eager attention, the lens against plain algebra."""

import itertools

import numpy as np
import pytest
import torch

from latent_core import glyphs, load
from latent_core.analysis.lens import logit_lens
from latent_core.decoding import interventions
from latent_core.decoding.layout import ForcedSequence
from latent_core.decoding.unroll import splice
from latent_core.evaluation.replay import lens_by_layer, replay
from latent_core.events import LatentEvent
from latent_core.model.attention import AttentionRollout
from latent_core.model.backbones import wrap
from tests.tiny import eager_attention, tiny_method, tiny_model, tiny_prompt


@pytest.fixture(scope="module")
def reasoner():
    return load("glyph-monet")


@pytest.fixture(scope="module")
def example():
    return glyphs.sample("relate", 5, "val")


@pytest.mark.parametrize("rule", ["causal", "no_image", "latents_only", "sealed"])
@pytest.mark.parametrize("mode", ["latent", "markers", "text"])
def test_last_level_is_what_the_run_recorded(reasoner, example, rule, mode):
    trace = reasoner.run(example.images, example.question, latents=3, rule=rule, mode=mode, max_new_tokens=40)
    replayed = replay(reasoner, trace)
    assert replayed.states.shape == (reasoner.num_layers, len(trace.steps), reasoner.backbone.width)
    assert replayed.rollout.shape == (len(trace.steps), trace.start.image_states.shape[1])
    for state, step in zip(replayed.states[-1], trace.steps, strict=True):
        torch.testing.assert_close(state, step.hidden, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("rule", ["causal", "latents_only", "sealed"])
def test_runs_whose_model_closes_its_blocks_itself(example, rule):
    reasoner = load("glyph-lvr")
    for latents in (4, 9):  # at 9 it need not close its blocks at all
        trace = reasoner.run(example.images, example.question, latents=latents, rule=rule, max_new_tokens=60)
        replayed = replay(reasoner, trace)
        for state, step in zip(replayed.states[-1], trace.steps, strict=True):
            torch.testing.assert_close(state, step.hidden, atol=5e-4, rtol=1e-3)


def test_a_run_cut_off_inside_a_block_can_be_replayed(reasoner, example):
    settings = dict(latents=8, mode="forced")
    events = itertools.islice(reasoner.stream(example.images, example.question, **settings), 5)
    trace = reasoner.trace(events, example.question, **settings)
    assert isinstance(trace.steps[-1], LatentEvent)
    replayed = replay(reasoner, trace)
    torch.testing.assert_close(replayed.states[-1][-1], trace.steps[-1].hidden, atol=2e-4, rtol=1e-3)


def test_what_was_fed_is_replayed(reasoner, example):
    trace = reasoner.run(example.images, example.question, latents=3, intervene=interventions.zero())
    replayed = replay(reasoner, trace)
    torch.testing.assert_close(replayed.states[-1][-1], trace.steps[-1].hidden, atol=2e-4, rtol=1e-3)


def test_another_models_runs_are_refused(reasoner, example):
    trace = reasoner.run(example.images, example.question, latents=3, record=False)
    with pytest.raises(ValueError, match="did not record its vectors"):
        replay(reasoner, trace)
    text = load("glyph-text").run(example.images, example.question)
    with pytest.raises(ValueError, match=r"made by glyph-text \(text, width 128\); glyph-monet is another"):
        replay(reasoner, text)


def test_rollout_against_eager_attention():
    """R = Π (A + I) / 2 in numpy, from transformers' eager attention of another copy of the model."""
    prompt = tiny_prompt(1, grids=[(4, 4), (6, 4)], text=9)
    rollout = AttentionRollout(2)
    splice(wrap(tiny_model()), tiny_method(), [ForcedSequence(prompt, ())], [[]], rule="causal", recorder=rollout)
    expected = np.eye(len(prompt.input_ids))
    for layer in eager_attention(prompt):
        expected = 0.5 * (layer[0].detach().numpy().mean(0) + np.eye(len(expected))) @ expected
    actual = rollout.take()[0].detach().numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    np.testing.assert_allclose(actual.sum(1), 1, atol=1e-5)


def test_lens_by_layer(reasoner, example):
    """The last layer is the plain lens on recorded states; control tokens never come."""
    trace = reasoner.run(example.images, example.question, latents=3)
    replayed = replay(reasoner, trace)
    steps = [n for n, step in enumerate(trace.steps) if isinstance(step, LatentEvent)]
    readings = lens_by_layer(reasoner, replayed, steps)
    assert len(readings) == len(steps) and all(len(layers) == reasoner.num_layers for layers in readings)
    states = torch.stack([step.hidden for step in trace.steps])
    silent = reasoner.processor.silent_ids(reasoner.backbone.vocabulary)
    with torch.inference_mode():
        expected = logit_lens(states[steps], reasoner.backbone.logits, hidden_ids=silent, mean=states.mean(0))
    for layers, plain in zip(readings, expected, strict=True):
        assert [r.id for r in layers[-1]] == [r.id for r in plain]
        assert not {r.id for layer in layers for r in layer} & set(silent)


def test_the_lens_reads_models_of_any_precision(example):
    half = load("glyph-monet", dtype=torch.bfloat16)
    trace = half.run(example.images, example.question, latents=3)
    layers = lens_by_layer(half, replay(half, trace), [2, 3])
    assert [len(readings) for readings in layers] == [half.num_layers] * 2
    assert all(0 < token.probability <= 1 for token in layers[0][-1])
