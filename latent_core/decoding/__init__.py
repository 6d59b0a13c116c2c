"""Decoding and unrolling: a sequence as a coroutine from prompt to answer, and batches of them."""
