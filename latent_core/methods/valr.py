"""VaLR: K states fed back before every step of reasoning (arXiv 2602.04476, section 3).

The state after the final norm is the next input, without projection; positions count on by one. The opening token is
sampled, the closing one put there by the runtime. What sets VaLR apart is its training: intermediate states of a block
are aligned with frozen vision encoders (trainers/sft/valr.py), of which decoding knows nothing.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch

from latent_core.config import MethodConfig
from latent_core.methods.base import LatentMethod
from latent_core.methods.requests import Context, Feed
from latent_core.records import from_json


@dataclass(frozen=True, kw_only=True, slots=True)
class ValrOptions:
    """The options of VaLR."""

    count_delimiters: bool = False
    """Whether K counts the opening and the closing token, as the paper's text has it; its Figure 1 and its ablation
    with K = 1 imply that it does not."""


class Valr(LatentMethod):
    """K states fed back one after the other."""

    name = "valr"
    has_options = True

    def __init__(self, config: MethodConfig, token_id: Callable[[str], int]) -> None:
        super().__init__(config, token_id)
        self.options = from_json(ValrOptions, config.options, "options")

    def block(self, context: Context) -> Generator[Feed, torch.Tensor, None]:
        """Latent 1 is the opening token's state."""
        hidden, count = context.hidden, context.num_latents
        if self.options.count_delimiters and context.free:
            count = max(0, count - 2)
        for _ in range(count):
            hidden = yield Feed(hidden)
