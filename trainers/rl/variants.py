"""The variants of stage rl: which of a response's latents are actions, with which ratio and which divergence.

    text         rollouts open no blocks                                           GRPO
    constants    latents are replayed as constants, tokens alone are actions       GRPO_latent (LVR)
    vlpo         every latent, with a Gaussian ratio                               VLPO (Monet, equation 7)
    modulation   the modulations that latents are formed from, closed-form KL      continuous-space GRPO (DeepLatent)

Shapes: K latents of a block, D model width.
"""

from collections.abc import Iterator

import torch

from latent_core.decoding.sequence import Block
from latent_core.methods import LatentMethod
from latent_core.methods.deeplatent import DeepLatent, Modulated
from latent_core.settings import check
from trainers.rl.objective import k3, latent_log_ratio, modulation_log_ratio
from trainers.rl.options import RlOptions
from trainers.rl.rollouts import Replayed, SampledResponse

Terms = Iterator[tuple[torch.Tensor, torch.Tensor]]
"""Log-ratios and divergences from the reference, of equal shape, one per action."""


def check_variant(options: RlOptions, method: LatentMethod) -> None:
    """Refuses a variant whose actions the method does not have. Raises ValueError."""
    variant, name = options.variant, method.name
    parallel = isinstance(method, DeepLatent) and method.options.generation == "parallel"
    if variant == "modulation":
        check(parallel, f"rl.variant modulation needs method deeplatent, whose latents are formed; not {name!r}.")
        check(bool(modulations(method)), "rl.variant modulation needs modulations; this checkpoint has none.")
    if variant == "vlpo":
        check(
            method.has_latents and not parallel,
            f"rl.variant vlpo needs latents that are states fed back; those of method {name!r} are not.",
        )
    check(
        not options.noise or variant == "vlpo",
        f"rl.noise is {options.noise}, but only the latents of variant vlpo have a ratio under noise, not {variant}.",
    )
    if options.former:
        check(parallel, f"rl.former needs method deeplatent, not {name!r}.")
        check(
            variant == "modulation",
            f"rl.former is true, but a LatentFormer learns through modulations that are actions, and under rl.variant "
            f"{variant} there are none; take modulation, or leave rl.former out.",
        )
        check(
            len(method.former) > 0, "rl.former is true, but this LatentFormer has no blocks (method_options.blocks)."
        )


def modulations(method: DeepLatent) -> list[torch.nn.Module]:
    """The modules that draw a block's actions."""
    return [module for name in ("of_latents", "of_image") if (module := getattr(method, name, None)) is not None]


def latent_terms(
    options: RlOptions,
    method: LatentMethod,
    rollout: SampledResponse,
    replayed: Replayed,
    reference: tuple[LatentMethod, Replayed] | None,
) -> Terms:
    """VLPO, per block (K,): deterministic latents under a fixed σ, sampled ones under the noise they were drawn with.

    With deterministic latents z = h_old, so that the gradient of a phase's first update is zero.
    """
    for block, fed in enumerate(rollout.latents):
        if not len(fed):
            continue
        now = method.latents(replayed.producers[block])
        fed, then = fed.to(now), rollout.producers[block].to(now)
        sigma = options.sigma
        if options.noise:
            sigma = options.noise * then.float().square().mean(-1).sqrt()
        ratio = latent_log_ratio(fed, now, sigma, then if options.noise else None)
        cost = torch.zeros_like(ratio)
        if reference is not None:
            reference_method, reference_replayed = reference
            before = reference_method.latents(reference_replayed.producers[block])
            cost = k3(latent_log_ratio(fed, now, sigma, before))
        yield ratio, cost


def modulation_terms(
    options: RlOptions,
    method: DeepLatent,
    rollout: SampledResponse,
    replayed: Replayed,
    reference: tuple[DeepLatent, Replayed] | None,
    features: torch.Tensor,
) -> Terms:
    """Continuous-space GRPO, per modulation of a block (1,). features (N, D): the prompt's image tokens."""
    blocks = [segment for segment in rollout.row.segments if isinstance(segment, Block)]
    for number, (block, drawn) in enumerate(zip(blocks, rollout.drawn, strict=True)):
        if not drawn:
            continue
        inputs = method.queries(block.grid), features
        now = [m for m in method.modulated(replayed.controls[number], *inputs) if m is not None]
        before: list[Modulated | None] = [None] * len(now)
        if reference is not None:
            reference_method, reference_replayed = reference
            formed_before = reference_method.modulated(reference_replayed.controls[number], *inputs)
            before = [m for m in formed_before if m is not None]
        for modulated, action, from_reference in zip(now, drawn, before, strict=True):
            x = inputs[action.of]
            ratio = modulation_log_ratio(modulated, action.modulated, x, action.noise, options.reduction)
            cost = torch.zeros_like(ratio)
            if from_reference is not None:
                cost = getattr(modulated.divergence(from_reference, x), options.reduction)()
            yield ratio[None], cost[None]


def formed(
    method: DeepLatent, rollout: SampledResponse, features: torch.Tensor, places: torch.Tensor
) -> list[torch.Tensor]:
    """The response's latents formed anew from its actions, so that the LatentFormer learns through them."""
    blocks = [segment for segment in rollout.row.segments if isinstance(segment, Block)]
    latents = []
    for block, drawn, fed in zip(blocks, rollout.drawn, rollout.latents, strict=True):
        if not drawn:
            latents.append(fed)
            continue
        inputs = [method.queries(block.grid), features]
        for action in drawn:
            inputs[action.of] = action.modulated.at(inputs[action.of], action.noise).detach()
        latents.append(method.form(inputs[0], block.grid, inputs[1], places))
    return latents
