"""`python -m app`: the page in a browser, with the checkpoints that come with Inscape or one of your own."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import app  # noqa: F401, its environment must be set before gradio is imported

if TYPE_CHECKING:
    from latent_core.reasoner import Reasoner


def main(arguments: list[str] | None = None) -> int:
    """Serves until interrupted; 2 for arguments that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m app", description="Watch a model think in latents.")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: %(default)s)")
    parser.add_argument("--checkpoint", help="a folder or Hub id to offer first, beside the embedded ones")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser window")
    parser.add_argument(
        "--public",
        action="store_true",
        help="for visitors whom nobody knows: tighter limits, no routes and files beyond what the page needs",
    )
    options = parser.parse_args(arguments)

    from app.runner import Runner
    from app.server import serve
    from latent_core.embedded import available, offered

    given = [options.checkpoint] if options.checkpoint else []
    names = list(dict.fromkeys([*given, *offered()]))
    try:
        if options.checkpoint:
            from latent_core.checkpoints import find

            find(options.checkpoint)
    except ValueError as problem:
        print(problem, file=sys.stderr)
        return 2
    if not names:
        print("No checkpoint is here: run `make glyphs`, or name one with --checkpoint.", file=sys.stderr)
        return 2
    if options.public and (folders := [name for name in names if name not in available() and Path(name).is_dir()]):
        print(
            f"{folders[0]} is a folder of this machine, and a public page shows its checkpoints' names to everybody: "
            "name a Hub id, or put the checkpoint into assets/checkpoints.",
            file=sys.stderr,
        )
        return 2
    runner = Runner(names, _load, others=available())
    runner.preload(names[0])
    try:
        serve(runner, host=options.host, port=options.port, open_browser=not options.no_browser, public=options.public)
    except OSError as problem:
        print(f"The page cannot be served: {problem}", file=sys.stderr)
        return 1
    return 0


def _load(name: str) -> "Reasoner":
    """latent_core.load, whose seconds of imports the page does not wait for."""
    from latent_core import load

    return load(name)


if __name__ == "__main__":
    sys.exit(main())
