"""A recorded run replayed through its model: where its attention came from, and what its latents read as by layer."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from latent_core.events import LatentEvent
from latent_core.trace import Trace

if TYPE_CHECKING:
    from latent_core.reasoner import Reasoner  # brings transformers, which the page does not wait for


@dataclass(frozen=True)
class Reread:
    """A replay of a run through its model, as far as figures show it; Q steps, N image tokens."""

    rollout: np.ndarray
    """(Q, N) attention rollout on the image tokens, in 0…1."""
    words: dict[int, list[list[tuple[str, float]]]]
    """For every latent by its step: per layer the likeliest tokens with their probabilities."""


def reread_by(reasoner: "Reasoner", trace: Trace) -> Reread:
    """The run as `reasoner`, the model that made it, reads it again.

    Raises ValueError for a trace whose vectors were not recorded or that another model made.
    """
    from latent_core.evaluation.replay import lens_by_layer, replay  # brings transformers, too

    latents = [n for n, step in enumerate(trace.steps) if isinstance(step, LatentEvent)]
    try:
        replayed = replay(reasoner, trace)
        readings = lens_by_layer(reasoner, replayed, latents)
    except (RuntimeError, IndexError, StopIteration) as problem:  # an opened trace may name what no model wrote
        raise ValueError("The run does not fit the model that it names, so it cannot be read again.") from problem
    decode = reasoner.processor.decode
    words = [
        [[(decode([reading.id]).strip(), round(reading.probability, 3)) for reading in layer] for layer in layers]
        for layers in readings
    ]
    return Reread(replayed.rollout.numpy(), dict(zip(latents, words, strict=True)))
