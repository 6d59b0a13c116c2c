"""method.json, a checkpoint folder's file beside the backbone's own config.json: its fields and their defaults."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from latent_core.records import from_json
from latent_core.settings import MAX_LATENTS, Rule, Settings, check

FORMAT_VERSION = 1
MOST_SYSTEM = 20_000
"""Characters of a system prompt at most."""

Convention = Literal["start_fed", "start_overwritten"]
"""start_fed: the opening token keeps its embedding, its output state is latent 1. start_overwritten: the state that
produced the opening token replaces that token's embedding (Monet's released inference code)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentRange:
    """K, latents per block."""

    default: int = 8
    min: int = 0
    max: int = 16

    def __post_init__(self) -> None:
        check(
            0 <= self.min <= self.default <= self.max <= MAX_LATENTS,
            f"latents: min {self.min}, default {self.default}, max {self.max}; "
            f"0 ≤ min ≤ default ≤ max ≤ {MAX_LATENTS} is needed.",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Defaults of decoding; the fields mean what they mean in Settings."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        Settings(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            max_new_tokens=self.max_new_tokens,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelLimits:
    """Pixels per image after resizing; None keeps the image processor's own limit."""

    min_pixels: int | None = None
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        limits = [pixels for pixels in (self.min_pixels, self.max_pixels) if pixels is not None]
        check(
            all(pixels > 0 for pixels in limits) and limits == sorted(limits),
            f"image: min_pixels {self.min_pixels}, max_pixels {self.max_pixels}; 0 < min ≤ max is needed.",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodConfig:
    """The content of method.json: method, control tokens, attention rule, K, prompt, sampling and image limits."""

    format_version: int = FORMAT_VERSION
    method: str
    """A key of METHODS."""
    open_token: str | None = None
    """Opens a latent block; None for methods without latents."""
    close_token: str | None = None
    """Closes it; forced by the runtime."""
    pad_token: str | None = None
    """Stands for a latent where only ids are written down (labels, published data); never fed."""
    convention: Convention = "start_fed"
    rule: Rule = "causal"
    """The attention rule that the checkpoint was trained under."""
    latents: LatentRange = field(default_factory=LatentRange)
    options: dict[str, object] = field(default_factory=dict)
    """The method's own options, as its class declares them."""
    system: str | None = None
    """System prompt; None is the chat template's own."""
    sampling: Sampling = field(default_factory=Sampling)
    image: PixelLimits = field(default_factory=PixelLimits)
    world: Literal["glyphs"] | None = None
    """The micro-world outside of which the checkpoint's answers mean nothing; None for the real world."""
    provenance: dict[str, object] = field(default_factory=dict)
    """Recipe, data, package versions, commit: for readers, not interpreted."""

    def __post_init__(self) -> None:
        check(
            self.format_version == FORMAT_VERSION,
            f"format_version is {self.format_version}; this program reads version {FORMAT_VERSION}.",
        )
        check(
            (self.open_token is None) == (self.close_token is None),
            f"open_token is {self.open_token}, close_token {self.close_token}; give both or neither.",
        )
        check(
            self.open_token is None or self.open_token != self.close_token,
            f"open_token and close_token are both {self.open_token}; a block could never end.",
        )
        check(
            self.system is None or len(self.system) <= MOST_SYSTEM,
            f"system has {len(self.system or ''):,} characters; at most {MOST_SYSTEM:,} are taken.",
        )

    @classmethod
    def read(cls, folder: Path) -> "MethodConfig":
        """The content of method.json in a checkpoint's folder. Raises ValueError for one that cannot be used."""
        try:
            return from_json(cls, json.loads((folder / "method.json").read_text()), "method.json")
        except (ValueError, RecursionError, OSError) as error:
            raise ValueError(f"method.json of {folder.name} cannot be used: {error}") from error
