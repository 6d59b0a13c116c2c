"""Unrolling for training: ragged batches equal single sequences, gradients flow where they should, few forwards."""

import pytest
import torch

from latent_core.decoding.layout import NO_LABEL, ForcedSequence
from latent_core.decoding.sequence import AuxiliaryImage, Block, Tokens
from latent_core.decoding.unroll import Unrolled, splice, unroll
from latent_core.model.attention import PLAIN, Flow
from latent_core.model.backbone import Backbone
from latent_core.model.backbones import wrap
from latent_core.model.slot_types import (
    AFTER,
    AUX,
    AUX_END,
    AUX_START,
    CLOSE,
    IMAGE,
    LATENT,
    OPEN,
    PAD,
    PROMPT,
    SEALED,
    TEXT,
    numbered,
)
from tests.tiny import CLOSE as CLOSE_ID
from tests.tiny import EOS, tiny_method, tiny_model, tiny_prompt
from tests.tiny import IMAGE as IMAGE_ID
from tests.tiny import OPEN as OPEN_ID

SEQUENCES = [
    ForcedSequence(tiny_prompt(0), (Tokens((1, 2, 3)), Block(4), Tokens((5, 6)), Block(2), Tokens((7, 8, 9, EOS)))),
    ForcedSequence(tiny_prompt(1, grids=[(4, 4), (6, 4)], text=9), (Block(0), Tokens((5, 6)))),
    ForcedSequence(
        tiny_prompt(2, grids=[], text=4), (Tokens((4,), learn=False), Block(7, learn=False), Tokens((5, 6)))
    ),
    ForcedSequence(tiny_prompt(3, grids=[(4, 4)], text=4), (Tokens((4, 5)),)),
]
MIXED = ["sealed", "causal", "no_image", "latents_only"]


@pytest.fixture
def backbone() -> Backbone:
    return wrap(tiny_model())


@pytest.mark.parametrize("convention", ["start_fed", "start_overwritten"])
@pytest.mark.parametrize("rule", ["causal", "latents_only", "sealed", MIXED])
def test_ragged_batch_equals_single_rows_and_splice(backbone, convention, rule):
    """Different prompts, image counts, texts, numbers of blocks, K and rules together."""
    method = tiny_method(convention=convention)
    together = unroll(backbone, method, SEQUENCES, rule=rule)
    assert together.forwards == 1 + (7 + 1) + (2 + 1)
    spliced = splice(backbone, method, SEQUENCES, together.latents, rule=rule)
    filled = together.layout.slot_types != PAD
    torch.testing.assert_close(together.states[filled], spliced.states[filled], atol=1e-5, rtol=0)
    for index, sequence in enumerate(SEQUENCES):
        alone = unroll(backbone, method, [sequence], rule=rule if isinstance(rule, str) else rule[index])
        length = alone.states.shape[1]
        torch.testing.assert_close(together.states[index, :length], alone.states[0], atol=1e-5, rtol=0)
        assert not together.states[index, length:].any()


def auxiliary_image(seed: int, rows: int, columns: int) -> AuxiliaryImage:
    pixels = torch.randn(rows * columns, 3 * 2 * 4**2, generator=torch.Generator().manual_seed(seed))
    return AuxiliaryImage(pixels, torch.tensor([[1, rows, columns]]))


FLOWS = [
    PLAIN,
    Flow(readers="latents"),
    Flow(readers="latents", within_image=False),
    Flow(readers="open+latents"),
]


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("rule", ["causal", "latents_only", "sealed"])
def test_auxiliary_images_in_a_ragged_batch(backbone, flow, rule):
    """Rows with two, one and no auxiliary images, with and without blocks: alone, together and spliced they agree."""
    words = Tokens((5, 6))
    sequences = [
        ForcedSequence(
            tiny_prompt(0),
            (Tokens((1,)), auxiliary_image(0, 4, 6), Block(3), words, auxiliary_image(1, 4, 4), Block(2), words),
        ),
        ForcedSequence(tiny_prompt(1), (auxiliary_image(2, 6, 4), Tokens((7, 8, 9)), auxiliary_image(3, 4, 4), words)),
        ForcedSequence(tiny_prompt(2, grids=[]), (Tokens((1, 2)), Block(4), words)),
    ]
    method = tiny_method()
    together = unroll(backbone, method, sequences, rule=rule, flow=flow)
    spliced = splice(backbone, method, sequences, together.latents, rule=rule, flow=flow)
    filled = together.layout.slot_types != PAD
    torch.testing.assert_close(together.states[filled], spliced.states[filled], atol=1e-5, rtol=0)
    for index, sequence in enumerate(sequences):
        alone = unroll(backbone, method, [sequence], rule=rule, flow=flow)
        length = alone.states.shape[1]
        torch.testing.assert_close(together.states[index, :length], alone.states[0], atol=1e-5, rtol=0)


def test_layout_of_an_auxiliary_image(backbone):
    """Positions as transformers gives them to an image; nothing of it is learned; what follows it is."""
    start, end = backbone.marker_ids
    sequence = ForcedSequence(
        tiny_prompt(0, text=1), (Tokens((1,)), auxiliary_image(0, 4, 6), Block(1), Tokens((3,), observation=True))
    )
    layout = unroll(backbone, tiny_method(), [sequence]).layout
    prompt = len(sequence.prompt.input_ids)
    assert layout.ids[0, prompt:].tolist() == [1, start, *[-1] * 6, end, OPEN_ID, -1, CLOSE_ID, 3]
    slot_types = [TEXT, AUX_START, *[AUX] * 6, AUX_END, OPEN, LATENT, CLOSE, AFTER]
    assert layout.slot_types[0, prompt:].tolist() == slot_types
    none = NO_LABEL
    assert layout.labels[0, prompt - 1 :].tolist() == [1, *[none] * 8, OPEN_ID, none, none, 3, none]
    assert layout.weights(4.0).tolist() == [1, 1, 4]
    ids = torch.cat(
        [sequence.prompt.input_ids, torch.tensor([1, start, *[IMAGE_ID] * 6, end, OPEN_ID, 80, CLOSE_ID, 3])]
    )
    grids = torch.cat([sequence.prompt.grid_thw, torch.tensor([[1, 4, 6]])])
    assert torch.equal(layout.positions[:, 0], backbone.positions(ids, grids))


def test_layout(backbone):
    sequence = ForcedSequence(tiny_prompt(0, text=1), (Tokens((1, 2)), Block(2), Tokens((3, EOS))))
    layout = unroll(backbone, tiny_method(), [sequence], rule="sealed").layout
    prompt = len(sequence.prompt.input_ids)
    assert layout.ids[0, prompt:].tolist() == [1, 2, OPEN_ID, -1, -1, -1, -1, CLOSE_ID, 3, EOS]
    slot_types = [TEXT, TEXT, OPEN, LATENT, LATENT, SEALED, SEALED, CLOSE, AFTER, AFTER]
    assert layout.slot_types[0, prompt:].tolist() == slot_types == [numbered(kind, 0) for kind in slot_types]
    expected = [IMAGE if token == IMAGE_ID else PROMPT for token in sequence.prompt.input_ids.tolist()]
    assert layout.slot_types[0, :prompt].tolist() == expected
    none = NO_LABEL
    assert layout.labels[0, prompt - 1 :].tolist() == [1, 2, OPEN_ID, none, none, none, none, none, 3, EOS, none]
    first = layout.positions[0, 0, prompt].item()
    steps = [0, 1, 2, 3, 4, 3, 4, 5, 6, 7]  # sealed copies stand where their latents stood
    assert (layout.positions[:, 0, prompt:] == first + torch.tensor(steps)).all()
    assert first == layout.positions[:, 0, :prompt].max() + 1


def test_learn_flags(backbone):
    _, labels = unroll(backbone, tiny_method(), SEQUENCES).learned()
    expected = [1, 2, 3, OPEN_ID, 5, 6, OPEN_ID, 7, 8, 9, EOS, OPEN_ID, 5, 6, 5, 6, 4, 5]
    assert labels.tolist() == expected


def test_gradient_equals_that_of_one_splice_with_live_latents(backbone):
    """The cache loses nothing: backpropagation through time equals autograd on a chain of full forwards."""
    method = tiny_method()
    sequence = ForcedSequence(tiny_prompt(0), (Tokens((1,)), Block(3), Tokens((5, EOS))))
    states, labels = unroll(backbone, method, [sequence], rule="latents_only").learned()
    torch.nn.functional.cross_entropy(backbone.logits(states), labels).backward()
    gradients = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    backbone.zero_grad()
    start = len(sequence.prompt.input_ids) + 1  # the opening token's slot
    latents: list[torch.Tensor] = []
    for _ in range(3):
        slots = latents + [torch.zeros(1, 32)] * (3 - len(latents))
        full = splice(backbone, method, [sequence], [[torch.cat(slots)]], rule="latents_only")
        latents.append(full.states[0, start + len(latents)][None])
    full = splice(backbone, method, [sequence], [[torch.cat(latents)]], rule="latents_only")
    states, labels = full.learned()
    torch.nn.functional.cross_entropy(backbone.logits(states), labels).backward()
    assert gradients.keys() == {name for name, p in backbone.named_parameters() if p.grad is not None}
    for name, parameter in backbone.named_parameters():
        if name in gradients:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-3)


def test_detach_feedback_cuts_what_is_fed_but_not_the_cache(backbone):
    method = tiny_method()
    sequence = ForcedSequence(tiny_prompt(0), (Tokens((1,)), Block(3), Tokens((5,))))
    attached, detached = (unroll(backbone, method, [sequence], detach_feedback=cut) for cut in (False, True))
    torch.testing.assert_close(attached.states, detached.states, atol=0, rtol=0)
    layers = backbone.layers

    def gradients(unrolled: Unrolled) -> tuple[float, float]:
        backbone.zero_grad()
        unrolled.states[0, -1].sum().backward()
        return layers[0].self_attn.k_proj.weight.grad.norm().item(), layers[-1].mlp.down_proj.weight.grad.norm().item()

    through_cache, last = gradients(detached)
    assert through_cache > 0  # the last block's output reaches later slots through what is fed alone
    assert gradients(attached)[1] > last


@pytest.mark.slow
def test_overfits_one_answer_through_latents_alone():
    """Under `sealed` the answer can only come through the latents, and it is learned."""
    backbone, method = wrap(tiny_model()), tiny_method(rule="sealed")
    sequences = [ForcedSequence(tiny_prompt(seed, text=2), (Block(2), Tokens((10 + seed, EOS)))) for seed in range(4)]
    optimiser = torch.optim.AdamW(backbone.parameters(), 3e-3)
    for _ in range(80):
        states, labels = unroll(backbone, method, sequences).learned()
        loss = torch.nn.functional.cross_entropy(backbone.logits(states), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.05


def test_splice_refuses_latents_of_another_shape(backbone):
    with pytest.raises(
        ValueError, match=r"Sequence 0 has blocks of \[4, 2\] latents, but latents for blocks of \[3\]"
    ):
        splice(backbone, tiny_method(), SEQUENCES[:1], [[torch.zeros(3, 32)]])


def test_gradient_checkpointing_is_refused_where_it_would_drop_the_cache(backbone):
    backbone.model.gradient_checkpointing_enable()
    backbone.train()
    with pytest.raises(ValueError, match="Gradient checkpointing drops the cache"):
        unroll(backbone, tiny_method(), SEQUENCES[:1])
    latents = [[torch.zeros(4, 32), torch.zeros(2, 32)]]
    splice(backbone, tiny_method(), SEQUENCES[:1], latents).states.sum().backward()
