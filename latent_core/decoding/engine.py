"""Decoding: the loop that runs a batch of sequences, one or many, to their ends and yields their events.

Every step collects each sequence's next feed, runs one forward, hands the states back, and samples for all sequences
that ask for a token. What the host needs to know (chosen ids, their probabilities, recorded vectors) crosses over in
one copy per forward; recorded attention takes two more. A sequence of a batch gives what it gives alone. Closing the
generator cancels the run.

Shapes: B sequences still running, R that sample, D model width, V vocabulary.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from latent_core.analysis.attention import image_slots, summarize
from latent_core.decoding.batch import SequenceBatch, prompt_feeds, split
from latent_core.decoding.sampling import SamplerState, choose
from latent_core.decoding.sequence import Intervention, Run, Sampled, drive
from latent_core.events import AttentionSummary, Event, FinishEvent, LatentEvent, Reason, StartEvent, TokenEvent
from latent_core.methods.base import LatentMethod
from latent_core.methods.requests import Feed, Sample
from latent_core.model.attention import Recorder
from latent_core.model.backbone import Backbone
from latent_core.model.processor import Prompt
from latent_core.settings import Settings

Sampler = Callable[[int, torch.Tensor], int]
"""(number of a sequence, logits (V,) with banned ids at −inf) → id; takes the place of sampling, e.g. in tests."""

_FIRST_SLOTS = 128
"""Slots reserved beyond the prompt; the cache doubles when they are full."""


def decode(
    backbone: Backbone,
    method: LatentMethod,
    prompts: Sequence[Prompt],
    settings: Sequence[Settings],
    *,
    intervene: Sequence[Intervention | None] | None = None,
    record: bool = True,
    levels: Sequence[int] | None = None,
    sampler: Sampler | None = None,
    attention: Sequence[int] = (),
    record_attention: Recorder | None = None,
    scaled: bool = False,
) -> Iterator[Event]:
    """Runs all sequences to their end; events of different sequences come interleaved, `text` empty.

    intervene: per sequence, a function from feed to feed, see interventions.py. record: whether events carry vectors;
    without it no hidden state leaves the device. levels: of the image tokens' states in StartEvent, by default all.
    attention: layers, 0-based, of which events carry an AttentionSummary. record_attention: keeps whole maps instead.
    scaled: log-probabilities are those of logits / temperature, as reinforcement learning needs them.
    Raises ValueError for prompts whose image tokens do not match their images.
    """
    recorder = record_attention or (Recorder(attention) if attention else None)
    batch = _Batch(backbone, method, record, sampler, recorder, whole=record_attention is not None, scaled=scaled)
    every_level = range(backbone.num_layers + 1)
    levels = tuple(every_level if levels is None else levels) if record else ()
    yield from batch.start(prompts, settings, intervene or [None] * len(prompts), levels)
    while batch.sequences:
        yield from batch.forward()


@dataclass(slots=True, eq=False)
class _Sequence:
    """One run in progress."""

    number: int
    prompt: Prompt
    run: Run
    sampler_state: SamplerState
    position: int = 0
    """Next place in the sequence (sealed copies take none)."""
    request: Feed | Sample | None = None
    """What the coroutine asks for; None at its end."""
    reason: Reason = "stop"
    clock: float = 0.0
    hidden: torch.Tensor | None = None
    """(D,) on the host: the state that produces the next token; None when not recording."""
    attention: AttentionSummary | None = None
    """That state's attention; None unless it is recorded."""
    image_slots: torch.Tensor | None = None
    """Slots of its image tokens, on the host; None before attention was recorded."""
    tokens: int = 0
    latents: int = 0
    blocks: int = 0
    text_seconds: float = 0.0
    latent_seconds: float = 0.0
    max_p_open: float = 0.0

    def answer(self, value: torch.Tensor | int | None) -> None:
        """Hands the answer to the coroutine and takes its next request."""
        try:
            self.request = self.run.send(value)
        except StopIteration as end:
            self.request, self.reason = None, end.value

    def lap(self, now: float) -> float:
        """Seconds since this sequence's previous event."""
        seconds, self.clock = now - self.clock, now
        return seconds

    def finish(self) -> FinishEvent:
        """The last event."""
        return FinishEvent(
            sequence=self.number,
            reason=self.reason,
            tokens=self.tokens,
            latents=self.latents,
            blocks=self.blocks,
            text_seconds=self.text_seconds,
            latent_seconds=self.latent_seconds,
            max_p_open=self.max_p_open,
        )


class _Batch:
    """The sequences still running and the forward that they share."""

    def __init__(
        self,
        backbone: Backbone,
        method: LatentMethod,
        record: bool,
        sampler: Sampler | None,
        recorder: Recorder | None,
        *,
        whole: bool,
        scaled: bool,
    ) -> None:
        self.backbone, self.method, self.record = backbone, method, record
        self.sampler, self.recorder, self.whole, self.scaled = sampler, recorder, whole, scaled
        self.sequences: list[_Sequence] = []
        self._biases: dict[tuple[bool, bool, int | None], torch.Tensor] = {}

    def start(
        self,
        prompts: Sequence[Prompt],
        settings: Sequence[Settings],
        intervene: Sequence[Intervention | None],
        levels: tuple[int, ...],
    ) -> list[Event]:
        """Reads the prompts: one start event per sequence, then what the first forward gives."""
        began = time.perf_counter()
        backbone, method = self.backbone, self.method
        rules = [s.rule or method.config.rule for s in settings]
        with torch.inference_mode():
            feeds = prompt_feeds(backbone, prompts)
            arguments = zip(prompts, feeds, settings, rules, intervene, strict=True)
            for number, (prompt, feed, setting, rule, hook) in enumerate(arguments):
                text = Sampled(method, setting, backbone.eos_ids)
                run = drive(method, feed, text, rule, intervene=hook)
                sampler_state = SamplerState(setting, prompt.input_ids, backbone.vocabulary, backbone.device)
                sequence = _Sequence(number, prompt, run, sampler_state, clock=began)
                sequence.answer(None)
                self.sequences.append(sequence)
            longest = max(sequence.request.size for sequence in self.sequences)
            cache = backbone.new_cache(len(prompts), longest + _FIRST_SLOTS)
            self.batch = SequenceBatch(backbone, cache, rules)
        return self.forward(levels, prefill=True)

    def forward(self, levels: tuple[int, ...] = (), *, prefill: bool = False) -> list[Event]:
        """One forward for all sequences, and the events that come of it."""
        began = time.perf_counter()
        sequences, feeds = self.sequences, [sequence.request for sequence in self.sequences]
        if not prefill:
            for sequence in sequences:
                sequence.clock = began  # the time that a reader takes between two forwards is not the model's
        with torch.inference_mode():
            states, level_states = self.batch.feed(feeds, levels=levels, recorder=self.recorder)
            states = split(states, feeds)
            for sequence, state in zip(sequences, states, strict=True):
                sequence.answer(state)
            # A sequence whose states were its answer asks for a token now or feeds again (latents). Those that ask are
            # answered in the same forward, below, so that between two forwards every sequence has a feed or has ended.
            sampling = [sequence for sequence in sequences if isinstance(sequence.request, Sample)]
            choices = self._sample(sampling) if sampling else None
            vectors, choices = self._to_host(feeds, states, choices)
        attention = [()] * len(sequences) if self.recorder is None else self._attended(feeds)
        now = time.perf_counter()

        events: list[Event] = []
        if prefill:
            events += [
                self._start_event(i, sequence, levels, level_states, sequence.lap(now))
                for i, sequence in enumerate(sequences)
            ]
        # Told in the order in which a reader would have them: what this forward fed, what was sampled behind it, and
        # the closing tokens that come next: nobody samples those, so nothing but the request announces them.
        for sequence, feed, vector, summaries in zip(sequences, feeds, vectors, attention, strict=True):
            sequence.attention = summaries[-1] if summaries else None
            if not prefill:
                if feed.embeds is None:
                    sequence.text_seconds += now - began
                else:
                    sequence.latent_seconds += now - began
            events += self._entered(sequence, feed, vector, summaries, now)
        if choices is not None:
            for sequence, choice in zip(sampling, choices, strict=True):
                events += self._chosen(sequence, choice, now)
        events += [
            self._closed(sequence, now, sequence.position, sequence.hidden)
            for sequence in sequences
            if _closes(sequence.request)
        ]
        events += [sequence.finish() for sequence in sequences if sequence.request is None]
        running = [index for index, sequence in enumerate(sequences) if sequence.request is not None]
        if len(running) < len(sequences):
            self.sequences = [sequences[index] for index in running]
            if running:
                with torch.inference_mode():
                    self.batch.keep(running)
        return events

    def _sample(self, sequences: Sequence[_Sequence]) -> torch.Tensor:
        """(R, 3): id, its log-probability and the opening token's probability, before all bans and truncation."""
        logits = self.backbone.logits(torch.cat([sequence.request.state for sequence in sequences])).float()
        logprobs = logits.log_softmax(-1)
        if self.scaled:
            temperatures = [sequence.sampler_state.settings.temperature or 1.0 for sequence in sequences]
            logprobs = (logits / torch.tensor(temperatures, device=logits.device)[:, None]).log_softmax(-1)
        logits = logits + torch.stack([self._bias(sequence.request) for sequence in sequences])
        if self.sampler is None:
            ids = choose(logits, [sequence.sampler_state for sequence in sequences])
        else:
            scripted = [
                self.sampler(sequence.number, scores) for sequence, scores in zip(sequences, logits, strict=True)
            ]
            ids = torch.tensor(scripted, device=logits.device)
        chosen = logprobs.gather(1, ids[:, None])[:, 0]
        opening = logprobs[:, self.method.open_id].exp() if self.method.has_latents else torch.zeros_like(chosen)
        return torch.stack([ids.float(), chosen, opening], 1)

    def _bias(self, request: Sample) -> torch.Tensor:
        """(V,) 0 where an id may be chosen, −inf where not."""
        key = (request.may_open, request.may_close, request.force)
        if key not in self._biases:
            bias = torch.zeros(self.backbone.vocabulary, device=self.backbone.device)
            bias[list(self.method.banned(request.may_open, request.may_close))] = float("-inf")
            if request.force is not None:
                bias[:] = float("-inf")
                bias[request.force] = 0
            self._biases[key] = bias
        return self._biases[key]

    def _to_host(
        self, feeds: Sequence[Feed], states: Sequence[torch.Tensor], choices: torch.Tensor | None
    ) -> tuple[list[torch.Tensor | None], list[list[float]] | None]:
        """Everything the host needs of this forward, in one copy.

        Per sequence its last state (1, D), or all N latents fed and the states of all that was fed; and the choices.
        """
        parts: list[torch.Tensor] = []
        if self.record:
            for feed, state in zip(feeds, states, strict=True):
                count = feed.latents
                # of text only the last state is told: it produces the next token; of latents input and output
                parts.append(torch.cat([feed.embeds[:count], state]) if count else state[-1:])
        sizes = [len(part) for part in parts]
        if choices is not None:
            parts.append(choices)
        if not parts:
            return [None] * len(feeds), None
        flat = torch.cat([part.flatten().float() for part in parts]).cpu()
        pieces = flat.split([part.numel() for part in parts])
        vectors = [part.view(size, -1) for part, size in zip(pieces, sizes, strict=False)] or [None] * len(feeds)
        return vectors, None if choices is None else pieces[-1].view(-1, 3).tolist()

    def _entered(
        self,
        sequence: _Sequence,
        feed: Feed,
        vectors: torch.Tensor | None,
        summaries: Sequence[AttentionSummary],
        now: float,
    ) -> Iterator[LatentEvent | TokenEvent]:
        """Counts a feed's slots, and tells of the latents in it and of the closing token that rode along."""
        start, count = sequence.position, feed.latents
        if vectors is not None:
            sequence.hidden = vectors[-1].clone()  # a clone outside of inference mode is an ordinary tensor
        sequence.position += feed.size - feed.num_sealed
        for n in range(count):
            sequence.latents += 1
            yield LatentEvent(
                sequence=sequence.number,
                position=start + n,
                block=feed.block,
                index=feed.index + n,
                fed=None if vectors is None else vectors[n].clone(),
                hidden=None if vectors is None else vectors[count + n].clone(),
                attention=summaries[n] if summaries else None,
                grid=feed.grid,
                seconds=sequence.lap(now),
            )
        if count and feed.closes:  # the state "before" the closing token is the last latent's, though fed with it
            hidden = None if vectors is None else vectors[2 * count - 1].clone()
            yield self._closed(sequence, now, position=start + count, hidden=hidden)

    def _chosen(self, sequence: _Sequence, choice: list[float], now: float) -> Iterator[TokenEvent]:
        """Tells the sequence what was sampled; ids inside a block are nobody else's business."""
        request, (token_id, logprob, p_open) = sequence.request, (int(choice[0]), *choice[1:])
        if not request.silent:
            if request.may_open:
                sequence.max_p_open = max(sequence.max_p_open, p_open)
            sequence.tokens += 1
            opens, closes = token_id == self.method.open_id, request.may_close and token_id == self.method.close_id
            sequence.blocks += opens
            yield TokenEvent(
                sequence=sequence.number,
                position=sequence.position,
                token_id=token_id,
                kind="open" if opens else "close" if closes else "text",
                forced=request.force is not None,
                logprob=logprob,
                p_open=p_open,
                hidden=sequence.hidden,
                attention=sequence.attention,
                seconds=sequence.lap(now),
            )
        with torch.inference_mode():
            sequence.answer(token_id)

    def _closed(self, sequence: _Sequence, now: float, position: int, hidden: torch.Tensor | None) -> TokenEvent:
        """The runtime puts the closing token behind a latent of this state."""
        sequence.tokens += 1
        return TokenEvent(
            sequence=sequence.number,
            position=position,
            token_id=self.method.close_id,
            kind="close",
            forced=True,
            logprob=0.0,
            p_open=0.0,
            hidden=hidden,
            seconds=sequence.lap(now),
        )

    def _start_event(
        self,
        index: int,
        sequence: _Sequence,
        levels: tuple[int, ...],
        level_states: list[torch.Tensor],
        seconds: float,
    ) -> StartEvent:
        grids = sequence.prompt.grid_thw[:, 1:] // self.backbone.merge_size
        is_image = sequence.prompt.input_ids == self.backbone.image_token_id
        length = len(is_image)
        states = [level[index, :length][is_image.to(level.device)].float().cpu() for level in level_states]
        empty = torch.zeros(0, int(is_image.sum()), self.backbone.width)
        return StartEvent(
            sequence=sequence.number,
            prompt_tokens=length,
            images=sequence.prompt.images,
            grids=tuple((rows, columns) for rows, columns in grids.tolist()),
            levels=levels,
            image_states=torch.stack(states) if states else empty,
            layers=() if self.recorder is None or self.whole else self.recorder.layers,
            seconds=seconds,
        )

    def _attended(self, feeds: Sequence[Feed]) -> list[list[AttentionSummary]]:
        """Per sequence the summaries of its watched positions; none where whole maps are kept."""
        with torch.inference_mode():
            maps, slot_types = self.recorder.take().cpu(), self.batch.cache.all_slot_types().cpu()
        attention = []
        lengths = self.batch.cache.lengths
        for sequence, feed, weights, types, length in zip(
            self.sequences, feeds, maps, slot_types, lengths, strict=True
        ):
            if length < len(types):
                weights, types = weights[..., :length], types[:length]
            weights = weights[: len(feed.watched)] if len(weights) > 1 else weights
            if self.whole:
                # `watched` are the latents and the last slot, or the last slot alone; sequence.position is still that
                # of before the feed
                first = sequence.position + (0 if feed.latents else feed.size - feed.num_sealed - 1)
                self.recorder.maps |= {(sequence.number, first + n): w.clone() for n, w in enumerate(weights)}
                attention.append([])
                continue
            if sequence.image_slots is None:
                sequence.image_slots = image_slots(types)
            # outside of inference mode, so that what comes out are ordinary tensors
            attention.append([summarize(w, types, sequence.image_slots) for w in weights])
        return attention


def _closes(request: Feed | Sample | None) -> bool:
    """Whether a closing token comes next that rides along with no latents."""
    return isinstance(request, Feed) and request.closes and not request.latents
