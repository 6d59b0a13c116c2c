"""The micro-world: determinism, splits, balance, truth of every sample, blind guesses near chance."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from latent_core import glyphs
from latent_core.glyphs.scene import COLOURS, HELD_OUT, MARKS, Scene

ASKED = (*glyphs.FAMILIES, "views")
ALL = (*ASKED, "list")
PIXEL_SUM = 1401410
"""Sum over the pixels of one scene, written down once."""


def key(example):
    scene = example.metadata["scene"]
    cells = tuple((t.colour, t.shape, t.mark, t.row, t.column) for t in scene.things)
    return cells, tuple((line.start.place, line.end.place, line.via_row) for line in scene.lines), example.question


@pytest.mark.parametrize("family", ALL)
def test_a_sample_is_a_function_of_its_seed(family):
    first, second, other = (glyphs.sample(family, seed, "val") for seed in (5, 5, 6))
    assert first.images[0].tobytes() == second.images[0].tobytes()
    assert (first.question, first.answer) == (second.question, second.answer)
    assert [(s.text, s.observation, s.region) for s in first.steps] == [
        (s.text, s.observation, s.region) for s in second.steps
    ]
    assert first.images[0].tobytes() != other.images[0].tobytes()


def test_pixels_are_the_same_on_every_machine():
    # a change of the renderer or of Pillow's drawing would move it
    total = int(np.asarray(glyphs.sample("relate", 7, "test").images[0], dtype=np.int64).sum())
    assert total == PIXEL_SUM


@pytest.mark.parametrize("family", ASKED)
def test_splits_share_no_sample(family):
    found = {split: {key(glyphs.sample(family, seed, split)) for seed in range(150)} for split in glyphs.SPLITS}
    splits = list(found)
    for i, a in enumerate(splits):
        for b in splits[i + 1 :]:
            assert not found[a] & found[b]


@pytest.mark.parametrize("family", ALL)
def test_only_compose_holds_the_held_out_pairs(family):
    def pairs(split):
        return [
            {(thing.colour, thing.shape) for thing in glyphs.sample(family, seed, split).metadata["scene"].things}
            for seed in range(60)
        ]

    for split in ("train", "val", "test"):
        assert not set().union(*pairs(split)) & set(HELD_OUT)
    assert all(scene & set(HELD_OUT) for scene in pairs("compose"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ASKED)
def test_answers_are_balanced(family):
    n = 600
    counts = Counter(glyphs.sample(family, seed).answer for seed in range(n))
    share = n / len(glyphs.answers(family))
    assert set(counts) == set(glyphs.answers(family))
    # 4.5 standard deviations of a fair draw
    assert all(abs(count - share) < 4.5 * share**0.5 for count in counts.values())


@pytest.mark.slow
@pytest.mark.parametrize("family", ASKED)
def test_a_question_alone_does_not_tell_the_answer(family):
    blind = glyphs.blind_accuracy(family, n=600, train=4000)
    assert blind < 1 / len(glyphs.answers(family)) + 0.07


def solve(example) -> str:
    """The answer, worked out from scene and question by other means than the generator's."""
    scene: Scene = example.metadata["scene"]
    words = example.question.lower().replace("?", "").replace(".", "").replace(",", "").split()
    named = [t for t in scene.things if t.colour in words and t.shape in words]
    match example.metadata["family"]:
        case "find" | "views":
            (thing,) = named
            return thing.mark
        case "relate":
            (anchor,) = named
            moves = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}
            down, right = next(step for word, step in moves.items() if word in words)
            return scene.at(anchor.row + down, anchor.column + right).mark
        case "count":
            (colour,) = [word for word in words if word in COLOURS]
            return str(sum(thing.colour == colour for thing in scene.things))
        case "trace":
            start = next(word for word in words if word in MARKS)
            (line,) = [line for line in scene.lines if line.start.mark == start]
            return line.end.mark


@pytest.mark.parametrize("split", ["train", "test", "compose"])
@pytest.mark.parametrize("family", ASKED)
def test_answers_are_true(family, split):
    for seed in range(80):
        example = glyphs.sample(family, seed, split)
        assert solve(example) == example.answer
        cells = [(thing.row, thing.column) for thing in example.metadata["scene"].things]
        assert len(set(cells)) == len(cells)


@pytest.mark.parametrize("family", glyphs.FAMILIES)
def test_regions_lie_on_the_image_and_show_what_they_claim(family):
    for seed in range(40):
        example = glyphs.sample(family, seed)
        for step in example.steps:
            side = glyphs.SIZE // 3 if family in ("find", "relate") else glyphs.SIZE
            assert step.image.size == (side, side)
            if step.region is None:
                assert family == "count" and example.answer == "0"
                continue
            x0, y0, x1, y1 = step.region
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
            pixels = np.asarray(example.images[0].crop([round(value * glyphs.SIZE) for value in step.region]))
            assert pixels.max(-1).max() > 150  # something bright is there


def test_scenes_are_recognised_and_photos_are_not():
    for family in glyphs.FAMILIES:
        image = glyphs.sample(family, 3).images[0]
        assert glyphs.looks_like(image)
        assert glyphs.looks_like(image.resize((400, 400)))
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    assert not glyphs.looks_like(Image.fromarray(noise))
    ramp = np.linspace(0, 255, 96 * 96 * 3).reshape(96, 96, 3).astype(np.uint8)
    assert not glyphs.looks_like(Image.fromarray(ramp))
    assert not glyphs.looks_like(Image.new("RGB", (96, 96), "white"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("found", 0), "family"), (("find", -1), "seed"), (("find", 0, "dev"), "split")],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        glyphs.sample(*arguments)


def test_views_are_windows_of_which_one_shows_what_is_asked():
    for seed in range(60):
        example = glyphs.sample("views", seed)
        scene, (step,) = example.metadata["scene"], example.steps
        assert len(example.images) in (2, 3) and 0 <= step.image_index < len(example.images)
        words = example.question.lower().replace("?", "").replace(".", "").replace(",", "").split()
        (thing,) = [t for t in scene.things if t.colour in words and t.shape in words]
        shown = [w for w in range(len(example.images)) if 2 * w <= thing.column < 2 * w + 3]
        assert shown == [step.image_index]
        assert step.observation.startswith(f"View {shown[0] + 1} shows it: its mark is {thing.mark}")
        x0, y0, x1, y1 = (round(edge * glyphs.SIZE) for edge in step.region)
        colours = np.asarray(example.images[shown[0]])[y0:y1, x0:x1].reshape(-1, 3)
        near = np.abs(colours.astype(int) - COLOURS[thing.colour]).max(1) < 30
        assert near.mean() > 0.2
