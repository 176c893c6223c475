"""Memory that is given back to the system when it is freed."""

from __future__ import annotations

import contextlib
import ctypes

_M_MMAP_THRESHOLD = -3
_LARGE_BYTES = 1 << 20


def give_back_large_blocks() -> None:
    """Have blocks of 1 MiB and more mapped one by one, for a process that computes slides.

    glibc keeps freed blocks of up to 32 MiB for later, in an arena for each thread. Threads that
    hand each other pixels and labels of different tiles leave holes there: a run over 20,000 x
    20,000 px took 1.0 GB instead of 0.55, and more the longer it ran. Mapping takes about 5 % of
    the run's time in int8, less in fp32.
    """
    # Other C libraries have no such thing, and Windows no such handle.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
