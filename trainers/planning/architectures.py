"""Shapes of published backbones, so that a run can be planned before anything is downloaded.

Source: config.json of the repositories named here.
"""

from transformers import PreTrainedConfig

from latent_core.model.qwen2_5_vl import Qwen2_5_VL
from latent_core.model.qwen2_5_vl_facts import ROWS_7B, WIDTH_7B

_VISION = dict(
    depth=32,
    hidden_size=1280,
    intermediate_size=3420,
    num_heads=16,
    patch_size=14,
    spatial_merge_size=2,
    temporal_patch_size=2,
    window_size=112,
    fullatt_block_indexes=[7, 15, 23, 31],
)
_TEXT = dict(max_position_embeddings=128000, rms_norm_eps=1e-6)


def _config(*, tied: bool, **text: int) -> PreTrainedConfig:
    rope = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]}
    return Qwen2_5_VL.configuration(
        {
            "text_config": {**_TEXT, **text, "tie_word_embeddings": tied, "rope_parameters": rope},
            "vision_config": _VISION | {"out_hidden_size": text["hidden_size"]},
            "tie_word_embeddings": tied,
        }
    )


def published() -> dict[str, PreTrainedConfig]:
    """Hub id → configuration."""
    return {
        "Qwen/Qwen2.5-VL-3B-Instruct": _config(
            tied=True,
            vocab_size=151936,
            hidden_size=2048,
            intermediate_size=11008,
            num_hidden_layers=36,
            num_attention_heads=16,
            num_key_value_heads=2,
        ),
        "Qwen/Qwen2.5-VL-7B-Instruct": _config(
            tied=False,
            vocab_size=ROWS_7B,
            hidden_size=WIDTH_7B,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
        ),
    }
