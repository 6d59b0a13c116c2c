"""Tiny real models and prompts, shared by all tests: the published classes at a size that runs in milliseconds."""

from collections.abc import Sequence

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from latent_core.config import MethodConfig
from latent_core.methods import LatentMethod, build_method
from latent_core.model.processor import Prompt

VOCABULARY = 96
EOS, VISION_START, VISION_END, IMAGE, VIDEO, PAD_LATENT, OPEN, CLOSE = range(88, 96)
"""Control ids of the tiny vocabulary; ids below 88 are text."""

TOKENS = {"<abs_vis_token_pad>": PAD_LATENT, "<abs_vis_token>": OPEN, "</abs_vis_token>": CLOSE}


def tiny_model(
    seed: int = 0, *, hidden: int = 32, layers: int = 2, vocabulary: int = VOCABULARY, **tokens: int
) -> Qwen2_5_VLForConditionalGeneration:
    """A random Qwen2.5-VL in evaluation mode: heads of 8, two vision blocks, patches of 4, merge 2.

    `tokens` override the ids image_token_id, video_token_id, vision_start_token_id, vision_end_token_id and
    eos_token_id. Weights are drawn large enough (0.1) that images, latents and words change the logits visibly.
    """
    ids = {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
    }
    ids |= {name: tokens.pop(name) for name in list(tokens) if name in ids}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": hidden // 8,
            "num_key_value_heads": hidden // 16,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]},
            "bos_token_id": None,
            "eos_token_id": EOS,
            "pad_token_id": None,
            "initializer_range": 0.1,
            **tokens,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": hidden,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 16,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.1,
        },
        tie_word_embeddings=False,
        **ids,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    return model.eval()


def tiny_prompt(seed: int = 0, *, grids: Sequence[tuple[int, int]] = ((4, 6),), text: int = 6, model=None) -> Prompt:
    """A random prompt: for each (rows, columns) of patches an image, then `text` random words."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, 80, (text + 2,), generator=generator).tolist()
    config = None if model is None else model.config
    start, end, image = (
        (VISION_START, VISION_END, IMAGE)
        if config is None
        else (config.vision_start_token_id, config.vision_end_token_id, config.image_token_id)
    )
    patch = 4 if config is None else config.vision_config.patch_size
    ids = words[:2]
    for rows, columns in grids:
        ids += [start, *[image] * (rows * columns // 4), end]
    patches = sum(rows * columns for rows, columns in grids)
    return Prompt(
        input_ids=torch.tensor(ids + words[2:]),
        pixel_values=torch.randn(patches, 3 * 2 * patch**2, generator=generator),
        grid_thw=torch.tensor([(1, *grid) for grid in grids], dtype=torch.int64).reshape(-1, 3),
        images=tuple(
            torch.randint(0, 256, (rows * patch, columns * patch, 3), generator=generator, dtype=torch.uint8)
            for rows, columns in grids
        ),
    )


NEEDED = {"deeplatent": {"width": 32, "heads": 2}}
"""Options without which a method cannot be built."""


def tiny_method(name: str = "monet", **config) -> LatentMethod:
    """A method over the tiny vocabulary, in evaluation mode; its own parameters are always the same."""
    tokens = {} if name == "text" else dict(zip(("pad_token", "open_token", "close_token"), TOKENS, strict=True))
    config["options"] = NEEDED.get(name, {}) | config.get("options", {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_method(MethodConfig(method=name, **tokens, **config), TOKENS.__getitem__).eval()


def scripted(*ids: Sequence[int]):
    """A sampler that gives sequence n the ids ids[n], one after the other, then EOS."""
    scripts = [iter(script) for script in ids]
    return lambda number, logits: next(scripts[number], EOS)


def of_sequence(events, number: int, kind: type | None = None) -> list:
    """The events of one sequence of a batch, of one kind if given."""
    return [e for e in events if e.sequence == number and (kind is None or isinstance(e, kind))]


def eager_attention(prompt: Prompt) -> tuple[torch.Tensor, ...]:
    """What transformers' eager attention of the tiny model does with a prompt: per layer (1, heads, T, T)."""
    eager = tiny_model()
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        return eager(
            input_ids=prompt.input_ids[None],
            mm_token_type_ids=(prompt.input_ids[None] == IMAGE).int(),
            pixel_values=prompt.pixel_values,
            image_grid_thw=prompt.grid_thw,
            output_attentions=True,
        ).attentions
