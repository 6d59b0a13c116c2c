"""What a hostile visitor may send: values of every wrong kind, images and traces that lie. Seeded, built here."""

import io
import json
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save

PROBE = "window.__pwned = true"
SCRIPTS = (
    f"<script>{PROBE}</script>",
    f'<img src="x" onerror="{PROBE}">',
    f"</script><script>{PROBE}</script>",
    f"javascript:{PROBE}",
    f"<svg onload='{PROBE}'>",
    f"[x](javascript:{PROBE})",
    "{{7*7}} ${7*7} {% raw %}",
)


def values(canary: Path, rng: random.Random) -> Iterator[Any]:
    """Wrong types, sizes and encodings; paths to `canary`, plain and disguised; markup."""
    yield from (None, True, False, -1, 0, 2**31, 2**63, 10**400, -(10**400), 0.5, 1e308, [], [[]], {}, [None], "")
    yield from (float("nan"), float("inf"), float("-inf"))
    yield from ("\ud800", "a\udfffb", "\x00", "\x1b[2J\r\n", "\u202e\u2066", "x" * 100_000, "ß" * 5000)
    yield from SCRIPTS
    for path in disguised(canary):
        yield path
        yield {"path": path}
        yield [{"path": path, "meta": {"_type": "gradio.FileData"}, "url": path, "orig_name": path}]
    yield {"path": "http://127.0.0.1:9/x", "meta": {"_type": "gradio.FileData"}}
    yield {"__type__": "update", "value": str(canary)}
    yield json.loads("[" * 200 + "]" * 200)
    for _ in range(12):
        letters = [chr(rng.choice((*range(0xD800), *range(0xE000, 0x11000)))) for _ in range(rng.randrange(1, 60))]
        yield "".join(letters)
        yield [rng.uniform(-1e30, 1e30) for _ in range(rng.randrange(5))]


def disguised(canary: Path) -> list[str]:
    """The same file by names that a check might miss."""
    up = "../" * 12
    return [
        str(canary),
        f"file://{canary}",
        f"{up}{str(canary).lstrip('/')}",
        f"/proc/self/root{canary}",
        f"/tmp/../{canary}",
        f"{canary}\x00.png",
        f"%2e%2e%2f{canary}",
        f"//{canary}",
    ]


def images(rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """(name, bytes): bombs, cut and damaged files, polyglots, and things that are no image."""
    picture = Image.effect_noise((48, 48), 80).convert("RGB")
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        whole = written(picture, format)
        suffix = format.lower()
        for cut in sorted(rng.sample(range(1, len(whole)), 4)):
            yield f"cut.{suffix}", whole[:cut]
        for _ in range(4):
            damaged = bytearray(whole)
            for place in rng.sample(range(len(whole)), 8):
                damaged[place] = rng.randrange(256)
            yield f"damaged.{suffix}", bytes(damaged)
    yield from bombs()
    script = f"<script>{PROBE}</script>".encode()
    yield "polyglot.html", written(picture, "GIF") + script
    yield "polyglot.svg", b"<svg xmlns='http://www.w3.org/2000/svg' onload='" + PROBE.encode() + b"'></svg>"
    yield "polyglot.png", written(picture, "PNG") + b"PK\x03\x04" + script
    yield "page.png", b"<!doctype html>" + script
    yield "program.png", b"\x7fELF" + rng.randbytes(100)
    yield "postscript.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file"
    yield "empty.png", b""
    for name in (
        "../../../../etc/cron.d/x.png",
        "..\\..\\x.png",
        "a" * 400 + ".png",
        "x\r\nSet-Cookie: a=b.png",
        ".png",
    ):
        yield name, written(picture, "PNG")
    for script_name in SCRIPTS:
        yield f"{script_name}.png", b"no image"


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that claim to be huge."""
    for side in (9_000, 60_000, 2**31 - 1):
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        pixels = chunk(b"IDAT" + zlib.compress(bytes(10_000_000)))
        yield "bomb.png", b"\x89PNG\r\n\x1a\n" + chunk(header) + pixels + chunk(b"IEND")
    yield "bomb.gif", b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\x00\x00" + bytes(6) + b"\x2c" + bytes(40)
    canvas = (16_383).to_bytes(3, "little")
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + canvas + canvas
    yield "bomb.webp", b"RIFF" + struct.pack("<I", 4 + len(extended)) + b"WEBP" + extended
    tags = [(256, 4, 1, 100_000), (257, 4, 1, 100_000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    tiff = b"II*\x00" + struct.pack("<I", 8) + struct.pack("<H", len(tags))
    yield "bomb.tiff", tiff + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    yield "bomb.bmp", b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, 50_000, 50_000, 1, 24, 0) + bytes(20)
    zipped = b"zTXt" + b"Comment\x00\x00" + zlib.compress(bytes(50_000_000))  # text of 50 MB in a picture of one pixel
    one = written(Image.new("RGB", (1, 1)), "PNG")
    yield "text.png", one[:33] + chunk(zipped) + one[33:]


def slow_jpeg(scans: int = 3170, side: int = 5000) -> bytes:
    """A progressive JPEG of one grey, 231 kB, whose last scan, in which nothing changes, comes `scans` times."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 128).save(buffer, "JPEG", progressive=True)
    whole = buffer.getvalue()
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * (scans - whole.count(b"\xff\xda")) + whole[-2:]


def deep_png(side: int = 5000) -> bytes:
    """A black PNG of 16-bit greys: 49 kB for 25 million pixels."""
    rows = zlib.compress(bytes(side * (1 + 2 * side)), 9)
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(header) + chunk(b"IDAT" + rows) + chunk(b"IEND")


def chunk(body: bytes) -> bytes:
    """A PNG's chunk of a kind and its content."""
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def traces(good: Path, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """(what is wrong, bytes) made from a good trace."""
    whole = good.read_bytes()
    with safe_open(good, "pt") as file:
        content = json.loads(file.metadata()["trace"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict

    def lied(tensors: dict[str, torch.Tensor] = tensors, **changes: Any) -> bytes:
        return save(tensors, {"trace": json.dumps({**content, **changes})})

    yield "nothing", b""
    yield "a header longer than the file", struct.pack("<Q", 2**62) + b"{}"
    header = json.dumps({"image_states": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}).encode()
    yield "shapes beyond the file", struct.pack("<Q", len(header)) + header + bytes(4)
    yield "a pickle", b"\x80\x04cos\nsystem\n(S'touch /tmp/pwned'\ntR."
    for cut in sorted(rng.sample(range(8, len(whole)), 8)):
        yield f"cut at {cut}", whole[:cut]
    for _ in range(24):
        damaged = bytearray(whole)
        for place in rng.sample(range(min(len(whole), 4000)), 3):
            damaged[place] = rng.choice(b'0123456789-{}[]",:eE.')  # a wrong byte would end at the decoder
        yield "damaged", bytes(damaged)
    yield "no metadata", save(tensors)
    yield "metadata that is a list", save(tensors, {"trace": "[]"})
    yield "metadata nested without end", save(tensors, {"trace": "[" * 100_000})
    yield "a version of its own", lied(version=10**30)
    yield "a lone surrogate", lied(question="\ud800")
    yield "no question", lied(question=None)
    for name in ("../../etc/passwd", "/etc", "someone/private-model", "\x00", *SCRIPTS):
        yield f"the checkpoint {name!r}", lied(source={**content["source"], "checkpoint": name}, question=name)
    start, finish, steps = content["start"], content["finish"], content["steps"]
    for grids in ([[10**9, 10**9]], [[-1, -36]], [[0, 0]], [[6]], [], [[6, 6]] * 5000, "grid"):
        yield f"grids {str(grids)[:20]}", lied(start={**start, "grids": grids})
    for levels in ([], [0] * 5, [10**30, 0, 1, 2, 3, 4], None):
        yield f"levels {levels}", lied(start={**start, "levels": levels})
    for value in (10**30, -1, float("nan"), float("inf"), "8", None):
        yield f"{value} tokens", lied(finish={**finish, "tokens": value})
        yield f"{value} seconds", lied(finish={**finish, "text_seconds": value})
    latents = [{**step, "look": False} for step in steps if step["event"] == "latent"]
    yield "a latent 50,000 times", lied(steps=[*steps, *latents[:1] * 50_000])
    yield "a latent 5,000 times", lied(steps=[*steps, *latents[:1] * 5000])
    yield "a text of 60,000 words", lied(steps=[{**steps[0], "text": " a" * 60_000}, *steps[1:]])
    yield "a method that does not exist", lied(source={**content["source"], "method": "nothing"})
    for value in ([], {}, None, 7):
        yield f"the event {value}", lied(steps=[{**steps[0], "event": value}, *steps[1:]])
        yield f"the mode {value}", lied(settings={**content["settings"], "mode": value, "rule": value})
    yield "a block of a billion", lied(steps=[*steps, {**latents[0], "block": 10**9}])
    yield "a block of -1", lied(steps=[*steps, {**latents[0], "block": -1}])
    for field, value in (
        ("token_id", 10**12),
        ("token_id", -5),
        ("position", 10**15),
        ("position", -(10**15)),
        ("logprob", 1000.0),
        ("logprob", float("nan")),
        ("p_open", float("inf")),
        ("text", "\ud800"),
        ("text", SCRIPTS[1]),
        ("kind", "latent"),
        ("seconds", -1.0),
        ("rows", {"hidden": 10**9}),
        ("rows", {"hidden": "../canary"}),
    ):
        yield f"{field} {value}", lied(steps=[{**steps[0], field: value}, *steps[1:]])
    for name in tensors:
        yield f"{name} is missing", lied({key: tensor for key, tensor in tensors.items() if key != name})
        yield f"{name} has no rows", lied({**tensors, name: tensors[name][:0].clone()})
        yield f"{name} of another kind", lied({**tensors, name: tensors[name].to(torch.int64)})
        if tensors[name].is_floating_point():
            yield f"{name} is not finite", lied({**tensors, name: torch.full_like(tensors[name], float("nan"))})
            yield f"{name} is zero", lied({**tensors, name: torch.zeros_like(tensors[name])})
    yield "a tensor more", lied({**tensors, "extra": torch.zeros(3)})
    yield "a tall image", lied({**tensors, "image.0": torch.zeros(1_000_000, 1, 3, dtype=torch.uint8)})


def written(picture: Image.Image, format: str) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    picture.save(buffer, format)
    return buffer.getvalue()
