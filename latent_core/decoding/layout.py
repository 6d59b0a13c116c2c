"""The layout of a batch: what stands in every slot of every sequence, known before anything is fed.

A training stage reads from it which states have to predict what; `splice` feeds it at once. Decoding makes the same
slots one feed after the other, out of the same stretches (slots.py).

Shapes: B sequences, L slots of the longest, M labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from latent_core.decoding.sequence import AuxiliaryImage, Block, Segment, Tokens, count
from latent_core.methods.base import LatentMethod
from latent_core.model.backbone import Backbone
from latent_core.model.processor import Prompt
from latent_core.model.slot_types import PAD
from latent_core.model.slots import (
    Slots,
    auxiliary_image_slots,
    axes,
    closing_slots,
    join,
    latent_slots,
    marker_slots,
    opening_slots,
    prompt_slots,
    text_slots,
)
from latent_core.settings import Rule

NO_ID = -1
"""The id of a slot that holds a vector."""
NO_LABEL = -100
"""The label of a slot whose state predicts nothing: cross-entropy ignores it."""


@dataclass(frozen=True, slots=True)
class ForcedSequence:
    """A prompt and the response to teach or replay."""

    prompt: Prompt
    segments: tuple[Segment, ...]

    @property
    def auxiliary_images(self) -> list[AuxiliaryImage]:
        """The response's auxiliary images."""
        return [segment for segment in self.segments if isinstance(segment, AuxiliaryImage)]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The slots of a batch, padded on the right: ids, slot types, positions, labels. Sealed copies have their own."""

    ids: torch.Tensor
    """(B, L) token ids; −1 at latents, sealed copies, auxiliary images and padding."""
    slot_types: torch.Tensor
    """(B, L) slot types, see slot_types.py."""
    positions: torch.Tensor
    """(3, B, L) M-RoPE positions."""
    labels: torch.Tensor
    """(B, L) the id that the state at this slot has to predict; NO_LABEL where none. Opening tokens and text are
    labels, closing tokens never; the state at a closing token predicts the text that follows."""
    observations: torch.Tensor
    """(B, L) bool: which slots hold text of an observation."""

    def weights(self, observation: float) -> torch.Tensor:
        """(M,) weight of every label in the order of `Unrolled.learned`: `observation` where it is text of one."""
        following = torch.nn.functional.pad(self.observations[:, 1:], (0, 1))
        return torch.where(following, observation, 1.0)[self.labels != NO_LABEL]


def lay_out(
    backbone: Backbone, method: LatentMethod, sequences: Sequence[ForcedSequence], rules: Sequence[Rule]
) -> Layout:
    """The layout of a batch: the slots of every sequence, known before anything is fed."""
    columns = [_lay_out(backbone, method, sequence, rule) for sequence, rule in zip(sequences, rules, strict=True)]
    fills = (NO_ID, PAD, NO_LABEL, False)
    length = max(len(ids) for ids, *_ in columns)
    ids, slot_types, labels, observations = (
        torch.tensor([list(c[i]) + [fill] * (length - len(c[i])) for c in columns], device=backbone.device)
        for i, fill in enumerate(fills)
    )
    positions = torch.zeros(3, len(sequences), length, dtype=torch.long)
    for number, (*_, placed) in enumerate(columns):
        positions[:, number, : placed.shape[1]] = placed
    return Layout(ids, slot_types, positions.to(backbone.device), labels, observations)


def _lay_out(
    backbone: Backbone, method: LatentMethod, sequence: ForcedSequence, rule: Rule
) -> tuple[list[int], list[int], list[int], list[bool], torch.Tensor]:
    """Ids, slot types, labels, observations and positions (3, L) of one sequence."""
    ids = sequence.prompt.input_ids.tolist()
    positions = backbone.positions(sequence.prompt.input_ids, sequence.prompt.grid_thw)
    stretches = [prompt_slots(ids, backbone.image_token_id, positions)]
    labels, observations = [NO_LABEL] * len(ids), [False] * len(ids)

    def put(slots: Slots, tokens: Sequence[int], observation: bool = False) -> None:
        """One more stretch behind the others, nothing of it learned."""
        stretches.append(slots)
        ids.extend(tokens)
        labels.extend([NO_LABEL] * len(slots))
        observations.extend([observation] * len(slots))

    block = image = 0
    for segment in sequence.segments:
        match segment:
            case Tokens():
                length = len(segment.ids)
                put(text_slots(length, block), segment.ids, segment.observation)
                if segment.learn:  # by the slots before: a state predicts what comes next
                    labels[-1 - length : -1] = segment.ids
            case AuxiliaryImage():
                (first, last), (before, behind) = backbone.marker_ids, marker_slots(image)
                tokens = auxiliary_image_slots(image, backbone.image_positions(segment.grid_thw))
                put(before, [first])
                put(tokens, [NO_ID] * len(tokens))
                put(behind, [last])
                image += 1
            case Block():
                if segment.learn:  # before it is put, for where latent 1 overwrites it, it is predicted but never fed
                    labels[-1] = method.open_id
                if not method.overwrites_start(segment.latents):
                    controls = count(method.steering(segment.latents))
                    put(opening_slots(block, controls), [method.open_id, *[NO_ID] * controls])
                places = None if segment.grid is None else method.places(segment.grid)
                latents = latent_slots(block, segment.latents, places)
                put(latents, [NO_ID] * len(latents))
                if segment.closed:
                    end = closing_slots(block, latents if rule == "sealed" else None)
                    put(end, [*[NO_ID] * (len(end) - 1), method.close_id])
                    if segment.learn_close:
                        labels[-2] = method.close_id
                block += 1
    slots = join(*stretches)
    return ids, list(slots.types), labels, observations, axes(slots.place(0)[0])
