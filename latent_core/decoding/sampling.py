"""Sampling from logits: penalty, temperature, top-k, top-p (in transformers' order), each sequence with its own seed.

A sequence draws one uniform number per token and inverts its own cumulative distribution, so that what it draws
depends on nothing but its seed, its place in the response and its logits: not on its batch, not on the device.

Shapes: R sequences that sample, V vocabulary.
"""

from collections.abc import Sequence

import torch

from latent_core.settings import Settings


class SamplerState:
    """One sequence's settings, random numbers and the ids that occurred in it (for the repetition penalty).

    What a device needs of them is copied there once, and not for every token.
    """

    def __init__(self, settings: Settings, prompt_ids: torch.Tensor, vocabulary: int, device: torch.device) -> None:
        self.settings = settings
        self._generator = torch.Generator().manual_seed(settings.seed)
        self.occurred: torch.Tensor | None = None
        """(V,) bool; None where nothing is penalised."""
        if settings.repetition_penalty != 1:
            self.occurred = torch.zeros(vocabulary, dtype=torch.bool, device=device)
            self.occurred[prompt_ids.to(device)] = True
        numbers = (settings.temperature, settings.top_p, settings.top_k or vocabulary, settings.repetition_penalty)
        self.scale = torch.tensor(numbers, dtype=torch.float32, device=device)
        """(4,) temperature, top p, top k and penalty in float32, which holds every id of a vocabulary exactly."""

    def roll(self) -> float:
        """Uniform in [0, 1)."""
        return torch.rand((), generator=self._generator).item()


def choose(logits: torch.Tensor, states: Sequence[SamplerState]) -> torch.Tensor:
    """(R,) ids from logits (R, V) float32, in which banned ids are −inf, with each sequence's sampler state."""
    penalised = [number for number, state in enumerate(states) if state.occurred is not None]
    if penalised:
        scores = _rows(logits, penalised)
        occurred = torch.stack([states[number].occurred for number in penalised])
        penalty = torch.stack([states[number].scale for number in penalised])[:, 3:]
        scores = torch.where(occurred, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
        logits = _replaced(logits, penalised, scores)
    drawn = [number for number, state in enumerate(states) if state.settings.temperature > 0]
    ids = logits.argmax(-1)
    if drawn:
        ids = _replaced(ids, drawn, _draw(_rows(logits, drawn), [states[number] for number in drawn]))
    for n in penalised:
        states[n].occurred.index_fill_(0, ids[n : n + 1], True)  # an integer index would wait for the device
    return ids


def _rows(values: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """values[rows], without a copy of the indices to the device."""
    return values if len(rows) == len(values) else torch.stack([values[row] for row in rows])


def _replaced(values: torch.Tensor, rows: Sequence[int], new: torch.Tensor) -> torch.Tensor:
    """`values` with `new` in place of `rows`."""
    if len(rows) == len(values):
        return new
    places = dict(zip(rows, new.unbind(0), strict=True))
    return torch.stack([places.get(row, value) for row, value in enumerate(values.unbind(0))])


def _draw(logits: torch.Tensor, states: Sequence[SamplerState]) -> torch.Tensor:
    """(R,) ids drawn from logits (R, V)."""
    temperature, top_p, top_k, _ = torch.stack([state.scale for state in states])[:, :, None].unbind(1)
    # float64, so that a tail of many thousand ids does not shift the cumulative sum
    scores, order = (logits.double() / temperature).sort(dim=-1, descending=True, stable=True)
    scores = scores.masked_fill(torch.arange(scores.shape[1], device=scores.device) >= top_k, float("-inf"))
    probabilities = scores.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    # the smallest set whose probability reaches top_p: an id stays while those before it do not
    probabilities = probabilities.masked_fill((before >= top_p) & (top_p < 1), 0)
    cumulative = probabilities.cumsum(-1)
    rolls = torch.tensor([state.roll() for state in states], dtype=torch.float64, device=logits.device)[:, None]
    place = torch.searchsorted(cumulative, rolls * cumulative[:, -1:], right=True).clamp(max=scores.shape[1] - 1)
    return order.gather(1, place)[:, 0]
