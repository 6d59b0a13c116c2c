"""Replay of a recorded run through its model, in one forward, for what its trace does not hold.

States of every word and latent after each decoder layer, for the lens by layer, and attention rollout. The vectors fed
are those of the trace, so that interventions are replayed, too.

Shapes: Q steps of the run, L decoder layers, T slots, N image tokens, D model width.
"""

from dataclasses import dataclass, replace

import torch
from PIL import Image

from latent_core.analysis.lens import Reading, logit_lens
from latent_core.decoding.layout import ForcedSequence
from latent_core.decoding.sequence import Block, Segment, Tokens
from latent_core.decoding.unroll import splice
from latent_core.events import LatentEvent, TokenEvent
from latent_core.model.attention import AttentionRollout
from latent_core.model.slot_types import IMAGE, SEALED, slot_class
from latent_core.reasoner import Reasoner
from latent_core.trace import Trace


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """The states and attention rollout of one forward over a whole run."""

    states: torch.Tensor
    """(L, Q, D) the states after each decoder layer, the last after the final norm. A word's is the one that produced
    it, a latent's the one at its own place."""
    rollout: torch.Tensor
    """(Q, N) attention rollout of the same states on the image tokens, in 0…1."""


@torch.inference_mode()
def replay(reasoner: Reasoner, trace: Trace) -> Replay:
    """The states and attention rollout of a recorded run.

    Raises ValueError for a trace whose vectors were not recorded or that another model made.
    """
    backbone, method = reasoner.backbone, reasoner.method
    _check(reasoner, trace)
    images = [Image.fromarray(image.numpy()) for image in trace.images]
    prompt = reasoner.prompt(images, trace.question)
    sequence = ForcedSequence(prompt, tuple(_segments(trace)))
    rollout = AttentionRollout(backbone.num_layers)
    unrolled = splice(
        backbone,
        method,
        [sequence],
        [[block.latents.to(backbone.device) for block in trace.blocks]],
        rule=trace.settings.rule,
        levels=tuple(range(1, backbone.num_layers + 1)),
        recorder=rollout,
    )
    slot_types = unrolled.layout.slot_types[0]
    slots = _slots(trace, slot_types, len(prompt.input_ids))
    states = torch.stack([level[0, slots] for level in unrolled.levels])
    on_image = rollout.take()[0][slots][:, slot_class(slot_types) == IMAGE]
    return Replay(states.float().cpu(), on_image.float().cpu())


@torch.inference_mode()
def lens_by_layer(
    reasoner: Reasoner, replayed: Replay, steps: list[int], *, count: int = 5
) -> list[list[list[Reading]]]:
    """The likeliest tokens for each of `steps` and each layer: the final norm and the output layer on its state.

    Ids that are no text are left out, and from every state the mean of that layer's over the run's latents and words.
    """
    backbone = reasoner.backbone
    hidden = reasoner.processor.silent_ids(backbone.vocabulary)
    readings = []
    for layer, states in enumerate(replayed.states.to(backbone.device, backbone.dtype)):
        chosen = states if layer + 1 == len(replayed.states) else backbone.norm(states)
        readings.append(
            logit_lens(
                chosen[steps],
                backbone.logits,
                hidden_ids=hidden,
                mean=chosen.mean(0) if len(chosen) > 1 else None,
                count=count,
            )
        )
    return [list(by_layer) for by_layer in zip(*readings, strict=True)]


def _check(reasoner: Reasoner, trace: Trace) -> None:
    width = trace.start.image_states.shape[-1]
    if width != reasoner.backbone.width or trace.source.method != reasoner.config.method:
        raise ValueError(
            f"The run was made by {trace.source.checkpoint} ({trace.source.method}, width {width}); "
            f"{reasoner.name} is another model ({reasoner.config.method}, width {reasoner.backbone.width})."
        )
    fed = sum(isinstance(step, LatentEvent) for step in trace.steps)
    if sum(len(block.latents) for block in trace.blocks) != fed:
        raise ValueError(
            "The run did not record its vectors, so it cannot be replayed; run it again with record=True."
        )


def _segments(trace: Trace) -> list[Segment]:
    """The response as forced text and blocks. A block that was cut off inside is closed; nothing is read there."""
    segments: list[Segment] = []
    text: list[int] = []
    blocks = iter(trace.blocks)
    unclosed = False  # whether no token has followed the last block yet
    for step in trace.steps:
        if not isinstance(step, TokenEvent):
            continue
        if step.kind == "open":
            block = next(blocks)
            grid = block.events[0].grid if block.events else None
            segments += [Tokens(tuple(text)), Block(len(block.latents), grid=grid)]
            text, unclosed = [], True
            continue
        if step.kind == "text":
            if unclosed:
                segments[-1] = replace(segments[-1], closed=False)
            text.append(step.token_id)
        unclosed = False
    return [*segments, Tokens(tuple(text))]


def _slots(trace: Trace, slot_types: torch.Tensor, prompt: int) -> list[int]:
    """The slot of each step's state: a latent's own slot, for a token the slot before it.

    Slots and positions differ only behind sealed copies, which stand between the last latent and the closing token.
    """
    places = [slot for slot, slot_type in enumerate(slot_class(slot_types).tolist()) if slot_type != SEALED]
    slots = []
    for step in trace.steps:
        position = step.position if isinstance(step, LatentEvent) else step.position - 1
        slots.append(places[min(position, len(places) - 1)])
    return slots
