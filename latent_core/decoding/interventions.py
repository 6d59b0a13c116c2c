"""Interventions on latents before they enter the model: functions from feed to feed, for causal tests.

All of them replace the vectors of a feed and leave its place alone; later latents regenerate from what was fed (the
*free* regime). The sham is `donor` with the run's own blocks: it must change nothing; *fixed context* is the sham with
some indices left out, see `only`. Recorded blocks are those of a trace (`trace.blocks`).

Shapes: N vectors of a feed, K latents of a block, D model width.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch

from latent_core.decoding.sequence import Intervention
from latent_core.methods.requests import Feed
from latent_core.settings import counted


class RecordedBlock(Protocol):
    """A block of a trace."""

    @property
    def latents(self) -> torch.Tensor:
        """(K, D) the vectors that were fed."""


Blocks = Sequence[RecordedBlock]


def zero() -> Intervention:
    """Feeds zeros."""
    return lambda feed: replace(feed, embeds=torch.zeros_like(feed.embeds))


def noise(seed: int, mean: torch.Tensor | None = None, std: torch.Tensor | None = None) -> Intervention:
    """Feeds Gaussian noise: by default in a random direction with each vector's own norm.

    With mean and std, both (D,) and captured from many latents, noise of that distribution instead. The same seed,
    block and index give the same direction, whatever was fed before and on whatever device.
    """
    if (mean is None) != (std is None):
        raise ValueError("Noise of a captured distribution needs both mean and std; give both or neither.")

    def draw(feed: Feed) -> Feed:
        vectors = feed.embeds
        drawn = torch.stack([_normal(seed, feed.block, feed.index + n, vectors.shape[1]) for n in range(len(vectors))])
        drawn = drawn.to(vectors.device)
        if mean is None:
            drawn = drawn * (vectors.float().norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True))
        else:
            drawn = mean.to(drawn) + std.to(drawn) * drawn
        return replace(feed, embeds=drawn.to(vectors.dtype))

    return draw


def _normal(seed: int, block: int, index: int, width: int) -> torch.Tensor:
    """(D,) standard normal, a function of its arguments alone."""
    generator = torch.Generator().manual_seed(((seed << 20) + (block << 10) + index) % 2**63)
    return torch.randn(width, generator=generator)


def perturb(share: float, seed: int) -> Intervention:
    """Adds Gaussian noise of `share` times each vector's root mean square; drawn as `noise` draws it."""

    def add(feed: Feed) -> Feed:
        vectors = feed.embeds
        drawn = torch.stack([_normal(seed, feed.block, feed.index + n, vectors.shape[1]) for n in range(len(vectors))])
        rms = vectors.float().square().mean(-1, keepdim=True).sqrt()
        return replace(feed, embeds=(vectors.float() + share * rms * drawn.to(vectors.device)).to(vectors.dtype))

    return add


def permute(blocks: Blocks, seed: int) -> Intervention:
    """Feeds the run's own recorded latents in another order within each block; no latent keeps its place if K > 1."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = []
    for block in blocks:
        # a cycle through a random order has no fixed point
        order = torch.randperm(len(block.latents), generator=generator)
        places = torch.empty_like(order)
        places[order] = order.roll(1)
        shuffled.append(block.latents[places])
    return _give(shuffled)


def donor(blocks: Blocks) -> Intervention:
    """Feeds another run's latents, position by position.

    Raises ValueError during the run where it opens more blocks than the donor has, or blocks of another K.
    """
    return _give([block.latents for block in blocks])


def _give(blocks: Sequence[torch.Tensor]) -> Intervention:
    def give(feed: Feed) -> Feed:
        if feed.block >= len(blocks):
            raise ValueError(
                f"The donor has {counted(len(blocks), 'block')}, but the run opened block {feed.block + 1}; "
                "choose a donor with as many blocks or lower max_blocks."
            )
        latents = blocks[feed.block]
        if len(latents) != feed.num_latents:
            raise ValueError(
                f"Block {feed.block + 1} of the donor holds {counted(len(latents), 'latent')}, that of the run "
                f"{feed.num_latents}; record the donor with the same K."
            )
        vectors = latents[feed.index : feed.index + len(feed.embeds)]
        return replace(feed, embeds=vectors.to(feed.embeds))

    return give


def only(latents: Sequence[tuple[int, int]], intervention: Intervention) -> Intervention:
    """Applies an intervention to the (block, index) pairs listed and leaves the others alone."""
    chosen = set(latents)

    def apply(feed: Feed) -> Feed:
        vectors = feed.embeds
        listed = torch.tensor([(feed.block, feed.index + n) in chosen for n in range(len(vectors))])
        if not listed.any():
            return feed
        changed = intervention(feed)
        return replace(changed, embeds=torch.where(listed.to(vectors.device)[:, None], changed.embeds, vectors))

    return apply
