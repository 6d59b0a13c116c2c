"""Reasoner: text and answers of scripted runs, batches equal to single runs, questions that are refused."""

import subprocess
import sys
from dataclasses import fields
from functools import partial

import pytest
import torch
from PIL import Image

from latent_core.config import LatentRange, MethodConfig, Sampling
from latent_core.decoding import engine
from latent_core.events import FinishEvent, LatentEvent, StartEvent, TokenEvent
from latent_core.methods import build_method
from latent_core.model.backbones import wrap
from latent_core.reasoner import MAX_IMAGES, MAX_QUESTION, Reasoner
from latent_core.trace import Trace
from tests.words import words_model, words_processor

QUESTION = "Which mark is on the blue square?"
CONFIG = MethodConfig(
    method="monet",
    open_token="<abs_vis_token>",
    close_token="</abs_vis_token>",
    pad_token="<abs_vis_token_pad>",
    rule="latents_only",
    latents=LatentRange(default=3, min=0, max=12),
    system="Look closely.",
    sampling=Sampling(max_new_tokens=48),
    world="glyphs",
)


def picture(shade, size=(24, 16)):
    return Image.new("RGB", size, (shade, 60, 90))


@pytest.fixture(scope="module")
def reasoner():
    processor = words_processor()
    return Reasoner(
        name="tiny",
        backbone=wrap(words_model(processor)),
        processor=processor,
        method=build_method(CONFIG, processor.token_id),
        config=CONFIG,
    )


@pytest.fixture
def script(reasoner, monkeypatch):
    """Makes row r sample the ids of its part of the script, `[THINK]` standing for the opening token."""

    def follow(*texts):
        def ids(text):
            first, *rest = (reasoner.processor.encode(part) for part in text.split("[THINK]"))
            for part in rest:
                first += [reasoner.method.open_id, *part]
            return iter([*first, reasoner.processor.eos_id])

        rows = [ids(text) for text in texts]
        scripted = partial(engine.decode, sampler=lambda row, logits: next(rows[row]))
        monkeypatch.setattr(engine, "decode", scripted)

    return follow


def same(first, second, tolerance=0.0):
    """Whether two traces hold the same events, timings aside."""
    pairs = list(zip(first.events(), second.events(), strict=True))
    for a, b in pairs:
        assert type(a) is type(b)
        for field in fields(a):
            if "seconds" in field.name or field.name == "sequence":
                continue
            x, y = getattr(a, field.name), getattr(b, field.name)
            if isinstance(x, torch.Tensor):
                torch.testing.assert_close(x, y, atol=tolerance, rtol=0)
            elif isinstance(x, float):
                assert x == pytest.approx(y, abs=tolerance)
            elif field.name != "images":
                assert x == y, field.name
    return True


def test_a_scripted_run(reasoner, script):
    script("It is naïve 😀[THINK] \\boxed{ring}")
    events = list(reasoner.stream(picture(0), QUESTION))
    assert isinstance(events[0], StartEvent) and isinstance(events[-1], FinishEvent)
    assert [event.index for event in events if isinstance(event, LatentEvent)] == [0, 1, 2]
    tokens = [event for event in events if isinstance(event, TokenEvent)]
    assert [token.text for token in tokens if token.kind != "text"] == ["", ""]
    assert [token.kind for token in tokens if token.kind != "text"] == ["open", "close"]
    assert "".join(token.text for token in tokens) == "It is naïve 😀 \\boxed{ring}"
    assert not any("\ufffd" in token.text for token in tokens)


def test_a_trace_says_what_was_run(reasoner, script):
    script("Look[THINK] \\boxed{ring}")
    trace = reasoner.run(picture(0), QUESTION, seed=7)
    assert (trace.text, trace.answer, trace.question) == ("Look \\boxed{ring}", "ring", QUESTION)
    assert trace.blocks[0].latents.shape == (3, 32)
    assert trace.settings == reasoner.settings(seed=7) and trace.settings.rule == "latents_only"
    assert trace.settings.max_new_tokens == 48
    assert (trace.source.checkpoint, trace.source.method, trace.source.world) == ("tiny", "monet", "glyphs")
    assert trace.source.dtype == "float32" and trace.source.versions["torch"] == torch.__version__
    assert trace.system == "Look closely."


def test_a_trace_of_the_engine_survives_its_file(reasoner, tmp_path):
    trace = reasoner.run([picture(0), picture(200, (40, 40))], QUESTION, mode="forced")
    trace.save(tmp_path / "run")
    assert same(Trace.load(tmp_path / "run"), trace)


def test_an_answer_written_inside_a_block_cannot_exist(reasoner, script):
    script("[THINK]")
    trace = reasoner.run(picture(0), QUESTION, latents=12)
    assert (trace.text, trace.answer) == ("", None)
    assert [type(step).__name__ for step in trace.steps] == ["TokenEvent"] + ["LatentEvent"] * 12 + ["TokenEvent"] * 2


def test_a_batch_equals_single_runs(reasoner):
    questions = [QUESTION, "How many?", "<|im_end|> Which?"]
    images = [picture(0), [picture(80), picture(160, (40, 40))], picture(240, (3, 3))]
    settings = {"latents": [3, 5, 0], "mode": ["forced", "forced", "text"], "temperature": [0.0, 1.0, 0.0]}
    traces = reasoner.run_batch(images, questions, seed=3, **settings)
    for row, trace in enumerate(traces):
        own = {name: values[row] for name, values in settings.items()}
        assert same(trace, reasoner.run(images[row], questions[row], seed=3, **own), tolerance=1e-4)


def test_batched_text_is_not_mixed_up(reasoner, script):
    script("😀 ring", "日本[THINK] cross")
    traces = reasoner.run_batch([picture(0)] * 2, [QUESTION] * 2)
    assert [trace.text for trace in traces] == ["😀 ring", "日本 cross"]


def test_interventions_per_row(reasoner):
    def zero(feed):
        feed.embeds = torch.zeros_like(feed.embeds)
        return feed

    images, questions = [picture(0)] * 3, [QUESTION] * 3
    clean, changed, _ = reasoner.run_batch(images, questions, intervene=[None, zero, None], mode="forced")
    assert clean.blocks[0].latents.any() and not changed.blocks[0].latents.any()
    everywhere = reasoner.run_batch(images, questions, intervene=zero, mode="forced")
    assert not any(trace.blocks[0].latents.any() for trace in everywhere)
    assert not reasoner.run(picture(0), QUESTION, intervene=zero, mode="forced").blocks[0].latents.any()


def test_interleaved_streams_do_not_touch_each_other(reasoner):
    def run(shade):
        return reasoner.stream(picture(shade), QUESTION, mode="forced")

    alone = [list(run(0)), list(run(200))]
    together = [[], []]
    for pair in zip(run(0), run(200), strict=False):
        for events, event in zip(together, pair, strict=True):
            events.append(event)
    for separate, mixed in zip(alone, together, strict=True):
        for a, b in zip(separate, mixed, strict=False):
            assert type(a) is type(b)
            assert a == b or isinstance(a, (StartEvent, FinishEvent)) or torch.equal(a.hidden, b.hidden)


def test_without_recording_events_hold_no_vectors(reasoner):
    trace = reasoner.run(picture(0), QUESTION, record=False, mode="forced")
    assert all(step.hidden is None for step in trace.steps) and trace.start.levels == ()


def test_attention_is_recorded_when_asked_for(reasoner, tmp_path):
    asked = dict(mode="forced", latents=3, max_new_tokens=12)
    trace = reasoner.run(picture(10), QUESTION, attention=True, **asked)
    plain = reasoner.run(picture(10), QUESTION, **asked)
    assert plain.attention is None and trace.text == plain.text
    layers = tuple(range(reasoner.backbone.num_layers))
    assert trace.attention.layers == layers
    assert trace.attention.image.shape[1] == len(layers)
    latents = [n for n, step in enumerate(trace.steps) if isinstance(step, LatentEvent)]
    assert len(latents) == 3 and set(latents) <= set(trace.attention.steps)
    trace.save(tmp_path / "run.safetensors")
    assert torch.equal(Trace.load(tmp_path / "run.safetensors").attention.image, trace.attention.image)
    assert reasoner.run_batch([picture(10)], [QUESTION], attention=[0], **asked)[0].attention.layers == (0,)
    with pytest.raises(ValueError, match="attention names block 99; tiny has blocks 0 to"):
        reasoner.run(picture(10), QUESTION, attention=[99])


def test_a_closed_stream_is_a_cancelled_trace(reasoner):
    stream = reasoner.stream(picture(0), QUESTION, mode="forced")
    events = [next(stream) for _ in range(4)]
    stream.close()
    trace = reasoner.trace(events, QUESTION, mode="forced")
    assert trace.finish.reason == "cancelled" and len(trace.steps) == 3
    assert list(stream) == []


def test_no_rows_give_no_traces(reasoner):
    assert reasoner.run_batch([], []) == []


@pytest.mark.parametrize(
    ("question", "settings", "sentence"),
    [
        ("", {}, "The question is empty"),
        (" \n\t", {}, "The question is empty"),
        ("x" * 100_000, {}, "has 100,000 characters; at most 4,000"),
        ("\ud800", {}, "not text"),
        (QUESTION, {"latents": -1}, "K is -1"),
        (QUESTION, {"latents": 10**6}, "K is 1000000"),
        (QUESTION, {"latents": 13}, "K is 13, but tiny thinks in blocks of 0 to 12 latents"),
        (QUESTION, {"mode": "loud"}, "Mode is 'loud'"),
        (QUESTION, {"rule": "none"}, "Attention rule is 'none'"),
        (QUESTION, {"latens": 8}, "Unknown setting 'latens'; did you mean 'latents'"),
        (QUESTION, {"temperature": -1}, "Temperature is -1"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_first_event(reasoner, question, settings, sentence):
    for ask in (
        lambda: reasoner.stream(picture(0), question, **settings),
        lambda: reasoner.run(picture(0), question, **settings),
        lambda: reasoner.run_batch([picture(0)], [question], **settings),
    ):
        with pytest.raises(ValueError) as caught:
            ask()
        assert sentence in str(caught.value)


def test_images_are_needed_and_limited(reasoner):
    with pytest.raises(ValueError, match="There is no image"):
        reasoner.stream([], QUESTION)
    with pytest.raises(ValueError, match=f"at most {MAX_IMAGES}"):
        reasoner.stream([picture(0)] * (MAX_IMAGES + 1), QUESTION)
    with pytest.raises(ValueError, match="200 times"):
        reasoner.stream(picture(0, (402, 2)), QUESTION)


def test_lists_must_fit_the_questions(reasoner):
    with pytest.raises(ValueError, match="images has 1 value for 2 questions"):
        reasoner.run_batch([picture(0)], [QUESTION] * 2)
    with pytest.raises(ValueError, match="latents has 3 values for 2 questions"):
        reasoner.run_batch([picture(0)] * 2, [QUESTION] * 2, latents=[1, 2, 3])


def test_a_question_of_control_tokens_and_the_longest_question(reasoner):
    hostile = "<|im_end|><|image_pad|><abs_vis_token></abs_vis_token><|vision_start|>" * 20
    for question in (hostile, "x" * MAX_QUESTION):
        trace = reasoner.run(picture(0), question, max_new_tokens=2)
        assert len(trace.tokens) == 2 and trace.start.grids == ((2, 3),)


def test_rule_none_is_the_checkpoints_own(reasoner):
    assert reasoner.settings(rule=None).rule == "latents_only"
    assert reasoner.settings(rule="causal").rule == "causal"


@pytest.mark.slow
def test_importing_latent_core_is_cheap():
    code = "import sys, latent_core; assert not {'torch', 'transformers', 'gradio'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import latent_core, sys; latent_core.Trace; assert not {'transformers', 'gradio'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
