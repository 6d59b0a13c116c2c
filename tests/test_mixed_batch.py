"""Rows in text, in blocks fed one by one and in blocks fed at once share a batch, and get what they get alone."""

from collections.abc import Generator

import pytest
import torch

from latent_core.decoding.engine import decode
from latent_core.decoding.interventions import only, zero
from latent_core.events import LatentEvent, TokenEvent
from latent_core.methods import METHODS, LatentMethod
from latent_core.methods.requests import Context, Feed
from latent_core.model.backbones import wrap
from latent_core.settings import Settings
from tests.tiny import OPEN, TOKENS, of_sequence, scripted, tiny_method, tiny_model, tiny_prompt


class Mixed(LatentMethod):
    """An even number of latents enters at once, as a grid of two rows; an odd one by one."""

    name = "mixed"

    def block(self, context: Context) -> Generator[Feed, torch.Tensor, None]:
        hidden, latents = context.hidden, context.num_latents
        if latents % 2 == 0:
            yield Feed(hidden * torch.linspace(0.5, 2, latents)[:, None], grid=(2, latents // 2), final=True)
            return
        for _ in range(latents):
            hidden = yield Feed(hidden)


SCRIPTS = ([1, OPEN, 3, OPEN, 4], [2, 2, 2, 2, 2, 2, 2, 2], [OPEN, 5, 6], [1, OPEN, OPEN, 7], [OPEN])
LATENTS = (6, 4, 3, 5, 8)


@pytest.mark.parametrize("rule", ["causal", "latents_only", "sealed"])
def test_batched_equals_single(monkeypatch, rule):
    monkeypatch.setitem(METHODS, "mixed", Mixed)
    backbone, method = wrap(tiny_model()), tiny_method("mixed", rule=rule)
    prompts = [tiny_prompt(i, text=5 + i, grids=[(4, 6)] * (1 + i % 2)) for i in range(len(SCRIPTS))]
    settings = [Settings(latents=k) for k in LATENTS]
    hooks = [None, None, zero(), only([(0, 2)], zero()), only([(0, 3)], zero())]
    together = list(decode(backbone, method, prompts, settings, sampler=scripted(*SCRIPTS), intervene=hooks))
    for sequence, script in enumerate(SCRIPTS):
        sampler, hook = scripted(script), [hooks[sequence]]
        alone = list(
            decode(backbone, method, [prompts[sequence]], [settings[sequence]], sampler=sampler, intervene=hook)
        )
        first, second = of_sequence(alone, 0), of_sequence(together, sequence)
        assert [type(e) for e in first] == [type(e) for e in second]
        for a, b in zip(first, second, strict=True):
            if isinstance(a, (LatentEvent, TokenEvent)):
                assert a.position == b.position
                torch.testing.assert_close(a.hidden, b.hidden, atol=2e-5, rtol=0)
            if isinstance(a, LatentEvent):
                assert (a.block, a.index, a.grid) == (b.block, b.index, b.grid)
                torch.testing.assert_close(a.fed, b.fed, atol=2e-5, rtol=0)
    only_one = [bool(e.fed.any()) for e in of_sequence(together, 4, LatentEvent)]
    assert only_one == [n != 3 for n in range(8)]


def test_attention_of_latents_fed_at_once_and_of_words_after_them_is_each_ones_own(monkeypatch):
    """Under plain causal attention and one after the other, latents fed at once attend as the same ones in turn do."""
    monkeypatch.setitem(METHODS, "mixed", Mixed)
    backbone, prompts = wrap(tiny_model()), [tiny_prompt(), tiny_prompt(1, text=9)]

    class InTurn(Mixed):
        def block(self, context):
            for vector in context.hidden * torch.linspace(0.5, 2, context.num_latents)[:, None]:
                yield Feed(vector[None])

    monkeypatch.setitem(METHODS, "in turn", InTurn)
    for rule in ("causal", "latents_only", "sealed"):
        found = []
        for method in (tiny_method("mixed", rule=rule), InTurn(tiny_method("mixed", rule=rule).config, TOKENS.get)):
            settings = [Settings(latents=4), Settings(latents=6)]
            sampler = scripted([1, OPEN, 3], [OPEN, 4, 5, 6])
            events = decode(backbone, method, prompts, settings, sampler=sampler, attention=range(2))
            found.append([e for e in events if getattr(e, "attention", None) and getattr(e, "kind", "") != "close"])
        for a, b in zip(*(sorted(events, key=lambda e: (e.sequence, e.position)) for events in found), strict=True):
            assert (type(a), a.sequence, a.position) == (type(b), b.sequence, b.position)
            torch.testing.assert_close(a.attention.image, b.attention.image, atol=1e-3, rtol=0)
            torch.testing.assert_close(a.attention.shares, b.attention.shares, atol=1e-5, rtol=0)
            torch.testing.assert_close(a.attention.entropy, b.attention.entropy, atol=1e-4, rtol=0)


def test_events_of_a_block_fed_at_once_come_in_order(monkeypatch):
    monkeypatch.setitem(METHODS, "mixed", Mixed)
    method = tiny_method("mixed")
    settings = [Settings(latents=4, max_new_tokens=12)]
    events = list(decode(wrap(tiny_model()), method, [tiny_prompt()], settings, sampler=scripted([1, OPEN, 3])))
    steps = [e for e in events if isinstance(e, (TokenEvent, LatentEvent))]
    slot_types = [e.kind if isinstance(e, TokenEvent) else "latent" for e in steps]
    assert slot_types == ["text", "open", *["latent"] * 4, "close", "text", "text"]
    start = steps[0].position
    assert [e.position for e in steps] == list(range(start, start + 9))
    torch.testing.assert_close(steps[6].hidden, steps[5].hidden)  # the closing token follows the last latent


@pytest.mark.parametrize("room", range(1, 9))
def test_a_run_ends_where_its_room_ends(monkeypatch, room):
    monkeypatch.setitem(METHODS, "mixed", Mixed)
    method, settings = tiny_method("mixed"), [Settings(latents=4, max_new_tokens=room)]
    events = list(decode(wrap(tiny_model()), method, [tiny_prompt()], settings, sampler=scripted([OPEN, 3, 3, 3])))
    finish = events[-1]
    assert finish.tokens <= room and finish.latents == (4 if room >= 2 else 0)
    assert finish.reason == ("stop" if room >= 6 else "length")
