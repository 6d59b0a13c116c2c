"""Inscape as a Hugging Face Space: `app.py` at the root of the tree that build.py makes.

The embedded checkpoints run on the CPU, whose time costs visitors nothing. Where there is a GPU, published checkpoints
are offered behind them, in bfloat16; on ZeroGPU they borrow it for every answer. Read from the environment:

    INSCAPE_CHECKPOINTS                      Hub ids to offer on a GPU, separated by spaces; empty for none
    GRADIO_SERVER_NAME, GRADIO_SERVER_PORT   where to serve
    FORWARDED_ALLOW_IPS                      proxies whose word is taken for where a visitor comes from
    INSCAPE_HOSTS                            names that the page may be opened by, separated by spaces; any without it
"""

import os
import sys
from typing import TYPE_CHECKING

import app  # noqa: F401, its environment must be set before gradio is imported
from app.address import PORT, named_port
from app.signals import ended_by_signals

if TYPE_CHECKING:
    from app.zerogpu import Lend
    from latent_core.reasoner import Reasoner

PUBLISHED = ("NOVAglow646/Monet-7B",)
"""Offered on a GPU unless the environment names others: each takes 17 GB."""
PROXIES = "127.0.0.1,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16"
"""The platform's: private networks, from which no visitor comes."""


def main() -> int:
    """Serves until the Space is stopped; 2 where the environment names what cannot be had, 1 where it cannot serve."""
    try:
        with ended_by_signals():
            return _main()
    except KeyboardInterrupt:
        return 0
    except OSError as problem:
        print(f"The page cannot be served: {problem}", file=sys.stderr)
        return 1


def _main() -> int:
    try:
        port = named_port() or PORT
    except ValueError as problem:
        print(problem, file=sys.stderr)
        return 2
    trust_proxies()
    lend = lender()  # before anything that brings CUDA

    import torch

    from app.runner import Runner
    from app.server import serve
    from latent_core.checkpoints.embedded import available, offered

    published = chosen() if torch.cuda.is_available() else []
    runner = Runner([*offered(), *published], load, others=available(), lend=lend, borrowers=published)
    # Before visitors come, who would all wait for the download. And on ZeroGPU the processes that answer are copies of
    # this one: they know what is loaded now.
    try:
        for name in published:
            runner.reasoner(name)
    except ValueError as problem:
        print(problem, file=sys.stderr)
        return 2
    runner.preload(runner.names[0])
    host = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0")
    serve(runner, host=host, port=port, public=True, allowed_hosts=os.environ.get("INSCAPE_HOSTS", "").split())
    return 0


def trust_proxies() -> None:
    """On a Space all requests come through the platform: the visitor's address is the last that it has not added."""
    if os.environ.get("SPACE_ID"):
        os.environ.setdefault("FORWARDED_ALLOW_IPS", PROXIES)


def lender() -> "Lend | None":
    """ZeroGPU's decorator; None everywhere else."""
    if not os.environ.get("SPACES_ZERO_GPU"):
        return None
    from spaces import GPU

    return GPU


def chosen() -> list[str]:
    """The published checkpoints to offer, by the names that their runs carry."""
    from latent_core.checkpoints.published import full_name

    names = os.environ.get("INSCAPE_CHECKPOINTS")
    return [full_name(name) for name in (PUBLISHED if names is None else names.split())]


def load(name: str) -> "Reasoner":
    """An embedded checkpoint on the CPU, a published one on the GPU."""
    import torch

    from latent_core.checkpoints.embedded import available
    from latent_core.checkpoints.loading import load

    return load(name) if name in available() else load(name, device="cuda", dtype=torch.bfloat16)


if __name__ == "__main__":
    sys.exit(main())
