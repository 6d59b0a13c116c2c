"""The view of a run, folded from its events one pure step at a time by `fold`, or all at once by `fold_all`.

A view is all that the page, the API and the trace download know of a run. Shapes: D model width, N image tokens.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from latent_core import answers
from latent_core.evaluation.grounding import LookRule, looked_at, unmeasured
from latent_core.events import AttentionSummary, Event, FinishEvent, LatentEvent, StartEvent, TokenEvent
from latent_core.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item:
    """One position of the response: a token or a latent."""

    kind: Literal["text", "open", "control", "close", "latent"]
    text: str = ""
    block: int = -1
    """0-based; -1 for text outside blocks."""
    index: int = -1
    """0-based number of a latent in its block; -1 for tokens."""
    columns: int = 0
    """Columns of the grid that a latent belongs to; 0 where latents come one by one."""
    vector: torch.Tensor | None
    """(D,) the fed vector of a latent, the state that produced a token; None when recording is off."""
    glow: torch.Tensor | None = None
    """(N,) where a latent looks under the first of `View.rules` that its run recorded. None in a run that was folded
    at once: its maps say so."""
    attention: AttentionSummary | None = None
    """Where its state attended; None unless attention is recorded."""
    logprob: float = 0.0
    p_open: float = 0.0
    forced: bool = False
    after_block: bool = False
    """A block was closed before: what this item may attend to depends on the attention rule."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """A run as far as it has come."""

    checkpoint: str
    question: str
    settings: Settings
    """As decoded: the checkpoint's own attention rule and defaults are filled in."""
    opens: bool
    """Whether the checkpoint can open blocks at all."""
    measured: tuple[LookRule, ...] = ()
    """How the checkpoint's latents are read best, as was measured; the best first."""
    start: StartEvent | None = None
    items: tuple[Item, ...] = ()
    opened: int = 0
    """Blocks among the items."""
    finish: FinishEvent | None = None

    @property
    def rules(self) -> tuple[LookRule, ...]:
        """The measured rules that this run has recorded, and the one that needs no measurement."""
        if self.start is None:
            return ()
        recorded = {"similarity": self.start.levels, "attention": self.start.layers}
        return (*(rule for rule in self.measured if rule.level in recorded[rule.kind]), unmeasured(self.start))

    @property
    def text(self) -> str:
        """The text so far, without markers."""
        return "".join(item.text for item in self.items if item.kind == "text")

    @property
    def after_block(self) -> bool:
        """Whether a block has been closed."""
        return bool(self.items) and (self.items[-1].kind == "close" or self.items[-1].after_block)


def fold(view: View, event: Event) -> View:
    """The view after one more event. Raises TypeError for anything that is no event."""
    match event:
        case StartEvent():
            return replace(view, start=event)
        case TokenEvent():
            item = _token(event, view.opened, view.after_block)
            return replace(view, items=(*view.items, item), opened=view.opened + (item.kind == "open"))
        case LatentEvent():
            return replace(view, items=(*view.items, _latent(event, view.after_block, _glow(view, event))))
        case FinishEvent():
            return replace(view, finish=event)
        case _:
            raise TypeError(f"{type(event).__name__} is not an event of a run.")


def fold_all(view: View, events: Iterable[Event]) -> View:
    """The view after all events of a recorded run, in time linear in them; no latent has a glow."""
    items, opened, after = list(view.items), view.opened, view.after_block
    for event in events:
        if isinstance(event, TokenEvent):
            items.append(_token(event, opened, after))
            opened, after = opened + (event.kind == "open"), after or event.kind == "close"
        elif isinstance(event, LatentEvent):
            items.append(_latent(event, after, None))
        else:
            view = fold(view, event)
    return replace(view, items=tuple(items), opened=opened)


def answer(view: View) -> tuple[str, float] | None:
    """The final answer and the probability of its tokens (product, before temperature), or None without one."""
    text = view.text
    span, final = answers.find(text), answers.extract(text)
    if span is None or final is None:
        return None
    first = text.find(final, *span)
    first, last = (first, first + len(final)) if first >= 0 else span  # with the LaTeX that `final` is without
    offset, logprob = 0, 0.0
    for item in view.items:
        if item.kind == "text":
            if offset < last and offset + len(item.text) > first:
                logprob += item.logprob
            offset += len(item.text)
    return final, math.exp(logprob)


def _token(event: TokenEvent, opened: int, after_block: bool) -> Item:
    return Item(
        kind=event.kind,
        text=event.text,
        block={"text": -1, "open": opened}.get(event.kind, opened - 1),
        vector=event.hidden,
        attention=event.attention,
        logprob=event.logprob,
        p_open=event.p_open,
        forced=event.forced,
        after_block=after_block,
    )


def _glow(view: View, event: LatentEvent) -> torch.Tensor | None:
    glows = (looked_at(rule, view.start, event.fed, event.attention) for rule in view.rules)
    return next((glow for glow in glows if glow is not None), None)


def _latent(event: LatentEvent, after_block: bool, glow: torch.Tensor | None) -> Item:
    return Item(
        kind="latent",
        block=event.block,
        index=event.index,
        columns=event.grid[1] if event.grid else 0,
        vector=event.fed,
        glow=glow,
        attention=event.attention,
        after_block=after_block,
    )
