"""Image files, cut to what a decoder needs: the bytes of the first picture, its orientation and the memory it takes.

Decoders are given nothing else, and nothing whose cost its size does not show: text, profiles, further pictures and
tables that point at one place a thousand times cost them time and memory without end. What is said beside the pixels
is read here, as far as it is the orientation; where it cannot be read, it says nothing.
"""

import math
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

MAX_SCANS = 100
"""Scans of a JPEG. Cameras write 1, programs that write progressive JPEGs up to 14."""
MAX_SCANNED = 1_000_000_000
"""Width × height × scans of a JPEG: 15 scans of the largest picture, about 2 seconds."""
MAX_SEGMENTS = 10_000
"""Segments of a JPEG, which are read one by one; colour profiles and further pictures come in some hundred."""
MAX_PARTS = 100_000
"""Strips or tiles of a TIFF: above its rows, and above the tiles of 32 × 32 of the largest picture."""
MAX_REMARK = 1_000_000
"""Bytes of text that is searched for an orientation."""

ORIENTATION = 0x0112
PNG_PARTS = (b"IHDR", b"PLTE", b"tRNS")
"""Chunks of a PNG that make the picture, apart from its pixels."""
PNG_EXIF, PNG_XMP = b"Raw profile type exif", b"XML:com.adobe.xmp"
"""Keys of a PNG's texts that may hold an orientation."""
JPEG_PARTS = (0xE0, 0xEE)
"""Markers of a JPEG's remarks that say what its colours mean: JFIF's and Adobe's."""
JPEG_REMARKS = (*range(0xE0, 0xF0), 0xFE)
"""Markers of segments beside the pixels: APP0 to APP15 and comments."""
JPEG_ARITHMETIC = (0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
"""Markers of frames in arithmetic coding, which costs most where the file ends first."""
JPEG_FRAMES = (0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7)
"""Markers of the other frames."""
TIFF_TAGS = {
    *(256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332),
    *(338, 339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532),
}
"""Tags of a TIFF that make the picture, its orientation among them."""
TIFF_LAYOUT = (256, 257, 258, 259, 273, 277, 278, 279, 284, 322, 323, 324, 325)
"""Those of them that say how large the picture and its parts are, and how these are packed."""
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value by its type."""
TIFF_NUMBERS = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}
"""Types of whole numbers."""


class ImageProblem(ValueError):
    """An image that cannot be used; the message is for the person who offered it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFile:
    """An image file, cut to what a decoder needs."""

    data: bytes
    """The file without what does not make its first picture."""
    orientation: int | None = None
    """EXIF's, 1 to 8, where it is said beside the pixels."""
    size: tuple[int, int] | None = None
    """(width, height), where opening the file would cost memory."""
    working: int = 0
    """Bytes that its decoder holds beside the pixels, because of how they are stored."""


def read_image_file(name: str, data: bytes) -> ImageFile:
    """The file called `name` in messages; one of an unknown kind is given back as it is.

    Raises ImageProblem for a file whose structure cannot be followed or would cost more than its pixels are worth.
    """
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png(data)
        if data.startswith(b"\xff\xd8"):
            return _jpeg(name, data)
        if data.startswith(b"GIF8"):
            return _gif(data)
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*"):
            return _tiff(name, data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return ImageFile(data=data, size=_webp_size(data))
        if data[4:8] == b"ftyp":  # AVIF: of an item whose type is not known nothing is read
            return ImageFile(data=re.sub(rb"(infe.{8})Exif", rb"\1skip", data, flags=re.DOTALL))
    except (struct.error, IndexError) as error:
        raise damaged(name, "it ends too early") from error
    return ImageFile(data=data)


def damaged(name: str, reason: str) -> ImageProblem:
    """The sentence for a file that cannot be decoded."""
    return ImageProblem(f"{name} is damaged ({reason}). Save it again as PNG or JPEG.")


def orientation(exif: bytes, xmp: bytes = b"") -> int | None:
    """The orientation in EXIF, or else in XMP; None where neither has one that can be read."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    value = None
    if order and len(exif) >= 10:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        for tag, kind, count, packed in _entries(exif, at, order, big=False):
            if tag == ORIENTATION and kind in (3, 4) and count == 1:
                (value,) = struct.unpack_from(order + {3: "H", 4: "I"}[kind], packed)
    if value is None and (match := re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp)):
        value = int(match[1])
    return value


def _png(data: bytes) -> ImageFile:
    """A PNG's header, palette and pixels, these in one chunk."""
    chunks, pixels, exif, xmp, at = [], [], b"", b"", 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            pixels.append(data[at + 8 : at + 8 + length])
        elif kind in PNG_PARTS and not pixels:
            chunks.append(data[at : at + 12 + length])
        elif kind == b"eXIf":
            exif = data[at + 8 : at + 8 + length]
        elif kind in (b"tEXt", b"zTXt", b"iTXt") and data.startswith((PNG_EXIF + b"\0", PNG_XMP + b"\0"), at + 8):
            key, text = _png_text(kind, data[at + 8 : at + 8 + length])
            if key == PNG_XMP:
                xmp = text
            elif not exif:
                digits = b"".join(text.split(b"\n")[3:])
                exif = bytes.fromhex(digits.decode()) if re.fullmatch(rb"([0-9a-fA-F]{2})+", digits) else b""
        at += 12 + length
        if kind == b"IEND":
            break
    if pixels:
        chunks.append(_chunk(b"IDAT", b"".join(pixels)))
        if at <= len(data):  # what is cut off stays so
            chunks.append(_chunk(b"IEND", b""))
    return ImageFile(data=data[:8] + b"".join(chunks), orientation=orientation(exif, xmp))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png_text(kind: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Key and text of a chunk of text; of one that cannot be unpacked, nothing."""
    key, _, text = body.partition(b"\0")
    packed = kind == b"zTXt"
    if packed:
        text = text[1:]
    elif kind == b"iTXt":
        packed, text = text[:1] == b"\1", text[2:].split(b"\0", 2)[-1]
    try:
        return key, zlib.decompressobj().decompress(text, MAX_REMARK) if packed else text[:MAX_REMARK]
    except zlib.error:
        return key, b""


def _jpeg(name: str, data: bytes) -> ImageFile:
    """A JPEG from its frame's header on, and the remarks that say what its colours mean.

    Raises ImageProblem for arithmetic coding and for more scans than any program writes.
    """
    parts, exif, xmp, at = [], b"", b"", 2
    segments = scans = area = components = start = 0
    marker = re.compile(rb"\xff+([^\x00\x01\xd0-\xd7\xff])", re.DOTALL)  # those without content stand in the pixels
    while match := marker.search(data, at):
        kind, at = match[1][0], match.end()
        segments += 1
        if segments > MAX_SEGMENTS:
            raise damaged(name, f"it has more than {MAX_SEGMENTS:,} segments")
        if kind == 0xD8:
            continue
        if kind == 0xD9 or at + 2 > len(data):
            break
        length = int.from_bytes(data[at : at + 2], "big")
        if kind in JPEG_ARITHMETIC:
            raise ImageProblem(f"{name} is a JPEG in arithmetic coding, which is not read here. Save it again as PNG.")
        if kind in JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            area, components = max(area, width * height), max(components, data[at + 7])
        if kind == 0xDA:
            start = start or match.start()
            scans += 1
            _check_scans(name, scans, area)
        elif not start and kind in JPEG_REMARKS:
            body = data[at + 2 : at + length]
            if kind == 0xE1 and body.startswith(b"Exif\0\0"):
                exif = exif or body
            elif kind == 0xE1:
                xmp = xmp or body
            if kind in JPEG_PARTS:
                parts.append(b"\xff" + bytes([kind]) + data[at : at + length])
        elif not start:
            parts.append(b"\xff" + bytes([kind]) + data[at : at + length])
        at += max(length, 2)
    return ImageFile(
        data=data[:2] + b"".join(parts) + (data[start:] if start else b""),
        orientation=orientation(exif, xmp),
        working=2 * components * area if scans > 1 else 0,  # all coefficients, until the last scan is read
    )


def _check_scans(name: str, scans: int, area: int) -> None:
    """Raises ImageProblem for more passes over a JPEG's pixels than any program writes."""
    if scans > MAX_SCANS or area * scans > MAX_SCANNED:
        raise ImageProblem(
            f"{name} is a JPEG of {scans:,} or more scans of {area / 1e6:.3g} million pixels; at most {MAX_SCANS} "
            f"scans and, in all of them, {MAX_SCANNED // 1_000_000:,} million pixels are decoded. Save it again as a "
            "baseline JPEG, one that is not progressive, or as PNG."
        )


def _gif(data: bytes) -> ImageFile:
    """A GIF's header, its first picture and what controls that one."""

    def table(flags: int) -> int:
        return 3 << ((flags & 7) + 1) if flags & 0x80 else 0

    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + table(flags)
    parts = [data[:at]]
    while at < len(data) and data[at] != 0x3B:
        begin, kind = at, data[at]
        at += 1
        if kind == 0x2C:
            left, top, wide, high = struct.unpack_from("<HHHH", data, at)
            parts.append(data[begin:])
            return ImageFile(data=b"".join(parts), size=(max(width, left + wide), max(height, top + high)))
        if kind == 0x21:
            at += 1
            while data[at]:
                at += 1 + data[at]
            at += 1
            if data[begin + 1] == 0xF9:  # transparency
                parts.append(data[begin:at])
    return ImageFile(data=data)


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """The canvas, for which the decoder takes memory as soon as the file is opened."""
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _entries(data: bytes, at: int, order: str, *, big: bool) -> Iterator[tuple[int, int, int, bytes]]:
    """(tag, type, count, value or where it lies) of a directory of EXIF or TIFF, as far as the file reaches."""
    head, entry = (f"{order}Q", f"{order}HHQ8s") if big else (f"{order}H", f"{order}HHI4s")
    if at + struct.calcsize(head) > len(data):
        return
    (count,) = struct.unpack_from(head, data, at)
    at, step = at + struct.calcsize(head), struct.calcsize(entry)
    for _ in range(min(count, 65_535)):
        if at + step > len(data):
            return
        yield struct.unpack_from(entry, data, at)
        at += step


def _tiff(name: str, data: bytes) -> ImageFile:
    """A TIFF whose first directory has the tags that make its picture, and no next one.

    Raises ImageProblem where these tags do not fit the picture or the file.
    """
    order, big = {b"II": "<", b"MM": ">"}[data[:2]], data[2] == 43
    if data[:4] == b"MM\0+":
        raise ImageProblem(f"{name} is a BigTIFF of a kind that is not read here. Save it again as PNG or JPEG.")
    head, entry, place = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    (at,) = struct.unpack_from(order + place, data, 8 if big else 4)
    tags = {tag: (tag, *rest) for tag, *rest in _entries(data, at, order, big=big) if tag in TIFF_TAGS}
    directory = b"".join(struct.pack(order + entry, *tags[tag]) for tag in sorted(tags))
    directory = struct.pack(order + head, len(tags)) + directory + struct.pack(order + place, 0)
    data = data[:at] + directory + data[at + len(directory) :]

    if sum(count * TIFF_SIZES.get(kind, 1) for _, kind, count, _ in tags.values()) > len(data) + 65_536:
        raise damaged(name, "its tags stand for more than the file holds")
    values: dict[int, list[int]] = {}
    for tag, kind, count, value in _entries(data, at, order, big=big):  # as they are now, wherever their values lie
        size = count * TIFF_SIZES.get(kind, 1)
        inline = size <= len(value)
        start = 0 if inline else struct.unpack(order + place, value)[0]
        if start + size > len(data):
            raise damaged(name, f"its tag {tag} lies beyond its end")
        if tag in TIFF_LAYOUT:
            if kind not in TIFF_NUMBERS:
                raise damaged(name, f"its tag {tag} is not a whole number")
            numbers = np.frombuffer(value if inline else data, order + TIFF_NUMBERS[kind], count, start)
            if tag in (273, 324):  # where the parts begin
                values[tag] = [count]
            elif tag in (279, 325):  # bytes of each part
                values[tag] = [int(numbers.astype(np.float64).sum())]
            else:
                values[tag] = numbers[:8].tolist()
    _check_tiff(name, len(data), values)
    if values.get(259) in ([6], [7]):
        wide, high = max(_parts(values), key=math.prod)
        _check_scans(name, data.count(b"\xff\xda"), wide * high)
    return ImageFile(data=data, working=_part_bytes(values))


def _check_tiff(name: str, length: int, values: dict[int, list[int]]) -> None:
    """Raises ImageProblem for strips and tiles that do not make one picture, once."""
    width, height = ((values.get(tag) or [0])[0] for tag in (256, 257))
    if width <= 0 or height <= 0:
        raise damaged(name, "it has no size")
    planes = (values.get(277) or [1])[0] if values.get(284) == [2] else 1
    most = 0
    for wide, high in _parts(values):
        if wide <= 0 or high <= 0:
            raise damaged(name, f"its parts have {wide} × {high} pixels")
        across, down = math.ceil(width / wide), math.ceil(height / high)
        most = max(most, across * down * planes)
        if across * down * wide * high > 4 * width * height + 16_000_000:
            raise damaged(name, f"parts of {wide:,} × {high:,} pixels make a picture of {width:,} × {height:,}")
    offsets = max((values[tag][0] for tag in (273, 324) if tag in values), default=0)
    if most > MAX_PARTS or offsets > most:
        raise ImageProblem(
            f"{name} has {max(most, offsets):,} strips or tiles; its picture needs {most:,}, and at most "
            f"{MAX_PARTS:,} are read. Save it again as PNG or JPEG."
        )
    if values.get(259, [1]) != [1] and any(values.get(tag, [0])[0] > 2 * length for tag in (279, 325)):
        raise damaged(name, "its strips or tiles stand for more than the file holds")


def _parts(values: dict[int, list[int]]) -> list[tuple[int, int]]:
    """(width, height) of a strip and, where it has them, of a tile: readers differ in which of the two they follow."""
    width, height = values[256][0], values[257][0]
    parts = [(width, min((values.get(278) or [height])[0], height))]
    if 322 in values and 323 in values:
        parts.append((values[322][0], values[323][0]))
    return parts


def _part_bytes(values: dict[int, list[int]]) -> int:
    """Bytes of the largest strip or tile, unpacked."""
    bits = max(values.get(258) or [1]) * max((values.get(277) or [1])[0], len(values.get(258) or [1]))
    return max(wide * high * bits // 8 for wide, high in _parts(values))
