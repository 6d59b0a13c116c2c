"""A tiny tokenizer and processor, built in code: bytes, a few merges, the special tokens of Qwen2.5-VL and Monet."""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from latent_core.model.processor import Processor
from tests.tiny import tiny_model

SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|> "
    "<abs_vis_token_pad> <abs_vis_token> </abs_vis_token> <observation> </observation>"
).split()

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""What Qwen2.5-VL's own template says for text and images."""


PLAIN = SPECIAL[:7]
"""Without the tokens that a fine-tune adds."""


def words_tokenizer(special: Sequence[str] = SPECIAL) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(special),
        show_progress=False,
    )
    words = ["system\n", "user\n", "assistant\n", "Which mark is on the blue square?", "ring", "\\boxed{cross}"]
    tokenizer.train_from_iterator(words * 3, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )
    wrapped.add_tokens(["<tool_call>"])  # an added token that is not flagged as special, as in Qwen's vocabulary
    return wrapped


def words_processor(*, patch: int = 4, pixels: int = 16 * 24, special: Sequence[str] = SPECIAL) -> Processor:
    """Images become `pixels` pixels, so 16 × 24 (a 2 × 3 grid of merged tokens) where the shape fits."""
    images = Qwen2VLImageProcessorPil(
        patch_size=patch, merge_size=2, size={"shortest_edge": pixels, "longest_edge": pixels}
    )
    return Processor(words_tokenizer(special), images)


def words_model(processor: Processor, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """A tiny random model that speaks this processor's tokens."""
    return tiny_model(
        seed,
        vocabulary=len(processor.tokenizer),
        image_token_id=processor.image_token_id,
        video_token_id=processor.token_id("<|video_pad|>"),
        vision_start_token_id=processor.vision_start_id,
        vision_end_token_id=processor.vision_end_id,
        eos_token_id=processor.eos_id,
    )
