"""Attacks by traces: what it costs to open, inspect and compare them, and what is answered."""

import itertools
import random
from collections.abc import Iterator

from tests import heavy
from tests.attacks import Attacker, attack


@attack(
    "compare bomb",
    "runs of 60,000 words, and the longest that are opened; 45 comparisons at once past the queue, 45 in it",
)
def compare(attacker: Attacker) -> Iterator[None]:
    draw = random.Random(0)
    sizes = [60_000, 20_000, 8000, 4000, 2000, 1000, 500]
    same = [heavy.wordy(" a" * size) for size in sizes]
    mixed = [heavy.wordy("".join(draw.choice([" a", " b"]) for _ in range(size)), pieces=512) for size in sizes]
    yield
    longest = [file for file in (attacker.heaviest(same), attacker.heaviest(mixed)) if file]
    for pair in itertools.combinations_with_replacement(longest, 2):

        def past_the_queue(number: int, pair: tuple = pair) -> None:
            visitor = attacker.visitor()
            attacker.said(visitor.post("gradio_api/run/compare", {"data": list(pair)}))
            visitor.close()

        def one(number: int, pair: tuple = pair) -> None:
            tab = attacker.tab()
            if number % 2:
                attacker.told(*tab.call("compare", list(pair)))
            else:
                attacker.told(*tab.act("upload", path=pair[0]["path"]))
                attacker.told(*tab.act("upload", path=pair[1]["path"]))
                attacker.told(*tab.act("enter_1", [None, ""]))
            tab.close()

        attacker.at_once(attacker.count(45), past_the_queue)
        attacker.at_once(attacker.count(45), one)


@attack("inspect bomb", "the heaviest run that is opened, 20 times at once, and 100 regions of it")
def inspect(attacker: Attacker) -> Iterator[None]:
    # steps × patches, steps² and patches × bank: each as far as the format goes, then less and less
    shapes = [
        (8192, 2048, (40, 48)),
        (2000, 2048, (40, 48)),
        (512, 1024, (40, 48)),
        (512, 512, (32, 32)),
        (300, 128, (24, 24)),
        (128, 64, (12, 12)),
    ]
    candidates = [heavy.filled(*shape) for shape in shapes]
    yield
    file = attacker.heaviest(candidates)
    if file is None:
        return

    def look(number: int) -> None:
        tab = attacker.tab()
        if number % 2:
            attacker.told(*tab.call("inspect", [file]))
        else:
            attacker.told(*tab.act("upload", path=file["path"]))
            attacker.told(*tab.act("enter", [None, ""]))
        tab.close()

    def paint(number: int) -> None:
        tab = attacker.tab()
        attacker.told(*tab.call("region", [file, 0, 0, 0, 0.5, 0.5, 0, 0, 0]))
        tab.close()

    attacker.at_once(attacker.count(20), look)
    attacker.at_once(attacker.count(100), paint)


@attack("wide trace", "a run of 600 words in 16 bits of a 7B model's width, opened ten times")
def wide(attacker: Attacker) -> Iterator[None]:
    data = heavy.wide()
    yield

    def one(number: int) -> None:
        tab = attacker.tab()
        file = tab.file(data, "run.safetensors")
        if number % 2:
            attacker.told(*tab.call("inspect", [file]))
        else:
            attacker.told(*tab.act("upload", path=file["path"]))
        tab.close()

    attacker.at_once(attacker.count(10), one)


@attack("answer bomb", "runs of 0.9 MB whose answer is 100 times as large, in twelve tabs that do not listen")
def answers(attacker: Attacker) -> Iterator[None]:
    sizes = [(5000, (40, 50)), (2000, (40, 50)), (600, (40, 50)), (600, (24, 24)), (200, (20, 20))]
    candidates = [heavy.filled(words, 0, grid, width=1) for words, grid in sizes]
    yield
    files = [attacker.tab().file(candidates[0], "run.safetensors"), attacker.heaviest(candidates)]
    tabs = [attacker.tab() for _ in range(attacker.count(12))]
    for file in filter(None, files):

        def one(number: int, file: dict = file) -> None:
            tab = tabs[number]
            for _ in range(4):
                attacker.said(tab.join_unheard(tab.numbers["upload"], [], {"path": file["path"]}))

        attacker.at_once(len(tabs), one)
        attacker.heaviest([heavy.tiny()])  # which has its turn after those
