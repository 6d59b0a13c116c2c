"""What a hostile visitor may do to a public instance over HTTP, bounded in count: each attack is one function.

An attack is a generator: it makes what it will send, yields once, and then attacks. What it hears is counted, and
where it sees a promise broken it says so.
"""

import collections
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from tests.instance import CHECKPOINT
from tests.visitor import Tab, Visitor, client, fate, sentence

ADDRESS = "127.0.0.2"
"""Where attackers come from: what is counted by address should not be the honest visitor's."""
PATIENCE = 60.0
"""Seconds after which an attacker takes a server for dead."""


@dataclass(frozen=True)
class Attack:
    """One attack as it is listed."""

    name: str
    sent: str
    """What it sends, for the table."""
    run: "Callable[[Attacker], Iterator[None]]"
    least_running: int = 0
    """Runs that must have been under way at once, for an attack that only looks like a crowd."""


ATTACKS: dict[str, Attack] = {}
"""By name, in the order in which they are made."""


def attack(name: str, sent: str, **bounds: int) -> Callable:
    """Lists a function as an attack."""

    def add(run: Callable) -> Callable:
        ATTACKS[name] = Attack(name, sent, run, **bounds)
        return run

    return add


class Attacker:
    """Who attacks: makes sessions, does things at once, and counts what comes back.

    Args:
        scale: of the counts, 1 for those that are listed.
    """

    def __init__(self, url: str, scale: float = 1.0, address: str = ADDRESS) -> None:
        self.url, self.scale, self.address = url, scale, address
        self.heard: collections.Counter[str] = collections.Counter()
        self.broken: list[str] = []
        with client(url, timeout=PATIENCE, address=address) as http:
            self.functions = http.get("config").json()["dependencies"]
        self._lock = threading.Lock()

    def count(self, number: int) -> int:
        """So many, scaled."""
        return max(1, round(number * self.scale))

    def tab(self) -> Tab:
        """A new session with an open page."""
        return Tab(self.url, CHECKPOINT, timeout=PATIENCE, functions=self.functions, address=self.address)

    def visitor(self, address: str | None = None) -> Visitor:
        """A new session that nobody listens for."""
        return Visitor(self.url, timeout=PATIENCE, functions=self.functions, address=address or self.address)

    def hear(self, what: str) -> None:
        """Counts it, without the numbers and names by which it differs from others."""
        what = re.sub(r"(/[\w.-]+){2,}|\b[0-9a-f]{12,}\b", "…", what)
        with self._lock:
            self.heard[what[:110]] += 1

    def told(self, ok: bool, said: str) -> bool:
        """Counts what a call heard; whether it was answered without a word of trouble."""
        if len(said) > 10_000_000:
            self.hear(f"an answer of {len(said) / 1e6:.0f} MB")
            return ok
        trouble = sentence(said) or ("" if ok else said[-80:] or "nothing")
        self.hear(trouble or "an answer")
        self.check(said)
        return ok and not trouble

    def said(self, answer: httpx.Response) -> httpx.Response:
        """Counts an answer over plain HTTP."""
        self.hear(f"{answer.status_code}: {sentence(answer.text) or answer.reason_phrase}")
        self.check(answer.text)
        return answer

    def check(self, said: str) -> None:
        """No answer may hold a traceback."""
        if "Traceback (most recent" in said:
            self.breach("a traceback in an answer")

    def breach(self, what: str) -> None:
        """A promise was broken."""
        with self._lock:
            if what not in self.broken:
                self.broken.append(what)

    def at_once(self, count: int, work: Callable[[int], Any]) -> list[Any]:
        """What `work(0)`, …, `work(count − 1)` give, each in a thread; None for one that got no answer."""
        found: list[Any] = [None] * count

        def run(number: int) -> None:
            try:
                found[number] = work(number)
            except (httpx.HTTPError, OSError) as problem:
                self.hear(f"no answer ({type(problem).__name__})")

        threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def heaviest(self, candidates: list[bytes]) -> dict[str, Any] | None:
        """The first of these traces that the Inspect page opens, as an uploaded file; None where it opens none."""
        tab = self.tab()
        try:
            for data in candidates:
                file, became = tab.file(data, "run.safetensors"), "refused"
                for _ in range(10):
                    ok, said = tab.act("upload", path=file["path"])
                    self.told(ok, said)
                    became = fate(ok, said[:1_000_000])
                    if not became.startswith("refused"):
                        break
                    time.sleep(2.0)
                if became == "answered":
                    return file
        except httpx.HTTPError as problem:
            self.hear(f"no answer ({type(problem).__name__})")
        finally:
            tab.close()
        return None
