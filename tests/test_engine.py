"""Decoding: equal to `generate`, batched equal to single, events in order, limits, modes, recording."""

import pytest
import torch

from latent_core.decoding.engine import decode
from latent_core.events import FinishEvent, LatentEvent, StartEvent, TokenEvent
from latent_core.model.attention import Recorder
from latent_core.model.backbone import Backbone
from latent_core.model.backbones import wrap
from latent_core.model.qwen2_5_vl import Qwen2_5_VL
from latent_core.settings import Settings
from tests.tiny import (
    CLOSE,
    EOS,
    IMAGE,
    OPEN,
    PAD_LATENT,
    eager_attention,
    of_sequence,
    scripted,
    tiny_method,
    tiny_model,
    tiny_prompt,
)

PROMPTS = [
    tiny_prompt(0),
    tiny_prompt(1, grids=[(4, 4), (6, 4)], text=9),
    tiny_prompt(2, grids=[], text=4),
    tiny_prompt(3, grids=[(8, 4)], text=3),
]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return wrap(tiny_model())


def run(backbone, method, prompts, settings, **keywords):
    return list(decode(backbone, method, prompts, settings, **keywords))


def ids(events, sequence=0):
    return [event.token_id for event in of_sequence(events, sequence, TokenEvent)]


def fed(events, sequence=0):
    return torch.stack([event.fed for event in of_sequence(events, sequence, LatentEvent)])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_equals_generate(backbone, prompt):
    given = {"pixel_values": prompt.pixel_values, "image_grid_thw": prompt.grid_thw} if len(prompt.grid_thw) else {}
    tokens = prompt.input_ids[None]
    expected = backbone.model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        mm_token_type_ids=(tokens == IMAGE).int(),
        max_new_tokens=24,
        do_sample=False,
        **given,
    )[0, len(prompt.input_ids) :]
    events = run(backbone, tiny_method("text"), [prompt], [Settings(max_new_tokens=24)])
    assert ids(events) == expected.tolist()


def mixed_settings(latents=(3, 5, 0, 7)):
    """Rows in different modes, of different lengths and rules."""
    return [
        Settings(mode="forced", rule="sealed", latents=latents[0], max_new_tokens=20),
        Settings(mode="forced", rule="causal", latents=latents[1], max_new_tokens=11, temperature=0.8, seed=3),
        Settings(mode="markers", max_new_tokens=17, repetition_penalty=1.3),
        Settings(mode="latent", rule="latents_only", latents=latents[3], max_new_tokens=30, top_k=5, temperature=1.0),
    ]


@pytest.mark.parametrize("convention", ["start_fed", "start_overwritten"])
def test_batched_equals_single(backbone, convention):
    method, settings = tiny_method(convention=convention), mixed_settings()
    script = [[1, 2, 3], [OPEN, 4, 5, OPEN, 6, 7], [OPEN, 8, OPEN, 9], [10, OPEN, 11, OPEN, 12, 13, 14]]
    for sampler in (None, script):
        together = run(backbone, method, PROMPTS, settings, sampler=sampler and scripted(*script))
        for sequence, (prompt, setting) in enumerate(zip(PROMPTS, settings, strict=True)):
            alone = run(backbone, method, [prompt], [setting], sampler=sampler and scripted(script[sequence]))
            batch = of_sequence(together, sequence)
            assert [type(e) for e in batch] == [type(e) for e in alone]
            for a, b in zip(batch, alone, strict=True):
                if isinstance(a, StartEvent):
                    torch.testing.assert_close(a.image_states, b.image_states, atol=1e-5, rtol=0)
                    continue
                if isinstance(a, FinishEvent):
                    assert (a.reason, a.tokens, a.latents, a.blocks) == (b.reason, b.tokens, b.latents, b.blocks)
                    continue
                assert a.position == b.position
                torch.testing.assert_close(a.hidden, b.hidden, atol=1e-5, rtol=0)
                if isinstance(a, LatentEvent):
                    assert (a.block, a.index) == (b.block, b.index)
                    torch.testing.assert_close(a.fed, b.fed, atol=1e-5, rtol=0)
                else:
                    assert (a.token_id, a.kind, a.forced) == (b.token_id, b.kind, b.forced)
                    assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


def test_events_of_a_block(backbone):
    settings = Settings(latents=3, max_new_tokens=30)
    events = run(backbone, tiny_method(), PROMPTS[:1], [settings], sampler=scripted([7, OPEN, 8]))
    prompt = len(PROMPTS[0].input_ids)
    start, *middle, finish = events
    assert start.prompt_tokens == prompt and start.grids == ((2, 3),) and start.levels == (0, 1, 2)
    assert start.image_states.shape == (3, 6, 32)
    assert [(type(e).__name__[0], e.position - prompt) for e in middle] == [
        *(("T", 0), ("T", 1)),
        *(("L", 2), ("L", 3), ("L", 4)),
        *(("T", 5), ("T", 6), ("T", 7)),
    ]
    tokens = of_sequence(events, 0, TokenEvent)
    assert [(e.token_id, e.kind, e.forced) for e in tokens] == [
        (7, "text", False),
        (OPEN, "open", False),
        (CLOSE, "close", True),
        (8, "text", False),
        (EOS, "text", False),
    ]
    latents = of_sequence(events, 0, LatentEvent)
    assert torch.equal(latents[1].fed, latents[0].hidden) and torch.equal(tokens[2].hidden, latents[2].hidden)
    assert (finish.reason, finish.tokens, finish.latents, finish.blocks) == ("stop", 5, 3, 1)
    assert finish.max_p_open == pytest.approx(max(e.p_open for e in tokens))
    assert all(type(e.hidden) is torch.Tensor and not e.hidden.is_inference() for e in middle)


def test_overwritten_start_shares_the_opening_tokens_place(backbone):
    method = tiny_method(convention="start_overwritten")
    events = run(backbone, method, PROMPTS[:1], [Settings(latents=3)], sampler=scripted([7, OPEN, 8]))
    prompt = len(PROMPTS[0].input_ids)
    opened = next(e for e in events if isinstance(e, TokenEvent) and e.kind == "open")
    latents = of_sequence(events, 0, LatentEvent)
    assert [e.position - prompt for e in latents] == [1, 2, 3] and opened.position == latents[0].position
    assert torch.equal(latents[0].fed, opened.hidden)


def test_modes(backbone):
    method = tiny_method()
    script = [1, OPEN, 2]
    greedy = {
        mode: run(backbone, method, PROMPTS[:1], [Settings(mode=mode, latents=2)], sampler=None)
        for mode in ("forced", "text")
    }
    first = of_sequence(greedy["forced"], 0, TokenEvent)[0]
    assert (
        first.kind == "open" and first.forced and first.p_open == pytest.approx(2.718281828**first.logprob, rel=1e-4)
    )
    assert OPEN not in ids(greedy["text"]) and of_sequence(greedy["text"], 0, FinishEvent)[0].max_p_open == 0
    markers = run(backbone, method, PROMPTS[:1], [Settings(mode="markers")], sampler=scripted(script))
    assert ids(markers) == [1, OPEN, CLOSE, 2, EOS] and not of_sequence(markers, 0, LatentEvent)


def test_bans_what_only_the_runtime_writes(backbone):
    seen = []

    def look(sequence, logits):
        seen.append(logits)
        return OPEN if len(seen) < 3 else EOS

    run(backbone, tiny_method(), PROMPTS[:1], [Settings(max_blocks=2, latents=1)], sampler=look)
    banned = [logits.isinf().nonzero()[:, 0].tolist() for logits in seen]
    assert banned == [[PAD_LATENT, CLOSE], [PAD_LATENT, CLOSE], [PAD_LATENT, OPEN, CLOSE]]


@pytest.mark.parametrize("limit", range(1, 8))
def test_length_limit_counts_tokens_and_no_latents(backbone, limit):
    settings = Settings(latents=3, max_new_tokens=limit)
    events = run(backbone, tiny_method(), PROMPTS[:1], [settings], sampler=scripted([1, OPEN, 2, 3, 4, 5, 6, 7]))
    finish = events[-1]
    assert finish.reason == "length" and finish.tokens == limit
    assert finish.latents == (3 if limit > 2 else 0)  # without room for its closing token a block holds none


@pytest.mark.parametrize(
    ("name", "latents", "room", "blocks"),
    [
        ("deeplatent", 256, 128, 1),
        ("deeplatent", 256, 16, 1),
        ("deeplatent", 129, 3, 1),
        ("monet", 576, 128, 1),
        ("lvr", 40, 8, 3),
        ("valr", 16, 16, 5),
    ],
)
def test_long_thoughts_leave_room_for_the_answer(backbone, name, latents, room, blocks):
    method = tiny_method(name, options={"grid": "fixed"} if name == "deeplatent" else {})
    script = [OPEN, *([CLOSE] if method.samples_close else []), 3] * blocks
    *_, finish = run(
        backbone, method, PROMPTS[:1], [Settings(latents=latents, max_new_tokens=room)], sampler=scripted(script)
    )
    every = 256 if latents == 256 else 121 if name == "deeplatent" else latents
    assert (finish.latents, finish.blocks) == (blocks * every, blocks) and finish.tokens >= 3


def test_latents_of_all_blocks_together_are_bounded(backbone, monkeypatch):
    monkeypatch.setattr("latent_core.decoding.sequence.MAX_RUN_LATENTS", 10)
    settings = Settings(latents=4, max_new_tokens=100)
    script = iter([OPEN, 1, OPEN, 2, OPEN, 3])

    def say(sequence, logits):
        token = next(script, EOS)
        return 5 if logits[token].isinf() else token

    *_, finish = run(backbone, tiny_method(), PROMPTS[:1], [settings], sampler=say)
    assert (finish.blocks, finish.latents, finish.reason) == (2, 8, "stop")


def test_end_of_sequence_cannot_end_a_block(backbone):
    """Nothing is sampled inside a block: a model that wants to stop at every step still thinks to the end."""
    asked = []

    def script(sequence, logits):
        asked.append(sequence)
        return OPEN if len(asked) == 1 else EOS

    events = run(backbone, tiny_method(), PROMPTS[:1], [Settings(latents=6)], sampler=script)
    assert len(of_sequence(events, 0, LatentEvent)) == 6 and len(asked) == 2


def test_without_recording_no_vector_leaves(backbone):
    settings = [Settings(mode="forced", latents=3, max_new_tokens=9)]
    events = run(backbone, tiny_method(), PROMPTS[:1], settings, record=False)
    assert events[0].image_states.shape == (0, 6, 32)
    assert all(e.hidden is None for e in events[1:-1]) and all(
        e.fed is None for e in of_sequence(events, 0, LatentEvent)
    )
    recorded = run(backbone, tiny_method(), PROMPTS[:1], settings)
    assert ids(events) == ids(recorded)


def test_one_copy_to_the_host_per_tick(backbone, monkeypatch):
    """Counts forwards and copies of a run: every copy is counted, also the hidden ones of .item() and .tolist()."""
    copies, forwards = [], []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: copies.append(tensor.shape) or original(tensor))
    forward = Qwen2_5_VL.forward
    monkeypatch.setattr(
        Qwen2_5_VL, "forward", lambda self, *a, **k: forwards.append(a[0].shape[1]) or forward(self, *a, **k)
    )
    prompt = tiny_prompt(0, grids=[])
    script = scripted([1, OPEN, 2, 3])
    events = decode(backbone, tiny_method(), [prompt], [Settings(latents=4)], sampler=script, record=True)
    next(events)  # the prompt's own copies are over
    copies.clear()
    list(events)
    # prompt; 1; open; 4 latents; close; 2; 3
    assert forwards == [len(prompt.input_ids), 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert len(copies) == len(forwards) - 1


def test_two_interleaved_streams_do_not_touch_each_other():
    backbone, method = wrap(tiny_model()), tiny_method()
    settings = [Settings(mode="forced", latents=4, max_new_tokens=16, rule="sealed")]
    alone = [run(backbone, method, [prompt], settings) for prompt in PROMPTS[:2]]
    streams = [decode(backbone, method, [prompt], settings) for prompt in PROMPTS[:2]]
    mixed = [[], []]
    for pair in zip(*streams, strict=False):
        for events, event in zip(mixed, pair, strict=True):
            events.append(event)
    for events, expected in zip(mixed, alone, strict=True):
        assert ids(events) == ids(expected)[: len(ids(events))]
        assert torch.equal(fed(events), fed(expected))
    assert backbone.model.model.rope_deltas is None


def test_closing_the_generator_cancels(backbone):
    stream = decode(backbone, tiny_method(), PROMPTS[:1], [Settings()])
    next(stream)
    stream.close()
    assert list(stream) == []


def test_gradients_stay_as_the_caller_had_them(backbone):
    stream = decode(backbone, tiny_method("text"), PROMPTS[:1], [Settings()])
    next(stream)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_sampling_depends_on_the_seed_alone(backbone):
    method = tiny_method("text")
    same = [Settings(temperature=1.5, top_p=0.95, top_k=40, seed=seed, max_new_tokens=20) for seed in (1, 2, 1)]
    events = run(backbone, method, [PROMPTS[0]] * 3, same)
    assert ids(events, 0) == ids(events, 2) != ids(events, 1)


def test_attention_recorder(backbone):
    """Weights of chosen layers only; equal to transformers' eager attention; the run itself unchanged."""
    method, prompt = tiny_method(), PROMPTS[1]
    settings = [Settings(mode="forced", latents=2, max_new_tokens=8)]
    recorder = Recorder(layers=[1])
    events = run(backbone, method, [prompt], settings, record_attention=recorder)
    assert ids(events) == ids(run(backbone, method, [prompt], settings))
    length = len(prompt.input_ids)
    entered = [e.position for e in events[1:-1]][:-1]  # the last token is never fed
    assert sorted(recorder.maps) == [(0, length - 1), *((0, position) for position in entered)]
    for (_, position), weights in recorder.maps.items():
        assert weights.shape == (1, 4, position + 1)
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4))
    wanted = eager_attention(prompt)[1][0, :, -1]
    torch.testing.assert_close(recorder.maps[0, length - 1][0], wanted, atol=1e-5, rtol=0)


def test_events_tell_where_words_and_latents_attended(backbone):
    """The reduction of what the recorder sees whole, batched as single; nothing else changes."""
    method, settings = tiny_method(), [Settings(mode="forced", latents=2, max_new_tokens=8)]
    for prompt in PROMPTS:
        recorder = Recorder(layers=[0, 1])
        run(backbone, method, [prompt], settings, record_attention=recorder)
        plain, events = (run(backbone, method, [prompt], settings, attention=layers) for layers in ((), (0, 1)))
        assert events[0].layers == (0, 1) and plain[0].layers == ()
        assert ids(events) == ids(plain)
        is_image = prompt.input_ids == IMAGE
        for event, other in zip(events[1:-1], plain[1:-1], strict=True):
            assert other.attention is None
            if isinstance(event, TokenEvent) and event.kind == "close":
                assert event.attention is None  # no state produced it
                continue
            # a latent's own place; for a token the place whose state produced it
            place = event.position if isinstance(event, LatentEvent) else event.position - 1
            whole = recorder.maps[0, place]
            wanted = whole[..., : len(is_image)][..., is_image]
            torch.testing.assert_close(event.attention.image.float(), wanted, atol=1e-6, rtol=1e-3)
            torch.testing.assert_close(event.attention.shares[..., 0], wanted.sum(-1))
            torch.testing.assert_close(event.attention.shares.sum(-1), torch.ones(2, 4))
            torch.testing.assert_close(event.attention.entropy, -torch.special.xlogy(whole, whole).sum(-1))
    together = run(backbone, method, PROMPTS, settings * len(PROMPTS), attention=(0, 1))
    last = [e for e in together if e.sequence == len(PROMPTS) - 1 and isinstance(e, LatentEvent)]
    alone = [e for e in events if isinstance(e, LatentEvent)]
    for first, second in zip(last, alone, strict=True):
        torch.testing.assert_close(first.attention.shares, second.attention.shares, atol=1e-5, rtol=0)


def test_wrong_number_of_images(backbone):
    prompt, other = PROMPTS[0], PROMPTS[1]
    broken = type(prompt)(
        input_ids=prompt.input_ids, pixel_values=other.pixel_values, grid_thw=other.grid_thw, images=other.images
    )
    with pytest.raises(ValueError, match="Prompt 0 has 6 image tokens, but its images give 10"):
        run(backbone, tiny_method(), [broken], [Settings()])
