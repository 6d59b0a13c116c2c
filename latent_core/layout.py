"""What stands in every slot of a row, known before anything is fed.

Shapes: B rows, L slots of the longest row, M labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from latent_core.backbone import Backbone
from latent_core.drive import Picture, Segment, Tokens, count
from latent_core.kinds import (
    AFTER,
    AUX,
    AUX_END,
    AUX_START,
    CLOSE,
    CONTROL,
    IMAGE,
    LATENT,
    OPEN,
    PAD,
    PROMPT,
    SEALED,
    TEXT,
    numbered,
)
from latent_core.methods.base import LatentMethod
from latent_core.processor import Prompt
from latent_core.settings import Rule

NO_LABEL = -100
"""What cross-entropy ignores."""


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and the response to teach or replay."""

    prompt: Prompt
    segments: tuple[Segment, ...]

    @property
    def pictures(self) -> list[Picture]:
        """The response's auxiliary images."""
        return [segment for segment in self.segments if isinstance(segment, Picture)]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """What stands in every slot of every row, padded on the right. Sealed copies have slots of their own."""

    ids: torch.Tensor
    """(B, L) token ids; −1 at latents, sealed copies, auxiliary images and padding."""
    kinds: torch.Tensor
    """(B, L), see attention.py."""
    positions: torch.Tensor
    """(3, B, L) M-RoPE positions."""
    labels: torch.Tensor
    """(B, L) the id that the state at this slot has to predict; NO_LABEL where none. Opening tokens and text are
    labels, closing tokens never; the state at a closing token predicts the text that follows."""
    observations: torch.Tensor
    """(B, L) bool: which slots hold words of an observation."""

    def weights(self, observation: float) -> torch.Tensor:
        """(M,) weight of every label in the order of `Unrolled.learned`: `observation` where it is a word of one."""
        following = torch.nn.functional.pad(self.observations[:, 1:], (0, 1))
        return torch.where(following, observation, 1.0)[self.labels != NO_LABEL]


def lay_out(backbone: Backbone, method: LatentMethod, rows: Sequence[Row], rules: Sequence[Rule]) -> Layout:
    """The slots of every row, known before anything is fed."""
    columns = [_lay_out(backbone, method, row, rule) for row, rule in zip(rows, rules, strict=True)]
    fills = (-1, PAD, NO_LABEL, False)
    length = max(len(ids) for ids, *_ in columns)
    ids, kinds, labels, observations = (
        torch.tensor([list(c[i]) + [fill] * (length - len(c[i])) for c in columns], device=backbone.device)
        for i, fill in enumerate(fills)
    )
    positions = torch.zeros(3, len(rows), length, dtype=torch.long)
    for row, (*_, places) in enumerate(columns):
        positions[:, row, : places.shape[1]] = places
    return Layout(ids, kinds, positions.to(backbone.device), labels, observations)


def _lay_out(
    backbone: Backbone, method: LatentMethod, row: Row, rule: Rule
) -> tuple[list[int], list[int], list[int], list[bool], torch.Tensor]:
    """Ids, kinds, labels, observations and positions (3, L) of one row."""
    ids = row.prompt.input_ids.tolist()
    kinds = [IMAGE if token == backbone.image_token_id else PROMPT for token in ids]
    labels, observations = [NO_LABEL] * len(ids), [False] * len(ids)
    prompt = backbone.positions(row.prompt.input_ids, row.prompt.grid_thw)
    start = int(prompt.max()) + 1
    places: list[list[int]] = []

    def put(token: int, kind: int, place: int | list[int] | None = None, observation: bool = False) -> None:
        place = start if place is None else place
        ids.append(token)
        kinds.append(kind)
        labels.append(NO_LABEL)
        observations.append(observation)
        places.append([place] * 3 if isinstance(place, int) else place)

    block = picture = 0
    for segment in row.segments:
        if isinstance(segment, Picture):
            first, last = backbone.marker_ids
            put(first, numbered(AUX_START, picture))
            grid = backbone.image_positions(segment.grid_thw) + start + 1
            for place in grid.T.tolist():
                put(-1, numbered(AUX, picture), place)
            start = int(grid.max()) + 1
            put(last, numbered(AUX_END, picture))
            start += 1
            picture += 1
            continue
        if isinstance(segment, Tokens):
            for token in segment.ids:
                if segment.learn:
                    labels[-1] = token
                put(token, TEXT if block == 0 else AFTER, observation=segment.observation)
                start += 1
            continue
        if segment.learn:
            labels[-1] = method.open_id
        if not method.overwrites_start(segment.latents):
            put(method.open_id, numbered(OPEN, block))
            start += 1
        for _ in range(count(method.steering(segment.latents))):
            put(-1, numbered(CONTROL, block))
            start += 1
        places_of = method.places(segment.grid) if segment.grid else None
        if places_of is None:
            places_of = torch.arange(segment.latents).expand(3, -1)
        spots = (places_of + start).T.tolist()
        for kind in (LATENT, SEALED) if rule == "sealed" else (LATENT,):
            for place in spots:
                put(-1, numbered(kind, block), place)
        start = max((max(place) for place in spots), default=start - 1) + 1
        if segment.closed:
            if segment.learn_close:
                labels[-1] = method.close_id
            put(method.close_id, numbered(CLOSE, block))
            start += 1
        block += 1
    response = torch.tensor(places, dtype=torch.long).reshape(-1, 3).T
    return ids, kinds, labels, observations, torch.cat([prompt, response], 1)
