"""`python -m app`: the page in a browser, with the checkpoints that come with Inscape or one of your own."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import app  # noqa: F401, its environment must be set before gradio is imported
from app.address import as_port, named_port
from app.signals import ended_at_once, ended_by_signals

if TYPE_CHECKING:
    from latent_core.reasoner import Reasoner


def main(arguments: list[str] | None = None) -> int:
    """Serves until it is ended by Ctrl-C or SIGTERM; 2 for arguments that cannot be used, 1 where it cannot serve."""
    try:
        with ended_by_signals():
            return _main(arguments)
    except KeyboardInterrupt:
        return 0


def _main(arguments: list[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m app", description="Watch a model think in latents.")
    parser.add_argument("--port", type=_port, help="default: the first free one from 7860")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="0.0.0.0 lets other machines in, :: those with IPv6 too (default: %(default)s)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name that the page is opened by, for example a proxy's; with --public: no others",
    )
    parser.add_argument(
        "--model",
        "--checkpoint",
        help="a published checkpoint (Monet-7B), a folder or a Hub id to offer first, beside the embedded ones",
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser window")
    parser.add_argument(
        "--public",
        action="store_true",
        help="for visitors you do not know: tighter limits, and no routes or files but those that the page needs",
    )
    options = parser.parse_args(arguments)
    try:
        named_port()
    except ValueError as problem:
        parser.error(str(problem))

    # From here on the imports that take seconds, after what is answered without them: --help and wrong arguments.
    from app.processes import prepare

    prepare()  # beside the imports that follow

    from app.runner import Runner
    from app.server import serve
    from latent_core.checkpoints.embedded import available, offered

    if options.public and options.model and options.model not in available() and Path(options.model).is_dir():
        print(
            f"{options.model} is a folder of this machine, and a public page shows everybody its checkpoints' names: "
            "name a Hub id, or put the checkpoint into assets/checkpoints.",
            file=sys.stderr,
        )
        return 2
    try:
        sources = prepared(options.model) if options.model else {}
    except ValueError as problem:
        print(problem, file=sys.stderr)
        return 2
    names = list(dict.fromkeys([*sources, *offered()]))
    if not names:
        print("There is no checkpoint here: run `make glyphs`, or name one with --model.", file=sys.stderr)
        return 2
    runner = Runner(names, _load, others=available(), folders=sources)
    runner.preload(names[0])
    try:
        serve(
            runner,
            host=options.host,
            port=options.port,
            open_browser=not options.no_browser,
            public=options.public,
            allowed_hosts=options.allow_host,
        )
    except OSError as problem:
        print(f"The page cannot be served: {problem}", file=sys.stderr)
        return 1
    return 0


def prepared(name: str) -> dict[str, str]:
    """What a checkpoint is called, and what it is loaded by: the folder of one that lies on this machine.

    Fetches it if need be, and says what it is and where it will run. Raises ValueError for one that cannot be had or
    that this machine has no memory for, and for one whose files do not fit together.
    """
    # these bring torch and transformers, which who names no model does not wait for
    from latent_core.checkpoints.loading import find, planned, read_parts
    from latent_core.checkpoints.published import PUBLISHED, full_name

    called = full_name(name)
    if called in PUBLISHED:
        print(PUBLISHED[called].summary())
    source = name if Path(name).is_dir() else called
    # before anything is fetched, as far as the size is known by then
    with ended_at_once():
        print(planned(source).reason)
        folder = find(source)
    read_parts(folder, called)
    return {called: str(folder) if Path(source).is_dir() else source}


def _port(text: str) -> int:
    try:
        return as_port(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


def _load(name: str) -> "Reasoner":
    """latent_core.load, whose seconds of imports the page does not wait for."""
    from latent_core import load

    return load(name)


if __name__ == "__main__":
    sys.exit(main())
