"""A row's life as a coroutine: the one place where latents enter the model, in decoding and in training alike.

`drive` alternates words and blocks. Where the words come from differs: `Sampled` asks for each one (decoding),
`Forced` knows them (training, replay) and feeds each stretch up to the next opening token in one forward. The block
between them, its interventions, its sealing and its closing token are the same code.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from latent_core.events import Reason
from latent_core.feed import Context, Feed, Sample
from latent_core.kinds import AFTER, AUX_END, AUX_START, CLOSE, CONTROL, LATENT, OPEN, SEALED, TEXT, numbered
from latent_core.methods.base import LatentMethod
from latent_core.settings import MAX_THOUGHT, Rule, Settings, check

Run = Generator[Feed | Sample, torch.Tensor | int, Reason]
"""Yields a Feed and receives its states, or yields a Sample and receives an id; returns why it ended."""
Intervention = Callable[[Feed], Feed]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Forced text."""

    ids: tuple[int, ...]
    learn: bool = True
    """Whether these ids are labels."""
    observation: bool = False
    """Whether they tell what a visual thought showed."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block of `latents` latents; brings its own opening and closing token."""

    latents: int
    learn: bool = True
    """Whether the opening token is a label."""
    learn_close: bool = False
    """Whether the closing token is one: where the model itself closes its blocks."""
    closed: bool = True
    """False in a recorded run whose model went on without the closing token."""
    grid: tuple[int, int] | None = None
    """(rows, columns) where the latents are parallel; their product is `latents`."""

    def __post_init__(self) -> None:
        if self.grid is not None:
            rows, columns = self.grid
            check(rows * columns == self.latents, f"A grid of {rows} × {columns} is no block of {self.latents}.")


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An auxiliary image inside the response, between Qwen's image markers: shown while training, never learned."""

    pixel_values: torch.Tensor
    """(P, C) patches."""
    grid_thw: torch.Tensor
    """(1, 3) its grid before merging."""


Segment = Tokens | Block | Picture


class Words(Protocol):
    """Where text comes from."""

    room: int
    """Tokens that may still come."""
    samples: bool
    """Whether the model chooses the words."""

    def write(
        self, first: Feed | torch.Tensor, blocks: int
    ) -> Generator[Feed | Sample, torch.Tensor | int, Context | Reason]:
        """Feeds `first` and then text until block number `blocks` opens; why the run ended, if none does.

        `first` may be states that are there already: those of a block's last latent, which the model closes itself.
        """


class Sampled:
    """Words that the model chooses, one by one."""

    samples = True

    def __init__(self, method: LatentMethod, settings: Settings, eos_ids: frozenset[int]) -> None:
        self.method, self.settings, self.eos_ids = method, settings, eos_ids
        self.room = settings.max_new_tokens

    def write(
        self, first: Feed | torch.Tensor, blocks: int
    ) -> Generator[Feed | Sample, torch.Tensor | int, Context | Reason]:
        """See Words."""
        method, settings = self.method, self.settings
        latents = 0 if settings.mode == "markers" else settings.latents
        most = min(settings.max_blocks, method.most_blocks, MAX_THOUGHT // max(1, latents))
        may_open = method.has_latents and settings.mode != "text" and blocks < most
        force = method.open_id if may_open and settings.mode == "forced" and blocks == 0 else None
        may_close = isinstance(first, torch.Tensor)
        states = first if may_close else (yield first)
        while self.room > 0:
            token = yield Sample(states[-1:], may_open and not may_close, force, may_close)
            self.room -= 1
            closed, may_close = may_close and token == method.close_id, False
            if token in self.eos_ids:
                return "stop"
            if token == method.open_id:
                if self.room == 0:
                    return "length"
                if not method.overwrites_start(latents):
                    steer = method.steering(latents)
                    states = yield opening(Feed(then=(token,)), steer, blocks)
                    return Context(states[-max(1, count(steer)) :], latents)
                return Context(states[-1:], latents)
            if self.room > 0:
                kind = numbered(CLOSE, blocks - 1) if closed else TEXT if blocks == 0 else AFTER
                states = yield Feed(then=(token,), kinds=(kind,))
        return "length"


class Forced:
    """Words that are given; a stretch up to the next opening token is one feed."""

    room = 2**62
    samples = False

    def __init__(
        self,
        method: LatentMethod,
        segments: Sequence[Segment],
        pictures: Sequence[Feed] = (),
        markers: tuple[int, int] = (-1, -1),
    ) -> None:
        """`pictures` are the feeds of the auxiliary images, in order; `markers` the ids around each."""
        self.method = method
        self.markers = markers
        self._segments = iter(segments)
        self._pictures = iter(pictures)

    def write(
        self, first: Feed | torch.Tensor, blocks: int
    ) -> Generator[Feed | Sample, torch.Tensor | int, Context | Reason]:
        """See Words."""
        states = first if isinstance(first, torch.Tensor) else None
        if states is not None:
            first = Feed(is_latent=False)
        ids: list[int] = []
        kinds: list[int] = []
        block = steer = None
        for segment in self._segments:
            if isinstance(segment, Block):
                block = segment
                break
            if isinstance(segment, Picture):
                picture = next(self._pictures)
                start, end = (numbered(kind, picture.block) for kind in (AUX_START, AUX_END))
                ids, kinds = [*ids, self.markers[0]], [*kinds, start]
                yield replace(first, then=(*first.then, *ids), kinds=(*first.kinds, *kinds))
                first, ids, kinds = picture, [self.markers[1]], [end]
                continue
            ids += segment.ids
            kinds += [TEXT if blocks == 0 else AFTER] * len(segment.ids)
        if block is not None and not self.method.overwrites_start(block.latents):
            ids.append(self.method.open_id)
            steer = self.method.steering(block.latents)
            feed = replace(first, then=(*first.then, *ids), kinds=(*first.kinds, *kinds))
            feed = opening(feed, steer, blocks)
        else:
            feed = replace(first, then=(*first.then, *ids), kinds=(*first.kinds, *kinds))
        if feed.size:
            states = yield feed
        if block is None:
            return "stop"
        hidden = states[-max(1, count(steer)) :]
        return Context(hidden, block.latents, free=False, closed=block.closed, grid=block.grid)


def opening(feed: Feed, controls: torch.Tensor | None, block: int) -> Feed:
    """The feed that ends with the opening token of a block, with its control vectors behind it."""
    kinds = (numbered(OPEN, block), *(numbered(CONTROL, block),) * count(controls))
    return replace(feed, kinds=(*feed.kinds, *kinds), tail=controls)


def count(vectors: torch.Tensor | None) -> int:
    """Rows of a tensor that may be missing."""
    return 0 if vectors is None else len(vectors)


def drive(
    method: LatentMethod,
    prompt: Feed,
    words: Words,
    rule: Rule,
    *,
    intervene: Intervention | None = None,
) -> Run:
    """Prompt, words, block, words, …

    `intervene` sees every latent feed and may replace its vectors.
    """
    feed, blocks = prompt, 0
    while True:
        start = yield from words.write(feed, blocks)
        if not isinstance(start, Context):
            return start
        start = replace(start, prompt=prompt)
        think, states, fed, index, said = method.block(start), None, [], 0, None
        riding: Feed | None = None
        while True:
            try:
                feed = think.send(states)
                while isinstance(feed, Sample):
                    said = yield feed
                    feed = think.send(said)
            except StopIteration:
                break
            size = feed.size
            feed.kinds, feed.block, feed.index = (numbered(LATENT, blocks),) * size, blocks, index
            feed.num_latents = start.num_latents
            if feed.grid is not None:
                feed.num_latents, feed.positions = size, method.places(feed.grid)
            if intervene is not None:
                feed = intervene(feed)
            fed.append(feed.embeds)
            index += size
            if feed.ends and len(fed) == 1:  # copies of earlier feeds could not ride along
                riding = feed
                think.close()
                break
            states = yield feed
        blocks += 1
        goes_on = not start.closed
        if words.samples and method.samples_close and rule != "sealed":
            goes_on = bool(fed) and said != method.close_id
        if goes_on:
            feed = states if riding is None else riding
            continue
        words.room -= 1  # no block opens without room for its closing token
        feed = closing(method, fed if rule == "sealed" else [], blocks - 1, riding)


def closing(method: LatentMethod, sealed: list[torch.Tensor], block: int, riding: Feed | None = None) -> Feed:
    """The closing token, behind the block's vectors once more where they are to be sealed.

    `riding`: the block's last latents, which have not been fed; the closing token rides along with them.
    """
    copies = torch.cat(sealed) if sealed else None
    kinds = (numbered(SEALED, block),) * count(copies) + (numbered(CLOSE, block),)
    ends = dict(then=(method.close_id,), echo=count(copies), closes=True)
    if riding is None:
        return Feed(copies, kinds=kinds, block=block, **ends)
    if copies is not None:
        places = riding.positions
        if places is None:
            places = torch.arange(len(copies)).expand(3, -1)
        ends["positions"] = torch.cat([places, places], 1)
        ends["embeds"] = torch.cat([riding.embeds, copies])
    return replace(riding, kinds=(*riding.kinds, *kinds), **ends)
