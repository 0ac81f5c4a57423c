"""What the C library does with memory that a local step frees."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""


def keep_freed() -> None:
    """Have this process keep up to 256 MiB that have been freed; pieces of more than 32 MiB still go back at once.

    Every local step makes and frees the same intermediate results. By default glibc may return them to the system each
    time, which then clears the same pages anew for every step; whether it does hangs on what happened to be allocated
    last. Clearing took up to half of the time of a step of the second-order paper's CNN. Only Linux's glibc is known to
    do so, and only there is anything changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**25)
        mallopt(M_TRIM_THRESHOLD, 2**28)
