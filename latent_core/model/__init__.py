"""The backbone and what stands around it: attention, cache, processor, images."""
