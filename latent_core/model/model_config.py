"""config.json of a checkpoint: data that anybody may have written, checked before a model is built of it.

What no question could be answered with is said here, when a checkpoint is loaded. What does not matter to the result
is left out: the device decides the dtype, the program brings its own attention, and code that a file names is not run.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from latent_core.model.backbones import BACKBONES, image_geometry
from latent_core.model.processor import Processor
from latent_core.model.qwen2_5_vl import Qwen2_5_VL
from latent_core.settings import check, short

PARTS = ("text_config", "vision_config")
ATTENTION = ("attn_implementation", "_attn_implementation")
STOCK = (None, "eager", "sdpa")
"""Attention that gives what the program's own gives."""
QUANTIZED = ("quantization_config", "compression_config")
DTYPES = ("dtype", "torch_dtype")
_WIDE, _DEEP, _SMALL = 1 << 20, 1000, 1000
SIZES = {
    "text_config": {
        "hidden_size": _WIDE,
        "intermediate_size": _WIDE,
        "num_hidden_layers": _DEEP,
        "num_attention_heads": _SMALL,
        "num_key_value_heads": _SMALL,
    },
    "vision_config": {
        "hidden_size": _WIDE,
        "intermediate_size": _WIDE,
        "depth": _DEEP,
        "num_heads": _SMALL,
        "patch_size": _SMALL,
        "temporal_patch_size": _SMALL,
        "spatial_merge_size": _SMALL,
        "window_size": 1 << 16,
        "in_channels": 3,
    },
}
"""Part → size → the most of it that a model may have: far above what is published."""


def read_model_config(folder: Path) -> PreTrainedConfig:
    """The backbone's configuration. Raises ValueError that names what in config.json cannot be used, and why."""
    where = f"config.json of {folder.name}"
    values = read_object(folder / "config.json")
    model_type = values.get("model_type") or Qwen2_5_VL.model_type
    loadable = ", ".join(f"{backbone.title} ({name})" for name, backbone in BACKBONES.items())
    check(model_type in tuple(BACKBONES), f"{where} is that of a {model_type!r}; only {loadable} can be loaded.")
    for part, fields in _parts(values, where):
        _check_weights(fields, f"{where}{part}")
        _check_sizes(fields, f"{where}{part}")
        for name in DTYPES:
            fields.pop(name, None)
    try:
        config = BACKBONES[model_type].configuration(values)
    except (StrictDataclassError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise ValueError(f"{where} cannot be used: {' '.join(str(error).split())[:300]}") from error
    _check_shape(config, where)
    return config


def read_object(path: Path) -> dict[str, object]:
    """The JSON object in a checkpoint's file. Raises ValueError for anything else, nan and infinity included."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number")

    where = f"{path.name} of {path.parent.name}"
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}.") from error
    check(isinstance(values, dict), f"{where} is not a JSON object of named fields.")
    return values


def check_buildable(config: PreTrainedConfig, stored: int, name: str) -> None:
    """Raises ValueError where no model can be built of a configuration, or only one with far more parameters than the
    `stored` ones of checkpoint `name`: what is missing in its files would be made up, in gigabytes.
    """
    try:
        with torch.device("meta"):
            model = BACKBONES[config.model_type].build(config)
    except (ArithmeticError, LookupError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"No model can be built of config.json of {name}: {type(error).__name__}, {reason}."
        ) from error
    needed = sum(parameter.numel() for parameter in model.parameters())
    check(
        needed <= 4 * stored + 1_000_000,
        f"config.json of {name} is that of a model with {needed:,} parameters, but its files hold {stored:,}.",
    )


def check_fit(config: PreTrainedConfig, processor: Processor, name: str) -> None:
    """Raises ValueError where the processor cuts images or marks them otherwise than checkpoint `name` expects."""
    images, vision = processor.image_processor, config.vision_config
    for of_images, of_model in (
        ("patch_size", "patch_size"),
        ("merge_size", "spatial_merge_size"),
        ("temporal_patch_size", "temporal_patch_size"),
    ):
        cut, expected = getattr(images, of_images), getattr(vision, of_model)
        check(
            cut == expected,
            f"The image processor of {name} has {of_images} {cut}, but its config.json has {of_model} {expected}; one "
            "of the files belongs to another checkpoint, so take both from the same one.",
        )
    side = image_geometry(config).token_side
    check(
        vision.window_size >= side,
        f"config.json of {name} (vision_config) has window_size {vision.window_size}, less than the {side} pixels of "
        "an image token.",
    )
    for token, field in (
        (processor.chat.image, "image_token_id"),
        (processor.chat.image_start, "vision_start_token_id"),
        (processor.chat.image_end, "vision_end_token_id"),
    ):
        token_id, expected = processor.token_id(token), getattr(config, field)
        check(
            token_id == expected,
            f"The tokenizer of {name} gives {token} id {token_id}, but its config.json has {field} {expected}; "
            "one of the files belongs to another checkpoint, so take both from the same one.",
        )


def _parts(values: dict[str, object], where: str) -> Iterator[tuple[str, dict[str, object]]]:
    """The fields of the whole and of its parts, each with what a sentence calls it."""
    yield "", values
    for part in PARTS:
        fields = values.get(part) or {}
        check(isinstance(fields, dict), f"{part} in {where} is not an object of named fields.")
        yield f" ({part})", fields


def _check_weights(fields: dict[str, object], where: str) -> None:
    """Refuses weights and attention of other kinds than the program has."""
    for name in QUANTIZED:
        value = fields.get(name)
        method = value.get("quant_method", "unnamed") if isinstance(value, dict) else value
        check(
            not value,
            f"{where} has a {name} ({str(method)[:40]}): its weights are quantized, and only those in bfloat16, "
            "float16 or float32 can be loaded; take the checkpoint that was quantized.",
        )
    for name in ATTENTION:
        values = fields.get(name)
        for value in values.values() if isinstance(values, dict) else [values]:
            check(
                value in STOCK,
                f"{where} asks for {name} {str(value)[:80]!r}, but the program brings its own attention; delete that "
                "field, no weights depend on it.",
            )
    for name in DTYPES:
        value = fields.get(name)
        dtype = getattr(torch, value, None) if isinstance(value, str) else None
        loadable = value in (None, "auto") or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)
        check(loadable, f"{where} has {name} {str(value)[:40]!r}; write bfloat16, float16 or float32, or delete it.")


def _check_sizes(fields: dict[str, object], where: str) -> None:
    """Refuses what would be too large a model, before transformers lays out as much as a list of its layers."""
    for names in SIZES.values():
        for name, most in names.items():
            value = fields.get(name)
            fits = type(value) not in (int, float) or value <= most
            check(fits, f"{where} has {name} {short(value)}; at most {most:,} can be loaded.")


def _check_shape(config: PreTrainedConfig, where: str) -> None:
    """Refuses sizes that no model has, and those of parts that do not fit together."""
    for part, names in SIZES.items():
        for name in names:
            value = getattr(getattr(config, part), name)
            fits = type(value) is int and value > 0
            check(fits, f"{where} ({part}) has {name} {short(value)}; it must be a whole number above 0.")
    text, vision = config.text_config, config.vision_config
    for width, heads, names in (
        (vision.hidden_size, vision.num_heads, "vision_config: hidden_size and num_heads"),
        (text.hidden_size, text.num_attention_heads, "text_config: hidden_size and num_attention_heads"),
        (
            text.num_attention_heads,
            text.num_key_value_heads,
            "text_config: num_attention_heads and num_key_value_heads",
        ),
    ):
        check(width % heads == 0, f"{where} has {width} and {heads} ({names}); the first must be a multiple.")
    check(
        vision.out_hidden_size == text.hidden_size,
        f"{where} has images of width {vision.out_hidden_size} (vision_config.out_hidden_size) for words of width "
        f"{text.hidden_size} (text_config.hidden_size); they must be equal.",
    )
    half = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    sections = (text.rope_parameters or {}).get("mrope_section")
    fits = isinstance(sections, (list, tuple)) and len(sections) == 3 and 2 * sum(sections) == half
    check(
        fits,
        f"{where} has mrope_section {sections!r}; three numbers are needed that make {half}, half a head's width.",
    )
