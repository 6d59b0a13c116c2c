"""Interventions: what they feed, that later tokens hear of it, and that the sham changes nothing."""

from types import SimpleNamespace

import pytest
import torch

from latent_core.decoding import interventions
from latent_core.decoding.engine import decode
from latent_core.events import LatentEvent, TokenEvent
from latent_core.model.backbones import wrap
from latent_core.settings import Settings
from tests.tiny import OPEN, of_sequence, scripted, tiny_method, tiny_model, tiny_prompt

BACKBONE = wrap(tiny_model())
SCRIPT = [1, OPEN, 2, OPEN, 3, 4]


def run(*hooks, latents=4, seed=0):
    count = len(hooks) or 1
    return list(
        decode(
            BACKBONE,
            tiny_method(),
            [tiny_prompt(seed)] * count,
            [Settings(latents=latents)] * count,
            intervene=hooks or None,
            sampler=scripted(*[SCRIPT] * count),
        )
    )


def blocks(events, sequence=0):
    latents = of_sequence(events, sequence, LatentEvent)
    return [
        SimpleNamespace(latents=torch.stack([e.fed for e in latents if e.block == block]))
        for block in sorted({e.block for e in latents})
    ]


def fed(events, sequence=0):
    return torch.cat([block.latents for block in blocks(events, sequence)])


def last_state(events, sequence=0):
    return of_sequence(events, sequence, TokenEvent)[-1].hidden


CLEAN = run()


def test_sham_changes_nothing_bit_by_bit():
    events = run(interventions.donor(blocks(CLEAN)))
    assert len(events) == len(CLEAN)
    for a, b in zip(events[1:-1], CLEAN[1:-1], strict=True):
        assert torch.equal(a.hidden, b.hidden)


def test_zero_feeds_zeros_and_later_tokens_hear_of_it():
    events = run(interventions.zero())
    assert fed(events).abs().max() == 0
    assert (last_state(events) - last_state(CLEAN)).abs().max() > 1e-3


def test_noise_has_the_norm_of_what_it_replaces_and_a_seed():
    first_only = interventions.only([(0, 0)], interventions.noise(seed=5))
    a, b, c = (run(hook) for hook in (first_only, interventions.noise(seed=5), interventions.noise(seed=6)))
    torch.testing.assert_close(fed(a)[0].norm(), fed(CLEAN)[0].norm())
    assert torch.equal(fed(a)[0], fed(b)[0]) and not torch.equal(fed(b)[0], fed(c)[0])
    cosine = torch.cosine_similarity(fed(b)[0], fed(b)[1], dim=0)
    assert cosine.abs() < 0.9, "every position draws its own direction"


def test_noise_of_a_captured_distribution():
    mean, std = torch.full((32,), 3.0), torch.full((32,), 0.01)
    vectors = fed(run(interventions.noise(0, mean, std)))
    assert (vectors - 3).abs().max() < 0.1 and vectors.std() > 0.005
    with pytest.raises(ValueError, match="both mean and std"):
        interventions.noise(0, mean)


def test_permute_moves_every_latent_within_its_block():
    recorded = blocks(CLEAN)
    for seed in range(5):
        vectors = blocks(run(interventions.permute(recorded, seed)))
        for block, original in zip(vectors, recorded, strict=True):
            places = [(original.latents - vector).abs().sum(-1).argmin().item() for vector in block.latents]
            assert sorted(places) == [0, 1, 2, 3] and all(place != n for n, place in enumerate(places))


def test_donor_gives_another_runs_latents():
    other = run(seed=1)
    assert torch.equal(fed(run(interventions.donor(blocks(other)))), fed(other))


def test_donor_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match="Block 1 of the donor holds 3 latents, that of the run 4"):
        run(interventions.donor(blocks(run(latents=3))))
    with pytest.raises(ValueError, match="The donor has 1 block, but the run opened block 2"):
        run(interventions.donor(blocks(CLEAN)[:1]))


def test_only_touches_the_latents_listed():
    events = run(interventions.only([(1, 2)], interventions.zero()))
    vectors = fed(events)
    assert torch.equal(vectors[:6], fed(CLEAN)[:6]) and vectors[6].abs().max() == 0


def test_rows_have_their_own_hook():
    events = run(interventions.zero(), None)
    assert fed(events, 0).abs().max() == 0
    torch.testing.assert_close(fed(events, 1), fed(CLEAN), atol=1e-5, rtol=0)
