"""The training loop and its runs on disk."""
