"""Makes one attack: `python -m tests.attacks NAME URL SCALE SECONDS`. Says when it is ready, begins when told to.

A process of its own, and a patient one, so that it takes no more of a machine than a stranger elsewhere would.
"""

import json
import os
import resource
import sys
import threading

from tests.attacks import ATTACKS, Attacker, connections, runs, traces, uploads  # noqa: F401, they list their attacks


def main() -> None:
    name, url, scale, seconds = sys.argv[1:]
    os.nice(10)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 8192), most))
    attacker = Attacker(url, float(scale))
    steps = ATTACKS[name].run(attacker)
    next(steps)
    print("ready", flush=True)
    sys.stdin.readline()
    attacking = threading.Thread(target=list, args=(steps,), daemon=True)
    attacking.start()
    attacking.join(float(seconds))
    if attacking.is_alive():
        attacker.hear(f"not at an end after {seconds} s")
    print(json.dumps({"heard": dict(attacker.heard.copy().most_common()), "broken": attacker.broken}), flush=True)
    os._exit(0)  # threads that still wait for an answer are not waited for


if __name__ == "__main__":
    main()
