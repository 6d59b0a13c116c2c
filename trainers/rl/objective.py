"""The objective of group-relative policy optimisation, for tokens and latents alike.

Log-ratios are the policy's log-probability of an action minus the rollout's; all actions of a response count alike.
Shapes: G responses of a group, A actions, K latents, N vectors, D their width.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from latent_core.methods.deeplatent import Modulated

Aggregation = Literal["response", "token"]
Reduction = Literal["sum", "mean"]
LIMIT = 10.0
"""Log-ratios beyond are cut off: a density summed over thousands of dimensions overflows otherwise."""


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """(…, G) from rewards (…, G): (r − mean) / (std + 1e-6) within the group, with the sample's standard deviation."""
    return (rewards - rewards.mean(-1, keepdim=True)) / (rewards.std(-1, keepdim=True) + 1e-6)


def surrogate(
    log_ratios: torch.Tensor, advantage: torch.Tensor, *, low: float, high: float, dual: float | None = None
) -> torch.Tensor:
    """(A,) the clipped surrogate min(r·A, clip(r, 1 − low, 1 + high)·A), to be maximised.

    dual: where the advantage is negative, at least dual · A (dual clip), so that a single action far from the
    rollout's policy cannot outweigh all others.
    """
    ratios = log_ratios.clamp(-LIMIT, LIMIT).exp()
    values = torch.minimum(ratios * advantage, ratios.clamp(1 - low, 1 + high) * advantage)
    if dual is not None:
        values = torch.where(advantage < 0, torch.maximum(values, dual * advantage), values)
    return values


def k3(log_ratios: torch.Tensor) -> torch.Tensor:
    """(A,) Schulman's third estimator of KL(policy ‖ reference), ≥ 0, from log(policy / reference)."""
    back = (-log_ratios).clamp(-LIMIT, LIMIT)
    return back.exp() - back - 1


def latent_log_ratio(
    fed: torch.Tensor, now: torch.Tensor, sigma: torch.Tensor | float, then: torch.Tensor | None = None
) -> torch.Tensor:
    """(K,) log-ratio of latents under VLPO (arXiv 2511.21395, equation 7), in float32.

        log r = (‖z − h_old‖² − ‖z − h_θ‖²) / (2σ²)

    fed (K, D) z; now h_θ, the state at the slot before; then h_old, where noise was added: without noise z = h_old.
    """
    near = (fed.float() - now.float()).square().sum(-1)
    before = 0.0 if then is None else (fed.float() - then.float()).square().sum(-1)
    return (before - near) / (2 * torch.as_tensor(sigma, device=near.device).square())


def modulation_log_ratio(
    now: Modulated, then: Modulated, x: torch.Tensor, noise: torch.Tensor, reduction: Reduction = "sum"
) -> torch.Tensor:
    """() log-ratio of one modulation action of continuous-space GRPO (arXiv 2606.00562).

    The action is then.at(x, noise), made again by the same kernel in float32. mean divides by the dimensions.
    """
    value = then.at(x, noise).detach()
    return getattr(now.log_density(x, value) - then.log_density(x, value).detach(), reduction)()


def objective(
    terms: Sequence[torch.Tensor], penalties: Sequence[torch.Tensor], *, weight: float, by: Aggregation = "response"
) -> torch.Tensor:
    """(M,) losses whose mean is to be minimised: minus surrogate − weight · KL, from (A,) each per response.

    response: one per response, the mean over its actions (the papers); token: one per action, so that all count alike
    (the released code of Monet).
    """
    each = [term - weight * penalty for term, penalty in zip(terms, penalties, strict=True)]
    if by == "token":
        return -torch.cat(each)
    return -torch.stack([actions.mean() for actions in each])
