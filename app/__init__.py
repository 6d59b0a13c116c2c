"""The browser app: thin. It runs models through latent_core, folds their events into a view and draws it."""

import os

# Gradio reads this when it is imported; without it start-up looks up the network.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
