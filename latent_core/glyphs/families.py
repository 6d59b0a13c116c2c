"""The task families: a random scene, a question about it, the steps to its answer.

Every family draws the answer first, uniformly, and builds a scene around it, so that nothing but the image tells.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from PIL import Image

from latent_core.example import Step
from latent_core.glyphs.scene import (
    COLOURS,
    HELD_OUT,
    JITTER,
    MARKS,
    SHAPES,
    Line,
    Scene,
    Thing,
    enlarge,
)

CELLS = [(row, column) for row in range(3) for column in range(3)]
SEEN = [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in HELD_OUT]
DIRECTIONS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
COUNTS = ("0", "1", "2", "3", "4")


@dataclass(frozen=True, slots=True)
class Draft:
    """A sample before it is drawn."""

    scene: Scene
    topic: str
    """The subject of the question, however it is worded."""
    question: str
    answer: str
    steps: Callable[..., tuple[Step, ...]]
    """Makes the steps, with their auxiliary images, from the rendered images."""
    views: tuple[Scene, ...] = ()
    """What the images show, where it is not the whole scene."""


def _thing(rng: Random, pair: tuple[str, str], cell: tuple[int, int], mark: str | None = None) -> Thing:
    return Thing(
        *pair,
        mark or rng.choice(MARKS),
        *cell,
        dx=rng.randint(-JITTER, JITTER),
        dy=rng.randint(-JITTER, JITTER),
    )


def _pairs(rng: Random, count: int, compose: bool) -> list[tuple[str, str]]:
    """Distinct colour–shape pairs; the first is a held-out one for `compose`."""
    if not compose:
        return rng.sample(SEEN, count)
    return [rng.choice(HELD_OUT), *rng.sample(SEEN, count - 1)]


def _sorted(things: list[Thing]) -> tuple[Thing, ...]:
    return tuple(sorted(things, key=lambda thing: (thing.row, thing.column)))


def _look(image: Image.Image, thing: Thing, text: str, observation: str) -> Step:
    return Step(text=text, observation=observation, image=enlarge(image, thing.box), region=thing.box)


def find(rng: Random, compose: bool) -> Draft:
    """Visual search: one thing is named, its mark is asked."""
    count = rng.randint(3, 6)
    answer = rng.choice(MARKS)
    pairs, cells = _pairs(rng, count, compose), rng.sample(CELLS, count)
    target = _thing(rng, pairs[0], cells[0], answer)
    others = [_thing(rng, pair, cell) for pair, cell in zip(pairs[1:], cells[1:], strict=True)]
    name = f"{target.colour} {target.shape}"
    question = rng.choice(
        (
            f"Which mark is on the {name}?",
            f"Which mark is on the {name}?",
            f"What mark does the {name} carry?",
            f"Find the {name}. What is its mark?",
        )
    )

    def steps(image: Image.Image) -> tuple[Step, ...]:
        observation = f"Its mark is {target.mark}; it is in the {target.place}."
        return (_look(image, target, f"I look for the {name}.", observation),)

    return Draft(Scene(_sorted([target, *others])), name, question, answer, steps)


def relate(rng: Random, compose: bool) -> Draft:
    """Two hops: an anchor is named, the mark on its neighbour is asked."""
    count = rng.randint(3, 6)
    answer = rng.choice(MARKS)
    direction = rng.choice(list(DIRECTIONS))
    down, right = DIRECTIONS[direction]
    target_cell = rng.choice([(r, c) for r, c in CELLS if (r - down, c - right) in CELLS])
    anchor_cell = (target_cell[0] - down, target_cell[1] - right)
    cells = rng.sample([cell for cell in CELLS if cell not in (target_cell, anchor_cell)], count - 2)
    pairs = _pairs(rng, count, compose)
    target = _thing(rng, pairs[0], target_cell, answer)
    anchor = _thing(rng, pairs[1], anchor_cell)
    others = [_thing(rng, pair, cell) for pair, cell in zip(pairs[2:], cells, strict=True)]
    name = f"{anchor.colour} {anchor.shape}"
    question = rng.choice(
        (
            f"Which mark is on the shape directly {direction} the {name}?",
            f"Which mark is on the shape directly {direction} the {name}?",
            f"What mark does the shape directly {direction} the {name} carry?",
        )
    )

    def steps(image: Image.Image) -> tuple[Step, ...]:
        observation = f"The {target.colour} {target.shape} in the {target.place} has the mark {target.mark}."
        return (
            _look(image, anchor, f"I look for the {name}.", f"It is in the {anchor.place}."),
            _look(image, target, f"I look directly {direction} it.", observation),
        )

    return Draft(Scene(_sorted([target, anchor, *others])), f"{direction} {name}", question, answer, steps)


def count(rng: Random, compose: bool) -> Draft:
    """Counting: how many things have a colour."""
    answer = rng.randint(1 if compose else 0, 4)
    total = rng.randint(max(3, answer), 6)
    held_out = rng.choice(HELD_OUT)
    colour = held_out[0] if compose else rng.choice(list(COLOURS))
    cells = rng.sample(CELLS, total)
    pairs = [rng.choice([pair for pair in SEEN if pair[0] == colour]) for _ in range(answer)]
    if compose:
        pairs[0] = held_out
    pairs += [rng.choice([pair for pair in SEEN if pair[0] != colour]) for _ in range(total - answer)]
    things = _sorted([_thing(rng, pair, cell) for pair, cell in zip(pairs, cells, strict=True)])
    matching = tuple(thing for thing in things if thing.colour == colour)
    question = rng.choice(
        (
            f"How many shapes are {colour}?",
            f"How many shapes are {colour}?",
            f"How many {colour} shapes are there?",
            f"Count the {colour} shapes.",
        )
    )

    def steps(image: Image.Image) -> tuple[Step, ...]:
        boxes = tuple(thing.box for thing in matching)
        region = None
        if boxes:
            lefts, tops, rights, bottoms = zip(*boxes, strict=True)
            region = (min(lefts), min(tops), max(rights), max(bottoms))
        places = ", ".join(thing.place for thing in matching) or "nowhere"
        return (
            Step(
                text=f"I look for the {colour} shapes.",
                observation=f"I see {colour} shapes: {places}.",
                image=Scene(matching).render(),
                region=region,
                focus=boxes,
            ),
        )

    return Draft(Scene(things), colour, question, str(answer), steps)


def trace(rng: Random, compose: bool) -> Draft:
    """Visual synthesis: two lines wind from the left to two of three ends; one is to be followed."""
    marks = rng.sample(MARKS, 5)
    starts = rng.sample(range(3), 2)
    ends = rng.sample(range(3), 3)
    vias = rng.sample(range(3), 2)
    pairs = _pairs(rng, 5, compose)
    left = [_thing(rng, pair, (row, 0), mark) for pair, row, mark in zip(pairs[3:], starts, marks[3:], strict=True)]
    right = [_thing(rng, pair, (row, 2), mark) for pair, row, mark in zip(pairs[:3], ends, marks[:3], strict=True)]
    lines = tuple(Line(start, end, via) for start, end, via in zip(left, right, vias, strict=False))
    followed = lines[0]
    start = followed.start.mark
    question = rng.choice(
        (
            f"Which mark does the line from the {start} reach?",
            f"Which mark does the line from the {start} reach?",
            f"Follow the line from the {start}. Which mark is at its end?",
        )
    )

    def steps(image: Image.Image) -> tuple[Step, ...]:
        alone = Scene(_sorted([followed.start, followed.end]), (followed,)).render()
        via = ("upper middle", "centre", "lower middle")[followed.via_row]
        return (
            Step(
                text=f"I follow the line from the {start}.",
                observation=f"It goes from the {followed.start.place} by the {via} to the "
                f"{followed.end.place}, to the mark {followed.end.mark}.",
                image=alone,
                region=followed.box,
            ),
        )

    # the order of drawing must not tell which line is asked about
    drawn = tuple(sorted(lines, key=lambda line: line.start.row))
    return Draft(Scene(_sorted([*left, *right]), drawn), start, question, followed.end.mark, steps)


def listing(rng: Random, compose: bool) -> Draft:
    """Captions, for pre-training: everything on the board, by place or by colour.

    By place, what lies there is told; by colour, every name is a search for the one thing that bears it.
    """
    total = rng.randint(3, 6)
    pairs, cells = _pairs(rng, total, compose), rng.sample(CELLS, total)
    things = _sorted([_thing(rng, pair, cell) for pair, cell in zip(pairs, cells, strict=True)])
    if rng.random() < 0.5:
        question = "List all shapes by place."
        lines = [f"{thing.place}: {thing.colour} {thing.shape}, {thing.mark}" for thing in things]
    else:
        question = "List all shapes by colour."
        ordered = sorted(things, key=lambda thing: (list(COLOURS).index(thing.colour), SHAPES.index(thing.shape)))
        lines = [f"{thing.colour} {thing.shape}: {thing.mark}, {thing.place}" for thing in ordered]
    return Draft(Scene(things), question, question, "; ".join(lines) + ".", lambda image: ())


def views(rng: Random, compose: bool) -> Draft:
    """Several views: windows of three columns, shifted by two each, on one wide scene; one shows what is named."""
    windows = rng.randint(2, 3)
    shown = rng.randrange(windows)
    answer = rng.choice(MARKS)
    # columns that two windows share would show the thing twice
    unshared = [
        column
        for column in range(2 * shown, 2 * shown + 3)
        if sum(2 * w <= column < 2 * w + 3 for w in range(windows)) == 1
    ]
    target_cell = rng.randrange(3), rng.choice(unshared)
    cells = [(row, column) for row in range(3) for column in range(2 * windows + 1) if (row, column) != target_cell]
    total = rng.randint(2 * windows, 3 * windows)
    pairs = _pairs(rng, total, compose)
    target = _thing(rng, pairs[0], target_cell, answer)
    others = [_thing(rng, pair, cell) for pair, cell in zip(pairs[1:], rng.sample(cells, total - 1), strict=True)]
    things = _sorted([target, *others])
    scenes = tuple(_window(things, 2 * w) for w in range(windows))
    name = f"{target.colour} {target.shape}"
    question = rng.choice((f"Which view shows the {name}, and which mark?", f"Which mark is on the {name}?"))

    def steps(*images: Image.Image) -> tuple[Step, ...]:
        in_view = replace(target, column=target.column - 2 * shown)
        observation = f"View {shown + 1} shows it: its mark is {target.mark}; it is in the {in_view.place}."
        step = _look(images[shown], in_view, f"I look for the {name}.", observation)
        return (replace(step, image_index=shown),)

    return Draft(Scene(things), f"{windows} {name}", question, answer, steps, scenes)


def _window(things: tuple[Thing, ...], start: int) -> Scene:
    """Three columns of a wide scene, from `start` on."""
    return Scene(tuple(replace(t, column=t.column - start) for t in things if start <= t.column < start + 3))


BUILDERS: dict[str, Callable[[Random, bool], Draft]] = {
    "find": find,
    "relate": relate,
    "count": count,
    "trace": trace,
    "list": listing,
    "views": views,
}
