"""Monet: the state after the final norm is the next input, K times (arXiv 2511.21395, sections 3.1 and 3.2).

No projection and no scaling; positions count on by one per latent. The opening token is sampled, the closing one put
there by the runtime. What the paper draws (`start_fed`) and what its released inference code does
(`start_overwritten`) differ by one slot; the configuration says which, and `drive` hands the block the right state.
"""

from collections.abc import Generator

import torch

from latent_core.methods.base import LatentMethod
from latent_core.methods.requests import Context, Feed


class Monet(LatentMethod):
    """K states fed back one after the other."""

    name = "monet"

    def block(self, context: Context) -> Generator[Feed, torch.Tensor, None]:
        """Latent 1 is the state that the block starts from."""
        hidden = context.hidden
        for _ in range(context.num_latents):
            hidden = yield Feed(hidden)
