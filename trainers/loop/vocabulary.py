"""Control tokens that a published backbone lacks."""

from collections.abc import Sequence

from tokenizers import AddedToken
from transformers import PreTrainedModel

from latent_core.model.processor import Processor


def add_tokens(model: PreTrainedModel, processor: Processor, tokens: Sequence[str]) -> Processor:
    """The processor with `tokens`, appended in this order where the tokenizer lacks them.

    Qwen's embedding has more rows than its tokenizer has tokens; the first spare ones become those of the new tokens,
    as in Monet's training. Where they do not suffice, rows are appended with the mean of the others.
    """
    tokenizer = processor.tokenizer
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in tokens if token not in vocabulary]
    if not missing:
        return processor
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in missing], special_tokens=True)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
            rows = layer.weight.data
            rows[-len(missing) :] = rows[: -len(missing)].mean(0)
    return Processor(tokenizer, processor.image_processor, processor.chat)
