"""How the C library treats freed memory."""

from __future__ import annotations

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
MIB = 1 << 20


def keep_freed_blocks() -> None:
    """Let glibc hand out again what was freed, instead of giving it back to the kernel after each block.

    Every step on a block makes temporaries of a few MiB. By default their pages come from the kernel and go back to it each
    time, which took a quarter of the processor time of a TIES merge. Larger tensors still come and go by themselves, and at
    most 32 MiB lie free in each thread. Does nothing where there is no glibc, or where MALLOC_ variables are set already.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(MMAP_THRESHOLD, 16 * MIB)
    mallopt(TRIM_THRESHOLD, 32 * MIB)
