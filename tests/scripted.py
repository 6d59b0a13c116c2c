"""A reasoner that plays a script of real events: for tests of what the app does with events, not of any model."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from latent_core.config import MethodConfig
from latent_core.events import AttentionSummary, Event, FinishEvent, LatentEvent, StartEvent, TokenEvent
from latent_core.methods import Monet
from latent_core.settings import Settings
from latent_core.trace import Source, Trace

WIDTH, TOKENS, LEVELS, LAYERS = 8, 36, 3, (0, 1, 2)
SCRIPT = (("I", " look", "."), (" It", " carries", " \\boxed{", "ring", "}", "."))
"""Words before the block and after it."""


class ScriptedReasoner:
    """Says SCRIPT around one block of K random latents; `none` as the question opens no block."""

    num_layers = len(LAYERS)
    fit = None  # it sees images as they are
    method = Monet  # its class says all that the page asks of it

    def __init__(self, name: str = "scripted", *, delay: float = 0.0) -> None:
        self.name, self.delay = name, delay
        self.config = MethodConfig(
            method="monet", open_token="<open>", close_token="</open>", rule="latents_only", world="glyphs"
        )
        self.closed = 0
        """Streams that have ended, one way or the other."""

    def settings(self, **given: Any) -> Settings:
        settings = Settings(**{"latents": self.config.latents.default, **given})
        return dataclasses.replace(settings, rule=settings.rule or self.config.rule)

    def trace(self, events: list[Event], question: str, **settings: Any) -> Trace:
        source = Source(checkpoint=self.name, method="monet", versions={})
        return Trace.collect(events, question=question, system="", settings=self.settings(**settings), source=source)

    def stream(self, images: list, question: str, *, attention: Any = (), **settings: Any) -> Iterator[Event]:
        if not question.strip():
            raise ValueError("The question is empty; write one.")
        return self._stream(images, question, self.settings(**settings))

    def _stream(self, images: list, question: str, settings: Settings) -> Iterator[Event]:
        draw = torch.Generator().manual_seed(settings.seed)
        blocks = 0 if question == "none" or settings.mode == "text" else 1
        latents = 0 if settings.mode == "markers" else settings.latents * blocks
        counted = 0
        try:
            yield start_event(images, draw)
            for number, words in enumerate(SCRIPT):
                for word in words:
                    time.sleep(self.delay)
                    counted += 1
                    yield token_event(word, draw)
                if number == 0 and blocks:
                    counted += 2
                    yield token_event("", draw, kind="open", p_open=0.9)
                    for index in range(latents):
                        yield latent_event(index, draw)
                    yield token_event("", draw, kind="close")
            yield FinishEvent(
                reason="stop",
                tokens=counted,
                latents=latents,
                blocks=blocks,
                text_seconds=0.1,
                latent_seconds=0.02 * bool(latents),
                max_p_open=0.9 if blocks else 0.03,
            )
        finally:
            self.closed += 1


def start_event(images: list, draw: torch.Generator) -> StartEvent:
    shown = tuple(torch.from_numpy(np.array(image.convert("RGB").resize((96, 96)))) for image in images)
    return StartEvent(
        prompt_tokens=50,
        images=shown,
        grids=((6, 6),) * len(shown),
        levels=tuple(range(LEVELS)),
        image_states=torch.randn(LEVELS, TOKENS * len(shown), WIDTH, generator=draw),
        layers=LAYERS,
        seconds=0.05,
    )


def token_event(text: str, draw: torch.Generator, *, kind: str = "text", p_open: float = 0.01) -> TokenEvent:
    return TokenEvent(
        position=50,
        token_id=1,
        text=text,
        kind=kind,
        logprob=-0.5,
        p_open=p_open,
        hidden=torch.randn(WIDTH, generator=draw),
        attention=None if kind == "close" else look(draw),
        seconds=0.01,
    )


def latent_event(index: int, draw: torch.Generator, *, block: int = 0) -> LatentEvent:
    vector = torch.randn(WIDTH, generator=draw)
    return LatentEvent(
        position=60, block=block, index=index, fed=vector, hidden=vector, attention=look(draw), seconds=0.01
    )


def look(draw: torch.Generator) -> AttentionSummary:
    """Attention of LAYERS with two heads on one image."""
    size = len(LAYERS), 2
    return AttentionSummary(
        image=(torch.rand(*size, TOKENS, generator=draw) / 10).half(),
        shares=torch.rand(*size, 5, generator=draw).softmax(-1),
        entropy=torch.rand(size, generator=draw),
    )
