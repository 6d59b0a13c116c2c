"""Any image file that a person may offer → an upright, opaque, 8-bit RGB image, or a sentence that says why not.

The size is read from the header and checked before a pixel is decoded, so that a small file cannot claim gigabytes.
What a file says beside its pixels (EXIF, text, profiles) turns the picture upright where it can be read, is never a
reason to refuse the picture, and is not handed on.
"""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

MAX_PIXELS = 64_000_000
"""Width × height that may be decoded: above the cameras of today, 192 MB as RGB."""

MAX_ASPECT = 200
"""Longer side over shorter side; Qwen2-VL's resizing refuses more."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Formats that are opened. The rest of Pillow's (EPS, which runs Ghostscript, among them) are not."""

DECODING_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, AttributeError, AssertionError),
    *(LookupError, ArithmeticError, RuntimeError, EOFError, struct.error, zlib.error),
)
"""What Pillow's readers raise on damaged files."""

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

PNG_PARTS = (b"IHDR", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"IDAT", b"fdAT", b"eXIf", b"IEND")
"""Chunks of a PNG that make the picture."""
JPEG_REMARKS = (*range(0xE2, 0xEE), 0xEF, 0xFE)
"""Markers of a JPEG's segments that do not: APP2 to APP13, APP15, comments. APP0, APP1 and APP14 hold the orientation
and what the colours mean."""

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

    Transparent parts show `ground`; an animation gives its first frame; 16-bit values keep their high bits. `format`
    of the result is the file's.
    Raises ImageProblem for a file that is missing, empty, no image, damaged, above `max_pixels` or longer than
    200 times its width.
    """
    if isinstance(source, Image.Image):
        return _decoded("The image", source, max_pixels, ground)
    name, data = _read(source)
    try:
        return _decoded(name, _opened(name, data), max_pixels, ground)
    except ImageProblem:
        bare = _bare(data)
        if bare == data:
            raise
    return _decoded(name, _opened(name, bare), max_pixels, ground)


def _decoded(name: str, image: Image.Image, max_pixels: int, ground: Ground) -> Image.Image:
    """The pixels of an opened image, after its size is checked."""
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
        rgb = _to_rgb(_upright(image), ground)
    except DECODING_ERRORS as error:
        raise _damaged(name, error) from error
    rgb.info.clear()
    rgb.format = image.format  # as Pillow's own readers say it
    return rgb


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
        raise ImageProblem(f"{name} is not an image that can be read here; use {', '.join(formats)}.") from error
    except Image.DecompressionBombError as error:
        raise ImageProblem(
            f"{name} has more than {MAX_PIXELS / 1e6:g} million pixels. Scale it down or crop it."
        ) from error
    except DECODING_ERRORS as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> ImageProblem:
    return ImageProblem(f"{name} is damaged ({str(error) or type(error).__name__}). Save it again as PNG or JPEG.")


def _bare(data: bytes) -> bytes:
    """The file without what it says beside its pixels, as far as that can keep a reader from them.

    The orientation of a PNG or JPEG stays, for it can do no harm; so does that of an AVIF, apart from its EXIF.
    """
    kept = []
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        at = 8
        while at + 12 <= len(data):
            length, kind = struct.unpack_from(">I4s", data, at)
            if kind in PNG_PARTS:
                kept.append(data[at : at + 12 + length])
            at += 12 + length
        return data[:8] + b"".join(kept)
    if data.startswith(b"\xff\xd8"):
        at = 2
        while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:  # the pixels begin
            length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            if data[at + 1] not in JPEG_REMARKS:
                kept.append(data[at : at + length])
            at += length
        return data[:2] + b"".join(kept) + data[at:]
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return data.replace(b"Exif", b"skip")  # the item's type: of one that is not known nothing is read
    return data


def _upright(image: Image.Image) -> Image.Image:
    """The image as its orientation says that it is to be held; one that cannot be read says nothing."""
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except DECODING_ERRORS:
        return image
    return image if turn is None else image.transpose(turn)


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
