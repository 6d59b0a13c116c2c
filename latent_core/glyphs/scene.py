"""The micro-world's scenes: coloured shapes that carry white marks on a 3 × 3 board, sometimes joined by lines."""

import math
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw

from latent_core.example import Box

SIZE = 96
"""Pixels along each side of a scene."""
CELL = SIZE // 3
RADIUS = 13
"""Pixels from a thing's centre to the edge of its box."""
JITTER = 2
"""Largest shift of a thing from the centre of its cell, in pixels."""

GROUND_FROM, GROUND_TO = (10, 20, 18), (46, 20, 62)
"""The ground's tint at the upper left and at the lower right: red grows to the right, blue downwards.

A vision tower with rotary positions alone cannot tell where on a plain ground it is, so it could not say where a thing
is either; on this ground it sees it.
"""
LINE = (176, 184, 192)
WHITE = (255, 255, 255)
COLOURS = {
    "red": (222, 60, 66),
    "blue": (58, 116, 240),
    "green": (44, 148, 80),
    "yellow": (208, 158, 18),
    "purple": (146, 88, 236),
    "cyan": (20, 164, 188),
}
SHAPES = ("circle", "square", "triangle", "diamond")
MARKS = ("cross", "bar", "ring", "dot", "ell", "tee")
PLACES = (
    ("upper left", "upper middle", "upper right"),
    ("middle left", "centre", "middle right"),
    ("lower left", "lower middle", "lower right"),
)
HELD_OUT = (("red", "triangle"), ("blue", "diamond"), ("green", "circle"), ("yellow", "square"))
"""Colour–shape pairs that appear in the split `compose` alone."""

_OVERSAMPLING = 8


@dataclass(frozen=True, slots=True)
class Thing:
    """A coloured shape with a mark in one cell of the board."""

    colour: str
    shape: str
    mark: str
    row: int
    column: int
    dx: int = 0
    dy: int = 0

    @property
    def place(self) -> str:
        return PLACES[self.row][self.column]

    @property
    def centre(self) -> tuple[int, int]:
        """(x, y) in pixels."""
        return self.column * CELL + CELL // 2 + self.dx, self.row * CELL + CELL // 2 + self.dy

    @property
    def box(self) -> Box:
        x, y = self.centre
        return (x - RADIUS) / SIZE, (y - RADIUS) / SIZE, (x + RADIUS) / SIZE, (y + RADIUS) / SIZE


@dataclass(frozen=True, slots=True)
class Line:
    """A winding line from one thing to another by way of a cell in the middle column."""

    start: Thing
    end: Thing
    via_row: int

    @property
    def points(self) -> list[tuple[float, float]]:
        """The curve in pixels: two cosine ramps, level at start, waypoint and end."""
        via = (SIZE / 2, self.via_row * CELL + CELL / 2)
        stops = [self.start.centre, via, self.end.centre]
        curve = []
        for (x0, y0), (x1, y1) in zip(stops, stops[1:], strict=False):
            for i in range(17):
                t = i / 16
                curve.append((x0 + (x1 - x0) * t, y0 + (y1 - y0) * (1 - math.cos(math.pi * t)) / 2))
        return curve

    @property
    def box(self) -> Box:
        xs, ys = zip(*self.points, strict=True)
        pad = 2
        return (
            max(0.0, (min(xs) - pad) / SIZE),
            max(0.0, (min(ys) - pad) / SIZE),
            min(1.0, (max(xs) + pad) / SIZE),
            min(1.0, (max(ys) + pad) / SIZE),
        )


@dataclass(frozen=True, slots=True)
class Scene:
    """The things on a board and the lines between them."""

    things: tuple[Thing, ...]
    lines: tuple[Line, ...] = ()

    def at(self, row: int, column: int) -> Thing | None:
        return next((thing for thing in self.things if (thing.row, thing.column) == (row, column)), None)

    def render(self) -> Image.Image:
        """The scene as an RGB image of SIZE × SIZE pixels, the same on every machine."""
        image = _ground().copy()
        for line in self.lines:
            _draw_line(image, line)
        for thing in self.things:
            x, y = thing.centre
            sprite = _sprite(thing.colour, thing.shape, thing.mark)
            image.paste(sprite, (x - RADIUS, y - RADIUS), sprite)
        return image


def _draw_line(image: Image.Image, line: Line) -> None:
    """Draws `line` onto `image`, smooth at its edges."""
    scale = 4
    mask = Image.new("L", (SIZE * scale, SIZE * scale), 0)
    ImageDraw.Draw(mask).line([(x * scale, y * scale) for x, y in line.points], fill=255, width=9, joint="curve")
    mask = mask.resize((SIZE, SIZE), Image.Resampling.BOX)
    image.paste(LINE, (0, 0), mask)


@cache
def _ground() -> Image.Image:
    """An empty board."""
    (red, green, blue), (end_red, _, end_blue) = GROUND_FROM, GROUND_TO
    image, last = Image.new("RGB", (SIZE, SIZE)), SIZE - 1
    for y in range(SIZE):
        for x in range(SIZE):
            image.putpixel((x, y), (red + (end_red - red) * x // last, green, blue + (end_blue - blue) * y // last))
    return image


@cache
def _sprite(colour: str, shape: str, mark: str) -> Image.Image:
    """(2·RADIUS)² RGBA image of a thing."""
    s = 2 * RADIUS * _OVERSAMPLING
    middle = s / 2
    outline = Image.new("L", (s, s), 0)
    pen = ImageDraw.Draw(outline)
    match shape:
        case "circle":
            pen.ellipse((0.02 * s, 0.02 * s, 0.98 * s, 0.98 * s), fill=255)
        case "square":
            pen.rectangle((0.08 * s, 0.08 * s, 0.92 * s, 0.92 * s), fill=255)
        case "triangle":
            pen.polygon([(middle, 0), (s, 0.97 * s), (0, 0.97 * s)], fill=255)
            middle = 0.63 * s  # the mark sits where the triangle is wide
        case "diamond":
            pen.polygon([(middle, 0), (s, middle), (middle, s), (0, middle)], fill=255)
    body = Image.new("RGB", (s, s), COLOURS[colour])
    _draw_mark(ImageDraw.Draw(body), mark, s / 2, middle, 0.21 * s, 0.1 * s)
    body.putalpha(outline)
    return body.resize((2 * RADIUS, 2 * RADIUS), Image.Resampling.BOX)


def _draw_mark(pen: ImageDraw.ImageDraw, mark: str, x: float, y: float, reach: float, width: float) -> None:
    half = width / 2
    horizontal = (x - reach, y - half, x + reach, y + half)
    vertical = (x - half, y - reach, x + half, y + reach)
    match mark:
        case "cross":
            pen.rectangle(horizontal, fill=WHITE)
            pen.rectangle(vertical, fill=WHITE)
        case "bar":
            pen.rectangle(horizontal, fill=WHITE)
        case "ring":
            pen.ellipse((x - reach, y - reach, x + reach, y + reach), outline=WHITE, width=round(width * 0.9))
        case "dot":
            pen.ellipse((x - 0.6 * reach, y - 0.6 * reach, x + 0.6 * reach, y + 0.6 * reach), fill=WHITE)
        case "ell":
            pen.rectangle((x - reach * 0.7, y - reach, x - reach * 0.7 + width, y + reach), fill=WHITE)
            pen.rectangle((x - reach * 0.7, y + reach - width, x + reach * 0.8, y + reach), fill=WHITE)
        case "tee":
            pen.rectangle((x - reach, y - reach, x + reach, y - reach + width), fill=WHITE)
            pen.rectangle(vertical, fill=WHITE)


def enlarge(image: Image.Image, box: Box) -> Image.Image:
    """The part of a scene inside `box`, enlarged to a cell of the board: 2 × 2 image tokens.

    A little only, for a vision tower that has seen whole scenes alone reads marks at their own scale.
    """
    pixels = tuple(round(value * SIZE) for value in box)
    return image.crop(pixels).resize((CELL, CELL), Image.Resampling.BICUBIC)


def looks_like(image: Image.Image) -> bool:
    """Whether an image has the colours of this world: mostly ground, the rest from its palette.

    A plain test on colours, meant for a friendly notice, not for security.
    """
    small = image.convert("RGB").resize((32, 32), Image.Resampling.BOX)
    palette = [LINE, WHITE, *COLOURS.values()]
    ground = familiar = 0
    values = small.tobytes()
    for pixel in zip(values[0::3], values[1::3], values[2::3], strict=True):
        is_ground = all(
            low - 6 <= value <= high + 6 for value, low, high in zip(pixel, GROUND_FROM, GROUND_TO, strict=True)
        )
        distance = min(max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) for colour in palette)
        ground += is_ground
        # mixtures along the edges lie on the way from one colour to the ground
        familiar += is_ground or distance <= 48 or max(pixel) < 80
    return ground >= 0.25 * 1024 and familiar >= 0.8 * 1024
