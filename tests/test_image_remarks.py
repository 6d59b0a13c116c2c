"""load_image and what a file says beside its pixels: it may turn the picture, never keep it from being used."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from latent_core.model.images import MAX_PIXELS, ImageProblem, load_image
from tests.words import words_processor

ORIENTATION = 0x0112


def wide():
    """32 × 16 pixels, the left half red and the right half blue."""
    image = Image.new("RGB", (32, 16), (255, 0, 0))
    image.paste((0, 0, 255), (16, 0, 32, 16))
    return image


def file(format, exif=b"", **options):
    buffer = io.BytesIO()
    wide().save(buffer, format, exif=exif, **options)
    return buffer.getvalue()


def exif_saying(*entries, order="<"):
    """EXIF with one directory of (tag, type, count, value as 4 bytes)."""
    head = {"<": b"II*\0\x08\0\0\0", ">": b"MM\0*\0\0\0\x08"}[order]
    body = b"".join(struct.pack(f"{order}HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"Exif\0\0" + head + struct.pack(f"{order}H", len(entries)) + body + bytes(4)


TURNED = (ORIENTATION, 3, 1, b"\x06\0\0\0")  # 6: the camera was turned by 90°

UNREADABLE = {
    "zeros": b"Exif\0\0" + bytes(64),
    "nothing": b"Exif\0\0",
    "cut off in its header": b"Exif\0\0II*\0",
    "no TIFF": b"Exif\0\0" + bytes(range(1, 60)),
    "a directory far outside": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "a directory that is cut off": b"Exif\0\0II*\0\x08\0\0\0\x09\0",
    "orientation 0": exif_saying((ORIENTATION, 3, 1, bytes(4))),
    "orientation 9": exif_saying((ORIENTATION, 3, 1, b"\x09\0\0\0")),
    "orientation as text": exif_saying((ORIENTATION, 2, 4, b"six\0")),
    "orientation as a fraction that lies elsewhere": exif_saying((ORIENTATION, 5, 1, b"\xf0\xff\0\0")),
    "orientation of a type that does not exist": exif_saying((ORIENTATION, 99, 1, b"\x06\0\0\0")),
    "folders that point into the void": exif_saying((0x8769, 4, 1, b"\xff\xff\xff\xff"), (0x8825, 4, 1, b"\0\0\0\0")),
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", UNREADABLE.values(), ids=UNREADABLE)
def test_exif_that_cannot_be_read_says_nothing(format, exif):
    loaded = load_image(file(format, exif))
    assert loaded.size == (32, 16)
    assert np.abs(np.asarray(loaded)[8, 4].astype(int) - (255, 0, 0)).max() < 90  # WebP and JPEG lose some colour
    assert not loaded.info and not loaded.getexif()
    assert words_processor()([loaded], "What is it?").images  # what was accepted once is accepted everywhere
    assert words_processor()([Image.open(io.BytesIO(file(format, exif)))], "What is it?").images


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("order", "<>")
def test_exif_that_can_be_read_turns_the_picture_once(format, order):
    value = struct.pack(f"{order}H", 6) + bytes(2)
    loaded = load_image(file(format, exif_saying((ORIENTATION, 3, 1, value), order=order)))
    assert loaded.size == (16, 32) and load_image(loaded).size == (16, 32)
    assert np.asarray(loaded)[4, 8, 0] > 128 > np.asarray(loaded)[28, 8, 0]  # left has become top


def test_an_orientation_before_the_damage_counts():
    assert load_image(file("JPEG", exif_saying(TURNED, (0x8769, 4, 1, b"\xff\xff\xff\xff")))).size == (16, 32)
    assert load_image(file("JPEG", exif_saying(TURNED, (0x9999, 4, 9, b"\xff\xff\xff\x7f"))[:-4])).size == (16, 32)


def test_exif_of_an_avif_that_cannot_be_read_says_nothing():
    pytest.importorskip("PIL._avif")
    whole = file("AVIF", exif_saying((0x010F, 2, 4, b"Me!\0")))
    at = whole.index(b"II*\0\x08")
    assert load_image(whole[:at] + b"\xff" * 8 + whole[at + 8 :]).size == (32, 16)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(before=b"", after=b""):
    """A PNG with chunks of one's own before its pixels and after them."""
    data = file("PNG")
    return data[:33] + before + data[33:-12] + after + data[-12:]


TWO_MB = zlib.compress(bytes(2_000_000))
ONE_MB = zlib.compress(b"a" * 1_000_000)
REMARKS = {
    "zTXt": png(chunk(b"zTXt", b"k\0\0" + TWO_MB)),
    "zTXt after the pixels": png(after=chunk(b"zTXt", b"k\0\0" + TWO_MB)),
    "iTXt": png(chunk(b"iTXt", b"k\0\1\0\0\0" + TWO_MB)),
    "tEXt": png(chunk(b"tEXt", b"k\0" + b"x" * 2_000_000)),
    "text of 70 MB in all": png(b"".join(chunk(b"zTXt", b"%d\0\0" % n + ONE_MB) for n in range(70))),
    "a colour profile of 2 MB": png(chunk(b"iCCP", b"k\0\0" + TWO_MB)),
    "an empty colour profile": png(chunk(b"iCCP", b"")),
    "an unknown way to compress": png(chunk(b"zTXt", b"k\0\5abc")),
    "a wrong checksum": png(chunk(b"tEXt", b"k\0v")[:-4] + b"no!!"),
    "half a size of pixels": png(chunk(b"pHYs", b"\1")),
    "EXIF as text that is none": png(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nzzzz")),
    "EXIF as bytes that are none": png(chunk(b"eXIf", b"MM")),
}


@pytest.mark.parametrize("data", REMARKS.values(), ids=REMARKS)
def test_what_a_png_says_beside_its_pixels_is_ignored(data):
    assert np.array_equal(np.asarray(load_image(data)), np.asarray(wide()))


def test_a_png_with_too_much_text_is_still_turned():
    turned = chunk(b"eXIf", exif_saying(TURNED)[6:])
    assert load_image(png(turned + chunk(b"zTXt", b"k\0\0" + TWO_MB))).size == (16, 32)


def test_ignored_text_takes_no_more_memory_than_a_picture_may():
    bomb = png(b"".join(chunk(b"zTXt", b"%d\0\0" % n + ONE_MB) for n in range(400)))
    tracemalloc.start()
    load_image(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * MAX_PIXELS


@pytest.mark.parametrize(
    "entry", [b"\xff" * 40, b"\0" * 40, b"MM\0*\0\0\0\x08\0\1\xb0\1\0\4\0\0\0\1\0\0\0\3", b"II*\0\x08\0\0\0\xff\xff"]
)
def test_a_damaged_list_of_further_pictures_leaves_the_first(entry):
    body = b"MPF\0" + entry
    data = file("JPEG")
    data = data[:2] + b"\xff\xe2" + struct.pack(">H", len(body) + 2) + body + data[2:]
    assert load_image(data).size == (32, 16)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_pixels_that_are_cut_off_stay_damaged_whatever_the_file_says(format):
    buffer, noise = io.BytesIO(), Image.effect_noise((64, 64), 90)
    noise.save(buffer, format, exif=UNREADABLE["zeros"])
    with pytest.raises(ImageProblem, match="damaged"):
        load_image(buffer.getvalue()[: len(buffer.getvalue()) // 2])
