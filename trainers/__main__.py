"""The command line: `python -m trainers --help`. What it needs takes seconds to import."""

import os
import signal
import sys


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status, see trainers/commands.py."""
    before = signal.signal(signal.SIGINT, _leave)
    try:
        from trainers.commands import main as command
    finally:
        signal.signal(signal.SIGINT, before)
    return command(argv)


def _leave(*_: object) -> None:
    """Ends the program at once: nothing is under way yet, and a library may swallow an exception as it loads."""
    os.write(2, b"Interrupted.\n")
    os._exit(130)


if __name__ == "__main__":
    status = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C, while threads and files are closed
    sys.exit(status)
