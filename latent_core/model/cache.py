"""Caches of keys and values of the slots so far. Every sequence has its own length; every slot keeps its type.

`Cache` preallocates and writes in place: for decoding. `GradientCache` concatenates, so that autograd keeps every
version: for unrolling. transformers' attention layers call `update`; nobody else needs to know which one it is.

Both pad a feed on the right where sequences feed different numbers of vectors. In `Cache` the padding lands beyond a
sequence's end, where causality hides it until its next feed overwrites it; `GradientCache` keeps it as PAD slots.

Shapes: B sequences, H heads of keys, N vectors fed at once, S slots, D head width.
"""

from collections.abc import Sequence

import torch


class Cache:
    """The cache of decoding: preallocated, written in place, grown by doubling."""

    def __init__(self, layers: int, sequences: int, heads: int, width: int, capacity: int, like: torch.Tensor) -> None:
        """`capacity` slots for each of so many sequences at once; device and dtype are those of `like`."""
        # zeros, not empty: a masked slot has weight 0, but 0 · NaN is NaN
        self.keys = [like.new_zeros(sequences, heads, capacity, width) for _ in range(layers)]
        self.values = [like.new_zeros(sequences, heads, capacity, width) for _ in range(layers)]
        self.slot_types = torch.zeros(sequences, capacity, dtype=torch.long, device=like.device)
        self.lengths = [0] * sequences
        """Slots filled, per sequence."""
        self.width = 0
        """Slots in view: the longest sequence, the feed in progress included."""
        self.gapless = True
        """Whether all sequences end at the same slot, so that none sees another's padding."""
        self._index = torch.arange(sequences, device=like.device)[:, None]
        self._start: int | None = 0
        self.slots: torch.Tensor | None = None

    def begin(self, slot_types: torch.Tensor, counts: Sequence[int]) -> None:
        """Makes room for a feed of slot_types (B, N), of which sequence b uses the first counts[b]."""
        size = slot_types.shape[1]
        self.width = max(self.lengths) + size
        self._reserve(self.width)
        # sequences of equal length write one slice; otherwise each its own slots, by index
        level = len(set(self.lengths)) == 1
        self.gapless = level and min(counts) == size
        if level:
            self._start = self.lengths[0]
            self.slots = None
            self.slot_types[:, self._start : self.width] = slot_types
        else:
            self._start = None
            starts = torch.tensor(self.lengths, device=slot_types.device)[:, None]
            self.slots = starts + torch.arange(size, device=slot_types.device)
            self.slot_types[self._index, self.slots] = slot_types
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def query_slots(self) -> torch.Tensor:
        """(B, N) slots of the feed in progress."""
        if self.slots is not None:
            return self.slots
        return torch.arange(self._start, self.width, device=self.slot_types.device).expand(len(self.slot_types), -1)

    def all_slot_types(self) -> torch.Tensor:
        """(B, S) types of the slots in view."""
        return self.slot_types[:, : self.width]

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes keys and values (B, H, N, D) of the feed in progress; returns all in view (B, H, S, D)."""
        all_keys, all_values = self.keys[layer], self.values[layer]
        if self._start is not None:
            all_keys[:, :, self._start : self.width] = keys
            all_values[:, :, self._start : self.width] = values
        else:
            all_keys[self._index, :, self.slots] = keys.transpose(1, 2)
            all_values[self._index, :, self.slots] = values.transpose(1, 2)
        return all_keys[:, :, : self.width], all_values[:, :, : self.width]

    def keep(self, running: Sequence[int]) -> None:
        """Drops all sequences but those of these numbers, so that finished ones cost nothing."""
        index = torch.tensor(running, device=self.slot_types.device)
        self.keys = [keys.index_select(0, index) for keys in self.keys]
        self.values = [values.index_select(0, index) for values in self.values]
        self.slot_types = self.slot_types.index_select(0, index)
        self.lengths = [self.lengths[number] for number in running]
        self._index = self._index[: len(running)]

    def _reserve(self, width: int) -> None:
        capacity = self.slot_types.shape[1]
        if width <= capacity:
            return
        extra = max(width, 2 * capacity) - capacity
        self.keys = [torch.nn.functional.pad(keys, (0, 0, 0, extra)) for keys in self.keys]
        self.values = [torch.nn.functional.pad(values, (0, 0, 0, extra)) for values in self.values]
        self.slot_types = torch.nn.functional.pad(self.slot_types, (0, extra))


class GradientCache:
    """The cache of unrolling: concatenated, so that nothing that autograd kept is overwritten.

    All sequences have as many slots, and one that feeds less than others has PAD slots.
    """

    def __init__(self, layers: int, sequences: int, device: torch.device) -> None:
        self.keys: list[torch.Tensor | None] = [None] * layers
        self.values: list[torch.Tensor | None] = [None] * layers
        self.slot_types = torch.zeros(sequences, 0, dtype=torch.long, device=device)
        self.lengths = [0] * sequences
        self.gapless = True
        """Whether there are no PAD slots."""
        self._start = 0

    def begin(self, slot_types: torch.Tensor, counts: Sequence[int]) -> None:
        """Appends a feed of slot_types (B, N), of which sequence b uses the first counts[b]."""
        self._start = self.slot_types.shape[1]
        self.slot_types = torch.cat([self.slot_types, slot_types], 1)
        self.lengths = [self.slot_types.shape[1]] * len(slot_types)
        self.gapless = self.gapless and min(counts) == slot_types.shape[1]

    def query_slots(self) -> torch.Tensor:
        """(B, N) slots of the feed in progress."""
        end = self.slot_types.shape[1]
        return torch.arange(self._start, end, device=self.slot_types.device).expand(len(self.slot_types), -1)

    def all_slot_types(self) -> torch.Tensor:
        """(B, S) types of all slots."""
        return self.slot_types

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends keys and values (B, H, N, D) of the feed in progress; returns all (B, H, S, D)."""
        if self._start > 0:
            keys = torch.cat([self.keys[layer], keys], 2)
            values = torch.cat([self.values[layer], values], 2)
        self.keys[layer], self.values[layer] = keys, values
        return keys, values
