"""LVR: latents that reconstruct the visual tokens of a region (arXiv 2509.24251; decoding as in its released code).

The state after the final norm, or what a head makes of it, is the next input; the first is the opening token's own
output. Nobody puts the closing token: after the last latent the model goes on as it likes. Three ways to end a block
within its cap K: `fixed` (K latents), `latent_end` (a fed latent comes near a learned vector) and `mode_switch` (the
closing token would be sampled). The released code applies its head to all states but the first; here it is applied to
exactly the states that become inputs, in training and in decoding.

Shapes: N vectors, D model width.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from latent_core.config import MethodConfig
from latent_core.methods.base import LatentMethod
from latent_core.methods.requests import Context, Feed, Sample
from latent_core.records import from_json
from latent_core.settings import check

Distance = Literal["mse", "mae", "cosine"]


def distance(first: torch.Tensor, second: torch.Tensor, kind: Distance) -> torch.Tensor:
    """(…,) between vectors (…, D), in float32: mean squared or absolute difference over D, or 1 − cos. Best 0."""
    first, second = first.float(), second.float()
    if kind == "cosine":
        return 1 - F.cosine_similarity(first, second, dim=-1)
    difference = first - second
    return (difference.square() if kind == "mse" else difference.abs()).mean(-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class LvrOptions:
    """The options of LVR."""

    exit: Literal["fixed", "latent_end", "mode_switch"] = "fixed"
    """How a block ends before its cap; the authors recommend `fixed`, the others collapse (their Table 5)."""
    head: Literal["none", "mlp", "glu"] = "none"
    """What turns a state into the next input."""
    width: int = 0
    """D, where there is a head or a learned vector."""
    inner: int = 0
    """Width inside a `glu` head; 0: as D."""
    distance: Distance = "mse"
    """Between a fed latent and the learned vector (`latent_end`)."""
    threshold: float = 0.02
    """Below it the block ends (`latent_end`)."""

    def __post_init__(self) -> None:
        needs = self.head != "none" or self.exit == "latent_end"
        check(not needs or self.width > 0, f"options.width is {self.width}; a head or a learned vector needs D.")
        check(self.threshold > 0, f"options.threshold is {self.threshold}; it must be positive.")


class Mlp(nn.Module):
    """LayerNorm, Linear, GELU, Linear; parameters are named as in the release."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_q = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.ln_q(states))


class Glu(nn.Module):
    """down(silu(gate x) · up x); parameters are named as in the release."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, inner), nn.Linear(width, inner)
        self.down_proj = nn.Linear(inner, width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(states)) * self.up_proj(states))


class Lvr(LatentMethod):
    """States fed back until the block's exit, within its cap."""

    name = "lvr"
    has_options = True
    samples_close = True

    def __init__(self, config: MethodConfig, token_id: Callable[[str], int]) -> None:
        super().__init__(config, token_id)
        self.options = from_json(LvrOptions, config.options, "options")
        width = self.options.width
        if self.options.head != "none":
            self.lvr_head = Mlp(width) if self.options.head == "mlp" else Glu(width, self.options.inner or width)
        if self.options.exit == "latent_end":
            self.lvr_latent_end_emb = nn.Parameter(F.normalize(torch.randn(width), dim=0) * width**0.5)

    def latents(self, states: torch.Tensor) -> torch.Tensor:
        """The latents that states (N, D) are fed back as."""
        return states if self.options.head == "none" else self.lvr_head(states)

    def block(self, context: Context) -> Generator[Feed | Sample, torch.Tensor | int, None]:
        """Latent 1 is what the opening token's state feeds."""
        hidden, exit_rule = context.hidden, self.options.exit if context.free else "fixed"
        for _ in range(context.num_latents):
            if exit_rule == "mode_switch":
                token = yield Sample(hidden, may_open=False, may_close=True, silent=True)
                if token == self.close_id:
                    return
            latent = self.latents(hidden)
            hidden = yield Feed(latent)
            if exit_rule == "latent_end" and self._near_the_end(latent):
                return

    def _near_the_end(self, latent: torch.Tensor) -> bool:
        options = self.options
        return distance(latent[0], self.lvr_latent_end_emb, options.distance).item() < options.threshold
