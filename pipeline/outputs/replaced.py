"""A small file that readers find whole, replaced many times a second.

A new file for each writing, renamed over the one before, leaves a deleted one each time. Before it
makes any file, ext4 goes through all that were deleted near it within the last minute or more: at
ten writings a second each took 100 to 1000 us, and so did every new file of the archive beside it.
So there are two files that change places: the spare one is written, then both are exchanged in one
step. One that is still being read, or a system that knows no such step, has a new file made.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
from pathlib import Path

AT_FDCWD = -100
RENAME_EXCHANGE = 2  # of renameat2(2)
_LIBC = ctypes.CDLL(None)


class Replaced:
    """Writes the file at ``path``; who opens it finds one writing, whole, for as long as they read.

    One writer at a time. Nothing is synced: what a power cut leaves may be an earlier writing, here
    or in the spare file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spare = path.with_name(f"{path.name}.spare")

    def write(self, content: bytes) -> None:
        """Replace what the file holds; OSError where it stays as it was."""
        spare = _unread(self.spare)
        try:
            if os.write(spare, content) != len(content):
                raise OSError("the disk took only a part of the file")
            os.ftruncate(spare, len(content))
        finally:
            os.close(spare)  # which ends the lease
        if not _exchanged(self.spare, self.path):
            self.spare.replace(self.path)


def _unread(path: Path) -> int:
    """A descriptor to write what is at ``path``, or to a new file where somebody may read it."""
    found = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    if _is_leased(found):
        return found
    os.close(found)
    path.unlink()
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)


def _is_leased(file: int) -> bool:
    """Whether nobody else has the file open, nor can before it is closed: fcntl(2), F_SETLEASE.

    A reader that comes now waits until then; the signal about it is one that is ignored.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:  # EAGAIN: it is open; or a file system without leases
        return False
    return True


def _exchanged(one: Path, other: Path) -> bool:
    """Whether two files have changed places; not where there is only one, or no such call."""
    call = getattr(_LIBC, "renameat2", None)  # of Linux, with a C library that knows it
    names = (os.fsencode(one), os.fsencode(other))
    return call is not None and call(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0
