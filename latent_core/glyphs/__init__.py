"""Glyphs, the embedded micro-world: procedural scenes and questions whose truth is known.

    example = glyphs.sample("find", seed=7, split="test")

A sample is a pure function of family, seed and split. Any seed ≥ 0 is valid in any split; splits are disjoint because
a sample belongs to the split that the hash of its scene and question says.
"""

import hashlib
from collections import Counter
from random import Random

from latent_core.example import Example
from latent_core.glyphs.families import BUILDERS, COUNTS, Draft
from latent_core.glyphs.scene import HELD_OUT, MARKS, SIZE, Scene, Thing, looks_like

FAMILIES = ("find", "relate", "count", "trace")
"""The question families about one image; `views` (several images) and `list` (captions, for pre-training) can be
sampled too."""
SPLITS = ("train", "val", "test", "compose")
_SHARES = {"train": range(20, 256), "val": range(10, 20), "test": range(0, 10)}
"""Which first bytes of the hash belong to which split."""

__all__ = [
    "FAMILIES",
    "HELD_OUT",
    "SIZE",
    "SPLITS",
    "Scene",
    "Thing",
    "answers",
    "blind_accuracy",
    "looks_like",
    "sample",
]


def answers(family: str) -> tuple[str, ...]:
    """The possible answers to a family's questions, each as likely as the others."""
    _check(family, "test", 0)
    return COUNTS if family == "count" else MARKS


def sample(family: str, seed: int, split: str = "test") -> Example:
    """The sample of `family` with this seed.

    Args:
        family: find, relate, count, trace, views (several images), or list (captions).
        seed: any whole number ≥ 0.
        split: train, val, test, or compose (a colour–shape pair that no other split holds).

    Raises:
        ValueError: for an unknown family or split, or a negative seed.
    """
    draft = _draft(family, seed, split)
    images = tuple(scene.render() for scene in draft.views or (draft.scene,))
    return Example(
        images=images,
        question=draft.question,
        steps=draft.steps(*images),
        answer=draft.answer,
        name=f"{family}/{split}/{seed}",
        metadata={"family": family, "seed": seed, "split": split, "scene": draft.scene},
    )


def blind_accuracy(family: str, *, split: str = "test", n: int = 2000, train: int = 20000) -> float:
    """Accuracy, in 0…1, of the best answer that the question alone allows.

    The most frequent answer to each question among `train` training samples (of the family where a question was
    never met), scored on `n` samples of `split`.
    """
    by_question: dict[str, Counter[str]] = {}
    overall: Counter[str] = Counter()
    for seed in range(train):
        draft = _draft(family, seed, "train")
        by_question.setdefault(draft.question, Counter())[draft.answer] += 1
        overall[draft.answer] += 1
    right = 0
    for seed in range(n):
        draft = _draft(family, seed, split)
        right += by_question.get(draft.question, overall).most_common(1)[0][0] == draft.answer
    return right / n


def _check(family: str, split: str, seed: int) -> None:
    if family not in BUILDERS:
        raise ValueError(f"Unknown family {family!r}; choose one of {', '.join(BUILDERS)}.")
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}; choose one of {', '.join(SPLITS)}.")
    if seed < 0:
        raise ValueError(f"The seed is {seed}; choose a whole number ≥ 0.")


def _draft(family: str, seed: int, split: str) -> Draft:
    _check(family, split, seed)
    # seeding with text goes through SHA-512, which is the same on every machine and in every process
    rng = Random(f"{family}/{split}/{seed}")
    while True:
        draft = BUILDERS[family](rng, split == "compose")
        if split == "compose" or _first_byte(draft) in _SHARES[split]:
            return draft


def _first_byte(draft: Draft) -> int:
    """Hash of what the sample shows and asks: scene without jitter, and question."""
    things = [(t.colour, t.shape, t.mark, t.row, t.column) for t in draft.scene.things]
    lines = [(line.start.place, line.end.place, line.via_row) for line in draft.scene.lines]
    return hashlib.sha256(repr((things, lines, draft.topic)).encode()).digest()[0]
