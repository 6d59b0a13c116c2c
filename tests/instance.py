"""One public instance in a process of its own, seen from outside: its address, memory, files and log.

Linux only: memory and processes are read from /proc.
"""

import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

KEEP_SECONDS = 120.0
"""How long an instance keeps files, in place of an hour, so that their end can be seen: longer than anybody waits, and
than an attack needs its own."""
CHECKPOINT = "glyph-monet"
DESCRIPTORS = 1024
"""Files and connections that it may have open at once: what most systems give a service."""


class Instance:
    """A public instance on 127.0.0.1, with uploads, traces and log below `folder`; it ends with its `with`."""

    def __init__(self, folder: Path) -> None:
        self.uploads, self.log = folder / "uploads", folder / "log"

    def __enter__(self) -> "Instance":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serves, at `url`. Raises RuntimeError where it does not come up."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.instance"],
                env={**os.environ, "GRADIO_TEMP_DIR": str(self.uploads)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # a group of its own, so that all of it can be ended
                text=True,
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError(f"The instance did not come up:\n{self.log.read_text()[-2000:]}")

    def stop(self) -> None:
        """Ends it, by force if it does not end by itself within ten seconds, with all that it has started."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:  # all have ended by themselves
            pass
        self.process.wait()

    def memory(self) -> int:
        """Bytes of the process and all that it has started, what they share counted once."""
        return sum(map(_proportional, family(self.process.pid)))

    def disk(self) -> int:
        """Bytes of the uploads' folder."""
        return sum(map(_size, self._stored()))

    def files(self) -> int:
        """How many files lie there."""
        return sum(1 for _ in self._stored())

    def _stored(self) -> Iterator[str]:
        return (os.path.join(folder, name) for folder, _, names in os.walk(self.uploads) for name in names)

    def logged(self) -> int:
        """Bytes of the log."""
        return self.log.stat().st_size

    def settled(self) -> dict[str, int]:
        """Memory and disk once its visitors' files are due to be gone."""
        time.sleep(KEEP_SECONDS * 1.6)
        return {"memory": self.memory(), "disk": self.disk()}


def _size(file: str) -> int:
    """Bytes of a file; 0 for one that has just been deleted."""
    try:
        return os.lstat(file).st_size
    except FileNotFoundError:
        return 0


def family(process: int) -> list[int]:
    """A process and all that it and its children have started, it first."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(") ")[2].split()  # the name before it may hold anything
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    found = [process]
    for each in found:
        found += children.get(each, [])
    return found


def _proportional(process: int) -> int:
    """Bytes of a process, a page that n processes share as 1/n; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def main() -> None:
    """Prints the address, then serves until the input ends."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    from app.limits import PUBLIC
    from app.runner import Runner
    from app.server import serve
    from latent_core.checkpoints import loading as checkpoints

    runner = Runner([CHECKPOINT], checkpoints.load, limits=dataclasses.replace(PUBLIC, keep_seconds=KEEP_SECONDS))
    page = serve(runner, host="127.0.0.1", port=None, wait=False, public=True)
    print(page.local_url, flush=True)
    os.dup2(2, 1)  # what is printed later is log
    sys.stdin.read()
    page.close()


if __name__ == "__main__":
    main()
