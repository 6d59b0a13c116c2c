"""The browser app, a thin layer: it runs models through latent_core, folds their events into a view and draws it."""

import getpass
import os
import sys
import tempfile

from app.heap import one_heap


def _folder() -> str:
    """Where visitors' files lie: a folder of our own, which can be swept, below the one that is named for them."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number without an entry in passwd, as in containers
        user = str(os.getuid())
    try:
        named = os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()
    except FileNotFoundError:
        sys.exit("Inscape needs a folder for temporary files that it may write to; name one in TMPDIR.")
    name = f"inscape-files-{user}"
    # a process that this one starts finds the folder itself in the variable
    return named if os.path.basename(named) == name else os.path.join(named, name)


# Gradio reads these when it is imported; without the first, start-up looks up the network.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# It would keep figures of the last 10,000 events, and add all of them up anew at the end of each.
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000000")
os.environ["GRADIO_TEMP_DIR"] = _folder()
one_heap()  # before torch and Gradio are imported, which may start threads
