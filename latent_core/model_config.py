"""config.json of a checkpoint: data that anybody may have written, checked before a model is built of it.

What no question could be answered with is said here, when a checkpoint is loaded. What does not matter to the result
is left out: the device decides the dtype, the program brings its own attention, and code that a file names is not run.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import Qwen2_5_VLConfig

from latent_core.processor import Processor
from latent_core.settings import check

MODEL_TYPE = "qwen2_5_vl"
PARTS = ("text_config", "vision_config")
ATTENTION = ("attn_implementation", "_attn_implementation")
STOCK = (None, "eager", "sdpa")
"""Attention that gives what the program's own gives."""
QUANTIZED = ("quantization_config", "compression_config")
DTYPES = ("dtype", "torch_dtype")
SIZES = {
    "text_config": ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    "vision_config": ("patch_size", "temporal_patch_size", "spatial_merge_size", "num_heads", "depth"),
}


def read_model_config(folder: Path) -> Qwen2_5_VLConfig:
    """The backbone's configuration. Raises ValueError that names what in config.json cannot be used, and why."""
    where = f"config.json of {folder.name}"
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}.") from error
    check(isinstance(values, dict), f"{where} is not a JSON object of named fields.")
    kind = values.get("model_type") or MODEL_TYPE
    check(kind == MODEL_TYPE, f"{where} is that of a {kind!r}; only Qwen2.5-VL ({MODEL_TYPE}) can be loaded.")
    for part, fields in _parts(values, where):
        _check_weights(fields, f"{where}{part}")
        for name in DTYPES:
            fields.pop(name, None)
    try:
        config = Qwen2_5_VLConfig.from_dict(values)
    except (StrictDataclassError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise ValueError(f"{where} cannot be used: {' '.join(str(error).split())[:300]}") from error
    _check_shape(config, where)
    return config


def check_fit(config: Qwen2_5_VLConfig, processor: Processor, name: str) -> None:
    """Raises ValueError where the processor cuts images or marks them otherwise than checkpoint `name` expects."""
    images, vision = processor.image_processor, config.vision_config
    for theirs, own in (
        ("patch_size", "patch_size"),
        ("merge_size", "spatial_merge_size"),
        ("temporal_patch_size", "temporal_patch_size"),
    ):
        cut, expected = getattr(images, theirs), getattr(vision, own)
        check(
            cut == expected,
            f"The image processor of {name} has {theirs} {cut}, but its config.json has {own} {expected}; one of the "
            "files belongs to another checkpoint, so take both from the same one.",
        )
    for token, own in (
        ("<|image_pad|>", "image_token_id"),
        ("<|vision_start|>", "vision_start_token_id"),
        ("<|vision_end|>", "vision_end_token_id"),
    ):
        given, expected = processor.token_id(token), getattr(config, own)
        check(
            given == expected,
            f"The tokenizer of {name} gives {token} id {given}, but its config.json has {own} {expected}; one of the "
            "files belongs to another checkpoint, so take both from the same one.",
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
        given = fields.get(name)
        method = given.get("quant_method", "unnamed") if isinstance(given, dict) else given
        check(
            not given,
            f"{where} has a {name} ({str(method)[:40]}): its weights are quantized, and only those in bfloat16, "
            "float16 or float32 can be loaded; take the checkpoint that was quantized.",
        )
    for name in ATTENTION:
        given = fields.get(name)
        for value in given.values() if isinstance(given, dict) else [given]:
            check(
                value in STOCK,
                f"{where} asks for {name} {str(value)[:80]!r}, but the program brings its own attention; delete that "
                "field, no weights depend on it.",
            )
    for name in DTYPES:
        value = fields.get(name)
        kind = getattr(torch, value, None) if isinstance(value, str) else None
        known = value in (None, "auto") or (isinstance(kind, torch.dtype) and kind.is_floating_point)
        check(known, f"{where} has {name} {str(value)[:40]!r}; write bfloat16, float16 or float32, or delete it.")


def _check_shape(config: Qwen2_5_VLConfig, where: str) -> None:
    """Refuses sizes that no model has, and those of parts that do not fit together."""
    for part, names in SIZES.items():
        for name in names:
            value = getattr(getattr(config, part), name)
            fits = type(value) is int and value > 0
            check(fits, f"{where} ({part}) has {name} {value!r}; it must be a whole number above 0.")
    text, vision = config.text_config, config.vision_config
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
