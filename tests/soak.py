"""Many visitors at once for a while, by hand: `python -m tests.soak --visitors 50 --seconds 600`.

One public instance on the CPU in a process of its own. Every visitor again and again opens a session, asks its own
question on the page and as a program, inspects the run, and leaves, sometimes in the middle; who is refused waits for
some seconds. Reported: what became of the questions, who waited, whether anybody saw another's run, memory and disk of
the server before and after. Exits with 1 where a run was lost or seen by another, where fewer than half of the
questions were answered, or where memory or disk do not come back to within 10% of their start.

The start is after a warm-up: until 40 threads have computed and Gradio's 100 sessions are in place, the server grows.

Linux only: memory is read from /proc.
"""

import argparse
import collections
import dataclasses
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx

from tests.visitor import Tab, result

KEEP_SECONDS = 60.0
"""How long the instance keeps files, in place of an hour, so that their end can be seen: longer than anybody waits."""
PATIENCE = 3.0, 9.0
"""Seconds after which who was refused asks again, least and most."""
THOUGHT = 0.0, 4.0
"""Seconds between two rounds of a visitor."""
TOLERANCE = 1.10
"""Memory and disk afterwards, over those at the start."""
CHECKPOINT = "glyph-monet"
TOKEN = "unique"


def serve() -> None:
    """The instance: prints its address, then serves until its input ends."""
    from app.limits import PUBLIC
    from app.runner import Runner
    from app.server import serve
    from latent_core import checkpoints

    runner = Runner([CHECKPOINT], checkpoints.load, limits=dataclasses.replace(PUBLIC, keep_seconds=KEEP_SECONDS))
    page = serve(runner, host="127.0.0.1", port=None, wait=False, public=True)
    print(page.local_url, flush=True)
    sys.stdin.read()
    page.close()


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
            became = fate(*heard[-1])
            counts[became] += 1
            if became.startswith("refused"):
                time.sleep(draw.uniform(*PATIENCE))
        for _, said in heard:
            counts["queue messages"] += said.count('"msg":"estimation"')
            counts["saw another's run"] += TOKEN in said.replace(f"{TOKEN}-{name}.", "")
        if heard[1][0] and (trace := result(heard[1][1])[1]):
            inside = tab.http.get(trace["url"]).text
            counts["saw another's run"] += question not in inside
        ok, said = tab.join(tab.numbers["enter"], [None, ""])
        counts["inspected"] += ok
        counts["saw another's run"] += TOKEN in said.replace(f"{TOKEN}-{name}.", "")
        if draw.random() < 0.3:  # leaves in the middle
            tab.leave(question, image)
            counts["left in the middle"] += 1
    except httpx.TimeoutException:
        counts["time-outs"] += 1
    finally:
        tab.close()


def fate(ok: bool, said: str) -> str:
    """What became of a question, by what its visitor heard."""
    if ok and re.search(r'"reason": ?"(stop|length)"', said):
        return "answered"
    if "Queue is full" in said:
        return "refused, queue full"
    if "in a minute; wait" in said:
        return "refused, too many"
    told = re.search(r'"(?:problem|error)": ?"([^"]+)"', said)
    return f"error: {told[1] if told else said[-160:]}"


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


def memory(process: int) -> int:
    """Resident bytes of a process."""
    (line,) = [line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return 1024 * int(line.split()[1])


def measured(server: subprocess.Popen, folder: str) -> dict[str, int]:
    """Memory and disk of the server once its visitors' files are due to be gone."""
    from app.retention import stored_bytes

    time.sleep(KEEP_SECONDS * 1.6)
    return {"memory": memory(server.pid), "disk": stored_bytes(folder)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--warm-up", type=float, default=120, help="seconds before the start (default: %(default)g)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.soak", "--serve"],
            env={**os.environ, "GRADIO_TEMP_DIR": folder},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdin is not None and server.stdout is not None
        try:
            url = server.stdout.readline().strip()
            cold = memory(server.pid)
            crowd(url, options.visitors, options.warm_up, collections.Counter(), first="warm")
            start = measured(server, folder)
            counts: collections.Counter = collections.Counter()
            crowd(url, options.visitors, options.seconds, counts, first="v")
            peak = memory(server.pid)
            running = httpx.get(f"{url}health").json()["running"]
            end = measured(server, folder)
        finally:
            server.stdin.close()
            server.wait(timeout=60)
    print(json.dumps({**counts, "running at the end": running}, indent=2))
    print(json.dumps({"memory before the warm-up": cold, "start": start, "peak": peak, "end": end}, indent=2))
    grown = [what for what in start if end[what] > TOLERANCE * start[what]]
    errors = sum(count for what, count in counts.items() if what.startswith("error"))
    lost = counts["saw another's run"] or counts["time-outs"] or errors or counts["answered"] < counts["questions"] / 2
    if grown:
        print(f"More than at the start: {', '.join(grown)}.", file=sys.stderr)
    return 1 if grown or lost else 0


if __name__ == "__main__":
    sys.exit(main())
