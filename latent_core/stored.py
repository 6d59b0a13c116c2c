"""Checked reading of a trace file's header, whole numbers and tensors, for anybody may have written the file."""

from collections.abc import Mapping
from pathlib import Path

import torch

from latent_core.settings import short

MAX_DIGITS = 20
"""Of a whole number in a trace's JSON: 64 bits."""
MOST_NAMED = 3
"""Tensors that a sentence names at most."""


class Tensors:
    """The tensors of a file; remembers which were asked for, and converts each once."""

    def __init__(self, stored: Mapping[str, torch.Tensor]) -> None:
        self._stored, self._used, self._rows = dict(stored), set(), set()

    def take(self, name: str, dims: int, dtype: torch.dtype) -> torch.Tensor:
        """The tensor of this name, which must have so many dimensions of this kind."""
        if name not in self._stored:
            raise ValueError(f"the tensor {name} is missing.")
        self._used.add(name)
        tensor = self._stored[name]
        if dtype.is_floating_point and tensor.is_floating_point():
            tensor = self._stored[name] = tensor.to(dtype)
        if tensor.dim() != dims or tensor.dtype != dtype:
            shape = tuple(tensor.shape)
            raise ValueError(f"the tensor {name} is {tensor.dtype} {shape}; {dims} dimensions of {dtype} are needed.")
        return tensor

    def row(self, name: str, index: object) -> torch.Tensor:
        """Row `index` of a stack of vectors, which are as wide as the image states. No two steps have the same."""
        stack = self.take(name, 2, torch.float32)
        if type(index) is not int or not 0 <= index < len(stack):
            raise ValueError(f"row {short(index)} of the tensor {name} is asked for; it has {len(stack)}.")
        if (name, index) in self._rows:  # a small file would stand for a large run
            raise ValueError(f"row {index} of the tensor {name} belongs to two steps.")
        self._rows.add((name, index))
        width = self.take("image_states", 3, torch.float32).shape[-1]
        if stack.shape[1] != width:
            raise ValueError(f"the tensor {name} is {stack.shape[1]} wide, the image states {width}.")
        return stack[index]

    def check_all_used(self) -> None:
        """Raises ValueError for tensors that nobody asked for."""
        unused = sorted(self._stored.keys() - self._used)
        if unused:
            rest = f" and {len(unused) - MOST_NAMED:,} more" if len(unused) > MOST_NAMED else ""
            named = ", ".join(name[:80] for name in unused[:MOST_NAMED])
            raise ValueError(f"it holds tensors that belong to no event: {named}{rest}.")


def check_header(path: Path, most: int) -> None:
    """Raises ValueError for a file that has more than `most` bytes before its tensors."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > most:
        raise ValueError(f"what it says beside its tensors takes {size:,} bytes; a run takes at most {most:,}.")


def whole(digits: str) -> int:
    """A whole number in JSON. Raises ValueError for one of more than `MAX_DIGITS`, which Python may not write."""
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"it holds a whole number of {len(digits):,} digits, {digits[:MAX_DIGITS]}…; no run does.")
    return int(digits)
