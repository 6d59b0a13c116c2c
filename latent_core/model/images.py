"""The loader of images: any file that a person may offer → an upright, opaque, 8-bit RGB image, or a sentence why not.

The size is read from the header and checked before a pixel is decoded, so that a small file cannot claim gigabytes;
image_files.py says what else a file may not claim. What it says beside its pixels (EXIF, text, profiles) turns the
picture upright where it can be read, is never a reason to refuse the picture, and is not handed on.
"""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from latent_core.model.image_files import ImageFile, ImageProblem, damaged, orientation, read_image_file

__all__ = ["FORMATS", "MAX_ASPECT", "MAX_BYTES", "MAX_PIXELS", "ImageProblem", "load_image"]

MAX_PIXELS = 64_000_000
"""Width × height that may be decoded: above the cameras of today, 192 MB as RGB."""

MAX_BYTES = 1_000_000_000
"""Memory that decoding may take: what MAX_PIXELS need in every format and mode but WebP and AVIF, which get to 50
million of them."""

MAX_ASPECT = 200
"""Longer side over shorter side; Qwen2-VL's resizing refuses more."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Formats that are opened. The rest of Pillow's (EPS, which runs Ghostscript, among them) are not."""

DECODING_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, AttributeError, AssertionError),
    *(LookupError, ArithmeticError, RuntimeError, EOFError, struct.error, zlib.error),
)
"""What Pillow's readers raise on damaged files."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # sizes are checked here

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation → what turns the picture upright. 1 is upright; others do not exist."""

STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
"""Bytes of a pixel in Pillow's memory by its mode; 4 in all others."""
DECODER = {"WEBP": 12, "AVIF": 12, "BMP": 2}
"""Bytes of a pixel that a format's decoder holds beside them, measured."""
STRIP = 1 << 18
"""Pixels of the strips in which an image is converted, so that copies on the way cost little."""

Ground = tuple[int, int, int]


def load_image(
    source: str | os.PathLike[str] | bytes | Image.Image,
    *,
    max_pixels: int = MAX_PIXELS,
    ground: Ground = (255, 255, 255),
    fit: Callable[[Image.Image], Image.Image] | None = None,
) -> Image.Image:
    """An upright RGB image of `source`: a path, the bytes of a file, or a Pillow image of any mode.

    Transparent parts show `ground`; an animation gives its first frame; 16-bit values keep their high bits. `format`
    of the result is the file's. `fit`, a checkpoint's (fitting.py), makes of it what its model sees of the whole,
    which is less to keep and to send to another process.
    Raises ImageProblem for a file that is missing, empty, no image, damaged, above `max_pixels`, longer than 200 times
    its width, or would take above MAX_BYTES or too much time to decode.
    """
    if isinstance(source, Image.Image):
        name, file, image = "The image", None, source
    else:
        name, data = _read(source)
        file = read_image_file(name, data)
        del data
        if file.size:
            _check_size(name, file.size, max_pixels)
        image = _opened(name, file.data)
    _check_size(name, image.size, max_pixels)
    if file:
        _check_bytes(name, image, file)
    try:
        format = image.format
        image.load()
        turn = TURNS.get(file.orientation or _file_orientation(image) if file else _pillow_orientation(image))
        if turn is not None:
            image = image.transpose(turn)
        image = _to_rgb(image, ground)
        if fit:
            image = fit(image)
        elif type(image) is not Image.Image or image is source:  # neither a file's reader nor what was given
            image = image.copy()
    except DECODING_ERRORS as error:
        raise damaged(name, _reason(error)) from error
    except MemoryError as error:
        raise _too_large(name) from error
    if not fit:
        image.info.clear()
    image.format = format  # as Pillow's own readers say it
    return image


def _check_size(name: str, size: tuple[int, int], max_pixels: int) -> None:
    """Raises ImageProblem for too many pixels, and for a shape that no model takes."""
    width, height = size
    if width * height > max_pixels:
        raise ImageProblem(
            f"{name} has {width:,} × {height:,} pixels; at most {max_pixels / 1e6:g} million are accepted. "
            "Scale it down or crop it."
        )
    if min(width, height) <= 0 or max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageProblem(
            f"{name} has {width} × {height} pixels; one side may be at most {MAX_ASPECT} times the other. Crop it."
        )


def _check_bytes(name: str, image: Image.Image, file: ImageFile) -> None:
    """Raises ImageProblem for an image whose decoding would take more memory than it may."""
    width, height = image.size
    pixel = STORED.get(image.mode, 4) + DECODER.get(image.format or "", 0) + 4  # turned, or as RGB
    needed = width * height * pixel + file.working
    if needed > MAX_BYTES:
        raise ImageProblem(
            f"{name} has {width:,} × {height:,} pixels, and decoding them takes {needed / 1e6:,.0f} MB as "
            f"{image.format} of the mode {image.mode}; at most {MAX_BYTES / 1e6:,.0f} MB are spent on an image. "
            "Scale it down, crop it, or save it as a JPEG of 8 bits."
        )


def _read(source: str | os.PathLike[str] | bytes) -> tuple[str, bytes]:
    """A name for messages and the bytes of the file."""
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
    return name, data


def _opened(name: str, data: bytes) -> Image.Image:
    """The opened, not yet decoded image."""
    Image.init()
    formats = [format for format in FORMATS if format in Image.OPEN]
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        matching = [format for format in formats if Image.OPEN[format][1](data[:16]) is True]
        if matching and data[8:12] not in (b"mif1", b"msf1"):  # HEIF's, of which AVIF is one of many kinds
            raise damaged(name, f"it begins as {matching[0]}, but what follows is none") from error
        raise ImageProblem(f"{name} is not an image that can be read here; use {', '.join(formats)}.") from error
    except Image.DecompressionBombError as error:
        raise ImageProblem(
            f"{name} has more than {MAX_PIXELS / 1e6:g} million pixels. Scale it down or crop it."
        ) from error
    except DECODING_ERRORS as error:
        raise damaged(name, _reason(error)) from error
    except MemoryError as error:
        raise _too_large(name) from error


def _too_large(name: str) -> ImageProblem:
    return ImageProblem(f"{name} takes more memory than there is. Scale it down or crop it.")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _file_orientation(image: Image.Image) -> int | None:
    """The orientation of an opened file, from what its format keeps in pieces of its own."""
    exif, xmp = image.info.get("exif", b""), image.info.get("xmp", b"")
    return orientation(exif, xmp if isinstance(xmp, bytes) else b"")


def _pillow_orientation(image: Image.Image) -> object:
    """The orientation of a Pillow image; one that cannot be read says nothing."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except DECODING_ERRORS:
        return None


def _to_rgb(image: Image.Image, ground: Ground) -> Image.Image:
    """Every Pillow mode → RGB. Pillow itself clips the deep greyscale modes (I;16, I, F) and drops alpha."""
    deep = image.mode.startswith(("I", "F"))
    if not deep and not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgb = Image.new("RGB", image.size)
    scale = _full_scale(image) if deep else None
    for top, strip in _strips(image):
        if scale is not None:
            strip = Image.fromarray(_to_8_bit(np.asarray(strip), scale))
        else:
            rgba = (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", rgba.size, (*ground, 255)), rgba)
        rgb.paste(strip.convert("RGB"), (0, top))
    return rgb


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Each strip of rows with the number of its first."""
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)


def _full_scale(image: Image.Image) -> float:
    """White of a deep image: 1 for floats up to 1, else the largest number of the 8, 16 or 32 bits in use."""
    if image.mode.startswith("I;16"):
        return 65535
    peak = max(_finite(np.asarray(strip)).max(initial=0) for _, strip in _strips(image))
    return next((full for full in (1 if image.mode == "F" else 255, 255, 65535) if peak <= full), peak)


def _to_8_bit(values: np.ndarray, scale: float) -> np.ndarray:
    """Deep grey values (H, W) → uint8, white at `scale`."""
    return np.round(_finite(values) * (255 / scale)).astype(np.uint8)
