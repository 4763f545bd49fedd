"""Who goes first on a full machine: those that pass frames and verdicts on, and the gate keeper.

What they do takes a fraction of a millisecond, and a frame meets a dozen of them on its way. Behind
the engine, which works for many milliseconds at a time, each would wait for its turn: at four
fifths of the load that two cores carry, near a gate, three times as many parts were UNDECIDED.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

URGENT_NICENESS = -10
ON_LINUX = sys.platform.startswith("linux")


def hurry(thread: int = 0) -> None:
    """Let a thread (the calling one; of a process, its first) go before others, to its end.

    On Linux a thread has a niceness of its own, which those that it starts inherit. One below 0
    needs a right that few have; where it is lacking nothing changes.
    """
    _become(thread or threading.get_native_id(), URGENT_NICENESS)


@contextmanager
def hurrying() -> Iterator[None]:
    """Let the calling thread go before others for a while."""
    thread = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, thread) if ON_LINUX else 0
    _become(thread, URGENT_NICENESS)
    try:
        yield
    finally:
        _become(thread, before)


def _become(thread: int, niceness: int) -> None:
    if ON_LINUX:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, niceness)
