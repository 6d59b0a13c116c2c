"""Sampling: the sets that transformers keeps, the frequencies that probabilities promise, seeds per row."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from latent_core.decoding.sampling import SamplerState, choose
from latent_core.settings import Settings

VOCABULARY = 30
CPU = torch.device("cpu")


def sampler_state(prompt=(), **settings) -> SamplerState:
    return SamplerState(Settings(**settings), torch.tensor(prompt, dtype=torch.long), VOCABULARY, CPU)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.5, "top_k": 7},
        {"temperature": 1.5, "top_p": 0.6},
        {"temperature": 1.2, "top_k": 12, "top_p": 0.8, "repetition_penalty": 1.3},
        {"temperature": 1.0, "top_p": 0.01},
    ],
)
def test_frequencies_equal_transformers_probabilities(settings):
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2
    prompt = [0, 3, 5]
    warpers = [TemperatureLogitsWarper(settings["temperature"])]
    if "repetition_penalty" in settings:
        warpers.insert(0, RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"]))
    if "top_k" in settings:
        warpers.append(TopKLogitsWarper(settings["top_k"]))
    if "top_p" in settings:
        warpers.append(TopPLogitsWarper(settings["top_p"]))
    expected = LogitsProcessorList(warpers)(torch.tensor([prompt]), logits.clone()).softmax(-1)[0]
    count = 4000
    state = sampler_state(prompt, **settings)
    occurred = None if state.occurred is None else state.occurred.clone()
    drawn = torch.zeros(VOCABULARY)
    for _ in range(count):
        if occurred is not None:
            state.occurred.copy_(occurred)
        drawn[choose(logits, [state])] += 1
    assert not drawn[expected == 0].any()
    assert (drawn / count - expected).abs().max() < 0.04


def test_a_row_draws_what_it_draws_alone():
    generator = torch.Generator().manual_seed(1)
    steps = [torch.randn(4, VOCABULARY, generator=generator) for _ in range(20)]
    settings = [
        {"temperature": 1.0, "seed": 1},
        {"temperature": 0.0},
        {"temperature": 2.0, "seed": 2, "top_k": 5, "repetition_penalty": 1.5},
        {"temperature": 0.7, "seed": 1, "top_p": 0.9},
    ]
    together = [sampler_state(**s) for s in settings]
    drawn = torch.stack([choose(logits, together) for logits in steps])
    for row, s in enumerate(settings):
        die = sampler_state(**s)
        alone = torch.cat([choose(logits[row : row + 1], [die]) for logits in steps])
        assert alone.tolist() == drawn[:, row].tolist()


def test_banned_ids_are_never_drawn():
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 1:] = float("-inf")
    assert all(choose(logits, [sampler_state(temperature=10.0, seed=seed)]).item() == 0 for seed in range(50))


def test_repetition_penalty_remembers_what_was_chosen():
    logits = torch.zeros(1, VOCABULARY)
    logits[0, :3] = torch.tensor([2.0, 1.9, 1.8])
    die = sampler_state(repetition_penalty=2.0)
    assert [choose(logits, [die]).item() for _ in range(3)] == [0, 1, 2]
    assert logits[0, 0] == 2, "the caller's logits stay as they are"
