"""Unrolling and splicing, the two passes over given responses: `unroll` makes their latents, `splice` is given them.

`unroll` runs the same `drive` as decoding, with gradients, for training. Forced text goes in stretches up to the next
opening token, and sequences wait for each other at the end of a block, so that a batch takes 1 + Σ over blocks
(longest K + 1) forwards, however ragged it is. `splice` puts given latents into their slots and runs one forward: the
same states, if the latents are the ones that `unroll` or decoding fed.

Where parameters are sharded over processes, every forward gathers them, so that all processes have to call the
backbone equally often. `count_forwards` says beforehand how often a batch will; `unroll` goes on with empty forwards
up to the number asked for.

Shapes: B sequences, L slots of the longest, K latents of a block, D model width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from latent_core.decoding.batch import SequenceBatch, auxiliary_image_feed, encode_images, prompt_feeds, split
from latent_core.decoding.layout import NO_LABEL, ForcedSequence, Layout, lay_out
from latent_core.decoding.sequence import Block, Forced, Intervention, Run, drive
from latent_core.methods.base import LatentMethod
from latent_core.methods.requests import Feed
from latent_core.model.attention import PLAIN, AttentionRollout, Flow, attend, tables
from latent_core.model.backbone import Backbone
from latent_core.model.cache import GradientCache
from latent_core.model.slot_types import AUX, CONTROL, IMAGE, LATENT, PROMPT, SEALED, slot_class
from latent_core.model.slots import Slots
from latent_core.settings import Rule


@dataclass(frozen=True, slots=True, eq=False)
class Unrolled:
    """The result of either pass: the states at every slot of a batch, with the layout that says what stands there."""

    states: torch.Tensor
    """(B, L, D) after the final norm; zeros at padding."""
    layout: Layout
    latents: list[list[torch.Tensor]]
    """Per sequence and block, the vectors that were fed, (K, D), with their gradients' path even where what was fed is
    cut off from it."""
    forwards: int
    """Forwards of the backbone."""
    levels: list[torch.Tensor]
    """The levels asked for, (B, L, D) each."""

    def learned(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(M, D) states and (M,) the ids that they have to predict, for cross-entropy over all sequences."""
        sequences, slots = (self.layout.labels != NO_LABEL).nonzero(as_tuple=True)
        return self.states[sequences, slots], self.layout.labels[sequences, slots]


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """The image tokens of a batch's images; several passes over the same sequences share them."""

    prompts: list[torch.Tensor]
    """Per sequence (N, D)."""
    auxiliary_images: list[torch.Tensor]
    """Per auxiliary image (N, D), sequence after sequence."""


def encode_sequences(backbone: Backbone, sequences: Sequence[ForcedSequence]) -> Features:
    """The image tokens of all images of all sequences; the vision tower runs once."""
    prompts = [sequence.prompt for sequence in sequences]
    auxiliary_images = [image for sequence in sequences for image in sequence.auxiliary_images]
    tokens = encode_images(backbone, [*prompts, *auxiliary_images])
    return Features(tokens[: len(prompts)], tokens[len(prompts) :])


def _auxiliary_image_feeds(
    backbone: Backbone, sequences: Sequence[ForcedSequence], features: Features
) -> list[list[Feed]]:
    """Per sequence, the feeds of its auxiliary images."""
    tokens = iter(features.auxiliary_images)
    return [
        [
            auxiliary_image_feed(backbone, image, next(tokens), number)
            for number, image in enumerate(sequence.auxiliary_images)
        ]
        for sequence in sequences
    ]


def _rules(
    method: LatentMethod, sequences: Sequence[ForcedSequence], rule: Rule | Sequence[Rule] | None
) -> list[Rule]:
    """The rule of every sequence."""
    if rule is None or isinstance(rule, str):
        return [rule or method.config.rule] * len(sequences)
    return list(rule)


def unroll(
    backbone: Backbone,
    method: LatentMethod,
    sequences: Sequence[ForcedSequence],
    *,
    rule: Rule | Sequence[Rule] | None = None,
    flow: Flow = PLAIN,
    detach_feedback: bool = False,
    features: Features | None = None,
    intervene: Sequence[Intervention | None] | None = None,
    forwards: int = 0,
    levels: Sequence[int] = (),
) -> Unrolled:
    """The pass that makes the latents: feeds every sequence's segments, with gradients if they are enabled.

    rule: one for all sequences, one per sequence, or None for the checkpoint's own. flow: who may see auxiliary
    images. detach_feedback cuts the gradient at what is fed back, not the one through keys and values. features: of
    `encode_sequences` for these sequences. forwards: at least so many, where parameters are sharded; those without
    sequences change no result. levels: states after these layers are kept, too. Sequences may differ in prompt,
    images, text, blocks and K.
    """
    features = features or encode_sequences(backbone, sequences)
    rules = _rules(method, sequences, rule)
    layout = lay_out(backbone, method, sequences, rules)
    runs = [
        drive(
            method,
            prompt_feed,
            Forced(method, sequence.segments, image_feeds, backbone.marker_ids),
            sequence_rule,
            intervene=hook,
        )
        for sequence, prompt_feed, image_feeds, sequence_rule, hook in zip(
            sequences,
            prompt_feeds(backbone, [sequence.prompt for sequence in sequences], features.prompts),
            _auxiliary_image_feeds(backbone, sequences, features),
            rules,
            intervene or [None] * len(sequences),
            strict=True,
        )
    ]
    batch = SequenceBatch(backbone, GradientCache(backbone.num_layers, len(sequences), backbone.device), rules, flow)
    requests: list[Feed | None] = [next(run) for run in runs]
    latents: list[list[list[torch.Tensor]]] = [
        [[] for segment in sequence.segments if isinstance(segment, Block)] for sequence in sequences
    ]
    outputs: list[list[torch.Tensor]] = [[] for _ in range(1 + len(levels))]  # the states, then the levels
    # Outputs are concatenated forward by forward, padding included; columns says where in them a sequence's slots
    # are. As these are fed in the order of the layout, one gather at the end brings all states into their places.
    columns: list[list[int]] = [[] for _ in sequences]
    width = done = 0
    while done < forwards or any(request is not None for request in requests):
        feeds = _next_feeds(requests)
        for index, feed in enumerate(feeds):
            if feed is not None and feed.latents:
                latents[index][feed.block].append(feed.embeds[: feed.latents])  # without the copies that ride along
                if detach_feedback:
                    # sharded parameters are let go in the backward pass once the input's gradient is there
                    feed.embeds = feed.embeds.detach().requires_grad_(forwards > 0)
        states, level_states = batch.feed(feeds, levels=levels)
        for output, new in zip(outputs, (states, *level_states), strict=True):
            output.append(new)
        for index, (feed, answer) in enumerate(zip(feeds, split(states, feeds), strict=True)):
            if feed is None:
                continue
            columns[index] += range(width, width + feed.size)
            requests[index] = _next(runs[index], answer)
        width += states.shape[1]
        done += 1
    states, *level_states = (_gather(torch.cat(o, 1), columns, layout.ids.shape[1]) for o in outputs)
    # parameters are gathered for the backward pass of a forward when the gradient of its output comes; keys and values
    # alone do not call for them. So every latent depends on all outputs, by nothing
    tie = (0 * torch.cat(outputs[0], 1)).sum() if forwards else 0
    none = states.new_zeros(0, backbone.width)
    return Unrolled(
        states=states,
        layout=layout,
        latents=[[torch.cat(block) + tie if block else none for block in blocks] for blocks in latents],
        forwards=done,
        levels=level_states,
    )


def _next_feeds(requests: Sequence[Feed | None]) -> list[Feed | None]:
    """The feeds of the next forward, None for sequences that wait.

    Sequences at a long stretch of text wait for those inside a block: else each of these would be padded to the length
    of the text. What waits pads every forward of a block by one slot.
    """
    in_block = [request is not None and request.num_latents > 0 for request in requests]
    return [r if inside or not any(in_block) else None for r, inside in zip(requests, in_block, strict=True)]


def _next(run: Run, states: torch.Tensor) -> Feed | None:
    """The sequence's next feed, None at its end."""
    try:
        return run.send(states)
    except StopIteration:
        return None


@torch.no_grad()
def count_forwards(backbone: Backbone, method: LatentMethod, sequences: Sequence[ForcedSequence]) -> int:
    """The number of forwards that `unroll` will take: the sequences run on zeros here, without the backbone.

    A block must therefore feed equally often whatever the states are.
    """

    def zeros(size: int) -> torch.Tensor:
        return torch.zeros(size, backbone.width, device=backbone.device)

    runs = [
        drive(
            method,
            Feed(zeros(1), is_latent=False, slots=Slots((PROMPT,))),
            Forced(
                method,
                sequence.segments,
                [Feed(zeros(1), is_latent=False, slots=Slots((AUX,))) for _ in sequence.auxiliary_images],
            ),
            "causal",
        )
        for sequence in sequences
    ]
    requests: list[Feed | None] = [next(run) for run in runs]
    forwards = 0
    while any(request is not None for request in requests):
        for index, feed in enumerate(_next_feeds(requests)):
            if feed is not None:
                requests[index] = _next(runs[index], zeros(feed.size))
        forwards += 1
    return forwards


def _gather(states: torch.Tensor, columns: Sequence[Sequence[int]], length: int) -> torch.Tensor:
    """(B, length, D): column columns[b][l] of states (B, C, D) at (b, l), zeros beyond a sequence's end."""
    states = torch.nn.functional.pad(states, (0, 0, 0, 1))
    zero = states.shape[1] - 1
    index = torch.tensor([[*c, *[zero] * (length - len(c))] for c in columns], device=states.device)
    return states[torch.arange(len(columns), device=states.device)[:, None], index]


def splice(
    backbone: Backbone,
    method: LatentMethod,
    sequences: Sequence[ForcedSequence],
    latents: Sequence[Sequence[torch.Tensor]],
    *,
    rule: Rule | Sequence[Rule] | None = None,
    flow: Flow = PLAIN,
    levels: Sequence[int] = (),
    features: Features | None = None,
    recorder: AttentionRollout | None = None,
) -> Unrolled:
    """The pass with given latents: one full forward with latents[sequence][block] (K, D) in their slots.

    rule, flow, levels and features as in `unroll`. A recorder is shown the attention of all layers.

    Raises ValueError where latents and segments do not match.
    """
    rules = _rules(method, sequences, rule)
    layout = lay_out(backbone, method, sequences, rules)
    for number, (sequence, blocks) in enumerate(zip(sequences, latents, strict=True)):
        expected = [segment.latents for segment in sequence.segments if isinstance(segment, Block)]
        sizes = [len(block) for block in blocks]
        if expected != sizes:
            raise ValueError(f"Sequence {number} has blocks of {expected} latents, but latents for blocks of {sizes}.")
    length = layout.ids.shape[1]
    # An embedding for every slot (of id 0 where a vector belongs), then the vectors over it, type by type. Slots stand
    # sequence after sequence in the order in which they would be fed; so do the vectors of a type, and a scatter fills
    # them in.
    embeds = backbone.embed(layout.ids.clamp(min=0))
    features = features or encode_sequences(backbone, sequences)
    feeds = prompt_feeds(backbone, [sequence.prompt for sequence in sequences], features.prompts)
    prompts = torch.stack([_stretch(feed.embeds, length) for feed in feeds])
    is_prompt = (layout.slot_types == PROMPT) | (layout.slot_types == IMAGE)
    embeds = torch.where(is_prompt[..., None], prompts, embeds)
    classes = slot_class(layout.slot_types)
    if features.auxiliary_images:
        embeds = embeds.masked_scatter((classes == AUX)[..., None], torch.cat(features.auxiliary_images))
    vectors = []  # in the order of the slots; sealed copies stand behind their latents
    for sequence, blocks, sequence_rule in zip(sequences, latents, rules, strict=True):
        segments = [segment for segment in sequence.segments if isinstance(segment, Block)]
        for segment, block in zip(segments, blocks, strict=True):
            vectors += [block, block] if sequence_rule == "sealed" and segment.closed else [block]
    controls = method.controls()
    if controls is not None:
        is_control = (classes == CONTROL)[..., None]
        blocks = int(is_control.sum()) // len(controls)
        embeds = embeds.masked_scatter(is_control, controls.to(embeds.dtype).repeat(blocks, 1))
    if vectors:
        is_vector = ((classes == LATENT) | (classes == SEALED))[..., None]
        embeds = embeds.masked_scatter(is_vector, torch.cat(vectors).to(embeds.dtype))
    slots = torch.arange(length, device=backbone.device).expand(len(sequences), -1)
    # padding is on the right, where causality hides it
    plain = all(r == "causal" for r in rules) and (flow == PLAIN or not features.auxiliary_images)
    mask = None if plain else attend(layout.slot_types, tables(rules, backbone.device), slots, flow)
    states, level_states = backbone(
        embeds, backbone.rotary(layout.positions), mask=mask, levels=levels, recorder=recorder
    )
    return Unrolled(states, layout, [list(blocks) for blocks in latents], 1, level_states)


def _stretch(embeds: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(embeds, (0, 0, 0, length - len(embeds)))
