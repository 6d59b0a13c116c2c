"""Settings of glibc's allocator, which likes to keep the memory that threads have freed. Elsewhere they do nothing."""

import ctypes
import sys

_ARENAS = -8
"""The parameter of glibc's mallopt that limits the number of heaps: M_ARENA_MAX in malloc.h."""


def one_heap() -> None:
    """Lets all threads take their memory from one heap; to be called before any of them starts.

    By itself glibc has one for each of some threads, and gives back what is free at the end of the first one alone:
    after answers of 8 MB the others keep hundreds.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_ARENAS, 1)


def give_back() -> None:
    """Gives freed memory back to the system."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") else None
