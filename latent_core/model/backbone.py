"""The protocol of a backbone: what engine, methods, trainers and planner need of a vision-language model.

`qwen2_5_vl.py` implements it and is the only file that touches the insides of a model; `backbones.py` picks the class
by the model type that config.json names.

Shapes: B sequences, N vectors, D model width, V vocabulary, L decoder layers, I images, P patches of C numbers each.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from latent_core.model.attention import AttentionRollout, Recorder
from latent_core.model.cache import Cache, GradientCache

Rotary = tuple[torch.Tensor, torch.Tensor]
"""cos and sin, each (B, N, head width)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chat:
    """A chat layout: the control tokens around turns and images, and what a conversation without system prompt gets.

    A turn is `turn_start`, the role and a line break, the content, `turn_end` and a line break. An image is
    `image_start`, one `image` per merged token, `image_end`.
    """

    turn_start: str
    turn_end: str
    image_start: str
    image: str
    image_end: str
    default_system: str
    """The system prompt that the chat template inserts where a conversation has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageGeometry:
    """The cut of images into patches and merged tokens."""

    patch: int
    """Side of a patch in pixels."""
    merge: int
    """Side of a merged image token in patches."""
    min_pixels: int
    """Least pixels of an image, unless the image processor's file says otherwise."""
    max_pixels: int
    """Most pixels of an image, likewise."""

    @property
    def token_side(self) -> int:
        """Side in pixels of the square that one merged image token covers."""
        return self.patch * self.merge


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImages:
    """Images as the vision tower encodes them: merged tokens, and in other backbones what else they bring."""

    tokens: torch.Tensor
    """(N, D) merged image tokens, all images one after the other. Token i of an image with w columns of patches lies
    in row i // (w / merge), column i % (w / merge)."""


class Backbone(nn.Module, ABC):
    """A vision-language model that is driven through input embeddings and explicit positions.

    Images and latents enter as embeddings, keys and values live in our own cache, and nothing is kept on the module
    between calls. The model inside is one of transformers', wrapped, never patched. Device and dtype are the model's.

    Qwen3-VL fits this protocol. It is not built; its parts go here:
    - deepstack features: a second field of EncodedImages, which feeds of images carry to a keyword of `forward`; that
      adds them to the states of image tokens after each of the first decoder layers;
    - norms of queries and keys: inside its layers; fast_layer.py puts them between projection and rotation;
    - patches of 16 pixels: `image_geometry`;
    - no default system prompt: `Chat.default_system` becomes None, for which the processor writes no turn;
    - interleaved M-RoPE: `rotary`, for callers know positions alone;
    - heads of their own width (head_dim), whatever the model's: `head_width`.
    """

    title: ClassVar[str]
    """The model's name in sentences."""
    model_type: ClassVar[str]
    """Its name in config.json."""
    chat: ClassVar[Chat]
    control_tokens: ClassVar[frozenset[str]]
    """All tokens that its tokenizer has beside text; what a fine-tune has beyond them, it added."""
    embedding_names: ClassVar[tuple[str, ...]]
    """The input embedding's tensor in files, in older and newer checkpoints."""

    model: PreTrainedModel
    width: int
    """D."""
    num_layers: int
    """L."""
    num_key_heads: int
    """Heads of keys and values, per layer."""
    head_width: int
    """Numbers of one head's query, key or value."""
    feed_forward: int
    """Width inside a layer's feed-forward part."""
    vocabulary: int
    """V, rows of the embedding."""
    image_token_id: int
    marker_ids: tuple[int, int]
    """The tokens before and after every image."""
    merge_size: int
    """Side of a merged image token in patches."""
    eos_ids: frozenset[int]
    """Tokens that end a response."""

    @staticmethod
    @abstractmethod
    def configuration(values: Mapping[str, object]) -> PreTrainedConfig:
        """The configuration with the fields of a config.json."""

    @staticmethod
    @abstractmethod
    def build(config: PreTrainedConfig) -> PreTrainedModel:
        """A model with random weights, on the device of the context; on "meta" it has shapes alone."""

    @staticmethod
    @abstractmethod
    def read(
        folder: Path, config: PreTrainedConfig, dtype: torch.dtype
    ) -> tuple[PreTrainedModel, Mapping[str, Sequence[object]]]:
        """The model with a folder's weights, and the names of tensors that are missing, unexpected and mismatched."""

    @staticmethod
    @abstractmethod
    def image_geometry(config: PreTrainedConfig) -> ImageGeometry:
        """The image geometry of a model of this configuration."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the embeddings, on which feeds have to be."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The embeddings' dtype."""

    @property
    @abstractmethod
    def layers(self) -> nn.ModuleList:
        """The decoder layers, for hooks and for counting; `forward` runs them."""

    @property
    @abstractmethod
    def vision(self) -> nn.Module:
        """The vision tower, merger included, for its parameters; `encode_images` runs it."""

    @abstractmethod
    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Input embeddings (…, D) of ids (…)."""

    @abstractmethod
    def encode_images(self, pixel_values: torch.Tensor, grid_thw: torch.Tensor) -> EncodedImages:
        """All images at once: pixel_values (P, C) patches, grid_thw (I, 3) their grids before merging."""

    @abstractmethod
    def positions(self, input_ids: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        """(3, T) temporal, row and column positions of one prompt (T,), on the CPU; grid_thw (I, 3).

        Text advances all three by one. An image at position p has (p, p + row, p + column); the text after it goes on
        at the largest value + 1. What follows the prompt starts at positions.max() + 1.
        """

    @abstractmethod
    def rotary(self, positions: torch.Tensor) -> Rotary:
        """Rotations for positions (3, B, N)."""

    @abstractmethod
    def new_cache(self, sequences: int, capacity: int) -> Cache:
        """An empty cache for so many sequences, with room for `capacity` slots before it has to grow."""

    @abstractmethod
    def forward(
        self,
        embeds: torch.Tensor,
        rotary: Rotary,
        *,
        cache: Cache | GradientCache | None = None,
        mask: torch.Tensor | None = None,
        levels: Sequence[int] = (),
        recorder: Recorder | AttentionRollout | None = None,
        watch: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """States (B, N, D) after the final norm, and those of the levels asked for, in that order.

        embeds (B, N, D); mask (B, N, S) bool from `attend`, or None where attention is plain causal and either the
        cache is empty or N is 1. Level 0 is the input, ℓ the state after layer ℓ, L the state after the final norm.
        A Recorder keeps the attention of each sequence's queries watch (B, W), counted within this feed; an
        AttentionRollout that of all.
        Raises ValueError where gradient checkpointing would drop the cache and thereby change the latents.
        """

    @abstractmethod
    def norm(self, states: torch.Tensor) -> torch.Tensor:
        """States (…, D) of any layer after the final norm, as `logits` reads them."""

    @abstractmethod
    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """(…, V) next-token scores of states (…, D) after the final norm."""

    def image_positions(self, grid_thw: torch.Tensor) -> torch.Tensor:
        """(3, N) positions of one image's merged tokens, counted from its first, on the CPU; grid_thw (1, 3)."""
        count = int(grid_thw.prod()) // self.merge_size**2
        return self.positions(torch.full((count,), self.image_token_id), grid_thw)

    def train_vision(self, trained: bool) -> None:
        """Unfreezes the vision tower, or freezes it."""
        self.vision.requires_grad_(trained)

    def vision_is_same(self, other: "Backbone") -> bool:
        """Whether the other's vision tower has equal weights, so that both make the same of an image."""
        own, theirs = self.vision.state_dict(), other.vision.state_dict()
        return all(torch.equal(tensor, theirs[name].to(tensor)) for name, tensor in own.items())
