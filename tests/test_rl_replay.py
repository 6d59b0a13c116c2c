"""Rollouts and their replay: the same log-probabilities in one forward, whatever the method; ratios of latents."""

import pytest
import torch

from latent_core.decoding.batch import prompt_feeds
from latent_core.methods import METHODS
from latent_core.methods.deeplatent import image_tokens
from latent_core.model.backbones import wrap
from latent_core.model.slot_types import IMAGE, PROMPT
from latent_core.settings import Settings
from tests.tiny import CLOSE, OPEN, scripted, tiny_method, tiny_model, tiny_prompt
from trainers.rl import rollouts as module
from trainers.rl.objective import latent_log_ratio, modulation_log_ratio
from trainers.rl.rollouts import replay, roll_out

BACKBONE = wrap(tiny_model())
WITH_LATENTS = [name for name in METHODS if tiny_method(name).has_latents]
HEAT = 0.5
SCRIPTS = ([1, OPEN, CLOSE, 3, OPEN, CLOSE, 4], [2, 3, 4, 5, 6], [OPEN, CLOSE, 7, 8], [1, 2])
PROMPTS = [
    tiny_prompt(0, grids=[(4, 6), (4, 4)]),
    tiny_prompt(1, text=9, grids=[]),
    tiny_prompt(2, grids=[(6, 6)]),
    tiny_prompt(3),
]


def words(ids) -> str:
    return " ".join(map(str, ids))


def rolled(name: str, rule: str = "causal", noise: float = 0.0, train: bool = False, backbone=BACKBONE):
    method = tiny_method(name, rule=rule).train(train)
    scripts = SCRIPTS
    if not method.samples_close or rule == "sealed":
        scripts = [[token for token in script if token != CLOSE] for script in SCRIPTS]
    settings = [Settings(latents=k, temperature=HEAT, seed=k) for k in (3, 4, 6, 5)]
    sampler = scripted(*scripts)
    torch.manual_seed(0)
    return method, roll_out(backbone, method, PROMPTS, settings, words, noise=noise, sampler=sampler)


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("rule", ["causal", "latents_only", "sealed"])
@pytest.mark.parametrize("name", WITH_LATENTS)
def test_replay_reproduces_the_rollouts_log_probabilities(name, rule, noise):
    method, rollouts = rolled(name, rule, noise, train=True)
    with torch.no_grad():
        for rollout, again in zip(rollouts, replay(BACKBONE, method, rollouts, HEAT), strict=True):
            torch.testing.assert_close(again.logprobs, rollout.logprobs, atol=1e-5, rtol=0)
            alone = replay(BACKBONE, method, [rollout], HEAT)[0]
            torch.testing.assert_close(alone.logprobs, again.logprobs, atol=1e-5, rtol=0)
    assert [len(rollout.latents) for rollout in rollouts] == [2, 0, 1, 0]
    assert rollouts[1].text == "2 3 4 5 6 88"  # the end of turn is an action, too


@pytest.mark.parametrize("name", ["monet", "valr"])
def test_producers_are_what_was_fed(name):
    """Equation 7 compares the state before a slot with the latent in it; noise is known apart from it."""
    method, rollouts = rolled(name, noise=0.05)
    with torch.no_grad():
        for rollout, again in zip(rollouts, replay(BACKBONE, method, rollouts, HEAT), strict=True):
            for fed, before, now in zip(rollout.latents, rollout.producers, again.producers, strict=True):
                torch.testing.assert_close(now, before, atol=1e-5, rtol=0)
                share = (fed - before).square().mean(-1).sqrt() / before.square().mean(-1).sqrt()
                assert 0.02 < share.min() and share.max() < 0.1
                assert latent_log_ratio(fed, now, 0.5, before).abs().max() < 1e-3


def test_latents_replayed_one_slot_off_are_found_out():
    method, rollouts = rolled("monet")
    off = [torch.cat([block[1:], block[:1]]) for block in rollouts[0].latents]
    shifted = type(rollouts[0])(
        **{name: getattr(rollouts[0], name) for name in rollouts[0].__dataclass_fields__} | {"latents": off}
    )
    with torch.no_grad():
        (again,) = replay(BACKBONE, method, [shifted], HEAT)
    assert (again.logprobs - rollouts[0].logprobs).abs().max() > 1e-3
    assert latent_log_ratio(rollouts[0].latents[0], again.producers[0], 1.0).abs().max() > 1e-2


def test_a_policy_without_the_pixels_is_found_out():
    """A reference model that is not shown the image gives other log-probabilities."""
    method, rollouts = rolled("lvr")
    (rollout,) = [r for r in rollouts if len(r.row.prompt.grid_thw) == 2]
    blind = type(rollout.row.prompt)(
        **{
            name: getattr(rollout.row.prompt, name)
            for name in rollout.row.prompt.__dataclass_fields__
            if name != "pixel_values"
        },
        pixel_values=torch.zeros_like(rollout.row.prompt.pixel_values),
    )
    unseen = type(rollout)(
        **{name: getattr(rollout, name) for name in rollout.__dataclass_fields__ if name != "row"},
        row=type(rollout.row)(blind, rollout.row.segments),
    )
    with torch.no_grad():
        (again,) = replay(BACKBONE, method, [unseen], HEAT)
    assert (again.logprobs - rollout.logprobs).abs().max() > 1e-3


def test_modulations_are_replayed_from_the_control_states():
    method, rollouts = rolled("deeplatent", train=True)
    for rollout, again in zip(rollouts, replay(BACKBONE, method, rollouts, HEAT), strict=True):
        feeds = prompt_feeds(BACKBONE, [rollout.row.prompt])
        features, _ = image_tokens(feeds[0])
        blocks = [segment for segment in rollout.row.segments if hasattr(segment, "grid")]
        for controls, drawn, block in zip(again.controls, rollout.drawn, blocks, strict=True):
            inputs = method.queries(block.grid), features
            now = [m for m in method.modulated(controls, *inputs) if m is not None]
            assert len(now) == len(drawn) == 2
            for modulated, action in zip(now, drawn, strict=True):
                ratio = modulation_log_ratio(modulated, action.modulated, inputs[action.of], action.noise)
                assert abs(ratio.item()) < 5e-3  # a sum over hundreds of dimensions, on the policy
                assert modulated.divergence(action.modulated, inputs[action.of]).sum() < 1e-4
                assert action.noise.std() > 0.5
    assert {PROMPT, IMAGE} >= set(feeds[0].slots.types)


def test_logits_in_parts_are_those_at_once(monkeypatch):
    method, rollouts = rolled("monet")
    found = []
    for most in (2**26, BACKBONE.vocabulary * 3):
        monkeypatch.setattr(module, "LOGITS", most)
        BACKBONE.model.zero_grad()
        torch.cat([again.logprobs for again in replay(BACKBONE, method, rollouts, HEAT)]).sum().backward()
        found.append(BACKBONE.model.lm_head.weight.grad.clone())
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
