"""Slots: what a coroutine feeds, stretch by stretch, is what the layout says beforehand, for every method."""

import pytest
import torch

from latent_core.decoding.batch import auxiliary_image_feed, prompt_feeds
from latent_core.decoding.engine import decode
from latent_core.decoding.layout import ForcedSequence, lay_out
from latent_core.decoding.sequence import AuxiliaryImage, Block, Forced, Tokens, drive
from latent_core.decoding.unroll import splice, unroll
from latent_core.events import TokenEvent
from latent_core.methods import METHODS, LatentMethod
from latent_core.methods.requests import Feed
from latent_core.model.backbones import wrap
from latent_core.model.slot_types import AFTER, CLOSE, CONTROL, LATENT, OPEN, SEALED, TEXT
from latent_core.model.slots import Slots, axes, closing_slots, join, latent_slots, opening_slots, text_slots
from latent_core.settings import Settings
from tests.tiny import EOS, of_sequence, scripted, tiny_method, tiny_model, tiny_prompt
from tests.tiny import OPEN as OPEN_ID

BACKBONE = wrap(tiny_model())
RULES = ("causal", "no_image", "latents_only", "sealed")
WITH_LATENTS = [name for name in METHODS if tiny_method(name).has_latents]
GRID = torch.tensor([[0] * 6, [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]])


def auxiliary_image(seed: int, rows: int, columns: int) -> AuxiliaryImage:
    pixels = torch.randn(rows * columns, 3 * 2 * 4**2, generator=torch.Generator().manual_seed(seed))
    return AuxiliaryImage(pixels, torch.tensor([[1, rows, columns]]))


def sequences(method: LatentMethod) -> list[ForcedSequence]:
    """Text, images and blocks in all orders: side by side, empty, without an end."""
    grid = (2, 3) if method.num_latents_is_maximum else None
    block, words = Block(6, grid=grid), Tokens((5, 6))
    return [
        ForcedSequence(
            tiny_prompt(0), (Tokens((1, 2, 3)), block, words, Block(1, grid=(1, 1) if grid else None), words)
        ),
        ForcedSequence(tiny_prompt(1, grids=[(4, 4), (6, 4)]), (block, Block(0), block, Tokens((EOS,)))),
        ForcedSequence(
            tiny_prompt(2, grids=[]), (auxiliary_image(0, 4, 6), block, words, auxiliary_image(1, 4, 4), block, words)
        ),
        ForcedSequence(tiny_prompt(3), (words, auxiliary_image(2, 6, 4))),
        ForcedSequence(tiny_prompt(4), (Tokens((1,)), Block(6, closed=False, grid=grid), words, block)),
        ForcedSequence(tiny_prompt(5), (Tokens((1,)), Block(6, closed=False, grid=grid), block, Tokens(()), words)),
    ]


def fed(method: LatentMethod, sequence: ForcedSequence, rule: str) -> list[Feed]:
    """What a sequence's coroutine feeds, whatever the states are."""
    image_feeds = [
        auxiliary_image_feed(BACKBONE, image, torch.zeros(int(image.grid_thw.prod()) // 4, 32), number)
        for number, image in enumerate(sequence.auxiliary_images)
    ]
    run = drive(
        method, *prompt_feeds(BACKBONE, [sequence.prompt]), Forced(method, sequence.segments, image_feeds), rule
    )
    feeds, states = [], None
    while True:
        try:
            feeds.append(run.send(states))
        except StopIteration:
            return feeds
        states = torch.zeros(feeds[-1].size, 32)


@pytest.mark.parametrize("convention", ["start_fed", "start_overwritten"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", WITH_LATENTS)
@torch.no_grad()
def test_what_is_fed_is_what_is_laid_out(name, rule, convention):
    method = tiny_method(name, convention=convention)
    examples = sequences(method)
    layout = lay_out(BACKBONE, method, examples, [rule] * len(examples))
    for number, sequence in enumerate(examples):
        feeds = fed(method, sequence, rule)
        assert all(len(feed.slots) == feed.size for feed in feeds)
        whole = join(*(feed.slots for feed in feeds))
        length = len(whole)
        assert layout.slot_types[number].tolist() == [*whole.types, *[0] * (layout.slot_types.shape[1] - length)]
        assert torch.equal(layout.positions[:, number, :length], axes(whole.place(0)[0]))
        # ids are those of the feeds, behind their vectors and before their control vectors
        ids = []
        for feed in feeds:
            vectors, controls = (0 if part is None else len(part) for part in (feed.embeds, feed.tail))
            ids += [*[-1] * vectors, *feed.then, *[-1] * controls]
        prompt = len(sequence.prompt.input_ids)
        known = layout.ids[number, prompt:length].tolist()
        assert [-1 if i in BACKBONE.marker_ids else i for i in known] == ids[prompt:]


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_a_block_without_an_end_has_neither_closing_token_nor_copies(rule):
    method, tokens = tiny_method("lvr"), (Tokens((1,)), Block(3, closed=False), Tokens((4, 5)), Block(2), Tokens((6,)))
    sequence = ForcedSequence(tiny_prompt(), tokens)
    unrolled = unroll(BACKBONE, method, [sequence], rule=rule)
    spliced = splice(BACKBONE, method, [sequence], unrolled.latents, rule=rule)
    torch.testing.assert_close(spliced.states, unrolled.states, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_text_behind_a_block_without_an_end_is_under_the_rule_in_decoding_too(rule):
    method, prompts = tiny_method("lvr", rule=rule), [tiny_prompt(), tiny_prompt(1, text=9)]
    script, settings = [1, OPEN_ID, 4, 5], Settings(latents=3)
    sequences = [
        ForcedSequence(p, (Tokens((1,)), Block(3, closed=rule == "sealed"), Tokens((4, 5, EOS)))) for p in prompts
    ]
    together = list(decode(BACKBONE, method, prompts, [settings] * 2, sampler=scripted(script, script)))
    for number, sequence in enumerate(sequences):
        alone = list(decode(BACKBONE, method, [sequence.prompt], [settings], sampler=scripted(script)))
        states, _ = unroll(BACKBONE, method, [sequence]).learned()
        for events in (of_sequence(alone, 0, TokenEvent), of_sequence(together, number, TokenEvent)):
            chosen = torch.stack([event.hidden for event in events if not event.forced])
            torch.testing.assert_close(chosen, states, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_grid_whose_latents_are_made_one_by_one_counts_on():
    method = tiny_method("deeplatent", options={"generation": "autoregressive"})
    sequence = ForcedSequence(tiny_prompt(), (Tokens((1,)), Block(6, grid=(2, 3)), Tokens((4, EOS))))
    unrolled = unroll(BACKBONE, method, [sequence])
    spliced = splice(BACKBONE, method, [sequence], unrolled.latents)
    torch.testing.assert_close(spliced.states, unrolled.states, atol=1e-5, rtol=0)


def test_stretches_go_on_where_the_one_before_ended():
    block = join(opening_slots(1, 3), latent_slots(1, 2), closing_slots(1), text_slots(2, 2))
    assert [kind % 16 for kind in block.types] == [OPEN, *[CONTROL] * 3, *[LATENT] * 2, CLOSE, *[AFTER] * 2]
    assert block.place(7) == (range(7, 16), 16)
    assert text_slots(2, 0).types == (TEXT, TEXT)


def test_copies_stand_where_their_latents_stand():
    for latents, end in ((latent_slots(0, 6), 6), (latent_slots(0, 6, GRID), 3)):
        whole = join(text_slots(1, 0), latents, closing_slots(0, latents), text_slots(1, 1))
        assert whole.types == (TEXT, *[LATENT] * 6, *[SEALED] * 6, CLOSE, AFTER)
        positions, after = whole.place(10)
        assert torch.equal(positions[:, 1:7], positions[:, 7:13])
        assert positions[:, 13].tolist() == [11 + end] * 3 and after == 11 + end + 2


def test_no_latents_no_copies():
    closing = closing_slots(2, Slots())
    assert closing.types == closing_slots(2).types and closing.place(4) == (range(4, 5), 5)


class Answered(LatentMethod):
    """A grid of latents in one feed whose states the block wants to know, so that nothing rides along with it."""

    name = "answered"

    def places(self, grid: tuple[int, int]) -> torch.Tensor:
        return GRID

    def block(self, context):
        yield Feed(context.hidden * torch.linspace(0.5, 2, 6)[:, None], grid=(2, 3))


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_a_grid_that_is_answered_is_sealed_in_its_places(monkeypatch, rule):
    monkeypatch.setitem(METHODS, "answered", Answered)
    method = tiny_method("answered")
    sequence = ForcedSequence(tiny_prompt(), (Tokens((1,)), Block(6, grid=(2, 3)), Tokens((4, 5))))
    unrolled = unroll(BACKBONE, method, [sequence], rule=rule)
    spliced = splice(BACKBONE, method, [sequence], unrolled.latents, rule=rule)
    torch.testing.assert_close(spliced.states, unrolled.states, atol=1e-5, rtol=0)
