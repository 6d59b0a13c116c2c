"""Sampled responses with all that their replay needs, and the replay: one parallel forward over a whole batch.

A rollout keeps the vectors that were fed, so that every conditional probability in the replay is that of the rollout's
own context. Nothing is fed that was not recorded, and nothing recorded is left out.

Shapes: A sampled ids of a response, K latents of a block, C control vectors, D model width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace

import torch
from torch.utils.checkpoint import checkpoint

from latent_core.decoding.engine import Sampler, decode
from latent_core.decoding.interventions import perturb
from latent_core.decoding.layout import ForcedSequence
from latent_core.decoding.sequence import Block, Segment, Tokens
from latent_core.decoding.unroll import Features, splice
from latent_core.events import LatentEvent, Reason, TokenEvent
from latent_core.methods.base import LatentMethod
from latent_core.methods.requests import Feed
from latent_core.model.backbone import Backbone
from latent_core.model.processor import Prompt
from latent_core.model.slot_types import CONTROL, LATENT, slot_class
from latent_core.settings import Settings

Decoder = Callable[[Sequence[int]], str]
"""Ids → text; a processor's `decode`."""


@dataclass(frozen=True, slots=True, eq=False)
class SampledResponse:
    """One sampled response, with all that its replay needs."""

    row: ForcedSequence
    """Prompt and response as they were fed; its labels are the sampled ids."""
    ids: tuple[int, ...]
    """(A,) the sampled ids, in order; what the runtime forced is no action."""
    logprobs: torch.Tensor
    """(A,) their log-probabilities, log_softmax(logits / T) before truncation."""
    latents: list[torch.Tensor]
    """Per block (K, D), as fed, noise included."""
    producers: list[torch.Tensor]
    """Per block (K, D), the states or heads' outputs that the latents were before noise was added."""
    drawn: list[tuple[object, ...]]
    """Per block, the method's own continuous actions."""
    text: str
    """The response without control tokens."""
    reason: Reason


@dataclass(slots=True)
class _Watch:
    """The intervention of a rollout: records every block on its way into the model, and adds noise if there is any."""

    noise: float
    seed: int
    producers: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    drawn: dict[int, tuple[object, ...]] = field(default_factory=dict)

    def __call__(self, feed: Feed) -> Feed:
        self.producers.setdefault(feed.block, []).append(feed.embeds.clone())
        self.drawn[feed.block] = feed.drawn
        return perturb(self.noise, self.seed)(feed) if self.noise else feed


def roll_out(
    backbone: Backbone,
    method: LatentMethod,
    prompts: Sequence[Prompt],
    settings: Sequence[Settings],
    texts: Decoder,
    *,
    noise: float = 0.0,
    sampler: Sampler | None = None,
) -> list[SampledResponse]:
    """Samples one response per prompt, all at once.

    texts: ids → text. noise: added to every latent, as a share ρ of its root mean square; ε follows the
    response's seed.
    """
    watches = [_Watch(noise, setting.seed) for setting in settings]
    events = decode(backbone, method, prompts, settings, intervene=watches, sampler=sampler, scaled=True, levels=())
    by_prompt: list[list[TokenEvent | LatentEvent]] = [[] for _ in prompts]
    reasons: list[Reason] = ["stop"] * len(prompts)
    for event in events:
        if isinstance(event, (TokenEvent, LatentEvent)):
            by_prompt[event.sequence].append(event)
        elif hasattr(event, "reason"):
            reasons[event.sequence] = event.reason
    return [
        _rollout(method, prompt, steps, watch, reason, texts)
        for prompt, steps, watch, reason in zip(prompts, by_prompt, watches, reasons, strict=True)
    ]


def _rollout(
    method: LatentMethod,
    prompt: Prompt,
    steps: Sequence[TokenEvent | LatentEvent],
    watch: _Watch,
    reason: Reason,
    texts: Decoder,
) -> SampledResponse:
    segments: list[Segment] = []
    ids, logprobs, text_ids = [], [], []
    latents: list[list[torch.Tensor]] = []
    grid = None
    open_block: TokenEvent | None = None  # a block that nothing has followed yet

    def end(closed: TokenEvent | None) -> None:
        nonlocal open_block
        if open_block is None:
            return
        learned = closed is not None and not closed.forced
        segments.append(Block(len(latents[-1]), not open_block.forced, learned, closed=closed is not None, grid=grid))
        open_block = None

    for step in steps:
        if isinstance(step, LatentEvent):
            latents[-1].append(step.fed)
            grid = step.grid
            continue
        if not step.forced:
            ids.append(step.token_id)
            logprobs.append(step.logprob)
        if step.kind == "open":
            end(None)
            open_block, grid = step, None
            latents.append([])
        elif step.kind == "close":
            end(step)
        else:
            end(None)
            segments.append(Tokens((step.token_id,)))
            text_ids.append(step.token_id)
    end(None)
    empty = torch.zeros(0, 0)
    return SampledResponse(
        row=ForcedSequence(prompt, tuple(segments)),
        ids=tuple(ids),
        logprobs=torch.tensor(logprobs),
        latents=[torch.stack(block) if block else empty for block in latents],
        producers=[torch.cat(watch.producers[n]) if n in watch.producers else empty for n in range(len(latents))],
        drawn=[tuple(map(_ordinary, watch.drawn.get(n, ()))) for n in range(len(latents))],
        text=texts(text_ids),
        reason=reason,
    )


def _ordinary(record: object) -> object:
    """A record whose tensors autograd may use: those made while decoding are inference tensors."""
    if isinstance(record, torch.Tensor):
        return record.clone()
    if not is_dataclass(record):
        return record
    return replace(record, **{item.name: _ordinary(getattr(record, item.name)) for item in fields(record)})


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """One rollout replayed by a policy: its log-probabilities of the ids, its states before the latents."""

    logprobs: torch.Tensor
    """(A,) as SampledResponse.logprobs."""
    producers: list[torch.Tensor]
    """Per block (K, D), the states at the slots before the latents: what this policy would have fed."""
    controls: list[torch.Tensor]
    """Per block (C, D), the states of its control vectors; (0, D) without."""


LOGITS = 2**26
"""Most logits at once: 256 MB in float32."""


def _logprobs(backbone: Backbone, states: torch.Tensor, ids: torch.Tensor, temperature: float) -> torch.Tensor:
    """(M,) log softmax(logits / T) at ids (M,), of states (M, D); in parts that are computed again in the backward
    pass where all logits together would be too many.
    """

    def part(states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        logits = backbone.logits(states).float() / temperature
        return logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]

    size = max(1, LOGITS // backbone.vocabulary)
    if len(states) <= size:
        return part(states, ids)
    parts = zip(states.split(size), ids.split(size), strict=True)
    return torch.cat([checkpoint(part, *chunk, use_reentrant=False) for chunk in parts])


def replay(
    backbone: Backbone,
    method: LatentMethod,
    rollouts: Sequence[SampledResponse],
    temperature: float,
    *,
    latents: Sequence[Sequence[torch.Tensor]] | None = None,
    features: Sequence[torch.Tensor] | None = None,
) -> list[Replayed]:
    """One forward over all rollouts, their latents in their slots as constants, with gradients if they are enabled.

    latents: per rollout and block (K, D) in place of the recorded ones. features: what `encode_images` gave for the
    prompts.
    """
    empty = torch.zeros(0, backbone.width, device=backbone.device, dtype=backbone.dtype)
    blocks = [rollout.latents for rollout in rollouts] if latents is None else latents
    fed = [[b.to(empty) if len(b) else empty for b in row] for row in blocks]
    images = None if features is None else Features(list(features), [])
    spliced = splice(backbone, method, [rollout.row for rollout in rollouts], fed, features=images)
    all_logprobs = _logprobs(backbone, *spliced.learned(), temperature)
    classes = slot_class(spliced.layout.slot_types)
    replayed = []
    for number, (rollout, logprobs) in enumerate(
        zip(rollouts, all_logprobs.split([len(rollout.ids) for rollout in rollouts]), strict=True)
    ):
        latent_slots = (classes[number] == LATENT).nonzero()[:, 0]
        control_slots = (classes[number] == CONTROL).nonzero()[:, 0]
        sizes = [len(block) for block in rollout.latents]
        each = len(control_slots) // max(1, sum(size > 0 for size in sizes))
        states = spliced.states[number]
        replayed.append(
            Replayed(
                logprobs,
                list(states[latent_slots - 1].split(sizes)) if sizes else [],
                list(states[control_slots].split([each if size else 0 for size in sizes])) if sizes else [],
            )
        )
    return replayed
