"""A sequence as a coroutine: the one place where latents enter the model, in decoding and in training alike.

`drive` alternates text, block and close. Where the text comes from differs: `Sampled` asks for each token (decoding),
`Forced` knows them (training, replay) and feeds each stretch up to the next opening token in one forward. The block
between them (`feed_block`), its interventions, its copies and its closing token (`closing`) are the same code.

The coroutine holds no model. It yields requests (requests.py) and is sent their answers, so that whoever runs it may
batch it with others, record it or count its forwards. docs/engine.md shows two blocks forward by forward.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from latent_core.events import Reason
from latent_core.methods.base import LatentMethod
from latent_core.methods.requests import Context, Feed, Sample
from latent_core.model.slots import Slots, closing_slots, join, latent_slots, marker_slots, opening_slots, text_slots
from latent_core.settings import MAX_RUN_LATENTS, Rule, Settings, check

Run = Generator[Feed | Sample, torch.Tensor | int, Reason]
"""A sequence's coroutine: yields a Feed and receives its states, or yields a Sample and receives an id; returns why it
ended."""
TextRun = Generator[Feed | Sample, torch.Tensor | int, Context | Reason]
"""The part of it up to the next block, which starts from the Context returned; a Reason if the sequence ends there."""
Intervention = Callable[[Feed], Feed]
"""Called with every feed of latents, and may replace its vectors."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Given text: tokens of the response that the model reads and, where they are labels, learns."""

    ids: tuple[int, ...]
    learn: bool = True
    """Whether these ids are labels."""
    observation: bool = False
    """Whether they tell what a visual latent step showed."""


@dataclass(frozen=True, slots=True)
class Block:
    """A given block of `latents` latents, whose vectors the method makes; brings its own opening and closing token."""

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
class AuxiliaryImage:
    """An auxiliary image inside the response, between Qwen's image markers: shown while training, never learned."""

    pixel_values: torch.Tensor
    """(P, C) patches."""
    grid_thw: torch.Tensor
    """(1, 3) its grid before merging."""


Segment = Tokens | Block | AuxiliaryImage


class TextSource(Protocol):
    """A source of text: feeds the tokens between two blocks and says where the next block starts."""

    remaining: int
    """Tokens that may still come."""
    samples: bool
    """Whether the model chooses the tokens."""

    def write(self, first: Feed | torch.Tensor, blocks: int) -> TextRun:
        """Feeds `first` and then text until block number `blocks` opens.

        `first` is what has to be fed before the text: the prompt, a closing token, or latents whose block the model
        closes itself. Where such latents have been fed already, it is their states (N, D) instead.
        """


class Sampled:
    """Text that the model chooses, token by token."""

    samples = True

    def __init__(self, method: LatentMethod, settings: Settings, eos_ids: frozenset[int]) -> None:
        self.method, self.settings, self.eos_ids = method, settings, eos_ids
        self.remaining = settings.max_new_tokens

    def write(self, first: Feed | torch.Tensor, blocks: int) -> TextRun:
        """See TextSource."""
        method, settings = self.method, self.settings
        latents = 0 if settings.mode == "markers" else settings.latents
        most = min(settings.max_blocks, method.most_blocks, MAX_RUN_LATENTS // max(1, latents))
        may_open = method.has_latents and settings.mode != "text" and blocks < most
        force = method.open_id if may_open and settings.mode == "forced" and blocks == 0 else None
        # States in place of a feed mean that a block has just ended without a closing token. The next token may be
        # that one, and only the next: later it would close nothing. No block opens in between.
        may_close = isinstance(first, torch.Tensor)
        states = first if may_close else (yield first)
        while self.remaining > 0:
            token = yield Sample(states[-1:], may_open and not may_close, force, may_close)
            self.remaining -= 1
            closed, may_close = may_close and token == method.close_id, False
            if token in self.eos_ids:
                return "stop"
            if token == method.open_id:
                if self.remaining == 0:  # none left for the closing token
                    return "length"
                if method.overwrites_start(latents):
                    # The opening token is never fed: latent 1, made from the state that chose it, takes its slot.
                    return Context(states[-1:], latents)
                controls = method.steering(latents)
                states = yield opening(Feed(), method, controls, blocks)
                return Context(behind_opening(states, controls), latents)
            if self.remaining > 0:  # the last token is told, but nothing reads its state
                states = yield Feed(
                    then=(token,), slots=closing_slots(blocks - 1) if closed else text_slots(1, blocks)
                )
        return "length"


class Forced:
    """Text that is given; a stretch up to the next opening token or auxiliary image is one feed."""

    remaining = 2**62
    samples = False

    def __init__(
        self,
        method: LatentMethod,
        segments: Sequence[Segment],
        auxiliary_images: Sequence[Feed] = (),
        markers: tuple[int, int] = (-1, -1),
    ) -> None:
        """`auxiliary_images` are their feeds, in order; `markers` the ids around each."""
        self.method = method
        self.markers = markers
        # iterators, because every call of `write` goes on where the one before it stopped
        self._segments = iter(segments)
        self._auxiliary_images = iter(auxiliary_images)

    def write(self, first: Feed | torch.Tensor, blocks: int) -> TextRun:
        """See TextSource."""
        states = None
        if isinstance(first, torch.Tensor):
            first, states = Feed(is_latent=False), first
        ids: list[int] = []
        stretches: list[Slots] = []
        for segment in self._segments:
            match segment:
                case Tokens():
                    ids += segment.ids
                    stretches.append(text_slots(len(segment.ids), blocks))
                case AuxiliaryImage():
                    # A feed's vectors come before its ids, so that an image starts a feed: its first marker ends the
                    # feed before it, its last one is the first id behind it.
                    image = next(self._auxiliary_images)
                    before, behind = marker_slots(image.block)
                    yield extend(first, [*ids, self.markers[0]], [*stretches, before])
                    first, ids, stretches = image, [self.markers[1]], [behind]
                case Block():
                    feed, controls = extend(first, ids, stretches), None
                    if not self.method.overwrites_start(segment.latents):
                        controls = self.method.steering(segment.latents)
                        feed = opening(feed, self.method, controls, blocks)
                    if feed.size:  # nothing, where the block overwrites its start right behind one without an end
                        states = yield feed
                    hidden = behind_opening(states, controls)
                    return Context(hidden, segment.latents, free=False, closed=segment.closed, grid=segment.grid)
        rest = extend(first, ids, stretches)
        if rest.size:
            yield rest
        return "stop"


def extend(feed: Feed, ids: Sequence[int], stretches: Sequence[Slots]) -> Feed:
    """The feed with given ids behind it, and their slots."""
    return replace(feed, then=(*feed.then, *ids), slots=join(feed.slots, *stretches))


def opening(feed: Feed, method: LatentMethod, controls: torch.Tensor | None, block: int) -> Feed:
    """The feed with the opening token of a block behind it, and its control vectors (C, D), if any, behind that.

    Control vectors are known beforehand and need no sampling between, so that they cost no forward of their own.
    """
    return replace(extend(feed, [method.open_id], [opening_slots(block, count(controls))]), tail=controls)


def behind_opening(states: torch.Tensor, controls: torch.Tensor | None) -> torch.Tensor:
    """The states that a block starts from, of those of the feed that opened it: the opening token's (1, D), or those
    of its control vectors (C, D)."""
    return states[-max(1, count(controls)) :]


def count(vectors: torch.Tensor | None) -> int:
    """The number of vectors in a tensor that may be missing."""
    return 0 if vectors is None else len(vectors)


@dataclass(slots=True, eq=False)
class FedBlock:
    """A block whose latents are through: what its closing token, or the text behind it, goes on from."""

    number: int
    """0-based in the sequence."""
    vectors: list[torch.Tensor]
    """(N, D) of every feed, interventions included."""
    slots: list[Slots]
    """Of every feed."""
    states: torch.Tensor | None = None
    """(N, D) of the last feed; None where nothing was fed."""
    riding: Feed | None = None
    """The only feed, where it has not been yielded: it waits for what comes behind it, to enter in one forward."""
    token: int | None = None
    """The id last sampled inside the block."""


def feed_block(
    method: LatentMethod, start: Context, number: int, intervene: Intervention | None
) -> Generator[Feed | Sample, torch.Tensor | int, FedBlock]:
    """A block between its opening and its closing token: the method's feeds, with all that the method leaves to us."""
    fed, answer, index = FedBlock(number, [], []), None, 0
    latents = method.block(start)
    while True:
        try:
            feed = latents.send(answer)
        except StopIteration:
            return fed
        if isinstance(feed, Sample):  # the method asks whether its block ends here; the id is not fed
            answer = fed.token = yield feed
            continue
        feed.block, feed.index, feed.num_latents = number, index, start.num_latents
        if feed.grid is not None:
            # A parallel block is whole in its one feed: K is what it holds, not the most that it may hold.
            feed.num_latents = feed.size
        feed.slots = latent_slots(number, feed.size, None if feed.grid is None else method.places(feed.grid))
        index += feed.size
        if intervene is not None:
            feed = intervene(feed)
        fed.vectors.append(feed.embeds)
        fed.slots.append(feed.slots)
        # Only the first feed may wait: sealed copies stand behind all latents of a block, and those of earlier feeds
        # would be no continuation of this one.
        if feed.final and len(fed.vectors) == 1:
            fed.riding = feed
            latents.close()
            return fed
        answer = fed.states = yield feed


def closing(method: LatentMethod, fed: FedBlock, rule: Rule) -> Feed:
    """The closing token of a block, and what rides along with it in one forward.

    Before it stand, where they apply: latents that have not been fed yet, because their method needs no answer; and
    under `sealed` the vectors of all latents once more. The copies are there because a latent's cached keys have seen
    the image: text that reads the copies instead, which see only each other, gets what the vectors hold and no more.
    """
    copies = torch.cat(fed.vectors) if rule == "sealed" and fed.vectors else None
    slots = closing_slots(fed.number, None if copies is None else join(*fed.slots))
    closes = {"then": (method.close_id,), "num_sealed": count(copies), "closes": True}
    if fed.riding is None:
        return Feed(copies, slots=slots, block=fed.number, **closes)
    vectors = fed.riding.embeds if copies is None else torch.cat([fed.riding.embeds, copies])
    return replace(fed.riding, embeds=vectors, slots=join(fed.riding.slots, slots), **closes)


def drive(
    method: LatentMethod,
    prompt: Feed,
    text: TextSource,
    rule: Rule,
    *,
    intervene: Intervention | None = None,
) -> Run:
    """A sequence from its prompt to its end: text, block, close, text, block, close, …

    `intervene` sees every latent feed and may replace its vectors.
    """
    feed, blocks = prompt, 0
    while True:
        start = yield from text.write(feed, blocks)
        if not isinstance(start, Context):
            return start
        fed = yield from feed_block(method, replace(start, prompt=prompt), blocks, intervene)
        blocks += 1
        if text.samples and method.samples_close and rule != "sealed":
            # The model closes the block, unless it is empty or a token inside it has closed it already.
            open_end = bool(fed.vectors) and fed.token != method.close_id
        else:
            open_end = not start.closed
        if open_end:
            # No closing token, so nothing has to be fed before the next token: the states are there.
            feed = fed.states if fed.riding is None else fed.riding
        else:
            text.remaining -= 1  # no block opens without room for its closing token
            feed = closing(method, fed, rule)
