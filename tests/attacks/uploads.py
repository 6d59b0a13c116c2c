"""Attacks by files: pictures that cost far more than they weigh, and more files than there is room for."""

import os
import secrets
from collections.abc import Iterator

from tests import hostile
from tests.attacks import Attacker, attack
from tests.attacks.runs import QUESTION

BOUNDARY = "siege"


@attack(
    "image bombs", "twelve PNGs of 49 kB with 16 bits, six progressive JPEGs of 231 kB, each shown and asked about"
)
def images(attacker: Attacker) -> Iterator[None]:
    deep, slow = hostile.deep_png(), hostile.slow_jpeg()
    pictures = [(deep, "deep.png")] * attacker.count(12) + [(slow, "slow.jpg")] * attacker.count(6)
    yield

    def one(number: int) -> None:
        tab = attacker.tab()
        file = tab.file(*pictures[number])
        shown = {"data": [[file], [], tab.chosen], "session_hash": tab.session}
        attacker.said(tab.post("gradio_api/run/check", shown))  # past the queue
        attacker.told(*tab.act("check", shown["data"]))
        attacker.told(*tab.press(QUESTION, file))
        attacker.told(*tab.ask(QUESTION, file))
        tab.close()

    attacker.at_once(len(pictures), one)


@attack("many files", "20 uploads of 1,000 files at once, 100 of 200, then 60 small ones at once")
def files(attacker: Attacker) -> Iterator[None]:
    part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{{}}.png"\r\n\r\nTOKEN\r\n'
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    bodies = {
        count: "".join(part.format(number) for number in range(count)).encode() + f"--{BOUNDARY}--\r\n".encode()
        for count in (1000, 200)
    }
    yield

    def many(count: int) -> None:
        visitor = attacker.visitor()
        body = bodies[count].replace(b"TOKEN", secrets.token_hex(8).encode())  # the same content would be one file
        attacker.said(visitor.http.post("gradio_api/upload", content=body, headers=kind))
        visitor.close()

    def small(number: int) -> None:
        visitor = attacker.visitor()
        attacker.said(visitor.upload(b"image"))
        visitor.close()

    attacker.at_once(attacker.count(20), lambda _: many(1000))
    for _ in range(attacker.count(25)):  # a few at once, for more could not be open at once
        attacker.at_once(4, lambda _: many(200))
    attacker.at_once(attacker.count(60), small)


@attack("full store", "300 uploads of 10 MB, which is more than may be kept")
def store(attacker: Attacker) -> Iterator[None]:
    data = os.urandom(9_990_000)  # and a beginning of its own each time: the same content would be one file
    yield

    def some(number: int) -> None:
        visitor = attacker.visitor()
        for _ in range(-(-attacker.count(300) // 3)):
            attacker.said(visitor.upload(secrets.token_bytes(8) + data))
        visitor.close()

    attacker.at_once(3, some)
