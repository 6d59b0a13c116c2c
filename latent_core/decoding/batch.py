"""A batch of sequences that advance together: one forward feeds them all, each at its own place.

Used by decoding (with `Cache`) and unrolling (with `GradientCache`) alike. All bookkeeping that a forward needs
(slots, positions, slot_types, whether a mask is needed at all) is done here and lives here, never on a module.

Shapes: B sequences, N vectors of the longest feed, S slots, D model width.
"""

from collections.abc import Sequence

import torch

from latent_core.decoding.sequence import AuxiliaryImage
from latent_core.methods.requests import Feed
from latent_core.model.attention import PLAIN, Flow, Recorder, attend, tables
from latent_core.model.backbone import Backbone, Rotary
from latent_core.model.cache import Cache, GradientCache
from latent_core.model.processor import Prompt
from latent_core.model.slot_types import AFTER, AUX, CLOSE, PAD, slot_class
from latent_core.model.slots import auxiliary_image_slots, axes, prompt_slots
from latent_core.settings import Rule


def encode_images(backbone: Backbone, images: Sequence[Prompt | AuxiliaryImage]) -> list[torch.Tensor]:
    """The merged image tokens (N, D) of each prompt or auxiliary image; the vision tower runs once for all of them.

    What occurs several times, as a group's prompt does, is encoded once.
    """
    numbers = {id(item): number for number, item in enumerate(images)}
    once = [images[number] for number in numbers.values()]
    counts = [int(item.grid_thw.prod(-1).sum()) // backbone.merge_size**2 for item in once]
    if not any(counts):
        return [torch.zeros(0, backbone.width, dtype=backbone.dtype, device=backbone.device)] * len(images)
    encoded = backbone.encode_images(
        torch.cat([item.pixel_values for item in once if len(item.grid_thw)]),
        torch.cat([item.grid_thw for item in once]),
    )
    tokens = dict(zip(numbers, encoded.tokens.to(backbone.dtype).split(counts), strict=True))
    return [tokens[id(item)] for item in images]


def prompt_feeds(
    backbone: Backbone, prompts: Sequence[Prompt], features: Sequence[torch.Tensor] | None = None
) -> list[Feed]:
    """The first feed of each sequence, its prompt. `features` are the prompts' image tokens from `encode_images`,
    computed here unless given.

    Raises ValueError where a prompt's image tokens do not match its images.
    """
    for number, prompt in enumerate(prompts):
        tokens = int((prompt.input_ids == backbone.image_token_id).sum())
        merged = int(prompt.grid_thw.prod(-1).sum()) // backbone.merge_size**2
        if tokens != merged:
            raise ValueError(f"Prompt {number} has {tokens} image tokens, but its images give {merged}.")
    ids = torch.cat([prompt.input_ids for prompt in prompts])
    embeds = backbone.embed(ids.to(backbone.device))
    if any(len(prompt.grid_thw) for prompt in prompts):
        places = (ids == backbone.image_token_id).nonzero()[:, 0].to(backbone.device)
        embeds = embeds.index_copy(0, places, torch.cat(list(features or encode_images(backbone, prompts))))
    split_embeds = embeds.split([len(prompt.input_ids) for prompt in prompts])
    return [
        Feed(
            vectors,
            is_latent=False,
            slots=prompt_slots(
                prompt.input_ids.tolist(),
                backbone.image_token_id,
                backbone.positions(prompt.input_ids, prompt.grid_thw),
            ),
        )
        for vectors, prompt in zip(split_embeds, prompts, strict=True)
    ]


def auxiliary_image_feed(backbone: Backbone, image: AuxiliaryImage, features: torch.Tensor, number: int) -> Feed:
    """The feed of auxiliary image `number` of a response, 0-based, whose tokens are `features` (N, D)."""
    return Feed(
        features,
        is_latent=False,
        slots=auxiliary_image_slots(number, backbone.image_positions(image.grid_thw)),
        block=number,
    )


def split(states: torch.Tensor, feeds: Sequence[Feed | None]) -> list[torch.Tensor]:
    """Each sequence's states (size of its feed, D) of states (B, N, D)."""
    sizes = [0 if feed is None else feed.size for feed in feeds]
    return [
        padded[:size] if size < len(padded) else padded for padded, size in zip(states.unbind(0), sizes, strict=True)
    ]


class SequenceBatch:
    """Sequences that share a cache and a forward, each with its own rule, its own length and its own next position."""

    def __init__(
        self, backbone: Backbone, cache: Cache | GradientCache, rules: Sequence[Rule], flow: Flow = PLAIN
    ) -> None:
        self.backbone = backbone
        self.cache = cache
        self.rules = list(rules)
        self.flow = flow
        self.positions = [0] * len(rules)
        """Next M-RoPE position, per sequence."""
        self._tables = tables(rules, backbone.device)
        self._hides = [False] * len(rules)
        """Whether anything may be hidden from a sequence's queries from now on. Until then attention is plain causal
        and no mask is made: most of a run is decoded at that speed."""
        self._rotary: Rotary | None = None

    def feed(
        self, feeds: Sequence[Feed | None], *, levels: Sequence[int] = (), recorder: Recorder | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """One forward. Returns the states (B, N, D), padded on the right, and those of the levels asked for.

        Sequences without a feed (None) stand still. If none has one, the forward still takes place, on padding.
        """
        types = [() if feed is None else feed.slots.types for feed in feeds]
        counts = list(map(len, types))
        size = max(1, *counts)
        first = max(self.cache.lengths) == 0
        padded = [(*feed_types, *(PAD,) * (size - len(feed_types))) for feed_types in types]
        slot_types = torch.tensor(padded, device=self.backbone.device)
        embeds = self._embeds(feeds, size)
        if self.flow.free_latents:  # see Flow: images and what is fed with them get no gradient
            has_image = [AUX in map(slot_class, feed_types) for feed_types in types]
            embeds = torch.where(torch.tensor(has_image, device=embeds.device)[:, None, None], embeds.detach(), embeds)
        rotary = self._rotate(feeds, size)
        self.cache.begin(slot_types, counts)
        for number, feed_types in enumerate(types):
            if not self._hides[number] and (self.rules[number] != "causal" or self.flow != PLAIN):
                classes = set(map(slot_class, feed_types))
                # a block that its model left without a closing token is followed by text under the rule all the same
                ruled = self.rules[number] != "causal" and (CLOSE in classes or AFTER in classes)
                self._hides[number] = ruled or (self.flow != PLAIN and AUX in classes)
        watch = None
        if recorder is not None and size > 1:  # of a single query nothing has to be chosen
            watched = [feed.watched for feed in feeds]
            most = max(map(len, watched))
            watch = torch.tensor(
                [[*slots, *[0] * (most - len(slots))] for slots in watched], device=self.backbone.device
            )
        mask = self._mask(first, size)
        return self.backbone(
            embeds, rotary, cache=self.cache, mask=mask, levels=levels, recorder=recorder, watch=watch
        )

    def keep(self, running: Sequence[int]) -> None:
        """Drops all sequences but those of these numbers, so that finished ones cost nothing."""
        self.cache.keep(running)
        self.rules = [self.rules[number] for number in running]
        self.positions = [self.positions[number] for number in running]
        self._hides = [self._hides[number] for number in running]
        self._tables = tables(self.rules, self.backbone.device)

    def _mask(self, first: bool, size: int) -> torch.Tensor | None:
        """(B, N, S), or None where attention is plain causal: then the kernel needs no mask and stays fast.

        Padding on the right of a first feed needs none either, for nothing before it can see it.
        """
        if not any(self._hides) and (first or (size == 1 and self.cache.gapless)):
            return None
        return attend(self.cache.all_slot_types(), self._tables, self.cache.query_slots(), self.flow)

    def _embeds(self, feeds: Sequence[Feed | None], size: int) -> torch.Tensor:
        """(B, N, D): vectors and embedded ids, zeros on the right."""
        device = self.backbone.device
        # two short ways for decoding, where nearly all feeds are a token each or a latent each
        if size == 1 and all(feed is not None and feed.then for feed in feeds):
            return self.backbone.embed(torch.tensor([feed.then for feed in feeds], device=device))
        if size == 1 and all(feed is not None and feed.embeds is not None for feed in feeds):
            return torch.stack([feed.embeds for feed in feeds])
        ids = [i for feed in feeds if feed is not None for i in feed.then]
        vectors = [v for feed in feeds if feed is not None for v in (feed.embeds, feed.tail) if v is not None]
        embedded = self.backbone.embed(torch.tensor(ids, dtype=torch.long, device=device))
        # All vectors of all feeds, all ids of all feeds, a zero for padding; each sequence then gathers its own from
        # them in the order of a feed: vectors, ids, control vectors. One gather, so that autograd has one node for it.
        everything = torch.cat([*vectors, embedded, embedded.new_zeros(1, self.backbone.width)])
        next_vector, next_id = 0, sum(len(v) for v in vectors)
        zero = len(everything) - 1
        index = []
        for feed in feeds:
            places = []
            if feed is not None:
                n, end = (0 if v is None else len(v) for v in (feed.embeds, feed.tail))
                places = [*range(next_vector, next_vector + n), *range(next_id, next_id + len(feed.then))]
                places += range(next_vector + n, next_vector + n + end)
                next_vector += n + end
                next_id += len(feed.then)
            index.append(places + [zero] * (size - len(places)))
        return everything[torch.tensor(index, device=device)]

    def _rotate(self, feeds: Sequence[Feed | None], size: int) -> Rotary:
        """Rotations of every vector, (B, N, head width); advances the sequences' positions."""
        placed: list[range | torch.Tensor] = [range(0)] * len(feeds)
        for number, feed in enumerate(feeds):
            if feed is not None:
                placed[number], self.positions[number] = feed.slots.place(self.positions[number])
        if not all(isinstance(positions, range) for positions in placed):  # images, or copies of latents
            grid = torch.zeros(3, len(feeds), size, dtype=torch.long)
            for number, positions in enumerate(map(axes, placed)):
                grid[:, number, : positions.shape[1]] = positions
            return self.backbone.rotary(grid.to(self.backbone.device))
        self._extend(max(1, *(positions.stop for positions in placed)))
        cos, sin = self._rotary
        if len(placed) == 1 and feeds[0] is not None:  # a view, as nothing has to be gathered
            start, end = placed[0].start, placed[0].stop
            return cos[None, start:end], sin[None, start:end]
        index = torch.tensor([[*p, *[0] * (size - len(p))] for p in placed], device=cos.device)
        return cos[index], sin[index]

    def _extend(self, end: int) -> None:
        """Text has the same position on all three axes: its rotations are a table, looked up instead of computed."""
        have = 0 if self._rotary is None else len(self._rotary[0])
        if end > have:
            places = torch.arange(max(end, 2 * have, 256), device=self.backbone.device)
            cos, sin = self.backbone.rotary(places.expand(3, 1, -1))
            self._rotary = cos[0], sin[0]
