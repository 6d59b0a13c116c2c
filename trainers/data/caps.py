"""Caps on the size of a row's images, in tokens of the language model (28 × 28 pixels of Qwen2.5-VL)."""

import math
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from latent_core.example import Example, LatentStep

Size = tuple[int, int]
"""Width and height in pixels."""


def cap_images(sizes: Sequence[Size], total: int, each: int, *, side: int = 28) -> list[Size] | None:
    """New sizes for a row's images, question's and auxiliary ones together; None where nothing has to change.

    If all images together have more than `total` tokens of side × side pixels, all are scaled by the same factor to
    that many, then those with more than `each` tokens to that. Sides are rounded down to multiples of `side`, one at
    least. As Monet's released training: an image of more than `each` tokens stays if the row keeps within `total`.

    Raises ValueError where a cap is not positive.
    """
    if total < 1 or each < 1:
        raise ValueError(f"The caps are {total} tokens a row and {each} an image; both must be at least 1.")
    tokens = sum(width * height for width, height in sizes) / side**2
    if tokens <= total:
        return None
    return [_fit(_fit_by(size, math.sqrt(total / tokens), side), each, side) for size in sizes]


def shrink(example: Example, total: int, each: int, *, side: int) -> Example:
    """The example with its images capped as `cap_images` says; itself where nothing has to change."""
    images = [*example.images, *(step.image for step in example.steps if step.image is not None)]
    sizes = cap_images([image.size for image in images], total, each, side=side)
    if sizes is None:
        return example
    scaled = (image.resize(size, Image.Resampling.BICUBIC) for image, size in zip(images, sizes, strict=True))
    shown = tuple(next(scaled) for _ in example.images)
    steps = tuple(step if step.image is None else replace(step, image=next(scaled)) for step in example.steps)
    if example.parts is None:
        return replace(example, images=shown, steps=steps)
    rest = iter(steps)
    parts = tuple(LatentStep(next(rest)) if isinstance(part, LatentStep) else part for part in example.parts)
    return replace(example, images=shown, steps=steps, parts=parts)


def _fit(size: Size, tokens: int, side: int) -> Size:
    have = size[0] * size[1] / side**2
    return size if have <= tokens else _fit_by(size, math.sqrt(tokens / have), side)


def _fit_by(size: Size, factor: float, side: int) -> Size:
    width, height = (max(1, int(length * factor) // side) * side for length in size)
    return width, height
