"""Facts about Qwen2.5-VL as it was published, for what must not wait for transformers' import.

Sources: config.json, tokenizer.json and preprocessor_config.json of Qwen/Qwen2.5-VL-7B-Instruct.
"""

ROWS_7B = 152064
"""Embedding rows of Qwen2.5-VL-7B; its tokenizer has 151665 tokens, the rest is padding."""
FIRST_ADDED = 151665
"""Id of the first token that a fine-tune adds."""
PARAMETERS_7B = 8_292_166_656
"""Qwen2.5-VL-7B with ROWS_7B rows, vision tower included."""
WIDTH_7B = 3584
PIXELS = 56 * 56, 28 * 28 * 16384
"""Least and most pixels of an image."""
CONTROL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    *("<tool_call>", "</tool_call>"),
    *("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
"""All that its tokenizer has beside text, in the order of their ids, which end before FIRST_ADDED."""


def parameters_7b(rows: int) -> int:
    """Parameters of Qwen2.5-VL-7B with so many embedding rows; input and output embeddings are two tensors."""
    return PARAMETERS_7B - 2 * (ROWS_7B - rows) * WIDTH_7B
