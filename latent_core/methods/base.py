"""The base class of all latent methods: tokens, parameters of its own and the coroutine of one block."""

from collections.abc import Callable, Generator
from typing import ClassVar

import torch
from torch import nn

from latent_core.config import MethodConfig
from latent_core.methods.requests import Context, Feed
from latent_core.settings import short


class LatentMethod(nn.Module):
    """A latent method: its tokens, its own parameters (none by default) and its block."""

    name: ClassVar[str]
    has_options: ClassVar[bool] = False
    """Whether the method has options of its own, in a configuration's `options`."""
    samples_close: ClassVar[bool] = False
    """Whether the model itself says when a block closes, as any other token; else the runtime puts the closing token.
    The runtime always closes sealed blocks, whose copies ride with that token, and empty ones."""

    def __init__(self, config: MethodConfig, token_id: Callable[[str], int]) -> None:
        """`token_id` maps a token of the config to its id and raises ValueError where the tokenizer lacks it."""
        super().__init__()
        if config.method != self.name:
            raise ValueError(f"The configuration is for method {config.method!r}, not {self.name!r}.")
        if config.options and not self.has_options:
            raise ValueError(
                f"options are {short(config.options)}, but method {self.name!r} has none; leave them out."
            )
        self.config = config
        self.open_id, self.close_id, self.pad_id = (
            None if token is None else token_id(token)
            for token in (config.open_token, config.close_token, config.pad_token)
        )

    @property
    def has_latents(self) -> bool:
        """Whether blocks can open at all."""
        return self.open_id is not None

    def banned(self, may_open: bool, may_close: bool = False) -> tuple[int, ...]:
        """Ids that may not be sampled: what only the runtime writes, and markers where no block may open or close."""
        ids = (self.pad_id, None if may_open else self.open_id, None if may_close else self.close_id)
        return tuple(i for i in ids if i is not None)

    num_latents_is_maximum: ClassVar[bool] = False
    """Whether K is the most latents of a block, which may hold fewer."""
    most_blocks: ClassVar[int] = 64
    """Blocks per response; then the opening token is banned."""

    def controls(self) -> torch.Tensor | None:
        """(C, D) vectors that steer a block, fed right behind its opening token; none by default."""
        return None

    def steering(self, num_latents: int) -> torch.Tensor | None:
        """The same for a block of so many latents: an empty one needs none."""
        return self.controls() if num_latents else None

    def places(self, grid: tuple[int, int]) -> torch.Tensor | None:
        """(3, N) positions of a grid of parallel latents, counted from the first; None: they count on by one."""
        return None

    def overwrites_start(self, num_latents: int) -> bool:
        """Whether the opening token's slot holds latent 1; without latents it is an ordinary token."""
        overwritten = self.config.convention == "start_overwritten" and num_latents > 0
        return overwritten and self.controls() is None

    def latents(self, states: torch.Tensor) -> torch.Tensor:
        """The latents that states (N, D) are fed back as, where a block feeds states back: themselves by default."""
        return states

    def block(self, context: Context) -> Generator[Feed, torch.Tensor, None]:
        """One block: yields what to feed, receives the states (N, D) that come back."""
        raise TypeError(f"Method {self.name!r} opens no blocks.")
