"""The C library's heap, kept from growing by its own cleverness."""

from __future__ import annotations

import contextlib
import ctypes
import sys

M_MMAP_THRESHOLD = -3  # of mallopt(3)
LARGE_BYTES = 131_072  # what glibc begins with


def return_large_blocks() -> bool:
    """Have every large block of this process come from the system and go back to it.

    By itself glibc takes blocks from the heap as soon as one of their size was freed. In a process
    that remembers its newest 20,000 frames, a table of a megabyte, made anew now and then, lands
    among small blocks that live long: the heap then grew by steps of a megabyte over 250,000
    frames. To name the threshold, even as it is, ends that. A process that takes and frees an
    image for each frame should not: each would come fresh from the system.

    Whether this C library knows the setting.
    """
    if sys.platform.startswith("linux"):
        with contextlib.suppress(AttributeError):  # another C library, such as musl
            return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES))
    return False
