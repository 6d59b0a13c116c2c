"""Everything that a hostile visitor is known to try, one after the other, by hand: `python -m tests.siege`.

One public instance on this machine. While each attack of tests/attacks goes on, and for some seconds after it, an
honest visitor asks questions and a prober asks /health. Exits with 1, and says why, where one of these is broken:

- /health answers within a second, during the attack and after it;
- every try of the honest visitor ends within ten seconds, with an answer or a sentence that says to wait; who is sent
  away is answered within ten seconds of that, trying again;
- a minute later at most, a visitor is answered at once again, with no need to start the instance anew;
- no more runs at once than are allowed; a log that grows by less than a megabyte; memory below a bound;
- nothing that the attack itself looks for: a traceback, an answer without headers, another's run gone;
- at the end, memory and disk are back to within a tenth of the start, which is after a warm-up as in tests/soak.py.

Prints a table for docs/THREATS.md. Linux only.
"""

import argparse
import collections
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from app.limits import PUBLIC
from latent_core.evaluation import tables
from tests.attacks import ATTACKS, Attack, connections, runs, traces, uploads  # noqa: F401, they list their attacks
from tests.instance import KEEP_SECONDS, Instance
from tests.soak import TOLERANCE, crowd
from tests.watch import Honest, Meter, Prober

HEALTH = 1.0
"""Seconds within which /health answers."""
ANSWER = 10.0
"""Seconds within which an honest visitor's try ends, and within which who was refused is answered."""
LOG = 1_000_000
"""Bytes by which the log may grow during one attack."""
MEMORY = 3_000_000_000
"""Bytes above which the instance is ended, to spare the machine."""
LONGEST = 150.0
"""Seconds after which an attack is ended."""
SETTLE = 10.0
"""Seconds after an attack for which everybody goes on looking."""
RECOVERY = 60.0
"""Seconds after which an instance that does not answer quickly again is taken for dead."""


@dataclass
class Result:
    """What was seen of one attack. Seconds and bytes."""

    name: str
    sent: str
    seconds: float = 0.0
    health: float = 0.0
    health_after: float = 0.0
    answer: float = 0.0
    """The longest try of an honest visitor."""
    waited: float = 0.0
    """The longest time from a refusal to the answer."""
    questions: dict[str, int] = field(default_factory=dict)
    """What became of the honest visitor's questions, and how many tries were refused."""
    running: int = 0
    memory: int = 0
    files: int = 0
    disk: int = 0
    logged: int = 0
    ended: str | None = None
    """Why the instance had to be started anew."""
    heard: dict[str, int] = field(default_factory=dict)
    """What the attacker was told, most frequent first."""
    breaches: list[str] = field(default_factory=list)
    """What the attack itself saw broken."""

    def broken(self, least_running: int = 0) -> list[str]:
        """Each bound that did not hold, in words."""
        found = list(self.breaches)
        if self.ended:
            found.append(self.ended)
        if self.health >= HEALTH or self.health_after >= HEALTH:
            found.append(f"/health took {self.health:.1f} s, and {self.health_after:.1f} s afterwards")
        if self.answer >= ANSWER or self.waited >= ANSWER:
            found.append(f"an honest try took {self.answer:.1f} s, and the answer after a refusal {self.waited:.1f} s")
        found += [f"an honest question {became}" for became in self.questions if became.startswith("failed")]
        if not self.questions.get("answered"):
            found.append("no honest question was answered")
        if not least_running <= self.running <= PUBLIC.at_once:
            found.append(f"{self.running} runs at once, where {least_running} to {PUBLIC.at_once} are to be")
        if self.logged > LOG:
            found.append(f"the log grew by {self.logged / 1e6:.1f} MB")
        return found


def besiege(instance: Instance, attack: Attack, *, scale: float, most_memory: int, longest: float) -> Result:
    """Makes one attack and looks on. Starts the instance anew where it does not survive it."""
    result, logged = Result(attack.name, attack.sent), instance.logged()
    attacker = subprocess.Popen(
        [sys.executable, "-m", "tests.attacks", attack.name, instance.url, str(scale), str(longest)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert attacker.stdin is not None and attacker.stdout is not None
    if attacker.stdout.readline() != "ready\n":
        raise RuntimeError(f"The attack {attack.name} could not be prepared.")
    prober, honest, meter = Prober(instance), Honest(instance), Meter(instance, most_memory)
    honest.open()
    watchers = (prober, honest, meter)
    for watcher in watchers:
        watcher.start()
    killer = threading.Timer(longest + SETTLE, attacker.kill)  # where it cannot even end itself
    killer.start()
    began = time.monotonic()
    attacker.stdin.write("go\n")
    attacker.stdin.flush()
    said = attacker.stdout.read()
    end = time.monotonic()
    killer.cancel()
    attacker.wait()
    time.sleep(SETTLE)
    for watcher in watchers:
        watcher.end()
    report = json.loads(said) if said else {"heard": {}, "broken": ["the attack itself broke down"]}
    counts = collections.Counter(question.became.partition(": ")[0] for question in honest.questions)
    tries = [each for question in honest.questions for each in question.tries]
    counts.update(became for became, _ in tries if became.startswith("failed"))
    del counts["failed"]
    counts["tries refused"] = sum(became.startswith("refused") for became, _ in tries)
    result.questions = {became: count for became, count in counts.items() if count}
    result.heard, result.breaches = report["heard"], report["broken"]
    result.seconds, result.running = end - began, prober.running()
    result.health, result.health_after = prober.worst(began, end), prober.worst(end)
    result.answer = max((seconds for _, seconds in tries), default=0.0)
    result.waited = max((question.waited for question in honest.questions), default=0.0)
    result.memory, result.files, result.disk = meter.memory, meter.files, meter.disk
    result.logged = instance.logged() - logged
    if meter.killed or not recovers(instance):
        result.ended = f"more than {most_memory / 1e9:g} GB of memory" if meter.killed else "the instance was dead"
        instance.stop()
        instance.start()
    return result


def recovers(instance: Instance) -> bool:
    """Whether an honest visitor is answered at once again, not later than a minute after an attack."""
    honest, end = Honest(instance), time.monotonic() + RECOVERY
    while instance.process.poll() is None and time.monotonic() < end:
        honest.look()
        if honest.questions[-1].became == "answered" and honest.questions[-1].tries[-1][1] < ANSWER:
            return True
        time.sleep(2.0)
    return False


def grown(start: dict[str, int], end: dict[str, int]) -> list[str]:
    """What has not come back to within a tenth of the start, in words."""
    return [
        f"{what} is {end[what] / 1e6:,.0f} MB, at the start {start[what] / 1e6:,.0f} MB"
        for what in start
        if end[what] > TOLERANCE * start[what]
    ]


def table(results: list[Result]) -> str:
    """The results as Markdown."""
    header = ["attack", "what was sent", "worst /health during, after", "worst honest try, wait", "peak memory"]
    rows = [
        [
            result.name,
            result.sent,
            f"{result.health:.2f} s, {result.health_after:.2f} s",
            f"{result.answer:.1f} s, {result.waited:.1f} s",
            f"{result.memory / 1e9:.2f} GB",
            "; ".join(f"{count} × {what}" for what, count in list(result.heard.items())[:3]),
        ]
        for result in results
    ]
    return tables.table([*header, "most heard"], rows).rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.siege", description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="list the attacks")
    parser.add_argument("--only", action="append", choices=list(ATTACKS), metavar="NAME", help="this attack; repeat")
    parser.add_argument("--scale", type=float, default=1.0, help="of the attacks' counts (default: %(default)g)")
    parser.add_argument("--warm-up", type=float, default=120, help="seconds before the start (default: %(default)g)")
    parser.add_argument("--rest", type=float, default=300, help="seconds before the end (default: %(default)g)")
    parser.add_argument("--longest", type=float, default=LONGEST, help="seconds of an attack (default: %(default)g)")
    parser.add_argument("--most-memory", type=int, default=MEMORY, help="bytes of the instance (default: %(default)d)")
    options = parser.parse_args()
    chosen = [attack for name, attack in ATTACKS.items() if not options.only or name in options.only]
    if options.list:
        print("\n".join(f"{attack.name}: {attack.sent}" for attack in chosen))
        return 0
    results, broken = [], {}
    with tempfile.TemporaryDirectory() as folder, Instance(Path(folder)) as instance:
        start = None
        if options.warm_up:
            crowd(instance.url, 50, options.warm_up, collections.Counter(), first="warm")
            start = instance.settled()
        for attack in chosen:
            result = besiege(
                instance, attack, scale=options.scale, most_memory=options.most_memory, longest=options.longest
            )
            results.append(result)
            broken[attack.name] = result.broken(attack.least_running)
            verdict = "; ".join(broken[attack.name]) or "held"
            print(json.dumps({**asdict(result), "verdict": verdict}, ensure_ascii=False), flush=True)
        if start:
            time.sleep(max(0.0, options.rest - KEEP_SECONDS * 1.6))
            end = instance.settled()
            print(json.dumps({"start": start, "end": end}))
            broken["afterwards"] = grown(start, end)
    print(table(results))
    for name, bounds in broken.items():
        for bound in bounds:
            print(f"{name}: {bound}.", file=sys.stderr)
    return 1 if any(broken.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
