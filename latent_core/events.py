"""The events of a run, in order: one StartEvent, any number of TokenEvent and LatentEvent, one FinishEvent.

Tensors are detached, on the CPU and float32 unless said otherwise, so that events cross process borders and hold no
GPU memory.
Shape suffixes: D model width, N image tokens of all images, S recorded levels.
"""

from dataclasses import dataclass
from typing import Literal

import torch

SEGMENTS = ("image", "question", "latents", "text", "markers")
"""Parts of a run that attention goes to; `question` is all of the prompt but the image."""
TokenKind = Literal["text", "open", "control", "close"]
Reason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionSummary:
    """The attention of one position, reduced to what is shown; E recorded layers, H heads.

    Takes 2 · E · H · (N + 12) bytes: 1.9 kB for 5 layers, 4 heads and 36 image tokens, 1.9 MB for 28 layers, 28 heads
    and 1,200 image tokens.
    """

    image: torch.Tensor
    """(E, H, N) float16: the weights on the image tokens, in 0…1."""
    shares: torch.Tensor
    """(E, H, 5) attention by segment, in the order of SEGMENTS."""
    entropy: torch.Tensor
    """(E, H) of the weights over all slots, in nats."""


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True, eq=False)
class StartEvent:
    """The first event: the prompt has been read."""

    sequence: int = 0
    """0-based number in the batch."""
    prompt_tokens: int
    images: tuple[torch.Tensor, ...]
    """The images as the model saw them, one uint8 (height, width, 3) each."""
    grids: tuple[tuple[int, int], ...]
    """(rows, columns) of merged image tokens, one per image, in the order of `image_states`."""
    levels: tuple[int, ...]
    """Which levels `image_states` holds: 0 is the merger's output, ℓ the state after ℓ layers, the last normed."""
    image_states: torch.Tensor
    """(S, N, D) states of the image tokens, all images one after the other; S = 0 when recording is off."""
    layers: tuple[int, ...] = ()
    """Decoder layers, 0-based, whose attention is recorded (E of every AttentionSummary)."""
    seconds: float
    """Time for the vision tower and the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenEvent:
    """A token of the response."""

    sequence: int = 0
    position: int
    """Slot in the sequence, prompt included."""
    token_id: int
    text: str = ""
    """The characters that this token adds (empty while a multi-byte character is incomplete)."""
    kind: TokenKind = "text"
    forced: bool = False
    """The runtime put it there; nothing was sampled."""
    logprob: float
    """log p of this token before temperature and truncation; 0 for forced tokens that no distribution offered."""
    p_open: float
    """Probability of the opening token at this place, in 0…1; 0 for methods without one."""
    hidden: torch.Tensor | None = None
    """(D,) the state that produced this token, after the final norm; None when recording is off."""
    attention: AttentionSummary | None = None
    """Where that state attended; None unless attention is recorded."""
    seconds: float
    """Compute time since the previous event of this sequence; what its reader does in between does not count."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatentEvent:
    """A latent that was fed back."""

    sequence: int = 0
    position: int
    block: int
    """0-based number of the block in the run."""
    index: int
    """0-based number of the latent in its block."""
    fed: torch.Tensor | None = None
    """(D,) the vector that entered the model (after any intervention); None when recording is off."""
    hidden: torch.Tensor | None = None
    """(D,) the state that came back, after the final norm."""
    attention: AttentionSummary | None = None
    """Where the latent attended, in a parallel block its last one; None unless attention is recorded."""
    grid: tuple[int, int] | None = None
    """(rows, columns) where the block is a parallel grid."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FinishEvent:
    """The last event: the run is over."""

    sequence: int = 0
    reason: Reason
    tokens: int
    """Generated tokens, markers included."""
    latents: int
    blocks: int
    text_seconds: float
    latent_seconds: float
    max_p_open: float
    """Highest probability that the opening token ever had where the model could have opened a block."""


Event = StartEvent | TokenEvent | LatentEvent | FinishEvent
