"""The arithmetic of the objective, against plain formulas, autograd and a finite difference."""

import numpy as np
import pytest
import torch

from trainers.rl.objective import advantages, k3, latent_log_ratio, objective, surrogate


def test_advantages_are_standard_scores_of_the_group():
    rewards = torch.tensor([[1.0, 0, 0, 1], [0.9, 0.9, 0.9, 0.9]])
    first, same = advantages(rewards)
    plain = np.array([1.0, 0, 0, 1])
    np.testing.assert_allclose(first, (plain - plain.mean()) / (plain.std(ddof=1) + 1e-6), rtol=1e-5)
    assert same.abs().max() == 0


def test_the_surrogate_is_clipped_on_the_side_that_pays():
    ratios = torch.tensor([0.5, 0.8, 1.0, 1.3, 2.0]).log()
    up = surrogate(ratios, torch.tensor(1.0), low=0.2, high=0.3)
    torch.testing.assert_close(up, torch.tensor([0.5, 0.8, 1.0, 1.3, 1.3]))
    down = surrogate(ratios, torch.tensor(-1.0), low=0.2, high=0.3)
    torch.testing.assert_close(down, torch.tensor([-0.8, -0.8, -1.0, -1.3, -2.0]))
    far = surrogate(torch.tensor([3.0]), torch.tensor(-1.0), low=0.2, high=0.3, dual=3.0)
    assert far.item() == pytest.approx(-3.0)
    assert surrogate(torch.tensor([1e4]), torch.tensor(-1.0), low=0.2, high=0.3).isfinite()


def test_k3_is_positive_and_estimates_the_divergence():
    torch.manual_seed(0)
    policy, reference = torch.randn(5).log_softmax(0), torch.randn(5).log_softmax(0)
    every = k3(policy - reference)
    assert (every >= 0).all() and k3(torch.zeros(3)).abs().max() == 0
    kl = (policy.exp() * (policy - reference)).sum()
    assert (policy.exp() * every).sum().item() == pytest.approx(kl.item(), abs=1e-5)  # its expectation is exact


def test_the_first_step_of_deterministic_vlpo_has_no_latent_gradient():
    """With z = h_old the ratio is 1 and flat; later steps pull back towards z or push away from it."""
    state = torch.randn(4, 6, requires_grad=True)
    ratio = latent_log_ratio(state.detach(), state, 10.0)
    ratio.sum().backward()
    assert ratio.abs().max() == 0 and state.grad.abs().max() == 0
    moved = (state.detach() + 0.1).requires_grad_()
    latent_log_ratio(state.detach(), moved, 10.0).sum().backward()
    torch.testing.assert_close(moved.grad, -(moved.detach() - state.detach()) / 100)


def test_vlpos_gradient_is_that_of_a_plain_density():
    torch.manual_seed(1)
    fed, old, now = (torch.randn(3, 5, dtype=torch.float64) for _ in range(3))
    now.requires_grad_()
    advantage = torch.tensor([0.7, -1.2, 0.3])
    low, high = 0.2, 0.3
    loss = -surrogate(latent_log_ratio(fed, now, 2.0, old), advantage, low=low, high=high).sum()
    (found,) = torch.autograd.grad(loss, now)

    plain = now.detach().clone().requires_grad_()
    total = 0.0
    for z, h_old, h, a in zip(fed, old, plain, advantage.double(), strict=True):
        density = torch.distributions.Normal(h, 2.0).log_prob(z).sum()
        before = torch.distributions.Normal(h_old, 2.0).log_prob(z).sum()
        r = torch.exp(density - before)
        total = total - torch.min(r * a, r.clamp(1 - low, 1 + high) * a)
    (wanted,) = torch.autograd.grad(total, plain)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_sampled_latents_estimate_the_gradient_of_the_expected_reward():
    """A two-armed toy: reward 1 where the first coordinate of z = h + s·ε is positive, else 0."""
    generator = torch.Generator().manual_seed(0)
    h, s, n = torch.tensor([[0.2, -0.1]], requires_grad=True), 0.5, 200_000
    z = h.detach() + s * torch.randn(n, 2, generator=generator)
    reward = (z[:, 0] > 0).float()
    ratio = latent_log_ratio(z, h.expand(n, 2), s, h.detach().expand(n, 2))
    (surrogate(ratio, reward - reward.mean(), low=0.2, high=0.3).mean()).backward()

    def expected(x: float) -> float:
        return torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(x / s)).item()

    wanted = (expected(0.2 + 1e-3) - expected(0.2 - 1e-3)) / 2e-3
    assert h.grad[0, 0].item() == pytest.approx(wanted, abs=0.01)
    assert abs(h.grad[0, 1].item()) < 0.01


def test_responses_or_actions_count_alike():
    terms, penalties = [torch.tensor([1.0, 3.0]), torch.tensor([5.0])], [torch.zeros(2), torch.ones(1)]
    assert objective(terms, penalties, weight=0.5).mean().item() == pytest.approx(-((1 + 3) / 2 + (5 - 0.5)) / 2)
    by_token = objective(terms, penalties, weight=0.5, by="token")
    assert by_token.mean().item() == pytest.approx(-(1 + 3 + 4.5) / 3)
