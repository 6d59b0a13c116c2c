"""The size at which a model sees an image: whole merged tokens within the pixel limits of its image processor."""

import math
from dataclasses import dataclass

from PIL import Image

FITTED = "fitted"
"""Key of an image's `info` that says what it was fitted by, and to which size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """Qwen2-VL's resizing. An image that it has fitted once is left alone by the same one: fitting twice is not the
    same as fitting once where a size lies between the limits' whole tokens.

    Small, hashable and picklable, so that images can be fitted in the process that decodes them.
    """

    side: int
    """Pixels per side of a merged token."""
    min_pixels: int
    max_pixels: int
    resample: int
    """Pillow's filter, 0 to 5."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """The RGB image at the size at which the model sees it, and marked as such."""
        if self.has_fitted(image):
            return image
        size = self.size(image.width, image.height)
        fitted = image.copy() if size == image.size else image.resize(size, self.resample)
        fitted.info = {FITTED: (self, fitted.size)}
        return fitted

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of an image of that size, both multiples of `side`, as transformers' `smart_resize` says.

        Here once more, for the processes that decode images wait for no import of transformers.
        """
        sides = width, height
        fitted = [round(pixels / self.side) for pixels in sides]
        if math.prod(fitted) * self.side**2 > self.max_pixels:
            shrink = math.sqrt(width * height / self.max_pixels)
            fitted = [max(1, math.floor(pixels / shrink / self.side)) for pixels in sides]
        elif math.prod(fitted) * self.side**2 < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (width * height))
            fitted = [math.ceil(pixels * grow / self.side) for pixels in sides]
        return fitted[0] * self.side, fitted[1] * self.side

    def has_fitted(self, image: Image.Image) -> bool:
        """Whether this is an image as `__call__` gave it, or its copy."""
        return image.mode == "RGB" and image.info.get(FITTED) == (self, image.size)
