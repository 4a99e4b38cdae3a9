"""The C library's heap: memory that tensors of the CPU have freed is kept for the next ones.

By default glibc gives large blocks back to the system at once, and every step fetches the same memory again, page by
page (test/bench/results/step.md).
"""
import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4       # of malloc.h
_MOST = 2 ** 31 - 1                                     # that an int holds


def keep_freed_memory():
    """Ask for it; returns whether the C library has understood."""
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    return bool(mallopt and mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _MOST) and mallopt(_TOP_PAD, 2 ** 28))
