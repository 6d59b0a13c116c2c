"""Many visitors at once for a while, by hand: `python -m tests.soak --visitors 50 --seconds 600`.

One public instance on the CPU in a process of its own. Every visitor again and again opens a session, asks its own
question on the page and as a program, inspects the run, opens the program's trace, compares the two, paints a region,
reads latents by layer, and leaves, sometimes in the middle; who is refused waits for some seconds. Reported: what
became of all this, who waited, whether anybody saw another's run, memory and disk of the server before and after.

Exits with 1 where a run was lost or seen by another, where anything but an answer or a sentence that says to wait came
back, where fewer than half of the questions were answered, or where memory or disk do not come back to within 10% of
their start.

The start is after a warm-up: until 40 threads have computed and Gradio's 100 sessions are in place, the server grows.

Linux only: memory is read from /proc.
"""

import argparse
import collections
import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx

from tests.instance import CHECKPOINT, Instance
from tests.visitor import COMPLETE, Tab, fate, outcome, result

PATIENCE = 3.0, 9.0
"""Seconds after which who was refused asks again, least and most."""
THOUGHT = 0.0, 4.0
"""Seconds between two rounds of a visitor."""
TOLERANCE = 1.10
"""Memory and disk afterwards, over those at the start."""
TOKEN = "unique"


def visit(url: str, functions: list[dict], name: str, scene: bytes, draw: random.Random, counts: collections.Counter):
    """One round of one visitor."""
    time.sleep(draw.uniform(*THOUGHT))
    tab = Tab(url, CHECKPOINT, functions=functions)
    question = f"Which mark is on the blue square? {TOKEN}-{name}."
    try:
        image = tab.file(scene)
        heard = []
        for way in (tab.press, tab.ask):
            began = time.monotonic()
            heard.append(way(question, image))
            counts["slowest answer, ms"] = max(counts["slowest answer, ms"], round(1000 * (time.monotonic() - began)))
            counts["questions"] += 1
            became = fate(*heard[-1], COMPLETE)
            counts[became] += 1
            if became.startswith("refused"):
                time.sleep(draw.uniform(*PATIENCE))
        inside = None
        if heard[1][0] and (trace := result(heard[1][1])[1]):
            inside = tab.http.get(trace["url"])
            counts["saw another's run"] += question not in inside.text
        heard += look(tab, inside.content if inside else None, draw, counts)
        for _, said in heard:
            counts["queue messages"] += said.count('"msg":"estimation"')
            counts["saw another's run"] += TOKEN in said.replace(f"{TOKEN}-{name}.", "")
        if draw.random() < 0.3:  # leaves in the middle
            tab.leave(question, image)
            counts["left in the middle"] += 1
    except httpx.TimeoutException:
        counts["time-outs"] += 1
    finally:
        tab.close()


def look(tab: Tab, trace: bytes | None, draw: random.Random, counts: collections.Counter) -> list[tuple[bool, str]]:
    """Inspect and Compare with the visitor's own runs, and a trace of its own; what was heard."""
    heard = []

    def act(what: str, name: str, values: list | None = None, **told: object) -> list:
        heard.append(tab.act(name, values, **told))
        became = fate(*heard[-1])
        counts[f"{what}: {became}"] += 1
        if became.startswith("refused"):
            time.sleep(draw.uniform(*PATIENCE))
        return outcome(heard[-1][1]) if became == "answered" else []

    found = act("inspect", "enter", [None, ""])
    if trace:
        found = act("open a trace", "upload", path=tab.file(trace, "run.safetensors")["path"]) or found
    runs = [id for _, id in found[0]["runs"]] if found else []
    if len(runs) > 1:
        act("compare", "pair", a=runs[0], b=runs[1])
        box = sorted(draw.random() for _ in range(2))
        where = {"level": 0, "layer": 0, "head": 0, "image": 0, "centred": False}
        act("region", "region_1", run=runs[0], box=[box[0] / 2, 0.0, 0.5 + box[1] / 2, 0.6], **where)
        act("read by layer", "read", id=runs[0])
    return heard


def crowd(url: str, visitors: int, seconds: float, counts: collections.Counter, *, first: str) -> None:
    """All visitors until the time is up; each does at least one round."""
    from latent_core import glyphs
    from tests.hostile import written

    functions = httpx.get(f"{url}config").json()["dependencies"]
    end, lock = time.monotonic() + seconds, threading.Lock()

    def live(number: int) -> None:
        draw, turn = random.Random(number), 0
        while not turn or time.monotonic() < end:
            scene = glyphs.sample("find", 1000 * number + turn, split="test").images[0]
            own: collections.Counter = collections.Counter()
            visit(url, functions, f"{first}{number}x{turn}", written(scene, "PNG"), draw, own)
            with lock:
                slowest = max(counts["slowest answer, ms"], own.pop("slowest answer, ms", 0))
                counts.update(own)
                counts["slowest answer, ms"] = slowest
            turn += 1

    threads = [threading.Thread(target=live, args=(number,)) for number in range(visitors)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--warm-up", type=float, default=120, help="seconds before the start (default: %(default)g)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Instance(Path(folder)) as server:
        cold = server.memory()
        crowd(server.url, options.visitors, options.warm_up, collections.Counter(), first="warm")
        start = server.settled()
        counts: collections.Counter = collections.Counter()
        crowd(server.url, options.visitors, options.seconds, counts, first="v")
        peak = server.memory()
        running = httpx.get(f"{server.url}health").json()["running"]
        end = server.settled()
    print(json.dumps({**counts, "running at the end": running}, indent=2))
    print(json.dumps({"memory before the warm-up": cold, "start": start, "peak": peak, "end": end}, indent=2))
    grown = [what for what in start if end[what] > TOLERANCE * start[what]]
    errors = sum(count for what, count in counts.items() if "failed: " in what)
    lost = counts["saw another's run"] or counts["time-outs"] or errors or counts["answered"] < counts["questions"] / 2
    if grown:
        print(f"More than at the start: {', '.join(grown)}.", file=sys.stderr)
    return 1 if grown or lost else 0


if __name__ == "__main__":
    sys.exit(main())
