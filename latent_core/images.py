"""Any image file that a person may offer → an upright, opaque, 8-bit RGB image, or a sentence that says why not.

The size is read from the header and checked before a pixel is decoded, so that a small file cannot claim gigabytes.
"""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64_000_000
"""Width × height that may be decoded: above the cameras of today, 192 MB as RGB."""

MAX_ASPECT = 200
"""Longer side over shorter side; Qwen2-VL's resizing refuses more."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Formats that are opened. The rest of Pillow's (EPS, which runs Ghostscript, among them) are not."""

DECODING_ERRORS = (OSError, SyntaxError, ValueError, TypeError, IndexError, EOFError, struct.error, zlib.error)
"""What Pillow's readers raise on damaged files."""

Ground = tuple[int, int, int]


class ImageProblem(ValueError):
    """An image that cannot be used; the message is for the person who offered it."""


def load_image(
    source: str | os.PathLike[str] | bytes | Image.Image,
    *,
    max_pixels: int = MAX_PIXELS,
    ground: Ground = (255, 255, 255),
) -> Image.Image:
    """An upright RGB image of `source`: a path, the bytes of a file, or a Pillow image of any mode.

    Transparent parts show `ground`; an animation gives its first frame; 16-bit values keep their high bits.
    Raises ImageProblem for a file that is missing, empty, no image, damaged, above `max_pixels` or longer than
    200 times its width.
    """
    if isinstance(source, Image.Image):
        name, image = "The image", source
    else:
        name, image = _open(source)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageProblem(
            f"{name} has {width:,} × {height:,} pixels; at most {max_pixels / 1e6:g} million are accepted. "
            "Scale it down or crop it."
        )
    if min(width, height) == 0 or max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageProblem(
            f"{name} has {width} × {height} pixels; one side may be at most {MAX_ASPECT} times the other. Crop it."
        )
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
        return _to_rgb(upright, ground)
    except DECODING_ERRORS as error:
        raise ImageProblem(f"{name} is damaged ({error}). Save it again as PNG or JPEG.") from error


def _open(source: str | os.PathLike[str] | bytes) -> tuple[str, Image.Image]:
    """A name for messages and the opened, not yet decoded image."""
    if isinstance(source, bytes):
        name, data = "The image", source
    else:
        path = Path(source)
        name = path.name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ImageProblem(f"{name} cannot be read: {error.strerror}.") from error
    if not data:
        raise ImageProblem(f"{name} is empty (0 bytes).")
    Image.init()
    formats = [format for format in FORMATS if format in Image.OPEN]
    try:
        return name, Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        raise ImageProblem(f"{name} is not an image that can be read here; use {', '.join(formats)}.") from error
    except Image.DecompressionBombError as error:
        raise ImageProblem(
            f"{name} has more than {MAX_PIXELS / 1e6:g} million pixels. Scale it down or crop it."
        ) from error
    except DECODING_ERRORS as error:
        raise ImageProblem(f"{name} is damaged ({error}). Save it again as PNG or JPEG.") from error


def _to_rgb(image: Image.Image, ground: Ground) -> Image.Image:
    """Every Pillow mode → RGB. Pillow itself clips the deep greyscale modes (I;16, I, F) and drops alpha."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image.copy()
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    canvas = Image.new("RGBA", rgba.size, (*ground, 255))
    return Image.alpha_composite(canvas, rgba).convert("RGB")


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Deep grey values (H, W) → uint8, taking full scale as 1 for floats up to 1, else the 8, 16 or 32 bits in use."""
    finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)
    peak = finite.max(initial=0)
    if values.dtype == np.uint16:
        scale = 65535
    else:
        unit = 1 if np.issubdtype(values.dtype, np.floating) else 255
        scale = next((full for full in (unit, 255, 65535) if peak <= full), peak)
    return np.round(finite * (255 / scale)).astype(np.uint8)
