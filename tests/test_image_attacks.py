"""load_image against files that are small and cost much: refused in a sentence, or read at the price of their pixels.

Each of them took gigabytes, or more than ten seconds, of Pillow alone.
"""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latent_core.model import images
from latent_core.model.images import ImageProblem, load_image
from tests.hostile import deep_png, slow_jpeg, written


def picture(side=40):
    return Image.linear_gradient("L").resize((side, side)).convert("RGB")


def refused(data, *words):
    with pytest.raises(ImageProblem) as caught:
        load_image(data)
    assert all(word in str(caught.value) for word in words) and str(caught.value).endswith("."), str(caught.value)


def tiff(tags, before=b""):
    """A little-endian TIFF of one directory, which lies after `before`; that begins at 8."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<I", 8 + len(before)) + before + struct.pack("<H", len(tags)) + entries + bytes(4)


def grey(width, height, packed=1):
    """Tags of a grey picture of 8 bits."""
    numbers = {256: width, 257: height, 258: 8, 259: packed, 262: 1, 277: 1}
    return [(tag, 4 if tag < 258 else 3, 1, value) for tag, value in numbers.items()]


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded():
    refused(slow_jpeg(), "25 million pixels", "baseline", "PNG")
    refused(slow_jpeg(101, 64), "101 or more scans", "at most 100")
    assert load_image(slow_jpeg(14, 64)).size == (64, 64)  # what programs write


def test_scans_of_a_jpeg_inside_a_tiff_count_as_well():
    body = slow_jpeg(101, 64)
    refused(tiff([*grey(64, 64, 7), (273, 4, 1, 8), (278, 4, 1, 64), (279, 4, 1, len(body))], body), "101 or more")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of one process is read as on Linux")
def test_16_bits_of_25_million_pixels_take_little_more_than_their_pixels(tmp_path):
    wide, wider = (struct.pack(">II", side, side) for side in (20, 9500))
    (tmp_path / "deep.png").write_bytes(deep_png())
    (tmp_path / "wide.png").write_bytes(deep_png(20).replace(wide, wider))
    script = """
import sys
from latent_core.model.images import ImageProblem, load_image
load_image(sys.argv[1] + "/deep.png")
try: load_image(sys.argv[1] + "/wide.png")
except ImageProblem: print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 280_000 and not done.stderr  # kB, 10 B a pixel and Python; no warning of a bomb


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_memory_is_reckoned_from_the_header(format, monkeypatch):
    data = written(picture(), format)
    monkeypatch.setattr(images, "MAX_BYTES", 40 * 40 * 8 - 1)
    refused(data, "40 × 40", "MB", format, "Scale it down")


def test_comments_of_a_gif_in_a_million_pieces_are_passed_over():
    data = written(picture().quantize(8), "GIF")
    at = 13 + 3 * 8
    comments = b"\x21\xfe" + b"\x01a" * 1_000_000 + b"\0"
    assert np.array_equal(load_image(data[:at] + comments + data[at:]), load_image(data))


def test_a_directory_of_further_pictures_that_repeats_itself_is_passed_over():
    entries = b"".join(struct.pack("<HHII", tag, 3, 30_000, 0) for tag in range(1, 5400))
    body = b"MPF\0II*\0\x08\0\0\0" + struct.pack("<H", 5399) + entries
    data = written(picture(), "JPEG")
    further = data[:2] + b"\xff\xe2" + struct.pack(">H", 2 + len(body)) + body + data[2:]
    assert np.array_equal(load_image(further), load_image(data))


def test_tags_of_a_tiff_that_all_mean_the_same_bytes_are_passed_over():
    pixels = bytes(range(100)) * 20_000
    strip = [(273, 4, 1, 8), (278, 4, 1, 10), (279, 4, 1, 100)]
    data = tiff([*grey(10, 10), *strip, *((tag, 7, len(pixels), 8) for tag in range(40_000, 44_000))], pixels)
    assert np.asarray(load_image(data))[..., 0].ravel().tolist() == list(range(100))
    refused(tiff([*grey(10, 10), *strip, (320, 3, 900_000, 8), (347, 7, 1_900_000, 8)], pixels), "damaged", "tags")


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ([(273, 4, 100_000, 8), (278, 4, 1, 99), (279, 4, 1, 10_000)], ["100,000 strips", "needs 2"]),
        ([(322, 4, 1, 30_000), (323, 4, 1, 30_000), (324, 4, 1, 8), (325, 4, 1, 9)], ["30,000 × 30,000"]),
        ([(273, 4, 100, 8), (278, 4, 1, 1), (279, 4, 100, 400)], ["stand for more"]),
        ([(273, 4, 1, 8), (278, 11, 1, 8), (279, 4, 1, 9)], ["tag 278", "not a whole number"]),
        ([(273, 4, 2**31, 8), (279, 4, 1, 9)], ["damaged"]),
    ],
    ids=["strips again and again", "tiles larger than the picture", "one strip for all", "rows as a fraction", "far"],
)
def test_parts_of_a_tiff_make_one_picture_once(tags, words):
    refused(tiff([*grey(100, 100, 8), *tags], struct.pack("<I", 200_000) * 100_000), *words)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_what_is_cut_off_anywhere_is_an_image_or_a_sentence(format):
    if format == "AVIF":
        pytest.importorskip("PIL._avif")
    data = written(picture(), format)
    for cut in range(1, len(data), max(1, len(data) // 40)):
        try:
            load_image(data[:cut])
        except ImageProblem as problem:
            assert str(problem).endswith("."), cut
    refused(data[: len(data) // 2], "damaged", "Save it again")


def test_a_png_keeps_its_picture_whatever_it_is_cut_into():
    data = written(picture(), "PNG")
    length = struct.unpack_from(">I", data, 33)[0]
    pixels = data[41 : 41 + length]
    pieces = b"".join(struct.pack(">I", 1) + b"IDAT" + bytes([byte]) + bytes(4) for byte in pixels)
    empty = (bytes(4) + b"IDAT" + bytes(4)) * 1000
    assert np.array_equal(load_image(data[:33] + empty + pieces + data[-12:]), picture())


@pytest.mark.parametrize("said", ["tEXt", "zTXt", "iTXt"])
def test_an_orientation_inside_a_text_of_a_png_counts(said):
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes()
    raw = b"\nexif\n%8d\n%s\n" % (len(block), block.hex().encode())
    body = {
        "tEXt": b"Raw profile type exif\0" + raw,
        "zTXt": b"Raw profile type exif\0\0" + zlib.compress(raw),
        "iTXt": b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x tiff:Orientation="6"/>',
    }[said]
    buffer = io.BytesIO()
    Image.new("RGB", (4, 2)).save(buffer, "PNG")
    data = buffer.getvalue()
    text = struct.pack(">I", len(body)) + said.encode() + body + struct.pack(">I", zlib.crc32(said.encode() + body))
    assert load_image(data[:33] + text + data[33:]).size == (2, 4)
