"""The size at which a model sees an image: whole merged tokens within the pixel limits of its image processor."""

from dataclasses import dataclass

from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

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
        height, width = smart_resize(
            image.height, image.width, factor=self.side, min_pixels=self.min_pixels, max_pixels=self.max_pixels
        )
        fitted = image.copy() if (width, height) == image.size else image.resize((width, height), self.resample)
        fitted.info = {FITTED: (self, fitted.size)}
        return fitted

    def has_fitted(self, image: Image.Image) -> bool:
        """Whether this is an image as `__call__` gave it, or its copy."""
        return image.mode == "RGB" and image.info.get(FITTED) == (self, image.size)
