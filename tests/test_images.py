"""load_image: every kind of file that a person may offer, built here, checked by pixel values or by its sentence."""

import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from latent_core.model.images import MAX_PIXELS, ImageProblem, load_image
from tests.words import words_processor

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def colours():
    """4 × 2 pixels, every one different."""
    values = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    return Image.fromarray(values)


def saved(image, path, **options):
    image.save(path, **options)
    return path


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image)


def black_png(width, height, rows=0):
    """A 1-bit PNG that claims a size and has `rows` rows of pixels, built without holding them."""

    def chunk(body):
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer, row = zlib.compressobj(1), bytes(1 + (width + 7) // 8 if rows else 0)
    pixels = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(header) + chunk(b"IDAT" + pixels) + chunk(b"IEND")


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tiff"])
def test_path_bytes_and_pillow_agree(tmp_path, suffix):
    path = saved(colours(), tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    expected = np.asarray(colours())
    for source in (path, str(path), path.read_bytes(), Image.open(path)):
        assert np.array_equal(pixels(load_image(source)), expected)


def test_the_given_image_is_not_touched():
    image = colours()
    load_image(image).putpixel((0, 0), RED)
    assert np.array_equal(np.asarray(image), np.asarray(colours()))


def test_cmyk_jpeg(tmp_path):
    path = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=100)
    assert np.abs(pixels(load_image(path)).astype(int) - RED).max() <= 2


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_keeps_its_high_bits(tmp_path, suffix):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    path = saved(Image.fromarray(values), tmp_path / f"a.{suffix}")
    assert pixels(load_image(path))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 32896, 65535]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[-5, 100, np.nan, 255]], np.float32), [0, 100, 0, 255]),
    ],
)
def test_deep_grey(tmp_path, values, expected):
    path = saved(Image.fromarray(values), tmp_path / "a.tiff")
    assert pixels(load_image(path))[0, :, 0].tolist() == expected


def test_alpha_lies_on_the_ground(tmp_path):
    image = Image.new("RGBA", (3, 1), (*RED, 255))
    image.putpixel((1, 0), (*BLUE, 0))
    image.putpixel((2, 0), (0, 0, 0, 128))
    path = saved(image, tmp_path / "a.png")
    assert pixels(load_image(path))[0].tolist() == [[255, 0, 0], [255, 255, 255], [127, 127, 127]]
    assert pixels(load_image(path, ground=GREEN))[0, 1].tolist() == list(GREEN)


def test_grey_with_alpha(tmp_path):
    image = Image.new("LA", (2, 1), (40, 255))
    image.putpixel((1, 0), (40, 0))
    assert pixels(load_image(saved(image, tmp_path / "a.png")))[0].tolist() == [[40] * 3, [255] * 3]


def test_palette_with_and_without_transparency(tmp_path):
    image = Image.new("P", (2, 1), 0)
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    opaque = saved(image, tmp_path / "a.png")
    assert pixels(load_image(opaque))[0].tolist() == [list(RED), list(BLUE)]
    clear = saved(image, tmp_path / "b.png", transparency=1)
    assert pixels(load_image(clear))[0].tolist() == [list(RED), [255] * 3]


def test_rgb_with_a_transparent_colour(tmp_path):
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), BLUE)
    assert pixels(load_image(saved(image, tmp_path / "a.png", transparency=BLUE)))[0].tolist() == [
        list(RED),
        [255] * 3,
    ]


def test_one_bit(tmp_path):
    image = Image.new("1", (2, 1), 0)
    image.putpixel((1, 0), 1)
    assert pixels(load_image(saved(image, tmp_path / "a.png")))[0].tolist() == [[0] * 3, [255] * 3]


@pytest.mark.parametrize("mode", ["HSV", "LAB", "YCbCr", "RGBX", "RGBa", "La", "PA", "F", "I", "I;16", "I;16B", "L"])
def test_every_pillow_mode_becomes_rgb(mode):
    assert load_image(Image.new(mode, (4, 3))).size == (4, 3)


def test_exif_rotation_is_applied(tmp_path):
    image = colours()
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    upright = load_image(saved(image, tmp_path / "a.png", exif=exif))
    assert np.array_equal(pixels(upright), np.rot90(np.asarray(colours()), k=-1))


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    for path in (tmp_path / "a.gif", tmp_path / "a.png"):
        frames[0].save(path, save_all=True, append_images=frames[1:])
        assert pixels(load_image(path))[0, 0].tolist() == list(RED)


def test_3_by_3_is_enlarged_to_the_smallest_grid(tmp_path):
    path = saved(Image.new("RGB", (3, 3), RED), tmp_path / "a.png")
    prompt = words_processor()([load_image(path)], "What colour?")
    assert prompt.images[0].shape == (24, 24, 3) and (prompt.images[0] == prompt.images[0].new_tensor(RED)).all()


def refused(source, *words, **options):
    with pytest.raises(ImageProblem) as caught:
        load_image(source, **options)
    sentence = str(caught.value)
    assert all(word in sentence for word in words) and sentence.endswith("."), sentence


def test_text_renamed_png(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("Dear diary")
    refused(path, "notes.png", "not an image", "PNG, JPEG")


def test_formats_that_run_programs_are_not_opened(tmp_path):
    refused(saved(colours(), tmp_path / "a.eps"), "a.eps", "not an image")


def test_multi_picture_jpeg_gives_its_first(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=frames[1:], quality=100)
    assert np.abs(pixels(load_image(tmp_path / "phone.jpg")).astype(int) - RED).max() <= 2


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tiff", "bmp"])
def test_truncated(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / f"photo.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(path, f"photo.{suffix}")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tiff", "bmp", "avif"])
def test_damaged_anywhere_is_an_image_or_a_sentence(tmp_path, suffix):
    if suffix == "avif":
        pytest.importorskip("PIL._avif")
    path = saved(colours().resize((32, 32)), tmp_path / f"a.{suffix}")
    data = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(data)
        for position in generator.integers(0, len(data), 8):
            damaged[position] = generator.integers(0, 256)
        try:
            assert load_image(bytes(damaged)).mode == "RGB"
        except ImageProblem:
            pass


def test_20000_by_20000_is_refused_before_decoding():
    for side in (20_000, 9_000):  # above and below the size that Pillow itself refuses
        refused(black_png(side, side), "64 million")
    refused(black_png(2**31 - 1, 2**31 - 1), "64 million")


@pytest.mark.alone
def test_a_whole_20000_by_20000_png_is_refused_at_once(tmp_path):
    assert load_image(black_png(20, 10, rows=10)).size == (20, 10)  # the writer below writes real images
    (tmp_path / "huge.png").write_bytes(black_png(20_000, 20_000, rows=20_000))
    begin = time.perf_counter()
    refused(tmp_path / "huge.png", "huge.png", "64 million")
    assert time.perf_counter() - begin < 0.1


def test_pixel_budget_is_a_limit_not_a_rounding(tmp_path):
    path = saved(colours(), tmp_path / "a.png")
    assert load_image(path, max_pixels=8).size == (4, 2)
    refused(path, "4 × 2", max_pixels=7)
    assert MAX_PIXELS == 64_000_000


def test_extreme_aspect_ratio(tmp_path):
    refused(saved(Image.new("L", (402, 2)), tmp_path / "a.png"), "402 × 2", "200 times")
    assert load_image(Image.new("L", (400, 2))).size == (400, 2)


def test_no_bytes_no_file_no_access(tmp_path):
    empty = tmp_path / "empty.png"
    empty.touch()
    refused(empty, "empty.png", "0 bytes")
    refused(b"", "0 bytes")
    refused(tmp_path / "gone.png", "gone.png", "No such file")
    refused(tmp_path, "directory")
