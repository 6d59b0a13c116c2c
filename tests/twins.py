"""Tiny twins of the published checkpoints: their files, config fields, control tokens and ids, vocabulary sizes,
tensor names and shards, with random weights sixteen numbers wide.

The fields of config.json are those that the reference implementations wrote, see tests/fixtures.
"""

import json
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from latent_core.checkpoints.published import Published
from latent_core.model.qwen2_5_vl_facts import FIRST_ADDED
from tests.words import CHAT_TEMPLATE

QWEN_TEXT = 151643
"""Tokens that are text; the control tokens follow."""
QWEN_CONTROL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> "
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>"
).split()
NOT_SPECIAL = QWEN_CONTROL[14:]
"""Added tokens that Qwen does not flag as special."""
TOKENIZER = {"tokenizer_class": "Qwen2Tokenizer", "processor_class": "Qwen2_5_VLProcessor"}
IMAGES = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 12845056,
    "merge_size": 2,
    "min_pixels": 3136,
    "patch_size": 14,
    "processor_class": "Qwen2_5_VLProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"longest_edge": 12845056, "shortest_edge": 3136},
    "temporal_patch_size": 2,
}
"""preprocessor_config.json as fine-tunes of Qwen2.5-VL carry it."""
FIXTURES = Path(__file__).parent / "fixtures"
HIDDEN, HEADS = 16, 2
SHARD = "4MB"


def write_twin(entry: Published, root: Path, seed: int = 0) -> Path:
    """Writes the twin of `entry` into the repository folder `root`, and returns the checkpoint's folder."""
    folder = root / entry.subfolder
    folder.mkdir(parents=True, exist_ok=True)
    twin_tokenizer(entry.tokens).save_pretrained(folder)
    written = folder / "tokenizer_config.json"
    written.write_text(json.dumps(json.loads(written.read_text()) | TOKENIZER, indent=2))
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGES, indent=2))
    config = twin_config(entry)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(config)).to(torch.bfloat16)
    model.generation_config.eos_token_id = config["eos_token_id"]
    model.save_pretrained(folder, max_shard_size=SHARD)
    (folder / "config.json").write_text(json.dumps(config, indent=2))  # as the reference wrote it, extra fields too
    return folder


def twin_config(entry: Published) -> dict[str, object]:
    """config.json with the reference's fields, Qwen's ids and a tiny width."""
    config = json.loads((FIXTURES / f"{entry.config.method}_seed0" / "model" / "config.json").read_text())
    ids = {token: QWEN_TEXT + number for number, token in enumerate(QWEN_CONTROL)}
    ids |= {token: FIRST_ADDED + number for number, token in enumerate(entry.tokens)}
    names = {
        "bos_token_id": "<|endoftext|>",
        "eos_token_id": "<|im_end|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "latent_token_id": "<abs_vis_token_pad>",
        "latent_start_id": "<abs_vis_token>",
        "latent_end_id": "</abs_vis_token>",
        "lvr_start_id": "<|lvr_start|>",
        "lvr_id": "<|lvr|>",
        "lvr_latent_end_id": "<|lvr_latent_end|>",
        "lvr_end_id": "<|lvr_end|>",
    }
    tiny = {
        "vocab_size": entry.rows,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "max_window_layers": 2,
        "layer_types": ["full_attention"] * 2,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        "initializer_range": 0.1,
        "torch_dtype": "bfloat16",
    }
    for part in (config, config["text_config"]):
        part |= {name: value for name, value in tiny.items() if name in part}
        part |= {name: ids[token] for name, token in names.items() if part.get(name) is not None}
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": HIDDEN}
    config["vision_config"] |= {**vision, "fullatt_block_indexes": [1], "initializer_range": 0.1}
    return config


@lru_cache
def twin_tokenizer(tokens: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Qwen's size and control tokens at their ids: bytes, a few merges, made-up words; then `tokens`."""
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    base.train_from_iterator(["system\n", "user\n", "assistant\n", "Which mark is on the blue square?"] * 3, trainer)
    description = json.loads(base.to_str())
    words = description["model"]["vocab"]
    words |= {f"Ġw{number}": number for number in range(len(words), QWEN_TEXT)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)), chat_template=CHAT_TEMPLATE
    )
    special = [AddedToken(token, special=token not in NOT_SPECIAL, normalized=False) for token in QWEN_CONTROL]
    tokenizer.add_tokens([*special, *(AddedToken(token, special=True, normalized=False) for token in tokens)])
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    return tokenizer


def rewrite(folder: Path, tensor: str, value: torch.Tensor | None) -> None:
    """Replaces one tensor of a twin in its shard, or takes it out."""
    shard = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][tensor]
    tensors = load_file(folder / shard)
    tensors.pop(tensor)
    if value is not None:
        tensors[tensor] = value
    save_file(tensors, folder / shard, {"format": "pt"})
