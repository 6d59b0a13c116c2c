"""Unrolling and splicing, the two passes over given responses: `unroll` makes their latents, `splice` is given them.

`unroll` runs the same `drive` as decoding, with gradients, for training. Forced text goes in stretches up to the next
opening token, and rows wait for each other at the end of a block, so that a batch takes 1 + Σ over blocks (longest
K + 1) forwards, however ragged it is. `splice` puts given latents into their slots and runs one forward: the same
states, if the latents are the ones that `unroll` or decoding fed.

Where parameters are sharded over processes, every forward gathers them, so that all processes have to call the
backbone equally often. `count_forwards` says beforehand how often a batch will; `unroll` goes on with empty forwards
up to the number asked for.

Shapes: B rows, L slots of the longest row, K latents of a block, D model width.
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
    """What either pass gives: the states at every slot of a batch, with the layout that says what stands there."""

    states: torch.Tensor
    """(B, L, D) after the final norm; zeros at padding."""
    layout: Layout
    latents: list[list[torch.Tensor]]
    """Per row and block, the vectors that were fed, (K, D), with their gradients' path even where what was fed is cut
    off from it."""
    forwards: int
    """Forwards of the backbone."""
    levels: list[torch.Tensor]
    """The levels asked for, (B, L, D) each."""

    def learned(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(M, D) states and (M,) the ids that they have to predict, for cross-entropy over all rows."""
        rows, slots = (self.layout.labels != NO_LABEL).nonzero(as_tuple=True)
        return self.states[rows, slots], self.layout.labels[rows, slots]


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What the vision tower makes of a batch's images; several passes over the same rows share it."""

    prompts: list[torch.Tensor]
    """Per row (N, D)."""
    pictures: list[torch.Tensor]
    """Per auxiliary image (N, D), row after row."""


def look(backbone: Backbone, rows: Sequence[ForcedSequence]) -> Features:
    """All images of all rows through the vision tower, once."""
    found = encode_images(backbone, [*(row.prompt for row in rows), *(p for row in rows for p in row.pictures)])
    return Features(found[: len(rows)], found[len(rows) :])


def _picture_feeds(backbone: Backbone, rows: Sequence[ForcedSequence], features: Features) -> list[list[Feed]]:
    """Per row, the feeds of its auxiliary images."""
    rest = iter(features.pictures)
    return [
        [auxiliary_image_feed(backbone, picture, next(rest), number) for number, picture in enumerate(row.pictures)]
        for row in rows
    ]


def _rules(method: LatentMethod, rows: Sequence[ForcedSequence], rule: Rule | Sequence[Rule] | None) -> list[Rule]:
    if rule is None or isinstance(rule, str):
        return [rule or method.config.rule] * len(rows)
    return list(rule)


def unroll(
    backbone: Backbone,
    method: LatentMethod,
    rows: Sequence[ForcedSequence],
    *,
    rule: Rule | Sequence[Rule] | None = None,
    flow: Flow = PLAIN,
    detach_feedback: bool = False,
    features: Features | None = None,
    intervene: Sequence[Intervention | None] | None = None,
    forwards: int = 0,
    levels: Sequence[int] = (),
) -> Unrolled:
    """Feeds every row's segments, its latents generated on the way, with gradients if they are enabled.

    rule: one for all rows, one per row, or None for the checkpoint's own. flow: who may look at auxiliary images.
    detach_feedback cuts the gradient at what is fed back, not the one through keys and values. features: what `look`
    returned for these rows. forwards: at least so many, where parameters are sharded; those without rows change no
    result. levels: states after these layers are kept, too. Rows may differ in prompt, images, text, blocks and K.
    """
    features = features or look(backbone, rows)
    rules = _rules(method, rows, rule)
    layout = lay_out(backbone, method, rows, rules)
    runs = [
        drive(method, feed, Forced(method, row.segments, pictures, backbone.marker_ids), row_rule, intervene=hook)
        for row, feed, pictures, row_rule, hook in zip(
            rows,
            prompt_feeds(backbone, [row.prompt for row in rows], features.prompts),
            _picture_feeds(backbone, rows, features),
            rules,
            intervene or [None] * len(rows),
            strict=True,
        )
    ]
    batch = SequenceBatch(backbone, GradientCache(backbone.num_layers, len(rows), backbone.device), rules, flow)
    requests: list[Feed | None] = [next(run) for run in runs]
    latents: list[list[list[torch.Tensor]]] = [[[] for s in row.segments if isinstance(s, Block)] for row in rows]
    outputs: list[list[torch.Tensor]] = [[] for _ in range(1 + len(levels))]  # the states, then the levels
    # Outputs are concatenated forward by forward, padding included; columns says where in them a row's slots are. As a
    # row feeds its slots in the order of the layout, one gather at the end brings all states into their places.
    columns: list[list[int]] = [[] for _ in rows]
    width = done = 0
    while done < forwards or any(request is not None for request in requests):
        feeds = _turn(requests)
        for index, feed in enumerate(feeds):
            if feed is not None and feed.latents:
                latents[index][feed.block].append(feed.embeds[: feed.latents])  # without the copies that ride along
                if detach_feedback:
                    # sharded parameters are let go in the backward pass once the input's gradient is there
                    feed.embeds = feed.embeds.detach().requires_grad_(forwards > 0)
        states, kept = batch.feed(feeds, levels=levels)
        for all_of_it, new in zip(outputs, (states, *kept), strict=True):
            all_of_it.append(new)
        for index, (feed, answer) in enumerate(zip(feeds, split(states, feeds), strict=True)):
            if feed is None:
                continue
            columns[index] += range(width, width + feed.size)
            requests[index] = _next(runs[index], answer)
        width += states.shape[1]
        done += 1
    states, *kept = (_gather(torch.cat(o, 1), columns, layout.ids.shape[1]) for o in outputs)
    # parameters are gathered for the backward pass of a forward when the gradient of its output comes; keys and values
    # alone do not call for them. So every latent depends on all outputs, by nothing
    tie = (0 * torch.cat(outputs[0], 1)).sum() if forwards else 0
    none = states.new_zeros(0, backbone.width)
    return Unrolled(
        states=states,
        layout=layout,
        latents=[[torch.cat(block) + tie if block else none for block in row] for row in latents],
        forwards=done,
        levels=kept,
    )


def _turn(requests: Sequence[Feed | None]) -> list[Feed | None]:
    """The feeds of the next forward, None for rows that wait.

    Rows at a long stretch of text wait for those inside a block: else each of these would be padded to the length of
    the text. What waits pads every forward of a block by one slot.
    """
    thinking = [request is not None and request.num_latents > 0 for request in requests]
    return [r if t or not any(thinking) else None for r, t in zip(requests, thinking, strict=True)]


def _next(run: Run, states: torch.Tensor) -> Feed | None:
    """The row's next feed, None once it is through."""
    try:
        return run.send(states)
    except StopIteration:
        return None


@torch.no_grad()
def count_forwards(backbone: Backbone, method: LatentMethod, rows: Sequence[ForcedSequence]) -> int:
    """How many forwards `unroll` will take for these rows: its rows run on zeros here, without the backbone.

    A block must therefore feed equally often whatever the states are.
    """

    def zeros(size: int) -> torch.Tensor:
        return torch.zeros(size, backbone.width, device=backbone.device)

    runs = [
        drive(
            method,
            Feed(zeros(1), is_latent=False, slots=Slots((PROMPT,))),
            Forced(method, row.segments, [Feed(zeros(1), is_latent=False, slots=Slots((AUX,))) for _ in row.pictures]),
            "causal",
        )
        for row in rows
    ]
    requests: list[Feed | None] = [next(run) for run in runs]
    forwards = 0
    while any(request is not None for request in requests):
        for index, feed in enumerate(_turn(requests)):
            if feed is not None:
                requests[index] = _next(runs[index], zeros(feed.size))
        forwards += 1
    return forwards


def _gather(states: torch.Tensor, columns: Sequence[Sequence[int]], length: int) -> torch.Tensor:
    """(B, length, D): column columns[b][l] of states (B, C, D) at (b, l), zeros beyond a row's end."""
    states = torch.nn.functional.pad(states, (0, 0, 0, 1))
    zero = states.shape[1] - 1
    index = torch.tensor([[*row, *[zero] * (length - len(row))] for row in columns], device=states.device)
    return states[torch.arange(len(columns), device=states.device)[:, None], index]


def splice(
    backbone: Backbone,
    method: LatentMethod,
    rows: Sequence[ForcedSequence],
    latents: Sequence[Sequence[torch.Tensor]],
    *,
    rule: Rule | Sequence[Rule] | None = None,
    flow: Flow = PLAIN,
    levels: Sequence[int] = (),
    features: Features | None = None,
    recorder: AttentionRollout | None = None,
) -> Unrolled:
    """One full forward with given latents, per row and block (K, D), in the slots.

    rule, flow, levels and features as in `unroll`. A recorder is shown the attention of all layers.

    Raises ValueError where latents and segments do not match.
    """
    rules = _rules(method, rows, rule)
    layout = lay_out(backbone, method, rows, rules)
    for number, (row, blocks) in enumerate(zip(rows, latents, strict=True)):
        wanted, given = [s.latents for s in row.segments if isinstance(s, Block)], [len(block) for block in blocks]
        if wanted != given:
            raise ValueError(f"Sequence {number} has blocks of {wanted} latents, but latents for blocks of {given}.")
    length = layout.ids.shape[1]
    # An embedding for every slot (of id 0 where a vector belongs), then the vectors over it, type by type. Slots stand
    # row after row in the order in which they would be fed; so do the vectors of a type, and a scatter fills them in.
    embeds = backbone.embed(layout.ids.clamp(min=0))
    features = features or look(backbone, rows)
    feeds = prompt_feeds(backbone, [row.prompt for row in rows], features.prompts)
    prompts = torch.stack([_stretch(feed.embeds, length) for feed in feeds])
    is_prompt = (layout.slot_types == PROMPT) | (layout.slot_types == IMAGE)
    embeds = torch.where(is_prompt[..., None], prompts, embeds)
    classes = slot_class(layout.slot_types)
    if features.pictures:
        embeds = embeds.masked_scatter((classes == AUX)[..., None], torch.cat(features.pictures))
    vectors = []  # in the order of the slots; sealed copies stand behind their latents
    for row, blocks, row_rule in zip(rows, latents, rules, strict=True):
        segments = [segment for segment in row.segments if isinstance(segment, Block)]
        for segment, block in zip(segments, blocks, strict=True):
            vectors += [block, block] if row_rule == "sealed" and segment.closed else [block]
    controls = method.controls()
    if controls is not None:
        steered = (classes == CONTROL)[..., None]
        blocks = int(steered.sum()) // len(controls)
        embeds = embeds.masked_scatter(steered, controls.to(embeds.dtype).repeat(blocks, 1))
    if vectors:
        slots = ((classes == LATENT) | (classes == SEALED))[..., None]
        embeds = embeds.masked_scatter(slots, torch.cat(vectors).to(embeds.dtype))
    slots = torch.arange(length, device=backbone.device).expand(len(rows), -1)
    # padding is on the right, where causality hides it
    plain = all(r == "causal" for r in rules) and (flow == PLAIN or not features.pictures)
    mask = None if plain else attend(layout.slot_types, tables(rules, backbone.device), slots, flow)
    states, kept = backbone(embeds, backbone.rotary(layout.positions), mask=mask, levels=levels, recorder=recorder)
    return Unrolled(states, layout, [list(blocks) for blocks in latents], 1, kept)


def _stretch(embeds: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(embeds, (0, 0, 0, length - len(embeds)))
