"""The browser app: thin. It runs models through latent_core, folds their events into a view and draws it."""

import getpass
import os
import sys
import tempfile


def _user() -> str:
    """The user's name, or the number of one who has none, as in containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the latter from Python 3.13 on
        return str(os.getuid())


try:
    _TEMPORARY = tempfile.gettempdir()
except FileNotFoundError:
    sys.exit("Inscape needs a folder for temporary files that it may write to; name one in TMPDIR.")

# Gradio reads this when it is imported; without it start-up looks up the network.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# Uploads and traces lie in a folder of our own, which can be swept; Gradio's own is shared by all its apps.
os.environ.setdefault("GRADIO_TEMP_DIR", os.path.join(_TEMPORARY, f"inscape-{_user()}"))
