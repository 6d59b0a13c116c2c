"""Qwen2.5-VL as Inscape drives it: the only module that touches its insides.

The published classes are wrapped, never patched: images and latents enter as input embeddings, positions are explicit,
keys and values live in our own cache, and nothing is kept on the module between calls (transformers keeps
`rope_deltas` there, so that two interleaved sessions on one model disturb each other).

Shapes: B rows, N vectors, D model width, V vocabulary, L decoder blocks.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from latent_core.attention import IMPLEMENTATION, Recorder, Rollout
from latent_core.cache import Cache, GradientCache
from latent_core.lean import block, is_stock, norm, signed

Rotary = tuple[torch.Tensor, torch.Tensor]
"""cos and sin, each (B, N, head width)."""


class Backbone(nn.Module):
    """Embeds, feeds and reads a Qwen2.5-VL. Device and dtype are the model's."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        # the vision tower keeps its own implementation: it has no causal rows to record
        model.model.language_model.set_attn_implementation(IMPLEMENTATION)
        text = model.config.text_config
        self.width: int = text.hidden_size
        self.num_layers: int = text.num_hidden_layers
        self.vocabulary: int = text.vocab_size
        self.image_token_id: int = model.config.image_token_id
        self.marker_ids: tuple[int, int] = (model.config.vision_start_token_id, model.config.vision_end_token_id)
        """<|vision_start|> and <|vision_end|>, around every image."""
        self.merge_size: int = model.config.vision_config.spatial_merge_size
        eos = model.generation_config.eos_token_id
        eos = text.eos_token_id if eos is None else eos
        self.eos_ids: frozenset[int] = frozenset([eos] if isinstance(eos, int) else eos or ())

    @property
    def device(self) -> torch.device:
        """Where embeddings live and feeds have to be."""
        return self.model.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The embeddings' dtype."""
        return self.model.model.language_model.embed_tokens.weight.dtype

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Input embeddings (…, D) of ids (…)."""
        return self.model.model.language_model.embed_tokens(ids)

    def image_features(self, pixel_values: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        """(N, D) merged image tokens, all images one after the other.

        pixel_values (P, C) patches, grid_thw (images, 3) their grids before merging. Token i of an image with w
        columns of patches lies in row i // (w / 2), column i % (w / 2).
        """
        model = self.model.model
        features = model.get_image_features(
            pixel_values.to(self.device), image_grid_thw=grid_thw.to(self.device), return_dict=True
        )
        return torch.cat(features.pooler_output)

    def positions(self, input_ids: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        """(3, T) temporal, row and column positions of one prompt (T,), on the CPU.

        Text advances all three by one. An image at position p has (p, p + row, p + column); the text after it goes on
        at the largest value + 1. What follows the prompt starts at positions.max() + 1.
        """
        input_ids = input_ids.cpu()[None]
        positions, _ = self.model.model.get_rope_index(
            input_ids,
            mm_token_type_ids=(input_ids == self.image_token_id).int(),
            image_grid_thw=grid_thw.cpu(),
        )
        return positions[:, 0]

    def image_positions(self, grid_thw: torch.Tensor) -> torch.Tensor:
        """(3, N) positions of one image's merged tokens, counted from its first, on the CPU; grid_thw (1, 3)."""
        count = int(grid_thw.prod()) // self.merge_size**2
        return self.positions(torch.full((count,), self.image_token_id), grid_thw)

    def rotary(self, positions: torch.Tensor) -> Rotary:
        """Rotations for positions (3, B, N)."""
        language = self.model.model.language_model
        return language.rotary_emb(language.norm.weight, positions)

    def new_cache(self, rows: int, capacity: int) -> Cache:
        """An empty cache for `rows` rows, with room for `capacity` slots before it has to grow."""
        text = self.model.config.text_config
        heads, width = text.num_key_value_heads, text.hidden_size // text.num_attention_heads
        weight = self.model.model.language_model.norm.weight
        return Cache(self.num_layers, rows, heads, width, capacity, like=weight.detach())

    def forward(
        self,
        embeds: torch.Tensor,
        rotary: Rotary,
        *,
        cache: Cache | GradientCache | None = None,
        mask: torch.Tensor | None = None,
        levels: Sequence[int] = (),
        recorder: Recorder | Rollout | None = None,
        watch: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """States (B, N, D) after the final norm, and those of the levels asked for, in that order.

        embeds (B, N, D); mask (B, N, S) bool from `attend`, or None where attention is plain causal and either the
        cache is empty or N is 1. Level 0 is the input, ℓ the state after block ℓ, L the state after the final norm.
        A Recorder keeps the attention of each row's queries watch (B, W), counted within this feed; a Rollout of all.
        Raises ValueError where gradient checkpointing would drop the cache and thereby change the latents.
        """
        language = self.model.model.language_model
        if cache is not None and self.training and language.layers[0].gradient_checkpointing:
            raise ValueError(
                "Gradient checkpointing drops the cache, which changes the latents; "
                "disable it (model.gradient_checkpointing_disable()) for passes that feed latents back."
            )
        if mask is not None:
            mask = mask[:, None]
        lean = isinstance(cache, Cache) and not torch.is_grad_enabled() and all(map(is_stock, language.layers))
        watched = {} if recorder is None else {"recorder": recorder, "watch": watch}
        places = signed(rotary) if lean else rotary
        kept = {0: embeds}
        hidden = embeds
        for number, layer in enumerate(language.layers, start=1):
            if lean:
                hidden = block(layer, hidden, places, cache, mask, **watched)
            else:
                hidden = layer(
                    hidden, attention_mask=mask, position_embeddings=places, past_key_values=cache, **watched
                )
            if number in levels:
                kept[number] = hidden
        hidden = norm(language.norm, hidden) if lean else language.norm(hidden)
        kept[self.num_layers] = hidden
        return hidden, [kept[level] for level in levels]

    def norm(self, states: torch.Tensor) -> torch.Tensor:
        """States (…, D) of any block after the final norm, as `logits` reads them."""
        return self.model.model.language_model.norm(states)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """(…, V) next-token scores of states (…, D) after the final norm."""
        return self.model.lm_head(states)
