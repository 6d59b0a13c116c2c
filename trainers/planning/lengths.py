"""Lengths of a row of data, without a model: tokens of its texts and images, as a stage puts them together."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from PIL import Image

from latent_core.example import Example, TextSpan
from latent_core.model.fitting import Fit
from trainers.data.segments import segments

Grid = tuple[int, int]
"""Rows and columns of an image's tokens."""


@dataclass(frozen=True, slots=True)
class Length:
    """Tokens of a row, and forwards that it takes."""

    student: int
    """All of the student's sequence."""
    learned: int
    """Its response."""
    aligned: int = 0
    """Those whose states are compared with the teacher's."""
    teacher: int = 0
    """All of the teacher's sequence; 0 without one."""
    forwards: int = 0
    """Forwards that feed latents back, one after the other, or sample a response; 0 without."""


@dataclass(frozen=True, slots=True)
class ImageSizes:
    """An image processor's geometry."""

    side: int
    """Pixels of a token's side."""
    low: int
    """Least pixels of a question's image; smaller ones are enlarged."""
    high: int
    """Most pixels of any image."""

    def grid(self, image: Image.Image) -> Grid:
        """That of a question's image."""
        return self._grid(image.size, self.low)

    def auxiliary(self, image: Image.Image, most: int = 0) -> int:
        """Tokens of an image in a response; most: a longer side is brought to so many tokens first, 0 for none."""
        size = image.size
        if most:
            factor = min(1, most * self.side / max(size))
            size = tuple(max(self.side, round(edge * factor)) for edge in size)
        return prod(self._grid(size, 4 * self.side**2))

    def _grid(self, size: tuple[int, int], low: int) -> Grid:
        width, height = Fit(side=self.side, min_pixels=low, max_pixels=self.high, resample=0).size(*size)
        return height // self.side, width // self.side


@dataclass(frozen=True, slots=True)
class RowSizes:
    """An example as a stage finds it, its texts and images counted; `length` and `blocks` put them together."""

    example: Example
    """With images as large as the student sees them."""
    teacher: Example | None
    """With images as large as the teacher sees them; None where there is no teacher."""
    prompt: int
    """Tokens of system prompt, question and chat template, images aside."""
    text: dict[str, int]
    """Role (text, observation, answer) → tokens of the response."""
    images: ImageSizes

    def grids(self) -> list[Grid]:
        """Those of the question's images."""
        return [self.images.grid(image) for image in self.example.images]

    def auxiliary(self, most: int = 0) -> list[int]:
        """Tokens of every auxiliary image of the response, see ImageSizes."""
        return [self.images.auxiliary(s.image, most) for s in self.example.steps if s.image is not None]

    def blocks(self, latents: int) -> dict[str, int]:
        """`latents` and `forwards` of a row whose every step is a block of so many latents, fed one by one."""
        count = len(self.example.steps)
        return {"latents": count * (latents + 2), "forwards": count * (latents + 1) + 1 if count else 0}

    def length(
        self, *, latents: int = 0, forwards: int = 0, aligned: int = 0, shown: bool = False, most: int = 0
    ) -> Length:
        """Prompt, images and text, and what comes to them.

        latents: slots of all blocks, opening and closing tokens included. shown: whether the student is shown the
        auxiliary images; the teacher always is. most: see `auxiliary`.
        """
        response = sum(self.text.values()) + 1  # the end of turn

        def count(example: Example, auxiliary: bool) -> int:
            steps = example.steps if auxiliary else ()
            inserted = [self.images.auxiliary(step.image, most) for step in steps if step.image is not None]
            images = sum(prod(self.images.grid(image)) for image in example.images)
            return self.prompt + response + images + sum(size + 2 for size in inserted)  # two markers around each

        return Length(
            student=count(self.example, shown) + latents,
            learned=response,
            aligned=aligned,
            teacher=0 if self.teacher is None else count(self.teacher, True),
            forwards=forwards,
        )


def text_by_role(example: Example, tokens: Callable[[str], int]) -> dict[str, int]:
    """Role → tokens of an example's response."""
    counts = {"text": 0, "observation": 0, "answer": 0}
    for part in segments(example):
        if isinstance(part, TextSpan):
            counts[part.role] += tokens(part.text)
    return counts
