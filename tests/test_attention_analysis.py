"""Shares, maps, entropy and baselines of recorded attention."""

import pytest
import torch
from scipy.stats import entropy

from latent_core.analysis import attention
from latent_core.model.slot_types import AFTER, CLOSE, IMAGE, LATENT, OPEN, PROMPT, numbered

KINDS = torch.tensor([PROMPT, IMAGE, IMAGE, PROMPT, OPEN, numbered(LATENT, 1), numbered(CLOSE, 1), AFTER])


def weights() -> torch.Tensor:
    return torch.rand(2, 3, len(KINDS), generator=torch.Generator().manual_seed(0)).softmax(-1)


def test_segments_share_everything():
    found = attention.shares(weights(), KINDS)
    assert torch.allclose(sum(found.values()), torch.ones(2, 3))
    assert torch.allclose(found["image"], weights()[..., 1:3].sum(-1))
    assert torch.allclose(found["question"], weights()[..., [0, 3]].sum(-1))
    assert torch.allclose(found["latents"], weights()[..., 5])
    assert torch.allclose(found["markers"], weights()[..., [4, 6]].sum(-1))
    assert torch.equal(attention.image_map(weights(), KINDS), weights()[..., 1:3])
    with pytest.raises(ValueError, match="8 slots, but slot_types of 7"):
        attention.shares(weights(), KINDS[:7])


def test_entropy_is_scipys():
    assert torch.allclose(attention.entropy(weights()), torch.tensor(entropy(weights().numpy(), axis=-1)), atol=1e-5)
    assert attention.entropy(torch.tensor([0.0, 3.0])).item() == 0
    assert attention.entropy(torch.ones(5)).item() == pytest.approx(torch.tensor(5.0).log().item())


def test_the_baseline_takes_away_what_every_word_looks_at():
    words = torch.tensor([[0.5, 0.1, 0.0], [0.7, 0.1, 0.0]])
    found = attention.minus_baseline(torch.tensor([0.6, 0.3, 0.1]), words)
    assert torch.allclose(found, torch.tensor([0.0, 0.2, 0.1]))
    with pytest.raises(ValueError, match="no words"):
        attention.minus_baseline(words[0], words[:0])
