"""The browser app: thin. It runs models through latent_core, folds their events into a view and draws it."""

import getpass
import os
import tempfile

# Gradio reads this when it is imported; without it start-up looks up the network.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# Uploads and traces lie in a folder of our own, which can be swept; Gradio's own is shared by all its apps.
os.environ.setdefault("GRADIO_TEMP_DIR", os.path.join(tempfile.gettempdir(), f"inscape-{getpass.getuser()}"))
