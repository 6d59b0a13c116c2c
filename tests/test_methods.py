"""The contract of every method in METHODS: what decoding, unrolling and replay rely on."""

import pytest
import torch

from latent_core.config import MethodConfig
from latent_core.decoding.engine import decode
from latent_core.decoding.layout import ForcedSequence
from latent_core.decoding.sequence import Block, Tokens, count
from latent_core.decoding.unroll import splice, unroll
from latent_core.events import FinishEvent, LatentEvent, TokenEvent
from latent_core.methods import METHODS, build_method
from latent_core.methods.requests import Context, Feed
from latent_core.model.backbones import wrap
from latent_core.model.slot_types import PROMPT
from latent_core.model.slots import Slots
from latent_core.settings import Settings
from tests.tiny import CLOSE, EOS, OPEN, TOKENS, of_sequence, scripted, tiny_method, tiny_model, tiny_prompt

BACKBONE = wrap(tiny_model())
WITH_LATENTS = [name for name in METHODS if tiny_method(name).has_latents]
RULES = ("causal", "no_image", "latents_only", "sealed")


@pytest.mark.parametrize("name", METHODS)
def test_named_as_registered(name):
    method = tiny_method(name)
    assert method.name == name and method.config.method == name
    with pytest.raises(ValueError, match="is for method 'other'"):
        METHODS[name](MethodConfig(method="other"), TOKENS.__getitem__)


def test_unknown_method():
    with pytest.raises(ValueError, match="Unknown method 'mnoet'; this version knows text, monet"):
        build_method(MethodConfig(method="mnoet"), TOKENS.__getitem__)


def test_a_method_without_latents_never_opens():
    method = tiny_method("text")
    for mode in ("latent", "forced", "markers"):
        events = list(decode(BACKBONE, method, [tiny_prompt()], [Settings(mode=mode, max_new_tokens=12)]))
        assert not of_sequence(events, 0, LatentEvent) and events[-1].blocks == 0
        assert all(e.p_open == 0 and not e.forced for e in of_sequence(events, 0, TokenEvent))


@pytest.mark.parametrize("name", WITH_LATENTS)
def test_a_block_answers_states_with_feeds(name):
    method = tiny_method(name)
    states = torch.zeros(max(1, count(method.controls())), 32)
    prompt = Feed(torch.zeros(1, 32), is_latent=False, slots=Slots((PROMPT,)))
    block = method.block(Context(states, num_latents=3, free=False, grid=(1, 3), prompt=prompt))
    feed, latents = next(block), 0
    with pytest.raises(StopIteration):
        while True:
            latents += feed.is_latent * len(feed.embeds)
            feed = block.send(torch.ones(feed.size, 32))
    assert latents == 3


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", WITH_LATENTS)
def test_what_was_decoded_unrolls_and_splices_to_the_same_states(name, rule):
    """Cached = unrolled = spliced, within 1e-5: one drive, one mask, one layout."""
    for convention in ("start_fed", "start_overwritten"):
        method = tiny_method(name, convention=convention, rule=rule)
        prompt = tiny_prompt(grids=[(4, 6), (4, 4)])
        script = [1, 2, OPEN, 3, OPEN, 4, 5]
        learns, closed = False, True
        if method.samples_close and rule != "sealed":  # it closes the first block, and goes on in the second
            script, learns, closed = [1, 2, OPEN, CLOSE, 3, OPEN, 4, 5], True, False
        events = list(decode(BACKBONE, method, [prompt], [Settings(latents=4)], sampler=scripted(script)))
        held = [[e for e in of_sequence(events, 0, LatentEvent) if e.block == number] for number in range(2)]
        first = Block(len(held[0]), grid=held[0][0].grid, learn_close=learns)
        second = Block(len(held[1]), grid=held[1][0].grid, closed=closed)
        rows = [ForcedSequence(prompt, (Tokens((1, 2)), first, Tokens((3,)), second, Tokens((4, 5, EOS))))]
        with torch.no_grad():
            unrolled = unroll(BACKBONE, method, rows)
            spliced = splice(BACKBONE, method, rows, unrolled.latents)
        torch.testing.assert_close(spliced.states, unrolled.states, atol=1e-5, rtol=0)
        fed = torch.stack([e.fed for e in of_sequence(events, 0, LatentEvent)])
        torch.testing.assert_close(torch.cat(unrolled.latents[0]), fed, atol=2e-5, rtol=0)
        # every sampled token was decoded from the very state that training gives its label
        states, labels = unrolled.learned()
        chosen = [e for e in of_sequence(events, 0, TokenEvent) if not e.forced]
        assert labels.tolist() == [e.token_id for e in chosen]
        torch.testing.assert_close(states, torch.stack([e.hidden for e in chosen]), atol=1e-5, rtol=0)
        logprobs = BACKBONE.logits(states).log_softmax(-1).gather(1, labels[:, None])[:, 0]
        torch.testing.assert_close(logprobs, torch.tensor([e.logprob for e in chosen]), atol=1e-4, rtol=0)
        assert isinstance(events[-1], FinishEvent)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", WITH_LATENTS)
def test_a_row_of_a_batch_gets_what_it_gets_alone(name, rule):
    """Rows of no, one and two blocks, with prompts, images and K of their own; decoded and unrolled."""
    method = tiny_method(name, rule=rule)
    scripts = [[1, OPEN, CLOSE, 3, OPEN, CLOSE, 4], [2, 3, 4, 5, 6], [OPEN, CLOSE, 7, 8]]
    if not method.samples_close or rule == "sealed":
        scripts = [[token for token in script if token != CLOSE] for script in scripts]
    prompts = [tiny_prompt(i, text=4 + 3 * i, grids=[(4, 6)] * (2 - i % 2)) for i in range(3)]
    settings = [Settings(latents=k) for k in (3, 4, 6)]
    together = list(decode(BACKBONE, method, prompts, settings, sampler=scripted(*scripts)))
    rows = []
    for row, script in enumerate(scripts):
        alone = list(decode(BACKBONE, method, [prompts[row]], [settings[row]], sampler=scripted(script)))
        steps, segments = [], []
        for first, second in zip(of_sequence(alone, 0), of_sequence(together, row), strict=True):
            assert type(first) is type(second)
            if isinstance(first, (TokenEvent, LatentEvent)):
                steps.append(first)
                assert first.position == second.position
                torch.testing.assert_close(first.hidden, second.hidden, atol=2e-5, rtol=0)
        for step in steps:
            if isinstance(step, LatentEvent) and step.index == 0:
                of_it = [e for e in steps if isinstance(e, LatentEvent) and e.block == step.block]
                segments.append(Block(len(of_it), grid=step.grid))
            elif isinstance(step, TokenEvent) and step.kind == "text":
                segments.append(Tokens((step.token_id,)))
        rows.append(ForcedSequence(prompts[row], tuple(segments)))
    with torch.no_grad():
        whole = unroll(BACKBONE, method, rows)
        for number, row in enumerate(rows):
            single = unroll(BACKBONE, method, [row])
            length = single.states.shape[1]
            torch.testing.assert_close(whole.states[number, :length], single.states[0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", WITH_LATENTS)
def test_gradients_reach_the_backbone_and_the_methods_own_parameters_through_latents(name):
    """Under `latents_only` what is said after a block depends on the prompt through the latents alone."""
    method = tiny_method(name, rule="latents_only")
    row = ForcedSequence(
        tiny_prompt(), (Block(4, grid=(2, 2) if method.num_latents_is_maximum else None), Tokens((4, EOS), learn=True))
    )
    states, _ = unroll(BACKBONE, method, [row]).learned()
    BACKBONE.zero_grad(), method.zero_grad()
    states[-1].sum().backward()
    assert BACKBONE.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0
    own = dict(method.named_parameters())
    if own:
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in own.values())
    BACKBONE.zero_grad()


@pytest.mark.parametrize("convention", ["start_fed", "start_overwritten"])
@pytest.mark.parametrize("name", WITH_LATENTS)
def test_a_run_may_end_anywhere(name, convention):
    """However little room there is: before, at, inside and behind a block."""
    method = tiny_method(name, convention=convention)
    for room in range(1, 14):
        settings = [Settings(mode="forced", latents=4, max_new_tokens=room)]
        *steps, finish = decode(BACKBONE, method, [tiny_prompt()], settings, sampler=scripted([OPEN, CLOSE, 3, 4]))
        assert finish.tokens <= room
        assert finish.tokens == len(of_sequence(steps, 0, TokenEvent)) and finish.latents == len(
            of_sequence(steps, 0, LatentEvent)
        )
        if room < 3:
            assert finish.reason == "length"
