"""Qwen2.5-VL behind the protocol of backbone.py: the only module that touches its insides.

The published classes are wrapped, never patched: nothing is kept on the module between calls (transformers keeps
`rope_deltas` there, so that two interleaved sessions on one model disturb each other).

Shapes: as in backbone.py.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLDecoderLayer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from latent_core.model.attention import IMPLEMENTATION, AttentionRollout, Recorder
from latent_core.model.backbone import Backbone, Chat, EncodedImages, ImageGeometry, Rotary
from latent_core.model.cache import Cache, GradientCache
from latent_core.model.fast_layer import fast_layer, is_stock, norm, signed
from latent_core.model.qwen2_5_vl_facts import CONTROL_TOKENS, PIXELS

ImageProcessor = Qwen2VLImageProcessorPil
"""The image processor, which cuts images without torchvision."""

_is_stock = partial(is_stock, stock=Qwen2_5_VLDecoderLayer)


class Qwen2_5_VL(Backbone):
    """A Qwen2.5-VL of any size."""

    title = "Qwen2.5-VL"
    model_type = "qwen2_5_vl"
    chat = Chat(
        turn_start="<|im_start|>",
        turn_end="<|im_end|>",
        image_start="<|vision_start|>",
        image="<|image_pad|>",
        image_end="<|vision_end|>",
        default_system="You are a helpful assistant.",
    )
    control_tokens = frozenset(CONTROL_TOKENS)
    embedding_names = ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight")

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        # the vision tower keeps its own implementation: its attention is not recorded
        self._language.set_attn_implementation(IMPLEMENTATION)
        text = model.config.text_config
        self.width = text.hidden_size
        self.num_layers = text.num_hidden_layers
        self.num_key_heads = text.num_key_value_heads
        self.head_width = self.layers[0].self_attn.head_dim  # as it was built, whatever the configuration may say
        self.feed_forward = text.intermediate_size
        self.vocabulary = text.vocab_size
        self.image_token_id = model.config.image_token_id
        self.marker_ids = (model.config.vision_start_token_id, model.config.vision_end_token_id)
        self.merge_size = self.image_geometry(model.config).merge
        eos = model.generation_config.eos_token_id
        eos = text.eos_token_id if eos is None else eos
        self.eos_ids = frozenset([eos] if isinstance(eos, int) else eos or ())

    @staticmethod
    def configuration(values: Mapping[str, object]) -> Qwen2_5_VLConfig:
        return Qwen2_5_VLConfig.from_dict(dict(values))

    @staticmethod
    def build(config: PreTrainedConfig) -> Qwen2_5_VLForConditionalGeneration:
        return Qwen2_5_VLForConditionalGeneration(config)

    @staticmethod
    def read(
        folder: Path, config: PreTrainedConfig, dtype: torch.dtype
    ) -> tuple[Qwen2_5_VLForConditionalGeneration, Mapping[str, Sequence[object]]]:
        return Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are named in what is returned beside the model
            output_loading_info=True,
        )

    @staticmethod
    def image_geometry(config: PreTrainedConfig) -> ImageGeometry:
        vision, (least, most) = config.vision_config, PIXELS
        return ImageGeometry(
            patch=vision.patch_size, merge=vision.spatial_merge_size, min_pixels=least, max_pixels=most
        )

    @property
    def device(self) -> torch.device:
        return self.model.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._language.embed_tokens.weight.dtype

    @property
    def layers(self) -> nn.ModuleList:
        return self._language.layers

    @property
    def vision(self) -> nn.Module:
        return self.model.model.visual

    @property
    def _language(self) -> nn.Module:
        """The decoder: embedding, layers, final norm."""
        return self.model.model.language_model

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self._language.embed_tokens(ids)

    def encode_images(self, pixel_values: torch.Tensor, grid_thw: torch.Tensor) -> EncodedImages:
        pixel_values, grid_thw = pixel_values.to(self.device, self.vision.dtype), grid_thw.to(self.device)
        return EncodedImages(self.vision(pixel_values, grid_thw=grid_thw, return_dict=True).pooler_output)

    def positions(self, input_ids: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        input_ids = input_ids.cpu()[None]
        positions, _ = self.model.model.get_rope_index(
            input_ids,
            mm_token_type_ids=(input_ids == self.image_token_id).int(),
            image_grid_thw=grid_thw.cpu(),
        )
        return positions[:, 0]

    def rotary(self, positions: torch.Tensor) -> Rotary:
        return self._language.rotary_emb(self._language.norm.weight, positions)

    def new_cache(self, sequences: int, capacity: int) -> Cache:
        weight = self._language.norm.weight
        return Cache(self.num_layers, sequences, self.num_key_heads, self.head_width, capacity, like=weight.detach())

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
        language = self._language
        if cache is not None and self.training and language.layers[0].gradient_checkpointing:
            raise ValueError(
                "Gradient checkpointing drops the cache, which changes the latents; "
                "disable it (model.gradient_checkpointing_disable()) for passes that feed latents back."
            )
        if mask is not None:
            mask = mask[:, None]
        fast = isinstance(cache, Cache) and not torch.is_grad_enabled() and all(map(_is_stock, language.layers))
        watched = {} if recorder is None else {"recorder": recorder, "watch": watch}
        rotations = signed(rotary) if fast else rotary
        states = {0: embeds}
        hidden = embeds
        for number, layer in enumerate(language.layers, start=1):
            if fast:
                hidden = fast_layer(layer, hidden, rotations, cache, mask, **watched)
            else:
                hidden = layer(
                    hidden, attention_mask=mask, position_embeddings=rotations, past_key_values=cache, **watched
                )
            if number in levels:
                states[number] = hidden
        hidden = norm(language.norm, hidden) if fast else language.norm(hidden)
        states[self.num_layers] = hidden
        return hidden, [states[level] for level in levels]

    def norm(self, states: torch.Tensor) -> torch.Tensor:
        return self._language.norm(states)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        return self.model.lm_head(states)
