"""Attacks by runs and sessions: past the queue, as a crowd, and by names that nobody has."""

import time
from collections.abc import Iterator

from latent_core import glyphs
from tests import heavy, hostile
from tests.attacks import Attacker, attack
from tests.visitor import COMPLETE, fate, outcome

QUESTION = "Which mark is on the blue square?"
ASKED = ["glyph-monet", "forced", "own", 0, 1, 0, 1, 512, 16, 0, 16]
"""Settings of a long run, as /ask takes them."""


def scene() -> bytes:
    """A picture to ask about."""
    return hostile.written(glyphs.sample("find", 7, split="test").images[0], "PNG")


@attack("queue skipping", "39 runs at once by each of run/ask, api/ask and run/predict, which know no queue")
def skipping(attacker: Attacker) -> Iterator[None]:
    picture = scene()
    yield
    tab = attacker.tab()
    image = tab.file(picture)

    def one(number: int, route: str) -> None:
        tab = attacker.tab()
        values = [[image], f"{QUESTION} {number}", *ASKED]
        attacker.said(tab.post(f"gradio_api/{route}", {"data": values, "fn_index": tab.numbers["ask"]}))
        tab.close()

    for route in ("run/ask", "api/ask", "run/predict"):
        attacker.at_once(attacker.count(39), lambda number, route=route: one(number, route))


@attack("nothing", "nothing for 20 s, to compare with")
def nothing(attacker: Attacker) -> Iterator[None]:
    yield
    time.sleep(20 * attacker.scale)


@attack(
    "ten visitors",
    "one run on the page, then ten at once at the slow speed; at least four side by side",
    least_running=4,
)
def ten(attacker: Attacker) -> Iterator[None]:
    picture = scene()
    yield

    def one(number: int) -> float:
        tab = attacker.tab()
        image = tab.file(picture)
        began = time.monotonic()
        became = fate(*tab.press(f"{QUESTION} {number}", image, speed="slow"), COMPLETE)
        took = time.monotonic() - began
        attacker.hear(became)
        if became != "answered":
            attacker.breach(f"one of ten visitors was not answered: {became}")
        tab.close()
        return took

    alone = one(0)
    took = [seconds or 0.0 for seconds in attacker.at_once(10, one)]
    attacker.hear(f"alone {alone:.1f} s, the last of ten {max(took):.1f} s")


@attack("invented sessions", "505 sessions that each open a run, while a visitor's tab with runs is open")
def sessions(attacker: Attacker) -> Iterator[None]:
    picture, smallest = scene(), heavy.tiny()
    yield
    victim = attacker.tab()
    victim.press(QUESTION, victim.file(picture))

    def own() -> list[str]:
        _, said = victim.act("enter", [None, ""])
        value = outcome(said)
        return [id for _, id in value[0]["runs"] if not id.startswith("recorded:")] if value else []

    before = own()

    def many(number: int) -> None:
        for _ in range(-(-attacker.count(505) // 16)):
            invented = attacker.visitor(f"127.0.1.{number + 1}")
            attacker.told(*invented.act("upload", path=invented.file(smallest, "run.safetensors")["path"]))
            invented.close()

    attacker.at_once(16, many)
    if not before:
        attacker.breach("the visitor's own run was not listed before")
    elif own() != before:
        attacker.breach("a visitor's runs were gone while the tab was open")
