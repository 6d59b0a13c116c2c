"""Work on uploaded pictures, done by workers: a path in, pixels out."""

import io
from dataclasses import dataclass

from PIL import Image

from latent_core import glyphs
from latent_core.model.fitting import Fit
from latent_core.model.images import load_image


@dataclass(frozen=True)
class Picture:
    """An uploaded picture that can be used."""

    format: str
    """Pillow's name of the file's format."""
    glyphs: bool
    """Whether it could be a Glyphs scene."""
    png: bytes | None = None
    """What it shows as a file, where browsers cannot show its own."""


def opened(path: str, max_pixels: int, fit: Fit | None) -> Image.Image:
    """The picture as a model sees it whose `fit` that is. Raises ValueError for one that cannot be used."""
    return load_image(path, max_pixels=max_pixels, fit=fit)


def looked_at(path: str, max_pixels: int, shown: tuple[str, ...]) -> Picture:
    """What the page needs to know of an uploaded picture, and it as a PNG where its format is not among `shown`.

    Raises ValueError for one that cannot be used.
    """
    image = load_image(path, max_pixels=max_pixels)
    assert image.format is not None
    return Picture(image.format, glyphs.looks_like(image), None if image.format in shown else _png(image))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
