"""The backbone, with its attention, cache, processor and images."""
