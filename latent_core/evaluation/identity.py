"""Hashes of what a measurement was made with: the checkpoint in memory, the examples."""

import hashlib
import json
from collections.abc import Iterable

import torch

from latent_core.example import Example
from latent_core.reasoner import Reasoner
from latent_core.records import to_json
from latent_core.settings import FORMER_NAMES

_INCIDENTAL = ("_name_or_path", "name_or_path", "transformers_version", "provenance")
"""Fields of configurations that decide no answer: where something lies and who made it."""


def checkpoint_hash(reasoner: Reasoner) -> str:
    """The hash of all that decides an answer: weights as they are loaded, configurations, tokenizer, image processor.

    Reads every weight once: about ten seconds for a model of 16 GB.
    """
    digest = hashlib.sha256()
    model, processor = reasoner.backbone.model, reasoner.processor
    for part in (model, reasoner.method):
        for name, tensor in part.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    config = to_json(reasoner.config)
    # hashes of measurements that stand must stay what they are
    config["rule"] = {now: former for former, now in FORMER_NAMES.items()}.get(config["rule"], config["rule"])
    for settings in (model.config.to_dict(), config, processor.image_processor.to_dict()):
        digest.update(json.dumps(_decisive(settings), sort_keys=True, default=str).encode())
    digest.update(f"{sorted(reasoner.backbone.eos_ids)}{processor.tokenizer.backend_tokenizer.to_str()}".encode())
    return digest.hexdigest()[:32]


def examples_hash(examples: Iterable[Example]) -> str:
    """The hash of questions, true answers and pixels, in order."""
    digest = hashlib.sha256()
    for example in examples:
        shown = [(image.mode, image.size, hashlib.sha256(image.tobytes()).hexdigest()) for image in example.images]
        digest.update(json.dumps([example.question, example.answer, shown]).encode())
    return digest.hexdigest()[:32]


def _decisive(settings: object) -> object:
    if isinstance(settings, dict):
        return {str(name): _decisive(value) for name, value in settings.items() if name not in _INCIDENTAL}
    return [_decisive(item) for item in settings] if isinstance(settings, (list, tuple)) else settings
